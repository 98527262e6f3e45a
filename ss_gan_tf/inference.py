"""Class probabilities of images of any size: whole, or in sliding windows.

Section 2.3: a photograph is seen in one piece, and a large one in overlapping windows
whose probabilities are averaged.  Either may be done at several scales and mirrored,
which the paper does not do.

Shapes: B batch, H W pixels, C classes.
"""

import contextlib
import math
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

MIN_SIZE = 32  # pixels; the generators' least height and width
WINDOW_BATCH = 2  # windows in one forward pass

Probabilities = Callable[[np.ndarray], np.ndarray]  # [B,H,W,3] -> [B,H,W,C]


class Prediction(NamedTuple):
    """All that is counted of a network's output: a byte, maybe a float, for each pixel.

    Attributes:
        class_ids: [B, H, W] the most probable class, the first of several; uint8 up to
            256 classes, int32 beyond.
        confidence: [B, H, W] float32, its probability; None where nobody asked for it.
    """

    class_ids: np.ndarray
    confidence: np.ndarray | None


class Predictor(NamedTuple):
    """A network as it is evaluated; threads may share it.

    Each device does one forward pass at a time. What else belongs to an image is done
    by the thread that asks, so two threads keep a device busy.

    Attributes:
        probabilities: images uint8 [B, H, W, 3] -> float32 [B, H, W, C].
        predict: (images uint8 [B, H, W, 3], whether confidence is asked for) ->
            Prediction.
        num_devices: forward passes that can be done at once.
    """

    probabilities: Probabilities
    predict: Callable[[np.ndarray, bool], Prediction]
    num_devices: int = 1


def make_network(
    generator: keras.Model, normalize: Callable, pad_to: int = MIN_SIZE
) -> Callable[[tf.Tensor], tf.Tensor]:
    """The generator from uint8 pixels to probabilities, with plain tensor functions.

    Args:
        generator: normalised float32 [B, H, W, 3] -> logits [B, H, W, C].
        normalize: float32 RGB 0..255 -> the generator's input; the mean colour is 0.
        pad_to: images smaller than this, in pixels, are padded at the bottom and right
            with the mean colour; the result is cropped back.

    Returns:
        images uint8 [B, H, W, 3] -> float32 [B, H, W, C], to be wrapped in tf.function.
    """

    def network(images: tf.Tensor) -> tf.Tensor:
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        x = normalize(tf.cast(images, tf.float32))
        pad_y, pad_x = tf.maximum(pad_to - height, 0), tf.maximum(pad_to - width, 0)
        x = tf.pad(x, [[0, 0], [0, pad_y], [0, pad_x], [0, 0]])
        logits = tf.cast(generator(x, training=False), tf.float32)
        return tf.nn.softmax(logits[:, :height, :width])

    return network


def make_predictor(
    generator: keras.Model,
    *,
    num_classes: int,
    normalize: Callable,
    mode: str = "whole",
    window: int = 500,
    overlap: float = 1 / 3,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch: int = WINDOW_BATCH,
    devices: Sequence[Callable] = (contextlib.nullcontext,),
) -> Predictor:
    """Inference on batches of images of any size, traced once for all sizes.

    Args:
        generator: normalised float32 [B, H, W, 3] -> logits [B, H, W, C].
        num_classes: C, checked against the generator's output.
        normalize: float32 RGB 0..255 -> the generator's input.
        mode: "whole" runs the image in one piece, "sliding" in windows.
        window: side of a window, pixels; smaller images are padded to it.
        overlap: least share of a window that its neighbour sees too, in [0, 1).
        scales: sizes at which the image is seen, shares of its own; a window keeps
            its size.  The probabilities are averaged, see `average_views`.
        flip: whether each of them is seen mirrored too.
        window_batch: windows in one forward pass.
        devices: for each device, what gives a context in which TensorFlow computes
            there; see `replicas.devices`.

    Returns:
        The predictor.

    Raises:
        ValueError: for another mode, a window, overlap or scale that cannot be, or a
            generator of another number of classes.
    """
    if generator.output_shape[-1] != num_classes:
        raise ValueError(
            f"the generator has {generator.output_shape[-1]} classes, not {num_classes}"
        )
    if mode not in ("whole", "sliding"):
        raise ValueError(f"eval mode must be 'whole' or 'sliding', not {mode!r}")
    if mode == "sliding":
        sliding_windows(window, window, overlap)  # refuses nonsense before the work
    check_scales(scales)
    pad_to = max(window, MIN_SIZE) if mode == "sliding" else MIN_SIZE
    network = make_network(generator, normalize, pad_to)
    id_type = tf.uint8 if num_classes <= 256 else tf.int32
    free = queue.SimpleQueue()  # the devices that have nothing to do
    for device in devices:
        free.put(device)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def forward(images):
        probs = network(images)
        ids = tf.cast(tf.argmax(probs, axis=-1), id_type)
        return probs, ids, tf.reduce_max(probs, axis=-1)

    def run(images):
        device = free.get()
        try:
            with device():
                return forward(tf.convert_to_tensor(images, tf.uint8))
        finally:
            free.put(device)

    def whole(images):
        return run(images)[0].numpy()

    def whole_prediction(images, with_confidence):
        # Chosen by the device: probabilities take 4 C bytes a pixel and stay there.
        _, ids, confidence = run(images)
        return Prediction(ids.numpy(), confidence.numpy() if with_confidence else None)

    def sliding(images):
        bands = sliding_bands(whole, images[0], window, overlap, window_batch)
        return np.concatenate(list(bands))[np.newaxis]

    def whole_views(images):
        return average_views(whole, np.asarray(images), scales, flip)

    def sliding_views(images):
        # One by one: the batch is not held at every scale.
        one_by_one = np.split(np.asarray(images), len(images))
        return np.concatenate(
            [average_views(sliding, image, scales, flip) for image in one_by_one]
        )

    views = whole_views if mode == "whole" else sliding_views

    def views_prediction(images, with_confidence):
        probs = views(images)
        ids = probs.argmax(axis=-1).astype(id_type.as_numpy_dtype)
        return Prediction(ids, probs.max(axis=-1) if with_confidence else None)

    plain = mode == "whole" and tuple(scales) == (1.0,) and not flip
    predict = whole_prediction if plain else views_prediction
    return Predictor(views, predict, len(devices))


