"""Small sources, drawn in the layouts that the builders read."""

import io
import shutil
import tarfile
import types
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

# Images of the drawn VOC and SBD; SBD's lists overlap both of VOC's.
VOC_TRAIN = ("2007_000032", "2007_000039", "2007_000063")
VOC_VAL = ("2007_000033", "2007_000042")
SBD_ONLY = ("2008_000002", "2008_000007", "2009_000001", "2010_000003")
SBD_TRAIN = (*SBD_ONLY[:2], VOC_TRAIN[0], VOC_VAL[0])
SBD_VAL = (*SBD_ONLY[2:], VOC_VAL[1])
VOC_SIZE = (11, 14)


def write_image(path, index, size, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_label(path, index, size, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.random.default_rng(index).choice(np.uint8(ids), size)
    Image.fromarray(label).save(path)


@pytest.fixture(scope="session")
def draw_camvid():
    """Writes a CamVid-like source; returns its folder."""

    def draw(root, counts=None, suffix="jpg"):
        counts = counts or {"train": 3, "val": 2, "test": 2}
        number = 0
        for split, count in counts.items():
            for _ in range(count):
                name, number = f"0001TP_{number:06d}", number + 1
                write_image(root / split / f"{name}.{suffix}", number, (12, 16))
                mask = root / f"{split}annot" / f"{name}.png"
                write_label(mask, number, (12, 16), range(12))
        return root

    return draw


@pytest.fixture(scope="session")
def draw_folder():
    """Writes a source of one's own images with 3 classes; returns its folder."""

    def draw(root, splits=("train", "val")):
        for number, split in enumerate(splits):
            # JPEG in a sub-folder, PNG of another size beside it.
            for name, size in (("a/x.jpg", (10, 14)), ("y.png", (9, 7))):
                number += 10
                image = root / "images" / split / name
                mask = root / "labels" / split / name
                write_image(image, number, size)
                write_label(mask.with_suffix(".png"), number, size, (0, 1, 2, 255))
        (root / "classes.txt").write_text("background\ntraffic light 250 170 30\ncar\n")
        return root

    return draw


def write_palette(path, ids):
    """A palette PNG as VOC's: other colours than indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    image.putpalette([(value * 37 + 11) % 256 for value in range(768)])
    image.save(path)


def write_mat(path, ids):
    """A file as in SBD's cls/."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = {"Segmentation": ids, "CategoriesPresent": np.unique(ids)}
    scipy.io.savemat(path, {"GTcls": inside}, do_compression=True)


def voc_ids(image_id, size=VOC_SIZE, classes=(0, 1, 15, 20, 255)):
    seed = int(image_id.replace("_", ""))
    return np.random.default_rng(seed).choice(np.uint8(classes), size)


def sbd_ids(image_id, size=VOC_SIZE):
    return voc_ids(image_id, size, (0, 2, 20))


def pack_tar(folder, path, mode="w"):
    """Moves a folder into an archive."""
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)


def pack_zip(folder, path, prefix=""):
    """Moves the files of a folder into an archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def add_member(path, name, content=b"x"):
    """Appends a file to a tar, whatever its name."""
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def layouts():
    """What the tests of the paper's data sets draw with and compare to."""
    return types.SimpleNamespace(**globals())


# Frames of the drawn Cityscapes.
CITY_FRAMES = {
    "train": ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019"),
    "val": ("lindau/lindau_000000_000019",),
    "test": ("bonn/bonn_000000_000019",),
    "train_extra": ("augsburg/augsburg_000000_000000",),
}
CITY_SIZE = (8, 16)


def label_ids(frame, kind="gtFine", size=CITY_SIZE):
    seed = [sum(map(ord, frame)), len(kind)]
    return np.random.default_rng(seed).integers(0, 34, size, np.uint8)


def write_ids(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


@pytest.fixture(scope="session")
def draw_cityscapes():
    """Writes Cityscapes as extracted, or packed as published; returns the folder."""

    def draw(root, packed=False, coarse=False, size=CITY_SIZE):
        for number, (split, frames) in enumerate(CITY_FRAMES.items()):
            if split == "train_extra" and not coarse:
                continue
            for frame in frames:
                image = root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
                number += 7
                write_image(image, number, size)
                kinds = {"gtFine"} if split != "train_extra" else set()
                kinds |= {"gtCoarse"} if coarse and "train" in split else set()
                for kind in kinds:
                    folder, stem = root / kind / split, f"{frame}_{kind}"
                    ids = label_ids(frame, kind, size)
                    write_ids(folder / f"{stem}_labelIds.png", ids)
                    (folder / f"{stem}_polygons.json").write_text("{}")
        if packed:
            for part in ("leftImg8bit", "gtFine"):
                archive = root / f"{part}_trainvaltest.zip"
                pack_zip(root / part, archive, f"{part}/")
            if coarse:
                pack_zip(root / "gtCoarse", root / "gtCoarse.zip", "gtCoarse/")
        return root

    return draw


@pytest.fixture(scope="session")
def draw_voc():
    """Writes VOC and SBD as extracted, or packed as published; returns the folder."""

    def draw(root, packed=False, size=VOC_SIZE):
        voc = root / "VOCdevkit" / "VOC2012"
        lists = voc / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for split, ids in (("train", VOC_TRAIN), ("val", VOC_VAL)):
            (lists / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
            for image_id in ids:
                path = voc / "SegmentationClass" / f"{image_id}.png"
                write_palette(path, voc_ids(image_id, size))
        (lists / "trainval.txt").write_text("\n".join(VOC_TRAIN + VOC_VAL))
        for number, image_id in enumerate(VOC_TRAIN + VOC_VAL + SBD_ONLY):
            path = voc / "JPEGImages" / f"{image_id}.jpg"
            write_image(path, number, size, quality=80)
        sbd = root / "benchmark_RELEASE" / "dataset"
        for split, ids in (("train", SBD_TRAIN), ("val", SBD_VAL)):
            for image_id in ids:
                write_mat(sbd / "cls" / f"{image_id}.mat", sbd_ids(image_id, size))
                jpeg = voc / "JPEGImages" / f"{image_id}.jpg"
                (sbd / "img").mkdir(exist_ok=True)
                shutil.copy(jpeg, sbd / "img")
            (sbd / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        if packed:
            pack_tar(root / "VOCdevkit", root / "VOCtrainval_11-May-2012.tar")
            pack_tar(root / "benchmark_RELEASE", root / "benchmark.tgz", "w:gz")
        return root

    return draw
