"""The folder builder: a user's own images, and what can be wrong with them."""

import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import archives
from data_prep.archives import SourceError
from data_prep.folder.folder_dataset_builder import Builder, listed_splits
from data_prep.folder.folder_dataset_builder import find_splits as find_splits_of
from data_prep.folder.folder_dataset_builder import read_classes as read_classes_of
from data_prep.prepare import describe, prepare
from ss_gan_tf import input_pipeline


class FolderTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = {"train": 2, "val": 2}

    @pytest.fixture(autouse=True, scope="class")
    def drawn(self, request, draw_folder, tmp_path_factory):
        request.cls.EXAMPLE_DIR = draw_folder(tmp_path_factory.mktemp("folder"))


def find_splits(source):
    return find_splits_of(source, archives.list_folder(source))


def read_classes(path):
    return read_classes_of(archives.list_folder(path.parent)[path.name])


@pytest.fixture
def source(draw_folder, tmp_path):
    return draw_folder(tmp_path / "source")


def test_stored_as_in_the_source(source, tmp_path):
    # One mask as a palette PNG, as many editors write them.
    ids = np.uint8([[0, 1, 2, 255, 0, 0, 0]] * 9)
    mask = Image.fromarray(ids)
    mask.putpalette([value % 251 for value in range(768)])
    mask.save(source / "labels" / "val" / "y.png")
    prepare("folder", str(source), str(tmp_path / "data"))
    prepared = input_pipeline.open_dataset("folder", str(tmp_path / "data"))
    assert prepared.class_names == ("background", "traffic light", "car")
    assert prepared.class_colors == ((0, 0, 0), (250, 170, 30), (0, 128, 0))
    assert prepared.split_sizes == {"train": 2, "val": 2}
    sub_folder, palette = prepared.source("val")
    assert (sub_folder["name"], palette["name"]) == (b"a/x", b"y")
    assert sub_folder["image"] == (source / "images/val/a/x.jpg").read_bytes()
    label = Image.open(io.BytesIO(palette["label"]))
    assert label.mode == "L"
    np.testing.assert_array_equal(label, ids)


