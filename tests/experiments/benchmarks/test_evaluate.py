"""Evaluation is timed as users run it, the network alone on the same pixels."""

import dataclasses
import types

import numpy as np
import pytest

from experiments.benchmarks import evaluate as bench
from experiments.benchmarks import input as input_benchmark
from ss_gan_tf import inference

SETTINGS = {"arm": "vgg16_g", "width": 0.03125, "metrics": "full"}


@pytest.fixture(scope="module")
def small():
    """Both data sets with small images, and windows that fit them."""
    sizes = {"voc": (40, 60), "cityscapes": (70, 150)}
    cases = [
        dataclasses.replace(case, height=sizes[case.name][0], width=sizes[case.name][1])
        for case in input_benchmark.CASES
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_benchmark, "CASES", cases)
        patch.setattr(bench, "IMAGES", {"voc": 3, "cityscapes": 2})
        patch.setattr(bench, "WINDOW", 64)
        yield


@pytest.fixture(scope="module")
def data_dir(small, tmp_path_factory):
    return bench.draw(tmp_path_factory.mktemp("drawn"))


def seen_by_the_network(monkeypatch, work):
    """The pixels that each forward pass of a piece of work is given."""
    seen, make_network = [], inference.make_network

    def spying(generator, *args):
        network = make_network(generator, *args)

        def spy(images):
            seen.append(np.array(images))
            return network(images)

        return spy

    monkeypatch.setattr(inference, "make_network", spying)
    monkeypatch.setattr(inference.tf, "function", lambda **_: lambda f: f)
    work()
    return sorted((x.shape, x.tobytes()) for x in seen)


@pytest.mark.parametrize("data, mode", bench.ROWS)
def test_the_network_alone_sees_what_evaluation_shows_it(
    data, mode, data_dir, monkeypatch
):
    spec = SETTINGS | {"data": data, "mode": mode, "data_dir": data_dir}
    passes = {
        name: seen_by_the_network(
            monkeypatch, lambda name=name: bench.build(spec)[name]()
        )
        for name in ("evaluate", "network")
    }
    assert passes["evaluate"] == passes["network"]
    # Rows of windows at 0 and 6, each with windows at 0, 43 and 86: two and one.
    expected = {"voc": 3, "cityscapes": 2 if mode == "whole" else 2 * 2 * 2}[data]
    assert len(passes["network"]) == expected


def test_a_row_holds_what_follows_from_the_times(monkeypatch):
    clock = iter(range(10**6))

    class FakeWorker:
        names = ("evaluate", "network")

        def __init__(self, builder, spec):
            assert builder == "experiments.benchmarks.evaluate:build"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def call(self, name):
            next(clock)

        def peak_memory(self):
            return 2_000_000_000

    def interleave(variants, repeats):
        assert repeats == 3
        return {"evaluate": [4.0, 5.0, 9.0], "network": [4.0, 4.5, 4.4]}

    monkeypatch.setattr(bench.workers, "Worker", FakeWorker)
    monkeypatch.setattr(bench.timing, "interleave", interleave)
    monkeypatch.setattr(bench, "draw", lambda root: str(root))
    values = types.SimpleNamespace(
        arm="vgg16", eval_width=0.5, eval_metrics=["basic"], repeats=3, bench_dir="x"
    )
    result = bench.run(values)
    assert [(r["data"], r["mode"]) for r in result["rows"]] == list(bench.ROWS)
    row = result["rows"][1]
    assert row["images"] == 2 and row["images_per_second"] == 2 / 5
    assert row["busy"] == pytest.approx(4.4 / 5) and row["peak_memory"] == 2e9
    lines = bench.format(result).splitlines()
    assert "vgg16, width 0.5" in lines[0] and len(lines) == 2 + 2 + 3
    cells = [cell.strip() for cell in lines[5].strip("|").split("|")]
    assert cells[:4] == ["cityscapes", "whole", "basic", "2"]
    assert cells[-2:] == ["88%", "2.00"]
