"""Whether a network is as sure as it is right: expected calibration error.

NumPy in, numbers out.  `count` gives an image's additive counts, `summarize` the
figures of a sum of them.

Shapes: H W pixels, C classes, B bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ss_gan_tf import metrics

NUM_BINS = 15  # of equal width over [0, 1]; Guo et al. 2017 (arXiv 1706.04599)


def count(
    label: np.ndarray,
    pred: np.ndarray,
    confidence: np.ndarray,
    num_classes: int,
    ignore_label: int,
    num_bins: int = NUM_BINS,
) -> dict[str, np.ndarray]:
    """Labelled pixels of one image by predicted class and confidence.

    Bin b holds [b / B, (b + 1) / B), the last one 1 too.

    Args:
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids.
        confidence: [H, W] float, the highest probability, which is that of `pred`.
        num_classes: C.
        ignore_label: id of the pixels that are left out.
        num_bins: B.

    Returns:
        [C, B] each: "confidence_pixels", "confidence_right" (int64) and
        "confidence_sum" (float64).
    """
    valid = label != ignore_label
    pred = pred[valid].astype(np.int64)
    confidence = confidence[valid].astype(np.float64)
    # The mean of several views can exceed 1 by rounding.
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)

    def table(weights=None):
        cells = np.bincount(
            pred * num_bins + bins, weights, minlength=num_classes * num_bins
        )
        return cells.reshape(num_classes, num_bins)

    return {
        "confidence_pixels": table().astype(np.int64),
        "confidence_right": table(pred == label[valid]).astype(np.int64),
        "confidence_sum": table(confidence),
    }


def expected_error(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Expected calibration error, Guo et al. 2017.

        ECE = sum_b n_b / n |right_b / n_b - confidence_b / n_b|
            = sum_b |right_b - confidence_b| / n

    Args:
        counts: sums of `count` over images, [..., B].

    Returns:
        [...] float64 in [0, 1]; NaN where no pixel was counted.
    """
    gap = np.abs(counts["confidence_right"] - counts["confidence_sum"]).sum(axis=-1)
    return metrics.ratio(gap, counts["confidence_pixels"].sum(axis=-1))


def summarize(
    counts: dict[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    """The figures, ready for JSON.

    Args:
        counts: sums of `count` over images.
        class_names: C names.

    Returns:
        {"ece", "mean_confidence" (sum_b confidence_b / n, with the names of
        `expected_error`): fractions over all pixels, or None; "per_class":
        the same of the pixels predicted as a class, {figure: {name: value or None}};
        "num_bins"}.
    """

    def figures(parts):
        pixels = parts["confidence_pixels"].sum(axis=-1)
        return {
            "ece": expected_error(parts),
            "mean_confidence": metrics.ratio(
                parts["confidence_sum"].sum(axis=-1), pixels
            ),
        }

    names = ("confidence_pixels", "confidence_right", "confidence_sum")
    parts = {name: counts[name] for name in names}
    overall = figures({name: part.sum(axis=0) for name, part in parts.items()})
    return {
        **{name: metrics.none_for_nan(value) for name, value in overall.items()},
        "per_class": {
            name: metrics.by_name(values, class_names)
            for name, values in figures(parts).items()
        },
        "num_bins": parts["confidence_pixels"].shape[-1],
    }
