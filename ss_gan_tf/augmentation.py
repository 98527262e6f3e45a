"""What happens to an example after decoding: check, crop, mirror, scale, fill.

NumPy and OpenCV alone, so that a machine without TensorFlow gets the same batches.
What is drawn for the run's n-th example is a function of (seed, n).

Cropping comes before scaling: a window of crop_size / scale source pixels is
cut out and only that is mirrored and resized, which gives the pixels of "resize
everything, then crop" at a fraction of the cost.

Shapes: H W pixels, S side of the crop, 3 colours RGB.  Geometry takes the image and
its label together, so the two cannot get out of step.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

# Examples whose random numbers are made at once, see `draw`.
DRAWS_AT_ONCE = 256


def augment(
    seed: int,
    n: int,
    image: np.ndarray,
    label: np.ndarray,
    image_out: np.ndarray,
    label_out: np.ndarray,
    *,
    scale_range: tuple[float, float],
    flip: bool,
    colors: np.ndarray,
    ignore_label: int,
) -> None:
    """The run's n-th example, as the networks get it.

    Args:
        seed: Of the run.
        n: Counted from 0 over the whole run.
        image: [H, W, 3] uint8.
        label: [H, W] uint8.
        image_out: [S, S, 3] uint8, gets the image.
        label_out: [S, S] uint8, gets the label.
        scale_range: Lowest and highest scale factor, drawn uniformly.
        flip: Whether to mirror half of the examples.
        colors: [S, 3] uint8, RGB of a row outside the image.
        ignore_label: Label of pixels outside the image.
    """
    crop_size = len(label_out)
    for_scale, *corner, for_mirror = draw(seed, n)
    window = window_size(crop_size, scale_range, for_scale)
    image, label = crop(image, label, window, corner)
    if flip and for_mirror < 0.5:
        image, label = mirror(image, label)
    height, width = scaled_size(label.shape, crop_size / window)
    inside = slice(height), slice(width)
    scale(image, label, image_out[inside], label_out[inside])
    fill(image_out, label_out, height, width, colors, ignore_label)


def padding_row(pad_color: Sequence[float], crop_size: int) -> np.ndarray:
    """[S, 3] uint8: a row outside the image, RGB in 0..255, rounded."""
    # Whole rows at once: NumPy repeats three bytes several times more slowly.
    return np.tile(np.rint(pad_color).astype(np.uint8), (crop_size, 1))


# --- The steps, in running order ---------------------------------------------


def check(
    image: np.ndarray,
    label: np.ndarray,
    name: bytes,
    num_classes: int,
    ignore_label: int,
) -> None:
    """Raises if shapes of a pair disagree or a value of the whole label is unknown.

    Later code relies on it: a loss would turn an unknown id into NaN, and a
    confusion matrix would drop it, both without a word.

    Args:
        image: [H, W, 3].
        label: [H, W] uint8.
        name: Of the example, for the error.
        num_classes: C.
        ignore_label: The one value that may stand beside 0..C-1.

    Raises:
        ValueError: Names example, value and rule; inside tf.data it arrives as
            `tf.errors.InvalidArgumentError`, whose first line says the same.
    """
    name = name.decode(errors="replace")
    if label.dtype != np.uint8:
        raise ValueError(f"label of {name} is {label.dtype}, not uint8")
    if image.shape[:2] != label.shape:
        sizes = list(image.shape[:2]), list(label.shape)
        raise ValueError(f"{name}: image is {sizes[0]} but label is {sizes[1]}")
    if ignore_label == 255:
        signed = label.view(np.int8)  # 255 is -1: the common case in two passes
        if signed.max() < num_classes and signed.min() >= -1:
            return
    # Below and above the ignore label: two comparisons cost half of a table's look-up.
    below = num_classes, ignore_label - 1
    above = max(num_classes, ignore_label + 1), 255
    for lowest, highest in (below, above):
        if lowest > highest:
            continue
        unknown = cv2.inRange(label, lowest, highest)
        if cv2.countNonZero(unknown):
            raise ValueError(
                f"label of {name} holds {label[unknown > 0][0]}, which is neither in "
                f"0..{num_classes - 1} nor {ignore_label}"
            )


def draw(seed: int, n: int) -> tuple[float, ...]:
    """The random numbers of the run's n-th example, a function of (seed, n).

    Philox (Salmon et al. 2011) is a cipher of its key: NumPy promises the same bits in
    every version, and there is no state but what is kept of the last calls.

    Args:
        seed: Of the run.
        n: Counted from 0 over the whole run.

    Returns:
        Four numbers, uniform in [0, 1), multiples of 2^-53.
    """
    block, place = divmod(n, DRAWS_AT_ONCE)
    return _draws(seed, block)[place]


@functools.lru_cache(maxsize=16)
def _draws(seed: int, block: int) -> list[tuple[float, ...]]:
    """What `draw` gives for the examples of a block."""
    bits = np.random.Philox(key=[seed, block]).random_raw(4 * DRAWS_AT_ONCE)
    numbers = (bits >> np.uint64(11)) * 2.0**-53
    return list(map(tuple, numbers.reshape(DRAWS_AT_ONCE, 4).tolist()))


def window_size(crop_size: int, scale_range: tuple[float, float], number: float) -> int:
    """Side of the source window that becomes the crop at a random scale.

    Args:
        crop_size: S, pixels.
        scale_range: Lowest and highest scale factor.
        number: In [0, 1): where the factor lies between them.

    Returns:
        round(S / factor), at least 1; S for the range (1, 1).
    """
    lowest, highest = scale_range
    return max(1, round(crop_size / (lowest + number * (highest - lowest))))


def crop(
    image: np.ndarray, label: np.ndarray, size: int, corner: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the same window out of both.

    Args:
        image: [H, W, 3].
        label: [H, W].
        size: Side of the window in pixels.
        corner: Two numbers in [0, 1), where its top and its left are in their room.

    Returns:
        Views image [h, w, 3], label [h, w] with h = min(H, size), w = min(W, size).
    """
    room = (max(length - size, 0) + 1 for length in label.shape)
    top, left = (
        int(share * places) for share, places in zip(corner, room, strict=True)
    )
    window = slice(top, top + size), slice(left, left + size)
    return image[window], label[window]


