"""Training curves as SVG, and pictures as the bytes of a file."""

import io
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

MAX_POINTS = 400  # of a curve; more cannot be told apart on a page
MAX_TILE_PX = 480  # wider pictures are reduced

# Okabe and Ito's colours, which colour-blind eyes tell apart, and a dash of its own.
STYLES = {
    "phase1": ("#6b7280", "-"),
    "control": ("#0072b2", "--"),
    "adversarial": ("#d55e00", "-"),
    "entropy": ("#009e73", "-."),
    "frozen_adversary": ("#aa4499", ":"),
}

# Of lines that are no roles: one colour after the other, with the next dash when all
# colours are used; from the sixteenth line on they repeat.
_COLORS = ("#e69f00", "#56b4e9", "#000000", "#cc79a7", "#8a6d00")
_DASHES = ("-", "--", ":")

Curve = Sequence[tuple[int, float]]
Interval = tuple[float, float] | None


def draw_curves(
    curves: Mapping[str, Sequence[Curve]],
    title: str,
    unit: str,
    landmark: tuple[float, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> bytes | None:
    """One quantity over the steps, a line for each run.

    Args:
        curves: role, or another name for the legend -> [(step, value)] of each seed.
        title: above the axes.
        unit: of the values.
        landmark: a value with a meaning of its own, and that meaning in a few words.
        notes: name of a line -> what the legend says behind it.

    Returns:
        An SVG file that refers to no other; None when there is no point.
    """
    if not any(curve for seeds in curves.values() for curve in seeds):
        return None
    # Names of its parts that do not change from run to run.
    with matplotlib.rc_context({"svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        others = [name for name in curves if name not in STYLES]
        for role, seeds in curves.items():
            if role in STYLES:
                (color, dash), label = STYLES[role], role.replace("_", " ")
            else:
                turn, place = divmod(others.index(role), len(_COLORS))
                color, dash = _COLORS[place], _DASHES[turn % len(_DASHES)]
                label = role
            label += (notes or {}).get(role, "")
            for curve in filter(None, seeds):
                steps, values = zip(*_thin(curve), strict=True)
                marker = "o" if len(steps) == 1 else None
                axes.plot(
                    *(steps, values),
                    **{"color": color, "linestyle": dash, "linewidth": 1.4},
                    **{"label": label, "marker": marker, "markersize": 4},
                )
                label = None  # one entry of the legend for all seeds
        if landmark:
            value, meaning = landmark
            axes.axhline(value, color="#9ca3af", linewidth=0.8, label=meaning)
        axes.set(title=title, xlabel="step", ylabel=unit)
        low, high = axes.get_ylim()
        if high - low < 0.02 * abs(high):  # rounding is not a curve
            axes.set_ylim(0.9 * low, 1.1 * high)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.legend(frameon=False, fontsize=7.5)
        return _svg(figure)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds, at the steps that all of them have.

    Args:
        curves: [(step, value)] of each seed.

    Returns:
        [(step, mean)] in order of steps; empty where no step is common. A seed without
        a point does not count.
    """
    values = [dict(curve) for curve in curves if curve]
    common = set.intersection(*map(set, values)) if values else set()
    return [
        (step, sum(seed[step] for seed in values) / len(values))
        for step in sorted(common)
    ]


def draw_gains(rows: Sequence[tuple[str, float, Interval]], title: str) -> bytes:
    """Differences with their intervals, one below the other, and a line at 0.

    Args:
        rows: (label, points, interval or None), from the top.
        title: above the axes.

    Returns:
        An SVG file that refers to no other.
    """
    with matplotlib.rc_context({"svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(5.2, 0.9 + 0.27 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color="#6b7280", linewidth=0.8)
        for height, (_, points, interval) in enumerate(rows):
            if interval is not None:
                axes.plot(interval, [height] * 2, color="#0072b2", linewidth=2)
            axes.plot(points, height, "o", color="#0072b2", markersize=5)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.set(title=title, xlabel="points of mIoU")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.6)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _thin(curve: Curve) -> Curve:
    """At most MAX_POINTS points, the last among them."""
    stride = -(-len(curve) // MAX_POINTS)
    return curve[::-1][::stride][::-1]


def encode(picture: np.ndarray, suffix: str) -> bytes:
    """A picture as a file, at most MAX_TILE_PX wide.

    Args:
        picture: [H, W, 3] uint8 RGB.
        suffix: ".jpg" for photographs, ".png" for maps, whose colours stay as they are.

    Returns:
        The file.
    """
    height, width = picture.shape[:2]
    if width > MAX_TILE_PX:
        size = MAX_TILE_PX, max(1, round(height * MAX_TILE_PX / width))
        how = cv2.INTER_AREA if suffix == ".jpg" else cv2.INTER_NEAREST
        picture = cv2.resize(picture, size, interpolation=how)
    done, data = cv2.imencode(suffix, picture[..., ::-1])
    if not done:
        raise ValueError(f"a picture of {picture.shape} cannot be written as {suffix}")
    return data.tobytes()
