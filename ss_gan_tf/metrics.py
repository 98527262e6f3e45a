"""Equation 8: intersection over union from one confusion matrix.

NumPy in, numbers out.  Every figure is a fraction in [0, 1]; only `format_table`
turns fractions into per cent.  A confusion matrix is additive: the matrix of a split
is the sum of its images' matrices, so nothing here grows with the split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(
    label: np.ndarray, pred: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Counts p of eq. 8: p[i, j] pixels of true class i were predicted as j.

    Args:
        label: [...] int, class ids in [0, C) or `ignore_label`, which is not counted.
        pred: [...] int of the same shape, class ids in [0, C) wherever it counts.
        num_classes: C.
        ignore_label: id of the pixels that are left out, whatever their prediction.

    Returns:
        [C, C] int64, rows truth, columns prediction.

    Raises:
        ValueError: for shapes that differ, or an id out of range in either map.
    """
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape != pred.shape:
        raise ValueError(
            f"label and prediction must have one shape, not {label.shape} and "
            f"{pred.shape}"
        )
    valid = label != ignore_label
    truth = label[valid].astype(np.int64)
    guess = pred[valid].astype(np.int64)
    _check_ids("label", truth, num_classes, f" or {ignore_label} (ignored)")
    _check_ids("prediction", guess, num_classes, "")
    counts = np.bincount(num_classes * truth + guess, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def _check_ids(what: str, ids: np.ndarray, num_classes: int, also: str):
    bad = ids[(ids < 0) | (ids >= num_classes)]
    if bad.size:
        raise ValueError(
            f"{what} holds the value {bad[0]}: must be 0..{num_classes - 1}{also}"
        )


def iou_per_class(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, eq. 8.

        IoU(i) = p_ii / (sum_j (p_ij + p_ji) - p_ii)

    Args:
        matrix: [..., C, C] counts from `confusion_matrix`, one matrix or many.

    Returns:
        [..., C] float64 in [0, 1]; NaN for a class with an empty union, that is in
        neither truth nor prediction.  A class that is predicted but never true has
        IoU 0.
    """
    matrix = np.asarray(matrix, np.float64)
    intersection = np.diagonal(matrix, axis1=-2, axis2=-1)
    return ratio(intersection, matrix.sum(axis=-2) + matrix.sum(axis=-1) - intersection)


def mean_iou(matrix: np.ndarray) -> float | np.ndarray:
    """Mean IoU over the classes that have one, eq. 8.

        mIoU = mean_i IoU(i), over i with a union that is not empty

    Args:
        matrix: [..., C, C] counts from `confusion_matrix`, one matrix or many.

    Returns:
        A fraction in [0, 1], of many matrices [...] float64; NaN when no pixel was
        counted.
    """
    return mean_of_present(iou_per_class(matrix))


def mean_iou_of_true(matrix: np.ndarray) -> float | np.ndarray:
    """Mean IoU over the classes that the truth has: the same ones for any prediction.

        mean_i IoU(i), over i with sum_j p_ij > 0

    For differences: by eq. 8 a single pixel of a class that no truth has would take
    1 / C off one of two runs. Where every class is in the truth both are the same.

    Args:
        matrix: [..., C, C] counts from `confusion_matrix`, one matrix or many.

    Returns:
        As `mean_iou`.
    """
    matrix = np.asarray(matrix)
    is_true = matrix.sum(axis=-1) > 0
    return mean_of_present(np.where(is_true, iou_per_class(matrix), np.nan))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator by denominator, NaN where the denominator is 0.

    Args:
        numerator: [...] counts.
        denominator: [...] counts of the same shape, not negative.

    Returns:
        [...] float64.
    """
    numerator = np.asarray(numerator, np.float64)
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=np.greater(denominator, 0))


def mean_of_present(values: np.ndarray) -> float | np.ndarray:
    """Mean over the classes that have a value.

    Args:
        values: [..., C], NaN for a class without one.

    Returns:
        A float, of many rows [...] float64; NaN where no class has a value.
    """
    present = ~np.isnan(values)
    mean = ratio(np.where(present, values, 0).sum(axis=-1), present.sum(axis=-1))
    return float(mean) if mean.ndim == 0 else mean


def classes_by_size(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes of few and of many pixels.

    Args:
        matrix: [C, C] counts from `confusion_matrix`.

    Returns:
        Ids of the classes whose share of the truth's pixels is below the median, and
        above it.  The median is over the classes that are in the truth; a class that
        sits on it, the middle one of an odd number, belongs to neither side.
    """
    pixels = np.sum(matrix, axis=1)
    present = pixels > 0
    if not present.any():
        return np.arange(0), np.arange(0)
    median = np.median(pixels[present])
    small, large = present & (pixels < median), pixels > median
    return np.flatnonzero(small), np.flatnonzero(large)


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Share of the labelled pixels that are predicted right, sum_i p_ii / sum_ij p_ij.

    Args:
        matrix: [C, C] counts from `confusion_matrix`.

    Returns:
        A fraction in [0, 1]; NaN when no pixel was counted.
    """
    total = np.sum(matrix)
    return float(np.trace(matrix) / total) if total else float("nan")


def summarize(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """All figures of one confusion matrix, ready for JSON.

    Args:
        matrix: [C, C] counts from `confusion_matrix`.
        class_names: C names, all different.

    Returns:
        {"miou", "pixel_accuracy": fraction, or None when no pixel was counted,
        "iou": {name: fraction, or None for an empty union},
        "absent_classes": names of the classes with an empty union, left out of miou,
        "miou_small_classes", "miou_large_classes": mean IoU of `classes_by_size`, or
        None, "small_classes", "large_classes": their names,
        "num_pixels": labelled pixels, "confusion_matrix": [C][C] int}.

    Raises:
        ValueError: when names and matrix do not fit, or a name is there twice.
    """
    if len(class_names) != len(matrix):
        raise ValueError(f"{len(class_names)} class names for {len(matrix)} classes")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class names must differ: {list(class_names)}")
    iou = by_name(iou_per_class(matrix), class_names)
    sizes = dict(zip(("small", "large"), classes_by_size(matrix), strict=True))
    return {
        "miou": none_for_nan(mean_iou(matrix)),
        "pixel_accuracy": none_for_nan(pixel_accuracy(matrix)),
        "iou": iou,
        "absent_classes": [name for name, value in iou.items() if value is None],
        **{
            f"miou_{size}_classes": none_for_nan(
                mean_of_present(iou_per_class(matrix)[ids])
            )
            for size, ids in sizes.items()
        },
        **{
            f"{size}_classes": [class_names[i] for i in ids]
            for size, ids in sizes.items()
        },
        "num_pixels": int(np.sum(matrix)),
        "confusion_matrix": np.asarray(matrix).tolist(),
    }


def by_name(values: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """[C] values by class name, None in place of NaN."""
    pairs = zip(class_names, values, strict=True)
    return {name: none_for_nan(value) for name, value in pairs}


def none_for_nan(value: float) -> float | None:
    """A float for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)


def format_table(metrics: dict[str, Any]) -> str:
    """A table for people: IoU of each named class, mIoU and pixel accuracy, in %.

    Args:
        metrics: what `summarize` returns.

    Returns:
        Lines without a newline at the end; absent classes are named as left out.
    """
    iou = metrics["iou"]
    absent = metrics["absent_classes"]
    share = f"mIoU of {len(iou) - len(absent)} classes" if absent else "mIoU"
    width = max(len(name) for name in [*iou, share, "pixel accuracy"])

    def row(name, value):
        return f"{name:<{width}}  {'-' if value is None else f'{100 * value:.2f}':>6}"

    rule = "-" * (width + 8)
    lines = [f"{'class':<{width}}  {'IoU, %':>6}", rule]
    lines += [row(name, value) for name, value in iou.items()]
    lines += [
        rule,
        row(share, metrics["miou"]),
        row("pixel accuracy", metrics["pixel_accuracy"]),
    ]
    if absent:
        lines.append(f"left out, in neither truth nor prediction: {', '.join(absent)}")
    return "\n".join(lines)
