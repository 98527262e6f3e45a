"""Calibration by hand, against a loop over pixels, and where it has no value."""

import numpy as np
import pytest

from ss_gan_tf import calibration

NAMES = ("road", "sky", "tree")


def count(label, probs, ignore_label, **kwargs):
    pred, confidence = probs.argmax(axis=-1), probs.max(axis=-1)
    num_classes = probs.shape[-1]
    return calibration.count(
        label, pred, confidence, num_classes, ignore_label, **kwargs
    )


def test_expected_error_by_hand():
    # Five pixels, two bins: confidences .4 (wrong), .4 (right) | .6, .9 (right),
    # 1 (wrong).
    #   bin 0: |1 right - .8| = .2;  bin 1: |2 right - 2.5| = .5;  ECE = .7 / 5
    probs = np.array(
        [
            [0.4, 0.3, 0.3],
            [0.4, 0.3, 0.3],
            [0.2, 0.6, 0.2],
            [0.1, 0.9, 0.0],
            [0.0, 1.0, 0.0],
        ]
    )[None]
    label = np.array([[1, 0, 1, 1, 2]])
    counts = count(label, probs, 255, num_bins=2)
    np.testing.assert_array_equal(counts["confidence_pixels"], [[2, 0], [0, 3], [0, 0]])
    np.testing.assert_array_equal(counts["confidence_right"], [[1, 0], [0, 2], [0, 0]])
    summary = calibration.summarize(counts, NAMES)
    assert summary["ece"] == pytest.approx(0.14)
    assert summary["mean_confidence"] == pytest.approx((0.8 + 2.5) / 5)
    # Predicted road: |1 - .8| / 2; predicted sky: |2 - 2.5| / 3; tree never.
    per_class = summary["per_class"]
    assert per_class["ece"]["road"] == pytest.approx(0.1)
    assert per_class["ece"]["sky"] == pytest.approx(0.5 / 3)
    assert per_class["ece"]["tree"] is None
    assert per_class["mean_confidence"]["road"] == pytest.approx(0.4)
    assert summary["num_bins"] == 2


def test_errors_of_two_sides_do_not_cancel_between_bins():
    # Sure and wrong beside unsure and right: mean confidence equals accuracy, 1/2.
    probs = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # both sure
    label = np.array([[1], [1]])
    counts = count(label, probs, 255, num_bins=10)
    assert calibration.summarize(counts, NAMES[:2])["ece"] == pytest.approx(0.5)


def test_random_probabilities_agree_with_a_loop():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5] * 3, (17, 23)).astype(np.float32)
    label = rng.choice([0, 1, 2, 255], (17, 23))
    bins = {}
    for place in np.ndindex(label.shape):
        if label[place] != 255:
            row = [float(p) for p in probs[place]]
            sure = max(row)
            number = next(b for b in reversed(range(15)) if sure >= b / 15)
            right = row.index(sure) == label[place]
            bins.setdefault(number, []).append((right, sure))
    total = sum(map(len, bins.values()))
    expected = sum(
        len(pixels)
        / total
        * abs(np.mean([r for r, _ in pixels]) - np.mean([c for _, c in pixels]))
        for pixels in bins.values()
    )
    summary = calibration.summarize(count(label, probs, 255), NAMES)
    assert summary["ece"] == pytest.approx(expected, rel=1e-12)


def test_ignored_pixels_and_the_order_of_classes_do_not_matter():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet([0.5] * 3, (9, 11))
    label = rng.choice([0, 1, 2, 255], (9, 11))
    counts = count(label, probs, 255)
    other = np.where((label == 255)[..., None], [0.0, 0.0, 1.0], probs)
    framed = (
        np.pad(label, 2, constant_values=255),
        np.pad(probs, ((2, 2), (2, 2), (0, 0))),
    )
    new = np.array([2, 0, 1])  # class c becomes new[c]
    renamed = np.where(label == 255, 255, new[np.minimum(label, 2)])
    again = count(renamed, probs[..., np.argsort(new)], 255)
    for name in counts:
        changed = count(label, other, 255)[name]
        np.testing.assert_array_equal(counts[name], changed)
        np.testing.assert_array_equal(counts[name], count(*framed, 255)[name])
        np.testing.assert_array_equal(counts[name], again[name][new])


def test_a_mean_of_views_above_one_falls_into_the_last_bin():
    probs = np.full((1, 1, 1), 1 + 1e-6)
    counts = count(np.zeros((1, 1), int), probs, 255, num_bins=4)
    np.testing.assert_array_equal(counts["confidence_pixels"], [[0, 0, 0, 1]])


def test_without_a_labelled_pixel_there_is_no_figure():
    counts = count(np.full((2, 2), 255), np.ones((2, 2, 3)) / 3, 255)
    summary = calibration.summarize(counts, NAMES)
    assert summary["ece"] is None and summary["mean_confidence"] is None
    assert summary["per_class"]["ece"] == dict.fromkeys(NAMES)
