"""The cityscapes builder, on drawn copies in the original layouts."""

import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import downloads
from data_prep.archives import SourceError
from data_prep.cityscapes.cityscapes_dataset_builder import Builder
from data_prep.prepare import prepare
from ss_gan_tf import input_pipeline

SIZES = {"train": 2, "val": 1, "trainval": 3, "test": 1}
COARSE_SIZES = {**SIZES, "train_coarse": 2, "train_extra": 1}
AACHEN = "train/aachen/aachen_000000_000019"

# From the table of the toolbox, by hand: labelId -> trainId, all others ignored.
TRAIN_ID = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10,
    24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


class CityscapesTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = COARSE_SIZES
    OVERLAPPING_SPLITS = ["trainval"]

    @pytest.fixture(autouse=True, scope="class")
    def drawn(self, request, draw_cityscapes, tmp_path_factory):
        folder = tmp_path_factory.mktemp("cityscapes")
        request.cls.EXAMPLE_DIR = draw_cityscapes(folder, packed=True, coarse=True)

    def _make_builder(self, config=None):
        return Builder(data_dir=self.tmp_dir, config=config, allow_partial=True)


@pytest.fixture
def source(draw_cityscapes, tmp_path):
    return draw_cityscapes(tmp_path / "source")


@pytest.fixture
def prepared(tmp_path):
    """Prepares a partial source and opens what came of it."""

    def run(source):
        data = str(tmp_path / "data")
        prepare("cityscapes", str(source), data, allow_partial=True)
        return input_pipeline.open_dataset("cityscapes", data)

    return run


@pytest.fixture
def fails(source, tmp_path):
    """Preparing the source ends in one line with these words."""

    def run(*words, **options):
        data, options = tmp_path / "data", {"allow_partial": True, **options}
        with pytest.raises(SourceError) as error:
            prepare("cityscapes", str(source), str(data), **options)
        text = str(error.value)
        assert "\n" not in text
        for word in words:
            assert str(word) in text, text
        assert not [path for path in data.rglob("*") if path.is_file()]

    return run


def fine(source, frame=AACHEN, kind="labelIds"):
    return source / "gtFine" / f"{frame}_gtFine_{kind}.png"


def by_hand(ids):
    return np.vectorize(lambda i: TRAIN_ID.get(i, 255), otypes=[np.uint8])(ids)


