"""What every builder goes through: room, links, and nothing half-done."""

import collections
import errno
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from data_prep import builder, staging
from data_prep.archives import SourceError
from data_prep.prepare import describe, prepare
from data_prep.verify import verify
from ss_gan_tf import input_pipeline

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def source(draw_voc, tmp_path):
    return str(draw_voc(tmp_path / "source"))


@pytest.fixture
def data(tmp_path):
    return str(tmp_path / "data")


def test_too_little_room_is_said_before_anything_is_written(source, data, monkeypatch):
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: Usage(9, 9, 100))
    with pytest.raises(SourceError, match="0.00 GiB are free, about 0.00 GiB are need"):
        prepare("voc_sbd", source, data, allow_partial=True)
    assert not [path for path in pathlib.Path(data).rglob("*") if path.is_file()]


def test_room_is_estimated_from_the_source(source, data, monkeypatch, layouts):
    monkeypatch.setattr(builder, "GIB", 1)
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: Usage(9, 9, 1))
    with pytest.raises(SourceError) as error:
        prepare("voc_sbd", source, data, allow_partial=True)
    sizes = {path.name: path.stat().st_size for path in pathlib.Path(source).rglob("*")}
    # Image and mask of each split once, and the largest split a second time.
    splits = [
        sum(sizes[f"{name}.jpg"] + sizes[f"{name}.{mask}"] for name in names)
        for names, mask in (
            (layouts.VOC_TRAIN, "png"),
            (layouts.VOC_VAL, "png"),
            (layouts.SBD_ONLY, "mat"),
        )
    ]
    needed = int(1.05 * (sum(splits) + max(splits)))
    assert f"1.00 GiB are free, about {needed}.00 GiB are needed" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left")],
)
def test_disk_that_fills_up(source, data, monkeypatch, error):
    def full(self, item):
        raise error

    monkeypatch.setattr(builder.PairBuilder, "_make_example", full)
    with pytest.raises(SourceError, match="data: the disk is full; nothing was prep"):
        prepare("voc_sbd", source, data, allow_partial=True)
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        input_pipeline.open_dataset("voc_sbd", data)


def test_a_disk_that_is_full_at_last(small_disk, tmp_path, count_reads):
    """Images of one bit a pixel, which become RGB: twice as large as was estimated."""
    source, rng = tmp_path / "mine", np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 8)):
        for name in map("{}.png".format, range(count)):
            for kind, ids in (
                ("images", rng.integers(0, 2, (400, 400), np.uint8)),
                ("labels", np.zeros((400, 400), np.uint8)),
            ):
                path = source / kind / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(ids)
                if kind == "images":
                    image.putpalette(rng.bytes(6))
                image.save(path)
    (source / "classes.txt").write_text("background\n")
    data = small_disk(512)
    with pytest.raises(SourceError, match="the disk is full; nothing was prepared"):
        prepare("folder", str(source), data)
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        input_pipeline.open_dataset("folder", data)
    # The first split was whole, so there is room for it and no need to read it again.
    assert {path.name for path in pathlib.Path(data, "folder").iterdir()} == {
        "unfinished-1.0.0"
    }
    small_disk(4096)
    count_reads.names.clear()
    done = prepare("folder", str(source), data)
    assert len(count_reads.names) == 8
    at_once = prepare("folder", str(source), str(tmp_path / "elsewhere"))
    assert records(done.data_dir) == records(at_once.data_dir)


def test_file_system_without_links(source, data, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(staging.os, "link", refuse)
    prepare("voc_sbd", source, data, allow_partial=True)
    opened = input_pipeline.open_dataset("voc_sbd", data)
    names = [example["name"] for example in opened.source("trainval")]
    assert len(names) == len(set(names)) == 5


# --- Interrupted runs -------------------------------------------------------------


@pytest.fixture
def count_reads(monkeypatch):
    """Names of the examples that are made; `stop_at` interrupts before one of them."""
    made = []
    original = builder.PairBuilder._make_example

    def make(self, item):
        if item.name == made_before.stop_at:
            raise made_before.error
        made.append(item.name)
        return original(self, item)

    class made_before:
        names, stop_at, error = made, None, KeyboardInterrupt()

    monkeypatch.setattr(builder.PairBuilder, "_make_example", make)
    return made_before


def records(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(pathlib.Path(folder).iterdir())
        if "array_record" in path.name
    }


def test_finished_splits_are_not_done_again(
    source, data, tmp_path, count_reads, layouts
):
    count_reads.stop_at = layouts.VOC_VAL[0]
    with pytest.raises(KeyboardInterrupt):
        prepare("voc_sbd", source, data, allow_partial=True)
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        input_pipeline.open_dataset("voc_sbd", data)
    assert set(layouts.VOC_TRAIN) <= set(count_reads.names)
    # What a killed process would have left besides.
    killed = tmp_path / "data" / "voc_sbd" / "incomplete.ABCDEF_1.0.0"
    killed.mkdir()
    count_reads.names.clear()
    count_reads.stop_at = None
    done = prepare("voc_sbd", source, data, allow_partial=True)
    assert not set(layouts.VOC_TRAIN) & set(count_reads.names)
    assert set(count_reads.names) == {*layouts.VOC_VAL, *layouts.SBD_ONLY}
    names = [path.name for path in (tmp_path / "data" / "voc_sbd").iterdir()]
    assert names == ["1.0.0"]
    # Nobody can tell that there was an interruption.
    at_once = prepare("voc_sbd", source, str(tmp_path / "other"), allow_partial=True)
    assert records(done.data_dir) == records(at_once.data_dir)
    assert describe(done).split("\n")[1:] == describe(at_once).split("\n")[1:]
    verify(pathlib.Path(done.data_dir))


def test_splits_of_a_source_that_was_changed_are_done_again(
    source, data, count_reads, layouts
):
    count_reads.stop_at = layouts.VOC_VAL[0]
    with pytest.raises(KeyboardInterrupt):
        prepare("voc_sbd", source, data, allow_partial=True)
    # The same size: only the time tells.
    jpeg = next(pathlib.Path(source).rglob(f"{layouts.VOC_TRAIN[0]}.jpg"))
    jpeg.touch()
    os.utime(jpeg, (2**31, 2**31))
    count_reads.names.clear()
    count_reads.stop_at = None
    prepare("voc_sbd", source, data, allow_partial=True)
    assert set(layouts.VOC_TRAIN) <= set(count_reads.names)


def test_a_mistake_leaves_nothing(source, data, tmp_path, count_reads, layouts):
    count_reads.stop_at = layouts.VOC_VAL[0]
    count_reads.error = SourceError("x")
    with pytest.raises(SourceError):
        prepare("voc_sbd", source, data, allow_partial=True)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_two_at_once(source, data, tmp_path):
    with staging.alone_in(tmp_path / "data" / "voc_sbd"):
        with pytest.raises(SourceError, match="another preparation is at work there"):
            prepare("voc_sbd", source, data, allow_partial=True)
    prepare("voc_sbd", source, data, allow_partial=True)
