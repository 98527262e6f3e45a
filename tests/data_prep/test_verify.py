"""A prepared data set is read again, and damage is found."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from data_prep import builder, examples
from data_prep.archives import SourceError
from data_prep.prepare import prepare
from data_prep.verify import add_digests, verify


@pytest.fixture(scope="module")
def original(draw_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    source = draw_folder(root / "source")
    return pathlib.Path(prepare("folder", str(source), str(root / "data")).data_dir)


@pytest.fixture
def folder(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "folder" / "1.0.0"))


def fails(folder, message):
    with pytest.raises(SourceError) as error:
        verify(folder)
    text = str(error.value)
    assert "\n" not in text and message in text and str(folder) in text


def test_all_is_well(folder):
    seen = []
    totals = verify(folder, lambda *progress: seen.append(progress))
    assert {split: total.examples for split, total in totals.items()} == {
        "train": 2,
        "val": 2,
    }
    assert seen == [("train", 1, 2), ("train", 2, 2), ("val", 1, 2), ("val", 2, 2)]


@pytest.mark.parametrize("place", [0.3, 0.8])
def test_damaged_byte(folder, place):
    path = next(folder.glob("*val.array_record*"))
    content = bytearray(path.read_bytes())
    content[int(place * content.index(bytes(128)))] ^= 255  # what follows is empty
    path.write_bytes(content)
    fails(folder, "val[")


def test_lost_example(folder):
    path = folder / "summary.json"
    stored = json.loads(path.read_text())
    stored["splits"]["val"]["examples"] = 3
    path.write_text(json.dumps(stored))
    fails(folder, "val has examples 2, but the summary says 3")


def test_other_pixels(folder):
    path = folder / "summary.json"
    stored = json.loads(path.read_text())
    stored["splits"]["train"]["class_pixels"][1] += 1
    path.write_text(json.dumps(stored))
    fails(folder, "train has class_pixels [")


def test_other_images_under_the_same_labels(folder, original):
    path = folder / "summary.json"
    stored = json.loads(path.read_text())
    digest = stored["splits"]["train"]["digest"]
    stored["splits"]["train"]["digest"] = digest[::-1]
    path.write_text(json.dumps(stored))
    fails(folder, "train has digest ")
    stored["splits"]["train"]["digest"] = digest
    del stored["splits"]["val"]["digest"]  # there was none once
    path.write_text(json.dumps(stored))
    totals = verify(folder)
    assert "digest" not in json.loads(path.read_text())["splits"]["val"]
    assert add_digests(folder, totals) == ["val"]
    splits = json.loads(path.read_text())["splits"]
    assert splits["train"]["digest"] == digest
    assert add_digests(folder, totals) == []
    fresh = json.loads((original / "summary.json").read_text())["splits"]
    assert splits == fresh and len(splits["val"]["digest"]) == 64


def write(root, monkeypatch, draw_folder, make):
    """A data set whose examples break a rule, as no builder would write it."""
    monkeypatch.setattr(builder.PairBuilder, "_make_example", make)
    source = draw_folder(root / "source")
    done = prepare("folder", str(source), str(root / "data"))
    return pathlib.Path(done.data_dir)


def test_id_out_of_range(tmp_path, monkeypatch, draw_folder):
    pixels = np.zeros((4, 5, 3), np.uint8)

    def make(self, item):
        label = np.full((4, 5), 3, np.uint8)
        return examples.encode(item.name, examples.png(pixels), label)

    folder = write(tmp_path, monkeypatch, draw_folder, make)
    fails(folder, "train[0] a/x label: label holds id 3; ids must be in 0..2 or 255")


def test_repeated_name(tmp_path, monkeypatch, draw_folder):
    pixels = np.zeros((4, 5, 3), np.uint8)

    def make(self, item):
        return examples.encode("same", examples.png(pixels), pixels[..., 0])

    folder = write(tmp_path, monkeypatch, draw_folder, make)
    fails(folder, "train[1] repeats the name same")
