"""How well the outlines of the classes are met: Boundary IoU and boundary F1.

NumPy in, numbers out.  `count` gives an image's additive counts, `summarize` the
figures of a sum of them, so that any subset of a split can be scored again.

An ignored pixel and the world outside the image are no other class: an outline runs
only between two labelled pixels.  The reference program of Cheng et al. counts the
image's frame as outline too, which raises the figure of every class that reaches it.

Shapes: H W pixels, C classes.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ss_gan_tf import metrics

BAND_SHARE = 0.02  # of the image's diagonal; Cheng et al. 2021 (arXiv 2103.16562)
TOLERANCE_SHARE = 0.0075  # of the image's diagonal; Csurka et al. 2013 (BMVC)


def count(
    label: np.ndarray,
    pred: np.ndarray,
    num_classes: int,
    ignore_label: int,
    *,
    radius: int | None = None,
    tolerance: float | None = None,
) -> dict[str, np.ndarray]:
    """Pixels near the outlines of one image, of each class c.

    G_d(c) are the truth's pixels of c that have a labelled pixel of another class
    within d (Chebyshev, a square window), P_d(c) the prediction's.  G_1, P_1 are the
    outlines themselves, one pixel thick on either side.

    Args:
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids; what stands at ignored pixels has no effect.
        num_classes: C.
        ignore_label: id of the pixels that are left out.
        radius: d in pixels; None for 2 % of the diagonal, at least 1.
        tolerance: of F1, pixels (Euclidean); None for 0.75 % of the diagonal, at
            least 1.

    Returns:
        [C] int64 each: "band_truth" |G_d|, "band_pred" |P_d|, "band_both" |G_d and
        P_d|; "outline_truth" |G_1|, "outline_pred" |P_1|, and how many of them are
        no further than the tolerance from the other: "outline_found" (of G_1),
        "outline_right" (of P_1).
    """
    diagonal = float(np.hypot(*label.shape))
    radius = max(1, round(BAND_SHARE * diagonal)) if radius is None else radius
    if tolerance is None:
        tolerance = max(1.0, TOLERANCE_SHARE * diagonal)
    valid = label != ignore_label
    label, pred = np.where(valid, label, 0), np.where(valid, pred, 0)

    def pixels(ids, where):
        return np.bincount(ids[where], minlength=num_classes).astype(np.int64)

    band_truth, band_pred = (_near_others(ids, valid, radius) for ids in (label, pred))
    counts = {
        "band_truth": pixels(label, band_truth),
        "band_pred": pixels(pred, band_pred),
        "band_both": pixels(label, band_truth & band_pred & (label == pred)),
    }
    outline_truth, outline_pred = (_near_others(ids, valid, 1) for ids in (label, pred))
    counts["outline_truth"] = pixels(label, outline_truth)
    counts["outline_pred"] = pixels(pred, outline_pred)
    found, right = np.zeros((2, num_classes), np.int64)
    shared = np.flatnonzero(counts["outline_truth"] * counts["outline_pred"])
    for c in shared:  # without an outline on either side nothing is met
        truth, guess = outline_truth & (label == c), outline_pred & (pred == c)
        x, y, width, height = cv2.boundingRect(np.uint8(truth | guess))
        box = slice(y, y + height), slice(x, x + width)  # all that is asked for
        truth, guess = truth[box], guess[box]
        found[c] = np.sum(truth & (_distance_to(guess) <= tolerance))
        right[c] = np.sum(guess & (_distance_to(truth) <= tolerance))
    return {**counts, "outline_found": found, "outline_right": right}


def _near_others(ids: np.ndarray, valid: np.ndarray, radius: int) -> np.ndarray:
    """[H, W] bool: labelled, with a labelled pixel of another class within radius.

    The window's highest and lowest class tell it for all classes at once.
    """
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    # 0 and the type's maximum stand for "no class" and never win.
    above = ids.astype(np.uint16) + np.uint16(1)
    none = np.iinfo(np.uint16).max
    highest = cv2.dilate(np.where(valid, above, np.uint16(0)), kernel)
    lowest = cv2.erode(np.where(valid, above, np.uint16(none)), kernel)
    return valid & (highest != lowest)


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """[H, W] float32 Euclidean distance to the nearest pixel of the mask."""
    others = np.uint8(~mask)
    return cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def iou_per_class(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Boundary IoU of each class, Cheng et al. 2021.

        |G_d and P_d| / |G_d or P_d|

    Args:
        counts: sums of `count` over images.

    Returns:
        [..., C] float64 in [0, 1]; NaN for a class without an outline in truth and
        prediction, 0 where only one of them has one.
    """
    both = counts["band_both"]
    return metrics.ratio(both, counts["band_truth"] + counts["band_pred"] - both)


def f1_per_class(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Boundary F1 of each class, pooled over images.

        P = right / |P_1|,  R = found / |G_1|,  F1 = 2 P R / (P + R)

    Args:
        counts: sums of `count` over images.

    Returns:
        [..., C] float64 in [0, 1]; NaN for a class without an outline in truth and
        prediction, 0 where only one of them has one, or no pixel is near the other.
    """
    precision = metrics.ratio(counts["outline_right"], counts["outline_pred"])
    recall = metrics.ratio(counts["outline_found"], counts["outline_truth"])
    neither = np.isnan(precision) & np.isnan(recall)
    precision, recall = np.nan_to_num(precision), np.nan_to_num(recall)
    f1 = np.nan_to_num(metrics.ratio(2 * precision * recall, precision + recall))
    return np.where(neither, np.nan, f1)


def summarize(
    counts: dict[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    """The figures, ready for JSON.

    Args:
        counts: sums of `count` over images.
        class_names: C names.

    Returns:
        {"mean_iou", "mean_f1": fractions, means over the classes that have one, or
        None; "iou", "f1": {name: fraction or None}}.
    """
    iou, f1 = iou_per_class(counts), f1_per_class(counts)
    return {
        "mean_iou": metrics.none_for_nan(metrics.mean_of_present(iou)),
        "mean_f1": metrics.none_for_nan(metrics.mean_of_present(f1)),
        "iou": metrics.by_name(iou, class_names),
        "f1": metrics.by_name(f1, class_names),
    }
