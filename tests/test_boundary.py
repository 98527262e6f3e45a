"""Boundary IoU and F1 by hand, against loops over pixels, and what must not matter."""

import numpy as np
import pytest

from ss_gan_tf import boundary

NAMES = ("road", "sky", "tree")


def noisy_maps(seed, size=(19, 23), num_classes=3, ignored=0.1):
    """A truth of blocks with ignored pixels, and a prediction that is partly right."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, num_classes, (-(-size[0] // 6), -(-size[1] // 6)))
    label = blocks.repeat(6, axis=0).repeat(6, axis=1)[: size[0], : size[1]]
    pred = np.roll(label, rng.integers(-2, 3, 2), axis=(0, 1))
    pred = np.where(rng.random(size) < 0.05, rng.integers(0, num_classes, size), pred)
    return np.where(rng.random(size) < ignored, 255, label), pred


def slow_counts(label, pred, num_classes, radius, tolerance):
    """The definitions, pixel by pixel."""
    pixels = [p for p in np.ndindex(label.shape) if label[p] != 255]

    def near(ids, reach):
        return {
            c: {
                p
                for p in pixels
                if ids[p] == c
                and any(
                    ids[q] != c
                    for q in pixels
                    if max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= reach
                )
            }
            for c in range(num_classes)
        }

    def met(these, those):
        return sum(
            any(np.hypot(p[0] - q[0], p[1] - q[1]) <= tolerance for q in those)
            for p in these
        )

    bands = near(label, radius), near(pred, radius)
    lines = near(label, 1), near(pred, 1)
    return {
        "band_truth": [len(bands[0][c]) for c in range(num_classes)],
        "band_pred": [len(bands[1][c]) for c in range(num_classes)],
        "band_both": [len(bands[0][c] & bands[1][c]) for c in range(num_classes)],
        "outline_truth": [len(lines[0][c]) for c in range(num_classes)],
        "outline_pred": [len(lines[1][c]) for c in range(num_classes)],
        "outline_found": [met(lines[0][c], lines[1][c]) for c in range(num_classes)],
        "outline_right": [met(lines[1][c], lines[0][c]) for c in range(num_classes)],
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_shifted_edge_by_hand():
    # Truth: columns 0-2 road, 3-5 sky.  Prediction: 0-3 road, 4-5 sky.  4 rows.
    label = np.tile([0, 0, 0, 1, 1, 1], (4, 1))
    pred = np.tile([0, 0, 0, 0, 1, 1], (4, 1))
    counts = boundary.count(label, pred, 3, 255, radius=2, tolerance=1)
    # d = 2.  Road: G columns 1-2, P columns 2-3, both column 2: 4 / (8 + 8 - 4).
    # Sky: G columns 3-4, P columns 4-5, both column 4: the same.
    np.testing.assert_allclose(boundary.iou_per_class(counts), [1 / 3, 1 / 3, np.nan])
    # The outlines, columns 2 and 3 of road, are one pixel apart.
    np.testing.assert_allclose(boundary.f1_per_class(counts), [1, 1, np.nan])
    counts = boundary.count(label, pred, 3, 255, radius=1, tolerance=0.9)
    np.testing.assert_allclose(boundary.iou_per_class(counts), [0, 0, np.nan])
    np.testing.assert_allclose(boundary.f1_per_class(counts), [0, 0, np.nan])


def test_precision_and_recall_keep_their_sides():
    # Truth: sky in columns 3-7.  Prediction: sky in 3-5, tree in 6-7.  Tolerance 1,
    # 5 rows.  Sky: G column 3, P columns 3 and 5: R = 1, P = 1/2, F1 = 2/3.
    # Road: column 2 in both: 1.  Tree is predicted alone: 0.
    label = np.tile([0, 0, 0, 1, 1, 1, 1, 1], (5, 1))
    pred = np.tile([0, 0, 0, 1, 1, 1, 2, 2], (5, 1))
    counts = boundary.count(label, pred, 3, 255, radius=1, tolerance=1)
    np.testing.assert_array_equal(counts["outline_pred"], [5, 10, 5])
    np.testing.assert_array_equal(counts["outline_right"], [5, 5, 0])
    np.testing.assert_allclose(boundary.f1_per_class(counts), [1, 2 / 3, 0])
    swapped = boundary.count(pred, label, 3, 255, radius=1, tolerance=1)
    np.testing.assert_array_equal(swapped["outline_right"], [5, 5, 0])
    np.testing.assert_array_equal(swapped["outline_pred"], [5, 5, 0])


def test_the_frame_and_ignored_pixels_are_no_outline():
    label = np.zeros((6, 7), np.int64)
    label[:, 3] = 255
    counts = boundary.count(label, np.zeros((6, 7), np.int64), 3, 255, radius=2)
    assert all((values == 0).all() for values in counts.values())
    # Sky on both sides of the ignored strip: only what is labelled forms an outline,
    # and it does so across the strip.
    label[:, 4:] = 1
    counts = boundary.count(label, np.where(label == 255, 9, label), 3, 255, radius=2)
    np.testing.assert_array_equal(counts["band_truth"], [6, 6, 0])


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_agree_with_loops_over_pixels(seed):
    label, pred = noisy_maps(seed)
    for radius, tolerance in ((1, 1.0), (3, 2.3)):
        counts = boundary.count(label, pred, 3, 255, radius=radius, tolerance=tolerance)
        assert_equal(counts, slow_counts(label, pred, 3, radius, tolerance))


def test_what_must_not_matter():
    label, pred = noisy_maps(7)
    counts = boundary.count(label, pred, 3, 255, radius=2, tolerance=1.5)
    assert boundary.summarize(counts, NAMES)["mean_iou"] > 0.2
    # What is predicted where nothing is labelled.
    for guess in (0, 2, 255):
        other = np.where(label == 255, guess, pred)
        again = boundary.count(label, other, 3, 255, radius=2, tolerance=1.5)
        assert_equal(counts, again)
    # A frame of ignored pixels.
    framed = np.pad(label, 4, constant_values=255), np.pad(pred, 4)
    assert_equal(counts, boundary.count(*framed, 3, 255, radius=2, tolerance=1.5))
    # The numbers of the classes.
    new = np.array([2, 0, 1])
    renamed = np.where(label == 255, 255, new[np.minimum(label, 2)]), new[pred]
    again = boundary.count(*renamed, 3, 255, radius=2, tolerance=1.5)
    assert_equal(counts, {name: values[new] for name, values in again.items()})


def test_band_and_tolerance_follow_the_diagonal():
    label, pred = noisy_maps(3, size=(90, 120))  # diagonal 150: d = 3, tolerance 1.125
    own = boundary.count(label, pred, 3, 255)
    assert_equal(own, boundary.count(label, pred, 3, 255, radius=3, tolerance=1.125))
    other = boundary.count(label, pred, 3, 255, radius=2, tolerance=1.125)
    assert (own["band_truth"] > other["band_truth"]).any()
    tiny = boundary.count(label[:9, :9], pred[:9, :9], 3, 255)  # never below a pixel
    assert_equal(
        tiny,
        boundary.count(label[:9, :9], pred[:9, :9], 3, 255, radius=1, tolerance=1),
    )


def test_images_add_up_and_perfect_is_one():
    label, _ = noisy_maps(1, ignored=0)
    counts = boundary.count(label, label, 3, 255)
    twice = {name: 2 * values for name, values in counts.items()}
    for figures in (counts, twice):
        summary = boundary.summarize(figures, NAMES)
        assert summary["mean_iou"] == summary["mean_f1"] == 1


@pytest.mark.parametrize("value", [255, 1])
def test_without_an_outline_there_is_no_figure(value):
    label = np.full((5, 6), value)
    counts = boundary.count(label, np.ones((5, 6), int), 3, 255)
    assert boundary.summarize(counts, NAMES) == {
        "mean_iou": None,
        "mean_f1": None,
        "iou": dict.fromkeys(NAMES),
        "f1": dict.fromkeys(NAMES),
    }


def test_an_outline_on_one_side_only_is_zero():
    label = np.zeros((8, 8), int)
    pred = label.copy()
    pred[3, 3] = 1
    for pair in ((label, pred), (pred, label)):
        summary = boundary.summarize(boundary.count(*pair, 3, 255), NAMES)
        assert summary["iou"] == {"road": 0, "sky": 0, "tree": None}
        assert summary["f1"] == {"road": 0, "sky": 0, "tree": None}