def fails(message, function, *arguments):
    with pytest.raises(SourceError) as error:
        function(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- As VOC has it --------------------------------------------------------------


@pytest.fixture
def voc_like(draw_folder, tmp_path):
    """Two images in VOC's layout, each in one list, and one in a third."""
    source = draw_folder(tmp_path / "voc_like")
    for kind, folder in (("images", "JPEGImages"), ("labels", "SegmentationClass")):
        shutil.move(source / kind / "train", source / folder)
        shutil.rmtree(source / kind)
    lists = source / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", "a/x\n"), ("val", "y\n"), ("both", "y\n\na/x")):
        (lists / f"{split}.txt").write_text(names)
    return source


@pytest.mark.parametrize("packed", [False, True])
def test_voc_layout(voc_like, layouts, tmp_path, packed):
    expected = np.asarray(Image.open(voc_like / "SegmentationClass" / "a" / "x.png"))
    source, data = voc_like, str(tmp_path / "data")
    if packed:
        source = tmp_path / "mine.zip"
        layouts.pack_zip(voc_like, source, "mine/")
    prepare("folder", str(source), data)
    prepared = input_pipeline.open_dataset("folder", data)
    assert prepared.split_sizes == {"both": 2, "train": 1, "val": 1}
    assert [example["name"] for example in prepared.source("both")] == [b"y", b"a/x"]
    label = Image.open(io.BytesIO(prepared.source("train")[0]["label"]))
    np.testing.assert_array_equal(label, expected)


def test_images_in_several_lists_are_noted(voc_like, tmp_path):
    done = prepare("folder", str(voc_like), str(tmp_path / "data"))
    notes = [line.strip() for line in describe(done).splitlines() if "too" in line]
    assert notes == [
        "note: both: train has 1 of its images too, a/x the first; "
        "val has 1 of its images too, y the first"
    ]
    lists = voc_like / "ImageSets" / "Segmentation"
    (lists / "both.txt").unlink()
    done = prepare("folder", str(voc_like), str(tmp_path / "apart"))
    assert "too" not in describe(done)


def test_names_in_a_list_may_hold_spaces(voc_like, tmp_path):
    """And the list may begin with the mark of some editors, and end lines as those."""
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        image = voc_like / folder / "a" / f"x.{suffix}"
        image.rename(image.with_stem("x (1) left"))
    for split in ("train", "both"):
        path = voc_like / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_bytes(b"\xef\xbb\xbf  a/x (1) left \r\n\r\n")
    files = archives.list_folder(voc_like)
    lists = archives.below(files, "ImageSets/Segmentation")
    splits = listed_splits(voc_like, files, lists)
    names = {split: [pair.name for pair in pairs] for split, pairs in splits.items()}
    assert names == {"train": ["a/x (1) left"], "both": ["a/x (1) left"], "val": ["y"]}


@pytest.mark.parametrize("kind", ["JPEGImages", "SegmentationClass"])
def test_list_that_names_what_is_missing(voc_like, tmp_path, kind):
    shutil.rmtree(voc_like / kind / "a")
    message = f"both.txt: names a/x, but {voc_like}/{kind}/a/x with its suffix is miss"
    fails(message, prepare, "folder", str(voc_like), str(tmp_path / "data"))


def test_list_that_is_empty(voc_like, tmp_path):
    path = voc_like / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text("\n")
    message = f"{path}: the list is empty"
    fails(message, prepare, "folder", str(voc_like), str(tmp_path / "data"))


# --- Splits and classes ---------------------------------------------------------


def test_splits_are_the_folders(source):
    assert find_splits(source) == ["train", "val"]


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_missing_folder(source, kind):
    shutil.rmtree(source / kind)
    fails(f"{source / kind}: folder is missing or empty", find_splits, source)


def test_no_split(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.png").touch()
    fails(f"{tmp_path / 'images'}: holds no split", find_splits, tmp_path)


@pytest.mark.parametrize("kinds", [("images", "labels"), ("images",), ("labels",)])
def test_files_beside_the_splits(source, kinds):
    for name in ("readme.txt", ".hidden.png"):
        (source / "images" / name).touch()
    assert find_splits(source) == ["train", "val"]
    for kind in kinds:
        (source / kind / "z.png").touch()
    message = f"{source / kinds[0] / 'z.png'}: is in no split ({len(kinds)} files"
    fails(message, find_splits, source)


@pytest.mark.parametrize("there, missing", [("images", "labels"), ("labels", "images")])
def test_split_on_one_side_only(source, there, missing):
    (source / there / "test").mkdir()
    (source / there / "test" / "x.png").touch()
    fails(f"{source / missing / 'test'} is missing", find_splits, source)


@pytest.mark.parametrize("split", ["my-split", "all", "prüfung"])
def test_split_name(source, split):
    for kind in ("images", "labels"):
        (source / kind / split).mkdir()
        (source / kind / split / "x.png").touch()
    fails(f"{source / 'images' / split}: a split is named", find_splits, source)


def test_classes_with_and_without_colours(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("road  1 2 3\n level 5\ncar 10 20 30 \n\n")
    assert read_classes(path) == (
        ("road", "level 5", "car"),
        ((1, 2, 3), (128, 0, 0), (10, 20, 30)),
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has 0 lines, not 1..255"),
        ("\n".join(map(str, range(256))), "has 256 lines, not 1..255"),
        ("a\n\nb\n", "line 2 is blank"),
        ("a\nb 1 2 3\na\n", "line 3 names 'a' a second time"),
        ("a 0 0 256\n", "line 1 has colour (0, 0, 256), not 0..255"),
    ],
)
def test_faulty_classes(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    fails(f"{path}: {message}", read_classes, path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("clear\x1b[2J", "with control characters"),
        ("x" * 201, "has 201 characters; at most 200"),
        ("a" + " " * 5000 + "b", "has 5002 characters"),
        ("car " + "9" * 5000 + " 1 1", "characters; at most 200"),
    ],
)
def test_lines_of_classes_that_are_no_names(tmp_path, line, message):
    path = tmp_path / "classes.txt"
    path.write_text(f"road\n{line}\n")
    fails(f"{path}: line 2", read_classes, path)
    fails(message, read_classes, path)


def test_classes_are_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("straße\ncar\n", encoding="utf-8-sig")
    assert read_classes(path)[0] == ("straße", "car")
    path.write_text("straße\n", encoding="latin-1")
    fails(f"{path}: must be UTF-8 text", read_classes, path)


def test_missing_classes(source, tmp_path):
    (source / "classes.txt").unlink()
    message = "classes.txt: file is missing"
    fails(message, prepare, "folder", str(source), str(tmp_path / "data"))
