"""What is drawn has the promised sizes; what is reported follows from what was read."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks import input as bench
from experiments.benchmarks.drawings import draw_example

CASES = (
    dataclasses.replace(
        bench.CASES[0], height=30, width=44, crop_size=32, images=3, examples=8
    ),
    dataclasses.replace(
        bench.CASES[1], height=32, width=64, crop_size=32, images=2, examples=4
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def result(folder):
    return bench.measure(CASES, repeats=2, folder=str(folder))


def test_rates_and_their_quotient(result):
    for row in result["rows"]:
        rates = row["examples_per_second"]
        for rate in rates.values():
            assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"]
        assert row["ratio"] == rates["pipeline"]["median"] / rates["decode"]["median"]


def test_result_is_json_and_a_table(result):
    assert json.loads(json.dumps(result, allow_nan=False))["rows"]
    head, _, header, rule, voc, cityscapes = bench.format(result).splitlines()
    assert head.endswith(", 2 rounds")
    assert voc.startswith("| voc ") and cityscapes.startswith("| cityscapes ")
    assert voc.endswith(f" {result['rows'][0]['ratio']:.0%} |")
    assert len(header) == len(rule) == len(voc) == len(cityscapes)


def test_files_have_the_promised_sizes(result, folder):
    for case, row in zip(CASES, result["rows"], strict=True):
        for kind, suffix in (("images", case.suffix), ("labels", ".png")):
            files = sorted((folder / "source" / kind / case.name).iterdir())
            assert [file.name for file in files] == [
                f"{index:04}{suffix}" for index in range(case.images)
            ]
            for file in files:
                with Image.open(file) as image:
                    assert image.size == (case.width, case.height)
            bytes_per_file = np.mean([file.stat().st_size for file in files])
            assert row[f"{kind[:-1]}_bytes"] == bytes_per_file
        # Images keep their bytes, and records add little.
        assert row["stored_bytes_per_example"] > row["image_bytes"]


@pytest.mark.parametrize("case, low, high", [(0, 80e3, 110e3), (1, 2.1e6, 2.5e6)])
def test_an_image_weighs_what_a_real_one_does(case, low, high, tmp_path):
    case = dataclasses.replace(bench.CASES[case], images=1)
    assert low < bench.draw_source(case, tmp_path)["image_bytes"] < high


def test_the_drawn_folder_is_used_again(result, folder):
    before = {
        file: file.stat().st_mtime_ns for file in (folder / "source").rglob("0*.*")
    }
    sizes = [bench.draw_source(case, folder / "source") for case in CASES]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for size, row in zip(sizes, result["rows"], strict=True):
        assert size["image_bytes"] == row["image_bytes"]


def test_a_drawing_is_a_function_of_its_seed():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return draw_example(rng, (40, 60), 5, regions=4, grain=8.0, border=3)

    (image, label), (again, _), (other, _) = draw(1), draw(1), draw(2)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    assert label.shape == (40, 60) and label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 255} and (label == 255).any()
    np.testing.assert_array_equal(image, again)
    assert (image != other).any()


def test_a_folder_of_other_files_is_one_line(tmp_path):
    (tmp_path / "source" / "images" / "voc").mkdir(parents=True)
    (tmp_path / "source" / "images" / "voc" / "x.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="x.jpg") as error:
        bench.measure(CASES[:1], 1, str(tmp_path))
    assert "\n" not in str(error.value)