def stored(opened, split):
    """Name -> (image bytes, [H, W] ids) in stored order."""
    return {
        example["name"].decode(): (
            example["image"],
            np.asarray(Image.open(io.BytesIO(example["label"]))),
        )
        for example in opened.source(split)
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
def test_splits_and_masks(draw_cityscapes, layouts, prepared, tmp_path, packed, coarse):
    source = draw_cityscapes(tmp_path / "drawn", packed=packed, coarse=coarse)
    original = draw_cityscapes(tmp_path / "original", coarse=coarse)
    before = set(source.rglob("*"))
    opened = prepared(source)
    assert before == set(source.rglob("*")), "nothing is extracted"
    assert opened.split_sizes == (COARSE_SIZES if coarse else SIZES)
    assert opened.partial and opened.unlabelled_splits == ("test",)
    assert opened.class_names[0] == "road" and opened.class_names[18] == "bicycle"
    frames = layouts.CITY_FRAMES
    splits = {
        "train": ("train", "gtFine"),
        "val": ("val", "gtFine"),
        "test": ("test", None),
        "train_coarse": ("train", "gtCoarse"),
        "train_extra": ("train_extra", "gtCoarse"),
    }
    for split in opened.split_sizes.keys() - {"trainval"}:
        of, kind = splits[split]
        examples = stored(opened, split)
        assert list(examples) == [frame.split("/")[1] for frame in frames[of]]
        for frame in frames[of]:
            image, label = examples[frame.split("/")[1]]
            path = original / "leftImg8bit" / of / f"{frame}_leftImg8bit.png"
            assert image == path.read_bytes()
            expected = np.full(layouts.CITY_SIZE, 255)
            if kind:
                expected = by_hand(layouts.label_ids(frame, kind))
            np.testing.assert_array_equal(label, expected)
    assert list(stored(opened, "trainval")) == [
        frame.split("/")[1] for frame in (*frames["train"], *frames["val"])
    ]


def test_every_label_id(source, layouts, prepared):
    ids = np.arange(128, dtype=np.uint8).reshape(layouts.CITY_SIZE) % 34
    layouts.write_ids(fine(source), ids)
    label = stored(prepared(source), "train")["aachen_000000_000019"][1]
    np.testing.assert_array_equal(label, by_hand(ids))
    assert set(label.ravel()) == {*range(19), 255}


def test_without_images_of_test(source, prepared):
    shutil.rmtree(source / "leftImg8bit" / "test")
    opened = prepared(source)
    assert opened.split_sizes == {"train": 2, "val": 1, "trainval": 3}
    assert opened.unlabelled_splits == ()


def test_complete_means_the_published_counts(fails):
    fails(
        "train has 2 of 2975 (aachen 1 of 174, bochum 0 of 96,",
        "val has 1 of 500 (frankfurt 0 of 267, lindau 1 of 59, munster 0 of 174)",
        "trainval has 3 of 3475",
        "test has 1 of 1525 (berlin 0 of 544",
        allow_partial=False,
    )


def test_cities_of_another_split(source, fails):
    folder = source / "leftImg8bit"
    shutil.copytree(folder / "val" / "lindau", folder / "train" / "lindau")
    fails(f"{folder}/train: holds 1 images of lindau, a city of val")


# --- labelTrainIds ---------------------------------------------------------------


def test_label_train_ids_that_agree(source, layouts, prepared):
    ids = by_hand(np.asarray(Image.open(fine(source))))
    layouts.write_ids(fine(source, kind="labelTrainIds"), ids)
    label = stored(prepared(source), "train")["aachen_000000_000019"][1]
    np.testing.assert_array_equal(label, ids)


def test_label_train_ids_that_do_not(source, layouts, fails):
    ids = by_hand(np.asarray(Image.open(fine(source))))
    ids[2, 3:5] = (ids[2, 3:5] + 1) % 19
    path = fine(source, kind="labelTrainIds")
    layouts.write_ids(path, ids)
    fails(f"{path}: differs from its labelIds file in 2 pixels")
    layouts.write_ids(path, ids[1:])
    fails(f"{path}: differs from its labelIds file")


def test_label_train_ids_alone(source, fails):
    fine(source).rename(fine(source, kind="labelTrainIds"))
    fails("no label for this image", f"gtFine/{AACHEN}_gtFine_labelIds.png is missing")


def test_train_ids_where_label_ids_belong(source, layouts, fails):
    ids = by_hand(np.asarray(Image.open(fine(source))))
    layouts.write_ids(fine(source), ids)
    fails(f"{fine(source)}: holds id 255; labelIds are in 0..33. 255 is a trainId")


def test_train_ids_without_any_255(source, layouts, fails):
    for path in (source / "gtFine" / "train").rglob("*labelIds.png"):
        ids = np.arange(128, dtype=np.uint8).reshape(layouts.CITY_SIZE) % 19
        layouts.write_ids(path, ids)
    fails(f"{source}: no labelIds file of train holds an id above 18", "trainIds")


# --- Everything else that can be wrong --------------------------------------------


def test_id_out_of_range(source, layouts, fails):
    layouts.write_ids(fine(source), np.full(layouts.CITY_SIZE, 34, np.uint8))
    fails(f"{fine(source)}: holds id 34; labelIds are in 0..33")


def test_mask_saved_as_rgb(source, fails):
    Image.open(fine(source)).convert("RGB").save(fine(source))
    fails(f"{fine(source)}: label is saved as colours (mode RGB)")


def test_mask_of_another_size(source, layouts, fails):
    layouts.write_ids(fine(source), np.full((5, 6), 26, np.uint8))
    fails(f"{fine(source)}: label is 6x5 but image", "is 16x8")


@pytest.mark.parametrize("lost", ["image", "label"])
def test_missing_half_of_a_pair(source, fails, lost):
    image = source / "leftImg8bit" / f"{AACHEN}_leftImg8bit.png"
    label = fine(source)
    gone, there = (image, label) if lost == "image" else (label, image)
    gone.unlink()
    fails(f"{there}: no {lost} for this", f"{gone.relative_to(source)} is missing")


def test_truncated_image(source, fails):
    path = source / "leftImg8bit" / f"{AACHEN}_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:-40])
    fails(f"{path}: is not a readable image (")


@pytest.mark.parametrize("part", ["leftImg8bit", "gtFine"])
def test_truncated_archive(draw_cityscapes, source, fails, part):
    shutil.rmtree(source)
    path = draw_cityscapes(source, packed=True) / f"{part}_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(path, "cut short")


def test_empty_folder(source, fails):
    shutil.rmtree(source)
    source.mkdir()
    fails(f"{source}: holds neither leftImg8bit/ nor leftImg8bit_trainvaltest.zip")
    fails(
        "leftImg8bit_trainvaltest.zip is missing and needs a login",
        f"put it at {source / 'leftImg8bit_trainvaltest.zip'}",
        allow_partial=False,
    )


def test_archives_come_from_a_mirror(
    draw_cityscapes, source, fails, monkeypatch, tmp_path
):
    packed = draw_cityscapes(tmp_path / "packed", packed=True)
    asked = []

    def fetch(archive, folder, mirror, put_at):
        asked.append((archive.name, mirror))
        return packed / archive.name

    monkeypatch.setattr(downloads, "fetch", fetch)
    shutil.rmtree(source)
    source.mkdir()
    mirror = "https://our.server/data"
    fails("train has 2 of 2975", allow_partial=False, mirror=mirror)
    names = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
    assert asked == [(name, mirror) for name in names]
