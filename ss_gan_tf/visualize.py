"""Label maps, errors and verdicts as pictures.  NumPy in, uint8 RGB out.

White stands for "no class here": the data sets give black to a class (VOC's
background) or leave it unused, and none of them uses white.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Colors = Sequence[Sequence[int]]  # [C][3], RGB 0..255

UNLABELLED_RGB = (255, 255, 255)
RIGHT_RGB = (58, 63, 71)  # dark, so that the errors stand out
WRONG_RGB = (255, 107, 53)
# The adversary's verdict: 0 "generated", 1 "ground truth".  Orange against blue
# stays apart for colour-blind eyes.
GENERATED_RGB = (230, 97, 1)
REAL_RGB = (33, 102, 220)

_TEXT_RGB = (245, 245, 245)
_BAR_RGB = (30, 33, 38)
_SEPARATOR_PX = 4
_MIN_TILE_PX = 160  # narrower pictures are enlarged: captions must stay legible
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize(ids: np.ndarray, colors: Colors) -> np.ndarray:
    """Class ids as colours.

    Args:
        ids: [H, W] int.
        colors: [C][3] RGB, 0..255.

    Returns:
        [H, W, 3] uint8 RGB; every id outside 0..C-1, the ignore label among them,
        is white.
    """
    palette = np.array([*colors, UNLABELLED_RGB], np.uint8)
    ids = np.asarray(ids)
    known = (ids >= 0) & (ids < len(colors))
    return palette[np.where(known, ids, len(colors))]


def overlay(
    image: np.ndarray, ids: np.ndarray, colors: Colors, alpha: float = 0.5
) -> np.ndarray:
    """The class colours laid over the image.

    Args:
        image: [H, W, 3] uint8 RGB.
        ids: [H, W] int; the image shows unchanged where the id is not a class.
        colors: [C][3] RGB, 0..255.
        alpha: weight of the colour in [0, 1].

    Returns:
        [H, W, 3] uint8 RGB.
    """
    _check_same_size(image, ids)
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(ids, colors), alpha, 0)
    known = (ids >= 0) & (ids < len(colors))
    return np.where(known[..., None], mixed, image)


def error_map(label: np.ndarray, pred: np.ndarray, ignore_label: int) -> np.ndarray:
    """Where the prediction is wrong.

    Args:
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids.
        ignore_label: id of the pixels without truth.

    Returns:
        [H, W, 3] uint8 RGB: right dark, wrong orange, without truth white.
    """
    _check_same_size(label, pred)
    picture = np.where((label == pred)[..., None], RIGHT_RGB, WRONG_RGB)
    picture[label == ignore_label] = UNLABELLED_RGB
    return picture.astype(np.uint8)


def panel(
    image: np.ndarray,
    label: np.ndarray,
    pred: np.ndarray,
    colors: Colors,
    ignore_label: int,
) -> np.ndarray:
    """Image | truth | prediction | error, side by side, each under its caption.

    Args:
        image: [H, W, 3] uint8 RGB.
        label: [H, W] int ids or `ignore_label`.
        pred: [H, W] int ids.
        colors: [C][3] RGB, 0..255.
        ignore_label: id of the pixels without truth.

    Returns:
        [h, w, 3] uint8 RGB.  Each of the four tiles has the image's size, or a whole
        multiple of it where the image is narrower than 160 pixels.
    """
    _check_same_size(image, label)
    wrong = (label != pred) & (label != ignore_label)
    share = wrong.sum() / max(np.sum(label != ignore_label), 1)
    return side_by_side(
        {
            "image": image,
            "truth": colorize(label, colors),
            "prediction": colorize(pred, colors),
            f"error {share:.1%}": error_map(label, pred, ignore_label),
        }
    )


def side_by_side(tiles: dict[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size in a row, with captions and thin separators.

    Args:
        tiles: caption -> [H, W, 3] uint8 RGB, in order from the left.

    Returns:
        [h, w, 3] uint8 RGB.
    """
    columns = []
    for caption, tile in tiles.items():
        tile = _enlarge(tile, _MIN_TILE_PX)
        columns += [draw_caption(tile, caption), None]
    height = columns[0].shape[0]
    separator = np.full((height, _SEPARATOR_PX, 3), _BAR_RGB, np.uint8)
    return np.hstack([separator if c is None else c for c in columns[:-1]])


