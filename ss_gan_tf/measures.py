"""All that is measured of a prediction: eq. 8 always, the rest on request.

`count` gives an image's counts.  They are additive: a split's counts are the sums of
its images', and `summarize` turns any such sum into figures.

Shapes: H W pixels, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ss_gan_tf import boundary, calibration, granulation, metrics

METRICS = ("basic", "full")

# Heading, unit, place of the figure of a class, and of its overall value.
_COLUMNS = (
    ("IoU", "%", ("iou",), ("miou",)),
    ("boundary", "IoU, %", ("boundary", "iou"), ("boundary", "mean_iou")),
    ("boundary", "F1, %", ("boundary", "f1"), ("boundary", "mean_f1")),
    *(
        (head, unit, ("granulation", "per_class", name), ("granulation", name))
        for head, unit, name in (
            ("surplus", "/image", "surplus"),
            ("holes", "/image", "hole_surplus"),
            ("specks", "/image", "specks"),
            ("specks", "px, %", "speck_share"),
            ("border", "ratio", "border_ratio"),
            ("large area", "missed, %", "large_missed"),
        )
    ),
    ("ECE", "%", ("calibration", "per_class", "ece"), ("calibration", "ece")),
)


def count(
    label: np.ndarray,
    pred: np.ndarray,
    confidence: np.ndarray | None,
    num_classes: int,
    ignore_label: int,
    *,
    full: bool = False,
) -> dict[str, np.ndarray]:
    """The additive counts of one image.

    Args:
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids.
        confidence: [H, W] float, the probability of `pred`; only full counts need it.
        num_classes: C.
        ignore_label: id of the pixels that are left out.
        full: with those of `boundary`, `granulation` and `calibration`.

    Returns:
        {"confusion": [C, C] int64, and for full what their `count` return}.

    Raises:
        ValueError: for shapes that differ, or an id out of range.
    """
    matrix = metrics.confusion_matrix(label, pred, num_classes, ignore_label)
    if not full:
        return {"confusion": matrix}
    return {
        "confusion": matrix,
        **boundary.count(label, pred, num_classes, ignore_label),
        **granulation.count(label, pred, num_classes, ignore_label),
        **calibration.count(label, pred, confidence, num_classes, ignore_label),
    }


def summarize(
    counts: dict[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    """The figures of summed counts, ready for JSON.

    Args:
        counts: sums of `count` over images.
        class_names: C names, all different.

    Returns:
        `metrics.summarize`, and where the counts are full "boundary", "granulation"
        and "calibration" with what the modules of these names return.
    """
    figures = metrics.summarize(counts["confusion"], class_names)
    if set(counts) == {"confusion"}:
        return figures
    return {
        **figures,
        "boundary": boundary.summarize(counts, class_names),
        "granulation": granulation.summarize(counts, class_names),
        "calibration": calibration.summarize(counts, class_names),
    }


def format_table(figures: dict[str, Any]) -> str:
    """A table for people; of full figures with a second one of all columns.

    Args:
        figures: what `summarize` returns.

    Returns:
        Lines without a newline at the end; "-" for a figure that does not exist.
    """
    table = metrics.format_table(figures)
    return f"{table}\n\n{_wide_table(figures)}" if "boundary" in figures else table


def _wide_table(figures):
    def cell(place, unit, name=None):
        value = figures
        for key in place:
            value = value[key]
        value = value if name is None else value[name]
        if value is None:
            return "-"
        return f"{100 * value if '%' in unit else value:.2f}"

    names = list(figures["iou"])
    rows = [
        ["class", *(head for head, *_ in _COLUMNS)],
        ["", *(unit for _, unit, *_ in _COLUMNS)],
        *(
            [name, *(cell(place, unit, name) for _, unit, place, _ in _COLUMNS)]
            for name in names
        ),
        ["overall", *(cell(place, unit) for _, unit, _, place in _COLUMNS)],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])
