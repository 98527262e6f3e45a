"""From a generator to the numbers of Table 3: predict, count, summarize.

An image is evaluated at its own size, with the probabilities that `inference` gives.
While a device predicts one image, the next ones are read and those before are counted,
by threads of their own; what comes out does not depend on them.  Memory grows with the
split by each image's counts alone, see `per_image`.

Shapes: B batch, H W pixels, C classes.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import measures, per_image
from ss_gan_tf.inference import Predictor, make_predictor
from ss_gan_tf.overlap import in_order
from ss_gan_tf.per_image import Collector, PerImage, write_per_image

Parts = Iterator[PerImage]


def evaluate(
    generator: keras.Model,
    examples: tf.data.Dataset,
    *,
    class_names: Sequence[str],
    ignore_label: int,
    normalize: Callable,
    mode: str = "whole",
    window: int = 500,
    overlap: float = 1 / 3,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
    predictor: Predictor | None = None,
    on_prediction: Callable[[str, np.ndarray], None] | None = None,
    full: bool = False,
    on_counts: Callable[[PerImage], None] | None = None,
    devices: Sequence[Callable] = (contextlib.nullcontext,),
    join: Callable[[Parts], Parts] = iter,
) -> dict[str, Any]:
    """Eq. 8 over all examples, each counted once at its own size.

    Args:
        generator: normalised float32 [B, H, W, 3] -> logits [B, H, W, C].
        examples: {"image": uint8 [H, W, 3], "label": int32 [H, W], "name": string};
            sizes may vary.
        class_names: C names.
        ignore_label: id of the pixels that are left out.
        normalize: float32 RGB 0..255 -> the generator's input.
        mode: "whole" or "sliding".
        window: side of a sliding window, pixels.
        overlap: share of a window that its neighbour sees too, in [0, 1).
        scales: at which each image is seen, shares of its own size; probabilities
            are averaged.
        flip: whether each of them is seen mirrored too.
        batch_size: images in one forward pass, as far as sizes agree; the result does
            not depend on it, but for rounding of calibration's confidences.
        progress: called with the number of images counted so far, and of all images
            where the dataset knows it. With several workers the first counts those of
            all of them, the second is this worker's share alone.
        predictor: what `make_predictor` returned for the same generator and settings;
            handing it in again saves tracing when a run evaluates many times.
        on_prediction: called with each image's name and class ids, [H, W] uint8, one
            after the other in the order in which they were predicted.
        full: with boundary metrics, granulation and calibration.
        on_counts: called once, with the counts of every image.
        devices: as for `make_predictor`, where no predictor is handed in.
        join: given the counts of these examples part by part, those of all workers'
            examples; see `workers.Workers.join`.

    Returns:
        `measures.summarize` and "num_images", "mode", "scales", "flip"; for sliding
        "window", "overlap" too.

    Raises:
        ValueError: for an empty split, or a label out of range (names the image).
    """
    num_classes = len(class_names)
    predictor = predictor or make_predictor(
        generator,
        num_classes=num_classes,
        normalize=normalize,
        mode=mode,
        window=window,
        overlap=overlap,
        scales=scales,
        flip=flip,
        devices=devices,
    )

    def predict_and_count(batch):
        pixels = np.stack([example["image"] for example in batch])
        preds, confidences = predictor.predict(pixels, full)
        collector, predicted = Collector(), []
        for index, example in enumerate(batch):
            name = example["name"].decode(errors="replace")
            confidence = confidences[index] if full else None
            counted = name, example["label"], preds[index], confidence
            collector.add(name, _count(*counted, num_classes, ignore_label, full))
            predicted.append((name, preds[index]))
        return collector.result(class_names), predicted

    def own_parts(results):
        for images, predicted in results:
            for name, pred in predicted if on_prediction else ():
                on_prediction(name, pred)
            yield images

    parts, done, total = [], 0, int(examples.cardinality())
    batches = _same_size_batches(examples, batch_size)
    threads = _num_threads(predictor.num_devices)
    with contextlib.closing(in_order(predict_and_count, batches, threads)) as results:
        for images in join(own_parts(results)):
            parts.append(images)
            done += len(images.names)
            if progress:
                progress(done, total if total >= 0 else None)
    if not parts:
        raise ValueError("nothing to evaluate: the split holds no example")
    images = per_image.join(parts)
    if on_counts:
        on_counts(images)
    setting = {"window": window, "overlap": overlap} if mode == "sliding" else {}
    return {
        **measures.summarize(images.total(), class_names),
        "num_images": len(images.names),
        "mode": mode,
        "scales": list(scales),
        "flip": flip,
        **setting,
    }


def _num_threads(num_devices: int) -> int:
    """For each device one that waits for it, and with cores to spare up to 3 to count.

    Each holds one batch: its pixels, or with windows, scales or mirror images its
    probabilities.
    """
    cores = os.cpu_count() or 1
    return num_devices * (1 + max(1, min(3, cores // (2 * num_devices))))


def _count(
    name, label, pred, confidence, num_classes, ignore_label, full
) -> dict[str, np.ndarray]:
    try:
        return measures.count(
            label, pred, confidence, num_classes, ignore_label, full=full
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _same_size_batches(
    examples: tf.data.Dataset, batch_size: int
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Groups examples by size, holding at most 4 batches back at any time."""
    waiting: dict[tuple, list] = {}
    for example in examples.as_numpy_iterator():
        group = waiting.setdefault(example["image"].shape, [])
        group.append(example)
        if len(group) == batch_size:
            yield waiting.pop(example["image"].shape)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def write_evaluation(metrics: dict[str, Any], images: PerImage, folder: str):
    """Writes FOLDER/per_image.npz and metrics.json, never of two evaluations.

    Args:
        metrics: from `evaluate`.
        images: the counts behind them.
        folder: RUN/eval/KIND; made when missing.
    """
    path = os.path.join(folder, "metrics.json")
    counts = os.path.join(folder, "per_image.npz")
    # Both are on the disk before what stood there goes, so that no room for them
    # loses nothing.
    write_per_image(images, f"{counts}.new")
    write_metrics(metrics, f"{path}.new")
    if os.path.exists(path):  # not to stand beside new counts if this is interrupted
        os.remove(path)
    os.replace(f"{counts}.new", counts)
    os.replace(f"{path}.new", path)


def write_metrics(metrics: dict[str, Any], path: str):
    """Writes metrics as JSON, whole or not at all; what is not finite becomes null.

    Args:
        metrics: what `evaluate` returns.
        path: the file; its folder is made.
    """
    text = json.dumps(_finite(metrics), indent=2, allow_nan=False)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
