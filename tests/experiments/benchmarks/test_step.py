import os
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from experiments.benchmarks import peers, step, step_rows
from ss_gan_tf import dilation

SETTINGS = {
    "arm": "vgg16_g",
    "crop_size": 64,
    "batch_size": 1,
    "num_classes": 3,
    "width": 0.03125,
    "precision": "float32",
    "library": "ours, jit off",
    "phases": list(step_rows.PHASES),
}


@pytest.fixture(scope="module")
def work():
    return step.build_ours(SETTINGS)


def test_the_phases_are_the_runs_own(work):
    scalars = {phase: work[phase]() for phase in step_rows.PHASES}
    assert set(scalars["phase1"]) == set(scalars["control"])
    assert "loss/loss_d" in scalars["adversarial"]
    assert all(np.isfinite(s["loss/mce"]) for s in scalars.values())
    assert work["product"]() == step_rows.PRODUCT_SIZE  # of ones


def test_the_adversary_adds_arithmetic(work):
    flops = work["flops"]()
    assert flops["phase1"] == flops["control"] < flops["adversarial"]
    # The first convolution of VGG16 alone, forward: 64 * 64 * 8 sums of 27 products.
    assert flops["phase1"] > 2 * 64 * 64 * 8 * 27


def test_arithmetic_counts_the_same_whatever_this_device_differentiates(monkeypatch):
    counts = []
    for differentiates in (True, False):
        monkeypatch.setattr(
            dilation, "device_differentiates_dilation", lambda _, it=differentiates: it
        )
        settings = {**SETTINGS, "arm": "resnet50", "phases": ["phase1"]}
        counts.append(step.build_ours(settings)["flops"]())
    assert counts[0] == counts[1]


def test_without_a_no_adversary_is_built():
    steps, networks = step.make_steps({**SETTINGS, "phases": ["phase1"]})
    assert list(steps) == ["phase1"] and networks.adversary is None


def test_batch_norm_is_frozen_as_it_is_from_imagenet_weights():
    settings = {**SETTINGS, "arm": "resnet50", "phases": ["phase1"]}
    traced = step.make_steps(settings)[0]["phase1"].get_concrete_function(
        *map(tf.constant, step_rows.drawn_batch(settings))
    )
    updated = [
        op for op in traced.graph.get_operations() if op.type == "ResourceApplyAdam"
    ]
    # 53 convolutions with a bias; in the head 6 without one, each with the two weights
    # of its group norm, and the classifier.
    assert len(updated) == 53 * 2 + 6 * 3 + 2


@pytest.fixture
def parsed(own_flags):
    """The measurement's flags, as a command line gives them."""

    def parsed(*arguments):
        values = own_flags(step.define_flags)
        values(["benchmark", *arguments])
        return values

    return parsed


@pytest.fixture
def on_cpu(monkeypatch):
    """A machine with PyTorch and without a GPU, whatever this one is."""
    monkeypatch.setattr(peers, "require", lambda *modules: None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["--peer_compile"], "--peer_compile: does nothing without --peer=torch"),
        (
            ["--write_programs=P", "--jit_compile=off", "--jit_compile=on"],
            "--jit_compile=off --jit_compile=on: does nothing",
        ),
        (["--write_programs=P", "--peer=torch"], "--peer=torch: does nothing"),
        (["--write_programs=P", "--nopeak_memory"], "--nopeak_memory: does nothing"),
        (["--peer=torch", "--phase=control"], "phase=control: PyTorch has its phase1"),
        (["--peer=torch", "--precision=mixed_float16"], "mixed_float16: is measured"),
        (
            ["--write_programs=P", "--precision=mixed_float16"],
            "mixed_float16: is measured of ours alone",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(arguments, error, on_cpu, parsed):
    with pytest.raises(ValueError, match=error):
        step.check(parsed(*arguments))


def test_what_does_something_passes(on_cpu, parsed, tmp_path):
    programs = f"--write_programs={tmp_path}/p"
    for arguments in (
        [programs, "--precision=mixed_bfloat16", "--phase=control"],
        ["--peer=torch", "--peer_compile", "--phase=control", "--phase=phase1"],
        ["--phase=control", "--jit_compile=auto"],
    ):
        step.check(parsed(*arguments))


def test_auto_is_measured_once_as_what_it_is_here(parsed, monkeypatch):
    monkeypatch.setattr(step, "check", lambda values: None)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "true")

    def libraries(*arguments):
        asked = []
        monkeypatch.setattr(
            step_rows, "measure", lambda specs, *_, **__: asked.extend(specs) or []
        )
        given = parsed(*arguments).flag_values_dict()
        step.run(types.SimpleNamespace(**given, arm="vgg16", repeats=1))
        return asked

    both = ["--jit_compile=auto", "--jit_compile=off"]
    for gpus, as_is, with_both in (
        ([], ["off"], ["off"]),
        (["card"], ["on"], ["on", "off"]),
    ):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda _, g=gpus: g)
        assert libraries() == [f"ours, jit {mode}" for mode in as_is]
        assert libraries(*both) == [f"ours, jit {mode}" for mode in with_both]


