"""Counts of examples, pixels and sizes, and what is held against known figures."""

import dataclasses
import json

import numpy as np
import pytest

from data_prep import examples, summary
from data_prep.summary import SplitCount, summarize, to_text

NAMES = ("road", "sky", "car")


def example(label):
    return examples.encode("x", b"", np.uint8(label))


@pytest.fixture
def count():
    # 6 + 4 pixels: ids 0 4x, 1 3x, 255 3x; 0 in both images, 1 and 255 in one each.
    total = SplitCount()
    total.add(example([[0, 1, 1], [1, 0, 0]]))
    total.add(example([[0, 255], [255, 255]]))
    return total


def test_totals(count):
    assert count.to_dict(3) == {
        "examples": 2,
        "height": [2, 2],
        "width": [2, 3],
        "class_pixels": [4, 3, 0],
        "class_images": [2, 1, 0],
        "ignored_pixels": 3,
        "ignored_share": 0.3,
        "digest": "{:032x}{:032x}".format(*count.digest),
    }


def test_sums_and_empty_counts(count):
    twice, same = count + count, SplitCount() + count
    assert same.to_dict(3) == (count + SplitCount()).to_dict(3) == count.to_dict(3)
    assert twice.examples == 4 and twice.pixels[0] == 8 and twice.width == (2, 3)
    assert SplitCount().to_dict(3)["ignored_share"] == 0.0


def total_of(*given):
    total = SplitCount()
    for name, image, label in given:
        total.add(examples.encode(name, image, np.uint8(label)))
    return total


def test_a_digest_is_that_of_the_examples_in_their_order():
    def digest(*given):
        return total_of(*given).to_dict(2)["digest"]

    one, two = ("a", b"1", [[0, 1]]), ("b", b"2", [[1, 1]])
    same = digest(one, two)
    assert len(same) == 64
    others = [
        digest(two, one),
        digest(one),
        digest(one, ("c", b"2", [[1, 1]])),
        digest(one, ("b", b"3", [[1, 1]])),
        digest(one, ("b", b"2", [[1, 0]])),
        digest(one, ("b", b"2", [[1], [1]])),
        digest(("a", b"12", [[0, 1]]), ("b", b"", [[1, 1]])),
    ]
    assert len({same, *others}) == 8


def test_the_digest_of_a_composed_split_is_that_of_its_examples():
    given = [(name, b"1", [[0, 1]]) for name in "abcde"]
    parts = total_of(*given[:2]) + total_of(*given[2:3]) + total_of(*given[3:])
    assert parts.digest == total_of(*given).digest
    other = total_of(*given[3:]) + total_of(*given[:3])
    assert other.digest != parts.digest and other.digest[0] == parts.digest[0]


def test_a_split_that_was_counted_without_a_digest_has_none(count):
    stored = count.to_dict(3)
    del stored["digest"]
    restored = SplitCount.from_dict(stored)
    assert restored.to_dict(3) == stored
    assert "digest" not in (restored + count).to_dict(3)
    assert "digest" not in (count + restored).to_dict(3)


def test_counts_survive_being_stored(count):
    stored = json.loads(json.dumps(count.to_dict(3)))
    assert SplitCount.from_dict(stored).to_dict(3) == stored


def test_text_and_files(count, tmp_path):
    result = summarize("mine", NAMES, {"train": count}, partial=False, notes=["odd"])
    text = to_text(result)
    assert "train: 2 examples, 2 to 3 x 2 pixels, 30.00% ignored" in text
    assert "3 classes: road, sky, car" in text
    assert [line.split() for line in text.splitlines() if line.startswith("road")] == [
        ["road", "57.143%"]
    ]
    assert "note: odd" in text and "note: train: no pixel of car" in text
    assert "PARTIAL" not in text
    summary.write(result, tmp_path)
    assert summary.read(tmp_path) == result
    assert (tmp_path / "summary.txt").read_text() == text + "\n"
    assert summary.read(tmp_path / "nowhere") is None


def test_known_figures(count):
    result = summarize("camvid", NAMES, {"train": count}, partial=True)
    text = to_text(result)
    assert result["splits"]["train"]["expected"] == 367
    assert "train: 2 examples (of 367)" in text
    assert "PARTIAL: images of the complete data set are missing" in text
    assert "note: train: images are known to be 480 x 360 pixels" in text


def test_a_split_without_a_class_is_noted(count):
    empty = dataclasses.replace(count, pixels=np.zeros_like(count.pixels))
    result = summarize("mine", NAMES, {"val": empty}, partial=False)
    assert result["notes"] == ["val: no pixel has a class"]
