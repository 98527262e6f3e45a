"""The drawn street scenes: repeatable, complete, and not solved by colour."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep.archives import SourceError
from data_prep.synthetic.scene import HEIGHT, WIDTH, draw_scene
from data_prep.synthetic.synthetic_dataset_builder import Builder, split_counts
from ss_gan_tf.datasets import DATASETS

FACTS = DATASETS["synthetic"]


class SyntheticTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = {"train": 5, "val": 1, "test": 1}
    EXAMPLE_DIR = "."  # there is no source

    def _make_builder(self, config=None):
        return Builder(data_dir=self.tmp_dir, config=config, num_examples=5)


@pytest.fixture(scope="module")
def scenes():
    """[80, H, W, 3] images and [80, H, W] labels."""
    drawn = [draw_scene(np.random.default_rng([1, i])) for i in range(80)]
    return tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True))


def test_a_scene_depends_on_its_seed_alone(scenes):
    image, label = draw_scene(np.random.default_rng([1, 7]))
    np.testing.assert_array_equal(image, scenes[0][7])
    np.testing.assert_array_equal(label, scenes[1][7])
    assert np.any(scenes[0][7] != scenes[0][8])


def test_shapes_and_ids(scenes):
    image, label = scenes
    assert image.shape[1:] == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert label.shape[1:] == (HEIGHT, WIDTH) and label.dtype == np.uint8
    assert set(np.unique(label)) == {*range(FACTS.num_classes), 255}


def test_every_class_is_common(scenes):
    for class_id, name in enumerate(FACTS.class_names):
        pixels = (scenes[1] == class_id).sum((1, 2))
        assert (pixels > 0).mean() > 0.8, name
        assert pixels.mean() > 0.01 * HEIGHT * WIDTH, name
    # Outlines and poles; not so much that it would be missed elsewhere.
    assert 0.01 < (scenes[1] == 255).mean() < 0.08


def test_things_hide_each_other(scenes):
    """Vehicles are cut by what stands before them in a good part of the scenes."""
    split = 0
    for label in scenes[1]:
        near = cv2.dilate(
            (label == FACTS.class_names.index("vehicle")) * np.uint8(1),
            np.ones((5, 5), np.uint8),
        )
        others = [FACTS.class_names.index(n) for n in ("pedestrian", "traffic_light")]
        split += (near & np.isin(label, others)).any()
    assert split > len(scenes[1]) / 4


def test_colour_alone_does_not_solve_it(scenes):
    """The best guess from a pixel's colour, of 16^3, learnt on 60 scenes."""
    num_classes = FACTS.num_classes
    bins = (scenes[0] // 16).astype(np.int64) @ [256, 16, 1]
    seen = scenes[1] != 255
    train, test = seen.copy(), seen.copy()
    train[60:], test[:60] = False, False
    votes = np.zeros((16**3, num_classes))
    np.add.at(votes, (bins[train], scenes[1][train]), 1)
    # Every class weighs the same, which helps the small ones in mIoU.
    guesses = [votes.argmax(1), (votes / votes.sum(0)).argmax(1)]
    for guess in guesses:
        confusion = np.zeros((num_classes, num_classes))
        np.add.at(confusion, (scenes[1][test], guess[bins[test]]), 1)
        hits = np.diag(confusion)
        iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
        assert iou.mean() < 0.3, iou


def test_counts_keep_their_proportion():
    assert split_counts(None) == FACTS.counts == {"train": 400, "val": 60, "test": 60}
    assert split_counts(20) == {"train": 20, "val": 3, "test": 3}
    assert split_counts(1) == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(SourceError, match="num_examples=0 is less than 1"):
        split_counts(0)