def test_on_a_gpu_its_memory_is_what_a_peak_is_of(monkeypatch):
    def on(gpus):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
        return step.build_ours({**SETTINGS, "phases": ["phase1"]})

    assert "peak_memory" not in on([])
    peaks = {"GPU:0": {"current": 1, "peak": 2}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.__getitem__)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # put back at the end
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    assert on(["card"])["peak_memory"]() == 2
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_programs_are_not_written_into_a_file(parsed, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "programs"):
        told = f"^write_programs={path}: {tmp_path}/file is no folder"
        with pytest.raises(ValueError, match=told):
            step.check(parsed(f"--write_programs={path}"))


def test_a_crop_too_small_for_the_verdicts_is_no_value_of_the_flag(parsed):
    with pytest.raises(flags.IllegalFlagValueError, match="crop_size"):
        parsed("--crop_size=63")
    settings = {"crop_size": parsed("--crop_size=64").crop_size, "phases": ["phase1"]}
    assert step.make_steps(SETTINGS | settings)


def test_steps_in_float16_are_measured(parsed):
    """Their loss scales choose by branches, in which there is no work to be counted."""
    kept = []
    values = parsed(
        "--precision=float32", "--precision=mixed_float16", "--crop_size=64",
        "--batch_size=1", "--num_classes=3", "--width=0.03125", "--nopeak_memory",
    )  # fmt: skip
    flags.DEFINE_string("arm", "vgg16_g", "Arm.", flag_values=values)
    flags.DEFINE_integer("repeats", 1, "Rounds.", flag_values=values)
    values(["benchmark"])
    result = step.run(values, lambda part: kept.append(len(part["rows"])))
    assert kept == [3, 6] and len(result["rows"]) == 6
    for row in result["rows"]:
        assert row["product_size"] == step_rows.PRODUCT_SIZE
        assert row["share"] * row["product_rate"] == pytest.approx(row["rate"])
    flops = {(row["precision"], row["phase"]): row["flops"] for row in result["rows"]}
    for phase in step_rows.PHASES:
        assert flops["mixed_float16", phase] == flops["float32", phase]


@pytest.mark.parametrize("keep, name", [(True, "kept"), (False, "given back")])
def test_our_worker_does_with_memory_what_it_is_told(keep, name, monkeypatch):
    def none_of_it(settings):
        raise ValueError("no steps")

    done = []
    allocation = step.allocation
    monkeypatch.setattr(allocation, "keep_freed_memory", lambda: done.append("kept"))
    monkeypatch.setattr(
        allocation, "give_freed_memory_back", lambda: done.append("given back")
    )
    monkeypatch.setattr(step, "make_steps", none_of_it)
    with pytest.raises(ValueError, match="no steps"):
        step.build_ours({**SETTINGS, "keep_freed_memory": keep})
    assert done == [name]


def test_peers_are_refused_where_they_do_not_share_it(on_cpu, parsed, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    with pytest.raises(ValueError, match="peer=torch: compares on a CPU"):
        step.check(parsed("--peer=torch"))
    step.check(parsed())


def row(library, phase, seconds):
    spread = dict.fromkeys(("median", "lowest", "highest"), seconds)
    return {
        "library": library, "precision": "float32", "phase": phase, "seconds": spread,
        "images_per_second": 2 / seconds, "flops": 10**12, "rate": 10**12 / seconds,
        "share": 0.5,
    }  # fmt: skip


def test_ratios_and_table():
    rows = [
        row("ours, jit off", "phase1", 3.0),
        row("ours, jit off", "control", 3.3),
        row("ours, jit off", "adversarial", 4.5),
        row("torch", "phase1", 6.0),
        row(f"torch{step_rows.KEEPS}", "phase1", 4.0),
    ]
    rows = step_rows.with_ratios(rows)
    # 3 / 6, 3.3 / 6 (phase 2 without A is phase 1), no partner, itself, 4 / 6.
    expected = [0.5, 0.55, None, 1.0, 2 / 3]
    assert [r["to_peer"] for r in rows] == pytest.approx(expected)
    # To the faster of PyTorch's two.
    expected = [0.75, 0.825, None, 1.5, 1.0]
    assert [r["to_fastest"] for r in rows] == pytest.approx(expected)
    # 3 / 3, 3.3 / 3, 4.5 / 3, itself.
    expected = [1.0, 1.1, 1.5, 1.0, 1.0]
    assert [r["to_phase1"] for r in rows] == pytest.approx(expected)
    text = step.format({"settings": {**SETTINGS, "repeats": 1}, "rows": rows})
    assert "2 images" not in text and "1 images of 64 x 64" in text
    assert "memory" not in text.splitlines()[0]
    settings = {**SETTINGS, "repeats": 1, "keep_freed_memory": False}
    told = step.format({"settings": settings, "rows": rows})
    assert told.splitlines()[0].endswith(", ours gives freed memory back")
    del rows[0]["to_fastest"]  # as in files of earlier versions
    assert step.format({"settings": settings, "rows": rows})
    with_product = {"product_rate": 141.6e9, "product_size": 4000}
    told = step.format(
        {"settings": settings, "rows": [{**r, **with_product} for r in rows]}
    )
    # Behind an empty line, or it would be a row of the table.
    assert told.splitlines()[-2:] == [
        "",
        "share: of 142 GFLOP/s, a product of float32 matrices of 4000 a side",
    ]
    lines = text.splitlines()[2:]
    assert len(lines) == 7 and lines[4].split("|")[-4:-1] == [
        "      1.50 ",
        "       - ",
        "         - ",
    ]
