"""What browse shows is what is stored, and what training is given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import browse
from data_prep.prepare import prepare
from ss_gan_tf import input_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(draw_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("browse")
    prepare("folder", str(draw_folder(root / "source")), str(root / "data"))
    return str(root / "data")


@pytest.fixture(scope="module")
def prepared(data_dir):
    return input_pipeline.open_dataset("folder", data_dir)


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.browse", "--dataset=folder", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_shares_by_hand():
    labels = [np.array([[0, 0, 1]]), np.array([[255], [2], [255]])]
    counts = browse.count_ids(labels)
    assert counts[[0, 1, 2, 255]].tolist() == [2, 1, 1, 2] and counts.sum() == 6
    # 4 of 6 pixels are labelled: 2/4, 1/4, 1/4, and 2/6 of all are ignored.
    assert browse.shares(counts, 3, 255) == pytest.approx([1 / 2, 1 / 4, 1 / 4, 1 / 3])
    # A class that is ignored has no share: 2 of 4 labelled, 2/6 ignored are class 0.
    counts = browse.count_ids([np.array([0, 0, 1, 1, 2, 2])])
    assert browse.shares(counts, 3, 0) == pytest.approx([0, 1 / 2, 1 / 2, 1 / 3])
    nothing = browse.count_ids([np.full((2, 2), 255)])
    assert browse.shares(nothing, 3, 255) == [0, 0, 0, 1]


def test_stored_and_augmented_are_the_same_examples(prepared):
    # Without scaling and mirroring, a crop of 20 only pads images of 10 x 14 and 9 x 7.
    settings = dict(crop_size=20, scale_range=(1.0, 1.0), flip=False)
    before = list(browse.stored(prepared, "train", 3, 2))
    after = list(browse.augmented(prepared, "train", 3, 2, **settings))
    assert sorted(image.shape for _, image, _ in before) == [(9, 7, 3), (10, 14, 3)]
    assert len({name for name, _, _ in before}) == 2
    for (_, image, label), (crop, ids) in zip(before, after, strict=True):
        height, width = label.shape
        np.testing.assert_array_equal(crop[:height, :width], image)
        np.testing.assert_array_equal(ids[:height, :width], label)
        assert crop.dtype == np.uint8 and crop.shape == (20, 20, 3)
        assert (ids == 255).sum() == 400 - (label != 255).sum()


def test_command_writes_both_pictures(data_dir, tmp_path):
    out = tmp_path / "out"
    flags = f"--data_dir={data_dir}", f"--output_dir={out}", "--num_examples=50"
    done = command(*flags, "--crop_size=16", "--scale_min=0.5", "--scale_max=2")
    assert done.returncode == 0, done.stderr
    paths = [out / f"folder-train-{kind}.png" for kind in ("examples", "classes")]
    assert done.stdout.splitlines() == [str(path) for path in paths]
    assert sorted(out.iterdir()) == sorted(paths)
    for path in paths:
        with Image.open(path) as picture:
            seen = {color for _, color in picture.getcolors(10**6)}
            # Bars and legend are in the class' own colour, as classes.txt gives it.
            assert picture.mode == "RGB" and (250, 170, 30) in seen


def test_command_ends_in_one_line(data_dir, tmp_path):
    flags = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'out'}"
    done = command(*flags, "--split=nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("browse: data set 'folder' has no split 'nowhere'; it has")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings", [{"scale_range": (2.0, 1.0)}, {"scale_range": (0.0, 1.0)}, {"seed": -1}]
)
def test_an_augmentation_that_cannot_be_leaves_nothing(prepared, tmp_path, settings):
    with pytest.raises(ValueError, match="scale_range=|seed="):
        browse.browse(prepared, "train", str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out").exists()
