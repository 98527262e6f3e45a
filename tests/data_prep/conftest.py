"""Small sources, drawn in the layouts that the builders read."""

import numpy as np
import pytest
from PIL import Image


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
