"""Fig. 6 from a trained run: image, truth, prediction, error."""

import numpy as np
import pytest

from ss_gan_tf import checkpoints
from ss_gan_tf.input_pipeline import eval_examples, open_dataset
from ss_gan_tf.panels import draw_panels
from ss_gan_tf.visualize import WRONG_RGB, colorize


def test_panels_hold_image_truth_prediction_and_error(tiny_run, tiny_data):
    run = checkpoints.read_run(tiny_run)
    data = open_dataset("synthetic", tiny_data)
    first, second = list(eval_examples(data, "val", limit=2).as_numpy_iterator())
    names = [example["name"].decode() for example in (second, first)]
    panels = draw_panels({"ours": run, "again": run}, "val", names)
    assert list(panels) == names
    tiles = panels[names[0]]
    captions = [caption for caption, _ in tiles]
    assert captions[:3] == ["image", "truth", "ours"] and captions[4] == "again"
    np.testing.assert_array_equal(tiles[0][1], second["image"])
    truth = colorize(second["label"], run.class_colors)
    np.testing.assert_array_equal(tiles[1][1], truth)
    np.testing.assert_array_equal(tiles[2][1], tiles[4][1])
    # Wrong is where prediction and truth have different colours.
    wrong = np.any(tiles[2][1] != truth, -1) & (second["label"] != 255)
    np.testing.assert_array_equal(np.all(tiles[3][1] == WRONG_RGB, -1), wrong)
    share = wrong.sum() / np.sum(second["label"] != 255)
    assert captions[3] == f"ours: {share:.1%} wrong"


def test_an_unknown_image_is_refused(tiny_run):
    run = checkpoints.read_run(tiny_run)
    with pytest.raises(ValueError, match="no image 'nobody'"):
        draw_panels({"ours": run}, "val", ["nobody"])
