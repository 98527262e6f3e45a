"""The two pictures of `browse`: a contact sheet and a bar chart.  NumPy in, RGB out."""

from collections.abc import Sequence

import cv2
import numpy as np

TILE = 300  # pixels, height of an example's pictures
GAP = 12  # pixels between them
BAR, ROW, LONGEST = 16, 50, 560  # pixels: a bar's height, a class' height, full length
WHITE, INK, EDGE, RULE = (255,) * 3, (30, 33, 38), (120,) * 3, (190,) * 3
FONT = cv2.FONT_HERSHEY_SIMPLEX

Tiles = Sequence[np.ndarray]  # pictures of one size, [H, W, 3] uint8 RGB


def contact_sheet(
    rows: Sequence[tuple[str, Tiles, Tiles]],
    titles: tuple[str, str],
    legend: np.ndarray,
) -> np.ndarray:
    """One row an example, in two columns: before and after.

    Args:
        rows: name, pictures of the first and of the second column.
        titles: of the columns.
        legend: [h, w, 3] uint8 RGB, stands at the right.

    Returns:
        [h, w, 3] uint8 RGB on white.
    """
    first = [_strip(tiles) for _, tiles, _ in rows]
    second = [_strip(tiles) for _, _, tiles in rows]
    widths = [max(strip.shape[1] for strip in column) for column in (first, second)]
    heads = zip(titles, widths, strict=True)
    blocks = [np.hstack([_line(t, w + 2 * GAP, bold=True) for t, w in heads])]
    for (name, *_), *strips in zip(rows, first, second, strict=True):
        cells = [_frame(*cell) for cell in zip(strips, widths, strict=True)]
        pictures = np.hstack(cells)
        blocks += [_line(name, pictures.shape[1]), pictures]
    sheet = np.vstack(blocks)
    height = max(len(sheet), len(legend))
    return np.hstack([_extend(sheet, height), _extend(legend, height)])


def bar_chart(
    names: Sequence[str],
    colors: Sequence[Sequence[int]],
    shares: tuple[Sequence[float], Sequence[float]],
    titles: tuple[str, str, str],
) -> np.ndarray:
    """Two bars a class, one above the other; the last entry stands apart.

    Args:
        names: N.
        colors: [N][3] RGB in 0..255.
        shares: [N] fractions each, of the upper and the lower bars.
        titles: of the chart, of the upper and of the lower bars.

    Returns:
        [h, w, 3] uint8 RGB on white; all bars have one scale.
    """
    left = 2 * GAP + max(_width(name, 0.5, 1) for name in names)
    top, width = 84, left + LONGEST + 90
    width = max(width, *(_width(title, 0.6, 2) + 2 * GAP for title in titles))
    unit = LONGEST / max(*shares[0], *shares[1], 1e-9)
    picture = np.full((top + ROW * len(names) + 2 * GAP, width, 3), 255, np.uint8)
    _write(picture, titles[0], (GAP, 28), 0.6, 2)
    _write(picture, f"upper bar: {titles[1]}", (GAP, 50))
    _write(picture, f"lower bar: {titles[2]}", (GAP, 70))
    last = len(names) - 1
    for k, (name, *pair) in enumerate(zip(names, *shares, strict=True)):
        y = top + ROW * k + (GAP if k == last else 0)
        place = left - GAP - _width(name, 0.5, 1), y + BAR + 5
        _write(picture, name, place)
        for share, offset in zip(pair, (0, BAR + 2), strict=True):
            x, corner = left + round(unit * share), (left, y + offset)
            if share:
                _bar(picture, corner, (max(x, left + 2), y + offset + BAR), colors[k])
            place = x + 8, y + offset + BAR - 3
            _write(picture, f"{100 * share:.2f}", place, 0.45)
    y = top + ROW * last + GAP // 2 - 4
    cv2.line(picture, (GAP, y), (width - GAP, y), RULE, 1)
    return picture


def _strip(tiles: Tiles) -> np.ndarray:
    """The pictures beside each other, each TILE pixels high."""
    height, width = tiles[0].shape[:2]
    size = max(1, round(TILE * width / height)), TILE
    # Pixels stay sharp when enlarged; thin objects stay visible when reduced.
    how = cv2.INTER_AREA if height > TILE else cv2.INTER_NEAREST
    between = np.full((TILE, GAP // 3, 3), 255, np.uint8)
    parts = []
    for tile in tiles:
        parts += [between, cv2.resize(tile, size, interpolation=how)]
    return np.hstack(parts[1:])


def _frame(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture with white around it, `width` + 2 GAP pixels wide."""
    sides = 0, GAP, GAP, width - picture.shape[1] + GAP
    return cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=WHITE)


def _extend(picture: np.ndarray, height: int) -> np.ndarray:
    """White below, up to the height."""
    sides = 0, height - len(picture), 0, 0
    return cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=WHITE)


def _line(text: str, width: int, bold: bool = False) -> np.ndarray:
    """A line of text on white, set smaller where it would not fit."""
    scale, weight = (0.7, 2) if bold else (0.5, 1)
    bar = np.full((42 if bold else 22, width, 3), 255, np.uint8)
    scale *= min(1.0, (width - 2 * GAP) / max(_width(text, scale, weight), 1))
    _write(bar, text, (GAP, len(bar) - (12 if bold else 8)), scale, weight)
    return bar


def _bar(picture: np.ndarray, corner, opposite, color):
    rgb = tuple(int(value) for value in color)
    cv2.rectangle(picture, corner, opposite, rgb, cv2.FILLED)
    cv2.rectangle(picture, corner, opposite, EDGE, 1)


def _write(picture: np.ndarray, text: str, place, scale=0.5, weight=1):
    """Text whose baseline begins at place (x, y)."""
    cv2.putText(picture, text, place, FONT, scale, INK, weight, cv2.LINE_AA)


def _width(text: str, scale: float, weight: int) -> int:
    return cv2.getTextSize(text, FONT, scale, weight)[0][0]