def check_scales(scales: Sequence[float]):
    """Lets scales through that an image can be seen at.

    Raises:
        ValueError: for none at all, one that is not in 0.1..10, or one given twice.
    """
    fits = all(0.1 <= scale <= 10 for scale in scales)
    if not scales or not fits or len(set(scales)) < len(scales):
        raise ValueError(
            f"eval scales must be different numbers from 0.1 to 10, not {scales}"
        )


def average_views(
    predict: Probabilities, images: np.ndarray, scales: Sequence[float], flip: bool
) -> np.ndarray:
    """Mean probabilities over scales and mirror images, each with the same weight.

    Images and probabilities are resized bilinearly, like the images in training;
    the resized image is rounded to whole levels.  What is predicted mirrored is
    mirrored back.  Memory holds the sum and one view, however many there are.

    Args:
        predict: images uint8 [B, h, w, 3] -> probabilities float32 [B, h, w, C].
        images: [B, H, W, 3] uint8.
        scales: height and width of a view as shares of H and W.
        flip: whether each is seen mirrored left to right too.

    Returns:
        [B, H, W, C] float32; the plain `predict(images)` for scale 1 without flip.
    """
    size = images.shape[1:3]
    total = None
    for scale in scales:
        view = _resize_images(images, scale)
        for mirrored in (False, True)[: 1 + flip]:
            probs = predict(view[:, :, ::-1] if mirrored else view)
            probs = probs[:, :, ::-1] if mirrored else probs
            if probs.shape[1:3] != size:
                probs = tf.image.resize(probs, size).numpy()
            if total is None:
                total = np.zeros_like(probs)
            total += probs
    total /= len(scales) * (1 + flip)
    return total


def _resize_images(images: np.ndarray, scale: float) -> np.ndarray:
    """[B, H, W, 3] uint8 at another scale, sizes rounded, at least 1 pixel."""
    size = [max(1, round(scale * length)) for length in images.shape[1:3]]
    if tuple(size) == images.shape[1:3]:
        return images
    return np.rint(tf.image.resize(images, size).numpy()).astype(np.uint8)


def sliding_windows(size: int, window: int, overlap: float) -> list[int]:
    """Where the windows along one axis begin.

    They stand window * (1 - overlap) apart, rounded; the last one is moved back to end
    at the border, so it may share more than `overlap` with the one before.

    Args:
        size: length of the axis, pixels.
        window: length of a window, pixels.
        overlap: share of a window, in [0, 1).

    Returns:
        Ascending offsets, [0] for an axis that is no longer than a window.

    Raises:
        ValueError: for a window below 1 or an overlap outside [0, 1).
    """
    if window < 1:
        raise ValueError(f"eval window must be at least 1 pixel, not {window}")
    if not 0 <= overlap < 1:
        raise ValueError(f"eval overlap must be in [0, 1), not {overlap}")
    stride = max(1, round(window * (1 - overlap)))
    steps = max(0, math.ceil((size - window) / stride))
    return [*range(0, steps * stride, stride), max(0, size - window)]


def sliding_bands(
    predict: Probabilities,
    image: np.ndarray,
    window: int,
    overlap: float,
    window_batch: int,
) -> Iterator[np.ndarray]:
    """Averaged window probabilities of one image, in bands of finished rows.

    Memory is that of one row of windows, window * W * C floats, however high the image.

    Args:
        predict: windows uint8 [N, h, w, 3] -> probabilities float32 [N, h, w, C].
        image: [H, W, 3] uint8.
        window: side of a window, pixels; h, w are less for a smaller image.
        overlap: share of a window that its neighbour sees too, in [0, 1).
        window_batch: largest N.

    Yields:
        float32 [rows, W, C], from the top; together they have H rows.
    """
    height, width = image.shape[:2]
    h, w = min(window, height), min(window, width)
    tops = sliding_windows(height, window, overlap)
    lefts = sliding_windows(width, window, overlap)
    cover_y, cover_x = _coverage(height, tops, h), _coverage(width, lefts, w)
    band = None  # [h, W, C] sums of the window row at hand
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for first in range(0, len(lefts), window_batch):
            chunk = lefts[first : first + window_batch]
            crops = np.stack([image[top : top + h, x : x + w] for x in chunk])
            for x, probs in zip(chunk, predict(crops), strict=True):
                if band is None:
                    band = np.zeros((h, width, probs.shape[-1]), np.float32)
                band[:, x : x + w] += probs
        # The rows above the next window row have seen all their windows.
        done = next_top - top
        counts = np.outer(cover_y[top:next_top], cover_x)
        yield band[:done] / counts[..., None]
        band = np.concatenate([band[done:], np.zeros_like(band[:done])])


def _coverage(size: int, offsets: list[int], length: int) -> np.ndarray:
    """How many of the windows cover each position of an axis, [size] float32."""
    counts = np.zeros(size, np.float32)
    for offset in offsets:
        counts[offset : offset + length] += 1
    return counts