def mirror(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors both left to right.

    Args:
        image: [H, W, 3].
        label: [H, W].

    Returns:
        image, label of the same shapes.
    """
    return cv2.flip(image, 1), cv2.flip(label, 1)


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(H, W) times a factor, rounded, at least 1 pixel."""
    height, width = size
    return max(1, round(height * factor)), max(1, round(width * factor))


def scale(
    image: np.ndarray,
    label: np.ndarray,
    image_out: np.ndarray,
    label_out: np.ndarray,
) -> None:
    """Resizes both: bilinear for the image, nearest for the ids.

    Args:
        image: [H, W, 3], values in 0..255.
        label: [H, W].
        image_out: [h, w, 3], gets the image, of its type; pixels are rounded.
        label_out: [h, w], gets the label.
    """
    size = label_out.shape[::-1]
    cv2.resize(image, size, image_out)
    # The old pixel that holds the centre of each new one.
    cv2.resize(label, size, label_out, interpolation=cv2.INTER_NEAREST_EXACT)


def fill(
    image: np.ndarray,
    label: np.ndarray,
    height: int,
    width: int,
    colors: np.ndarray,
    ignore_label: int,
) -> None:
    """Fills what lies below and to the right of a pair: one colour, and no class.

    Args:
        image: [S, S, 3] uint8, whose first height x width pixels stay.
        label: [S, S] uint8, likewise.
        height: h, pixels.
        width: w, pixels.
        colors: [S, 3] uint8, RGB of a filled row.
        ignore_label: Label of the filled pixels.
    """
    if height < len(label):
        image[height:] = colors
        label[height:] = ignore_label
    if width < len(colors):
        image[:height, width:] = colors[width:]
        label[:height, width:] = ignore_label