def draw_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A dark bar with a line of text on top of the picture.

    Args:
        picture: [H, W, 3] uint8 RGB.
        text: one line; it is set smaller where it would not fit.

    Returns:
        [H + bar, W, 3] uint8 RGB.
    """
    width = picture.shape[1]
    scale = float(np.clip(width / 640, 0.45, 1.2))
    bar = np.full((round(44 * scale), width, 3), _BAR_RGB, np.uint8)
    _draw_centred(bar, text, (0, 0, width, len(bar)), scale)
    return np.vstack([bar, picture])


def verdict_overlay(image: np.ndarray, verdicts: np.ndarray) -> np.ndarray:
    """The adversary's verdicts drawn over what they judge.

    Args:
        image: [H, W, 3] uint8 RGB.
        verdicts: [S, S] (or any [s, t]) probabilities in [0, 1] that the cell is ground
            truth; NaN for a cell without a verdict.

    Returns:
        [h, w, 3] uint8 RGB: cells tinted from orange (0, generated) to blue (1, ground
        truth), stronger the surer; the value stands in each cell that has room for it.
        Enlarged by a whole factor where the image is narrower than 160 pixels.
    """
    verdicts = np.asarray(verdicts, np.float64)
    picture = _enlarge(image, _MIN_TILE_PX).copy()
    rows = np.linspace(0, picture.shape[0], verdicts.shape[0] + 1).round().astype(int)
    cols = np.linspace(0, picture.shape[1], verdicts.shape[1] + 1).round().astype(int)
    for i, j in np.argwhere(~np.isnan(verdicts)):
        box = cols[j], rows[i], cols[j + 1], rows[i + 1]
        _draw_verdict(picture, float(verdicts[i, j]), box)
    if min(np.diff(rows).min(), np.diff(cols).min()) >= 24:  # else lines hide the image
        for y in rows[1:-1]:
            picture[y - 1 : y + 1] = _TEXT_RGB
        for x in cols[1:-1]:
            picture[:, x - 1 : x + 1] = _TEXT_RGB
    return picture


def legend(class_names: Sequence[str], colors: Colors) -> np.ndarray:
    """The colour of each class beside its name, in columns of at most 16.

    Args:
        class_names: C names.
        colors: [C][3] RGB, 0..255.

    Returns:
        [h, w, 3] uint8 RGB on white.
    """
    row, swatch, gap, scale = 30, 40, 12, 0.55
    columns = -(-len(class_names) // 16)
    rows = -(-len(class_names) // columns)  # columns of even length
    text = max(cv2.getTextSize(name, _FONT, scale, 1)[0][0] for name in class_names)
    width = gap + swatch + gap + text + gap
    picture = np.full((rows * row + 2 * gap, columns * width, 3), 255, np.uint8)
    for k, (name, color) in enumerate(zip(class_names, colors, strict=True)):
        x, y = gap + k // rows * width, gap + k % rows * row
        corners = (x, y + 4), (x + swatch, y + row - 4)
        rgb = tuple(int(value) for value in color)
        cv2.rectangle(picture, *corners, rgb, cv2.FILLED)
        cv2.rectangle(picture, *corners, (120, 120, 120), 1)
        place = (x + swatch + gap, y + row - 10)
        cv2.putText(picture, name, place, _FONT, scale, _BAR_RGB, 1, cv2.LINE_AA)
    return picture


def confusion_picture(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """A confusion matrix as shares of the truth's pixels: each row adds up to 100 %.

    Right ones, on the diagonal, are blue, wrong ones orange, stronger the larger the
    share (by its square root: small shares must not vanish).  Shares of half a per
    cent and more stand in their cells, as whole per cents; a class that is not in the
    truth has a grey row.

    Args:
        matrix: [C, C] counts, rows truth, columns prediction.
        class_names: C names.

    Returns:
        [h, w, 3] uint8 RGB on white.
    """
    cell, gap, scale = (34 if len(class_names) <= 40 else 18), 8, 0.45
    texts = [cv2.getTextSize(name, _FONT, scale, 1)[0][0] for name in class_names]
    margin = max(texts) + 2 * gap
    side = cell * len(class_names)
    picture = np.full((margin + side + gap, margin + side + gap, 3), 255, np.uint8)
    strip = np.full((cell, margin, 3), 255, np.uint8)
    for k, (name, row) in enumerate(zip(class_names, matrix, strict=True)):
        label = strip.copy()
        place = (margin - gap - texts[k], cell // 2 + 5)
        cv2.putText(label, name, place, _FONT, scale, _BAR_RGB, 1, cv2.LINE_AA)
        start = margin + k * cell
        picture[start : start + cell, :margin] = label
        upright = strip.copy()  # the columns' names read upwards from their cells
        cv2.putText(upright, name, (gap, place[1]), _FONT, scale, _BAR_RGB, 1, 16)
        picture[:margin, start : start + cell] = cv2.rotate(
            upright, cv2.ROTATE_90_COUNTERCLOCKWISE
        )
        for j, pixels in enumerate(row):
            x = margin + j * cell
            box = picture[start : start + cell - 1, x : x + cell - 1]
            _draw_share(box, pixels / row.sum() if row.sum() else None, j == k)
    return draw_caption(picture, "% of the truth (row) predicted as (column)")


def _draw_share(box: np.ndarray, share: float | None, right: bool):
    if share is None:
        box[:] = (225, 225, 225)
        return
    color = np.array(REAL_RGB if right else GENERATED_RGB)
    weight = np.sqrt(share)
    box[:] = np.round((1 - weight) * 245 + weight * color)
    text = f"{100 * share:.0f}"
    if text != "0" and len(box) > 24:
        dark = tuple(int(v) for v in (_TEXT_RGB if weight > 0.6 else _BAR_RGB))
        (width, height), _ = cv2.getTextSize(text, _FONT, 0.42, 1)
        place = (len(box) - width) // 2, (len(box) + height) // 2
        cv2.putText(box, text, place, _FONT, 0.42, dark, 1, cv2.LINE_AA)


def _draw_verdict(picture: np.ndarray, verdict: float, box: tuple[int, ...]):
    x0, y0, x1, y1 = box
    cell = picture[y0:y1, x0:x1]
    # Undecided (1/2) leaves the image as it is.
    weight = 0.65 * abs(2 * verdict - 1)
    tint = np.full_like(cell, REAL_RGB if verdict > 0.5 else GENERATED_RGB)
    cell[:] = cv2.addWeighted(cell, 1 - weight, tint, weight, 0)
    scale = float(min((x1 - x0) / 90, (y1 - y0) / 45, 1.0))
    if scale >= 0.3:  # smaller figures cannot be read
        text = f"{verdict:.2f}"
        _draw_centred(picture, text, box, scale, outline=True)


def _draw_centred(
    picture: np.ndarray,
    text: str,
    box: tuple[int, ...],
    scale: float,
    outline: bool = False,
):
    """Writes text into the middle of box (x0, y0, x1, y1), shrunk until it fits."""
    x0, y0, x1, y1 = box
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    shrink = min(1.0, 0.94 * (x1 - x0) / width)
    place = (
        round((x0 + x1 - shrink * width) / 2),
        round((y0 + y1 + shrink * height) / 2),
    )
    scale *= shrink
    if outline:
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            shifted = place[0] + dx, place[1] + dy
            cv2.putText(picture, text, shifted, _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(picture, text, place, _FONT, scale, _TEXT_RGB, 1, cv2.LINE_AA)


def _enlarge(picture: np.ndarray, min_width: int) -> np.ndarray:
    """Whole-factor nearest enlargement, which keeps every class edge in its place."""
    factor = -(-min_width // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _check_same_size(first: np.ndarray, second: np.ndarray):
    if first.shape[:2] != second.shape[:2]:
        raise ValueError(f"sizes differ: {first.shape[:2]} and {second.shape[:2]}")
