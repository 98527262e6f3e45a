"""What every builder goes through: room, links, and nothing half-done."""

import collections
import errno
import pathlib

import pytest

from data_prep import builder
from data_prep.archives import SourceError
from data_prep.prepare import prepare
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


def test_file_system_without_links(source, data, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(builder.os, "link", refuse)
    prepare("voc_sbd", source, data, allow_partial=True)
    opened = input_pipeline.open_dataset("voc_sbd", data)
    names = [example["name"] for example in opened.source("trainval")]
    assert len(names) == len(set(names)) == 5
