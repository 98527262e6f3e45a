"""Granulation, the paper's word for speckle, and the large areas that are missed.

The paper shows both in Fig. 6 and measures neither; the definitions here are ours.
NumPy in, numbers out.  `count` gives an image's additive counts, `summarize` the
figures of a sum of them, so that any subset of a split can be scored again.

A component is a set of pixels of one class that hang together over sides and corners
(8 neighbours).  Ignored pixels have no class, but they part nothing: before components
are looked for, each takes over the class of its nearest labelled pixel, in truth and
prediction alike.  So a road that an ignored strip cuts is one road, the prediction at
ignored pixels has no effect, and an ignored frame around the image changes nothing.
Only a thin object under a slanting strip may still fall apart, and does so in both
maps.  Areas count labelled pixels alone; a component without any does not count.

Shapes: H W pixels, C classes.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from ss_gan_tf import metrics

SPECK_SHARE = 1e-3  # of the image's labelled pixels; smaller components may be specks
LARGE_SHARE = 1e-2  # of the image's labelled pixels; larger regions are large areas

_PER_CLASS = (
    "components_truth", "components_pred", "component_surplus",
    "holes_truth", "holes_pred", "hole_surplus",
    "specks", "speck_pixels", "pixels_pred",
    "border_truth", "border_pred",
    "large_regions", "large_lost", "large_pixels", "large_missed",
)  # fmt: skip


def count(
    label: np.ndarray,
    pred: np.ndarray,
    num_classes: int,
    ignore_label: int,
    *,
    speck_share: float = SPECK_SHARE,
    large_share: float = LARGE_SHARE,
) -> dict[str, np.ndarray]:
    """Components, holes, specks, borders and large regions of one image.

    Args:
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids; what stands at ignored pixels has no effect.
        num_classes: C.
        ignore_label: id of the pixels that are left out.
        speck_share: components of less than this share of the image's labelled pixels
            may be specks.
        large_share: true regions of at least this share of them are large.

    Returns:
        [] int64 "images": 1, or 0 for an image without a labelled pixel.
        [C] int64 each:
        "components_truth", "components_pred": K_t, K_p;
        "component_surplus": max(K_p - K_t, 0);
        "holes_truth", "holes_pred": parts of the other classes that the class
        encloses (they hang together over sides and do not reach the image's frame);
        "hole_surplus": as for components;
        "specks": small components of the prediction of which less than half is right;
        "speck_pixels": their labelled pixels;
        "pixels_pred": all labelled pixels predicted as the class;
        "border_truth", "border_pred": pairs of labelled pixels that share a side, of
        which one is of the class and the other is not, in pixel sides;
        "large_regions": large components of the truth, "large_pixels": their pixels,
        "large_missed": those predicted as another class, "large_lost": regions of
        which more than half is missed.
    """
    counts = {name: np.zeros(num_classes, np.int64) for name in _PER_CLASS}
    valid = label != ignore_label
    counts["images"] = np.int64(valid.any())
    if not valid.any():
        return counts
    label, pred = _fill(label, pred, valid)
    counts["pixels_pred"] += np.bincount(pred[valid], minlength=num_classes)
    counts["border_truth"] += _border_lengths(label, valid, num_classes)
    counts["border_pred"] += _border_lengths(pred, valid, num_classes)
    right = valid & (label == pred)
    smallest_large = large_share * valid.sum()
    largest_speck = speck_share * valid.sum()
    for c in range(num_classes):
        areas, met = _components(label == c, valid, right)
        large = areas >= smallest_large
        counts["components_truth"][c] = len(areas)
        counts["large_regions"][c] = large.sum()
        counts["large_lost"][c] = np.sum(large & (2 * met < areas))
        counts["large_pixels"][c] = areas[large].sum()
        counts["large_missed"][c] = (areas - met)[large].sum()

        areas, met = _components(pred == c, valid, right)
        specks = (areas < largest_speck) & (2 * met < areas)
        counts["components_pred"][c] = len(areas)
        counts["specks"][c] = specks.sum()
        counts["speck_pixels"][c] = areas[specks].sum()

        counts["holes_truth"][c] = _holes(label == c, valid)
        counts["holes_pred"][c] = _holes(pred == c, valid)
    for what in ("component", "hole"):
        more = counts[f"{what}s_pred"] - counts[f"{what}s_truth"]
        counts[f"{what}_surplus"] = np.maximum(more, 0)
    return counts


def _fill(label, pred, valid):
    """Both maps with the nearest labelled pixel's class at ignored pixels."""
    if valid.all():
        return label, pred
    _, nearest = ndimage.distance_transform_edt(
        ~valid, return_distances=True, return_indices=True
    )
    return label[tuple(nearest)], pred[tuple(nearest)]


def _components(mask, valid, right) -> tuple[np.ndarray, np.ndarray]:
    """Labelled pixels, and right ones, of each 8-connected component that has any."""
    if not mask.any():  # OpenCV crashes on an array without elements
        return np.zeros((2, 0), np.int64)
    box = _box(mask)
    _, ids = cv2.connectedComponents(np.uint8(mask[box]), connectivity=8)
    number = ids.max(initial=0) + 1
    areas = np.bincount(ids[valid[box]], minlength=number)[1:]  # 0 is what lies around
    met = np.bincount(ids[right[box]], minlength=number)[1:]
    return areas[areas > 0], met[areas > 0]


def _holes(mask, valid) -> int:
    """4-connected parts of the complement that the mask encloses."""
    box = _box(mask)
    others = np.pad(~mask[box], 1, constant_values=True)  # all that is not enclosed
    _, ids = cv2.connectedComponents(np.uint8(others), connectivity=4)
    around = ids[0, 0]
    labelled = np.bincount(ids[1:-1, 1:-1][valid[box]], minlength=around + 1) > 0
    labelled[[0, around]] = False  # the mask itself, and what is not enclosed
    return int(labelled.sum())


def _box(mask):
    """The rows and columns that the mask takes up; components need no more."""
    x, y, width, height = cv2.boundingRect(np.uint8(mask))
    return slice(y, y + height), slice(x, x + width)


def _border_lengths(ids, valid, num_classes) -> np.ndarray:
    lengths = np.zeros(num_classes, np.int64)
    for one, other in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        border = valid[one] & valid[other] & (ids[one] != ids[other])
        for side in (one, other):
            lengths += np.bincount(ids[side][border], minlength=num_classes)
    return lengths


def _figures(counts, images) -> dict[str, np.ndarray]:
    """Every figure of counts that are [C] or summed over classes."""
    seen = counts["components_truth"] + counts["components_pred"] > 0
    per_image = np.where(seen, images, 0)  # a class that is nowhere has no figure
    return {
        "surplus": metrics.ratio(counts["component_surplus"], per_image),
        "component_ratio": metrics.ratio(
            counts["components_pred"], counts["components_truth"]
        ),
        "hole_surplus": metrics.ratio(counts["hole_surplus"], per_image),
        "specks": metrics.ratio(counts["specks"], per_image),
        "speck_share": metrics.ratio(counts["speck_pixels"], counts["pixels_pred"]),
        "border_ratio": metrics.ratio(counts["border_pred"], counts["border_truth"]),
        "large_missed": metrics.ratio(counts["large_missed"], counts["large_pixels"]),
        "large_lost": metrics.ratio(counts["large_lost"], counts["large_regions"]),
    }


def summarize(
    counts: dict[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    """The figures, ready for JSON.

    Each is a ratio of two sums over the images; the overall figure sums over the
    classes too.  With n images:

        surplus         = sum max(K_p - K_t, 0) / n      components per image
        component_ratio = sum K_p / sum K_t              1 as many as in the truth
        hole_surplus    = sum max(holes_p - holes_t, 0) / n
        specks          = specks / n                     specks per image
        speck_share     = pixels in specks / predicted pixels
        border_ratio    = borders of the prediction / of the truth, 1 as long
        large_missed    = missed pixels / pixels, of the large true regions
        large_lost      = large true regions more than half missed / large regions

    Args:
        counts: sums of `count` over images.
        class_names: C names.

    Returns:
        {figure: overall, or None, "per_class": {figure: {name: value, or None for a
        class whose denominator is empty}}}.
    """
    images = counts["images"]
    per_class = _figures({name: counts[name] for name in _PER_CLASS}, images)
    overall = _figures({name: np.sum(counts[name]) for name in _PER_CLASS}, images)
    return {
        **{name: metrics.none_for_nan(value) for name, value in overall.items()},
        "per_class": {
            name: metrics.by_name(values, class_names)
            for name, values in per_class.items()
        },
    }
