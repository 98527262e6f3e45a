"""A prepared TFDS split -> batches.  Functions stand in running order.

    read -> decode -> check -> crop -> mirror -> scale -> fill -> to_model

`train_batches` is the whole path in one place.  Order and randomness are
stateless: identity and augmentation of the run's n-th example are a pure
function of (seed, n), so neither the number of threads nor a restart changes
what the model sees, and a resumed run reads nothing that came before.

Crop to fill are `augmentation`.  Pixels stay
uint8 until the batch is on its device, and what happens to them after decoding is
NumPy and OpenCV, in one call for up to four examples, which writes all of them into one
array: on a CPU that is several times as fast as TensorFlow's operations on single
images, and a small batch is not copied again.

Shapes: B batch, H W pixels, 3 colours RGB.  Geometry takes the image and its label
together, so the two cannot get out of step.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from ss_gan_tf import strict_json
from ss_gan_tf.augmentation import augment, check, padding_row

Color = tuple[float, float, float]

# Examples that training has in the making at once; as many threads as there are cores
# make them. Results leave in order, so with fewer a thread that is done with a small
# crop would wait for a large one before it.
EXAMPLES_AHEAD = 4 * (os.cpu_count() or 1)

# Batches, or examples of evaluation, that wait for the device.
READY_AHEAD = 4

# Whole images that evaluation decodes at a time; each may take 15 MB.
EVALUATION_READS = min(8, os.cpu_count() or 1)

# At most so many of a batch are made by one call, straight into one array; as many as
# divide its share of the batch. More would leave cores without work where batches are
# large.
EXAMPLES_A_CALL = 4

# TensorFlow takes an array of NumPy's that begins at a multiple of this many bytes for
# a tensor as it is, and copies any other.
ALIGNMENT = 64


# --- Opening -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A data set as `data_prep.prepare` left it on disk.

    Attributes:
        name: Name of the data set, e.g. "camvid".
        class_names: Name of class id 0, 1, ...
        class_colors: RGB in 0..255 of class id 0, 1, ...
        ignore_label: Label value of pixels that belong to no class.
        split_sizes: Split -> number of examples.
        builder: The TFDS builder that reads the files.
        partial: Whether it lacks images of the complete data set: its figures are
            not comparable with published ones.
        unlabelled_splits: Splits of images alone; every pixel of them is ignored.
        digests: Split -> digest of its examples, where its summary has one: the same
            for the same examples.
    """

    name: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    ignore_label: int
    split_sizes: dict[str, int]
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False, compare=False)
    partial: bool = False
    unlabelled_splits: tuple[str, ...] = ()
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes C; ids are 0..C-1."""
        return len(self.class_names)

    def source(self, split: str) -> Sequence[dict[str, Any]]:
        """Random access to the stored examples of a split.

        Args:
            split: A key of `split_sizes`.

        Returns:
            A sequence of {"image": encoded bytes, "label": encoded bytes,
            "name": bytes}; each access reads one record from disk.

        Raises:
            ValueError: There is no such split, or it holds no example.
        """
        if split not in self.split_sizes:
            raise ValueError(
                f"data set {self.name!r} has no split {split!r}; "
                f"it has {', '.join(self.split_sizes)}."
            )
        if not self.split_sizes[split]:
            raise ValueError(f"split {split!r} of {self.name!r} holds no example.")
        skip = tfds.decode.SkipDecoding()
        return self.builder.as_data_source(
            split, decoders={"image": skip, "label": skip}
        )


def open_dataset(dataset: str, data_dir: str) -> PreparedDataset:
    """Opens DATA_DIR/DATASET/VERSION, the highest version if there are several.

    Everything is read from that folder: the code that prepared it is not needed.

    Args:
        dataset: Name of the data set.
        data_dir: The `--data_dir` that it was prepared in.

    Returns:
        The opened data set.

    Raises:
        FileNotFoundError: It has not been prepared there.
        ValueError: The folder holds a TFDS data set of another kind.
    """
    folder = os.path.join(data_dir, dataset)
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    versions = [
        tfds.core.Version(name) for name in names if tfds.core.Version.is_valid(name)
    ]
    if not versions:
        source = "" if dataset == "synthetic" else " --source_dir=SOURCE"
        raise FileNotFoundError(
            f"data set {dataset!r} is not prepared in {folder}; run: python -m "
            f"data_prep.prepare --dataset={dataset}{source} --data_dir={data_dir}"
        )
    builder = tfds.builder_from_directory(os.path.join(folder, str(max(versions))))
    facts = builder.info.metadata
    if not facts or "class_names" not in facts:
        raise ValueError(
            f"{builder.data_dir} names no classes: it was not written by "
            "data_prep.prepare."
        )
    return PreparedDataset(
        name=dataset,
        class_names=tuple(facts["class_names"]),
        class_colors=tuple(tuple(color) for color in facts["class_colors"]),
        ignore_label=facts["ignore_label"],
        split_sizes={
            name: split.num_examples for name, split in builder.info.splits.items()
        },
        builder=builder,
        partial=bool(facts.get("partial")),
        unlabelled_splits=tuple(facts.get("unlabelled_splits", ())),
        digests={
            split: count["digest"]
            for split, count in split_counts(builder.data_dir).items()
            if isinstance(count.get("digest"), str)
        },
    )


def split_counts(folder: str) -> dict[str, dict[str, Any]]:
    """What the summary beside prepared data says of each split; empty without one.

    Args:
        folder: DATA/NAME/VERSION.
    """
    try:
        splits = strict_json.read(os.path.join(folder, "summary.json"))["splits"]
        return {
            name: count for name, count in splits.items() if isinstance(count, dict)
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


# --- The two paths -----------------------------------------------------------


def train_batches(
    prepared: PreparedDataset,
    split: str,
    *,
    batch_size: int,
    crop_size: int,
    scale_range: tuple[float, float] = (1.0, 1.0),
    flip: bool = True,
    pad_color: Color,
    seed: int,
    first_example: int = 0,
    num_examples: int | None = None,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Shuffled, augmented batches; the n-th example is a function of (seed, n).

    n counts the examples of the whole run from 0; batch k of a run holds the
    examples k * batch_size to (k + 1) * batch_size - 1.  Every pass over the
    split shows each example once, in a new order. Of W workers number w gets the
    w-th of W equal shares of each batch. OpenCV is left with one thread, in the whole
    process and for good.

    Args:
        prepared: The data set.
        split: Its split to train on.
        batch_size: B, examples.
        crop_size: S, side of the square crop in pixels.
        scale_range: Lowest and highest scale factor, drawn uniformly.
        flip: Whether to mirror half of the examples.
        pad_color: RGB in 0..255 of pixels outside the image, rounded.
        seed: 0..2^31 - 1.
        first_example: n of the first example: where a resumed run goes on.
        num_examples: Examples to deliver to all workers; None for an endless stream.
        worker: (w, W); W divides B.

    Returns:
        {"image": [B / W, S, S, 3] uint8 RGB, "label": [B / W, S, S] uint8}, see
        `to_model`; a last batch that is not full is dropped.

    Raises:
        ValueError: An argument is out of range, or there is no such split.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed} is outside 0..2^31 - 1.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1.")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"scale_range={scale_range} is not 0 < lowest <= highest.")
    source = prepared.source(split)
    last = tf.int64.max if num_examples is None else first_example + num_examples
    # Its threads would wait for each other inside tf.data's, which are one a core.
    cv2.setNumThreads(1)

    colors = padding_row(pad_color, crop_size)

    def augment_one(n, image, label, name, image_out, label_out):
        check(image, label, name, prepared.num_classes, prepared.ignore_label)
        augment(
            seed,
            n,
            image,
            label,
            image_out,
            label_out,
            scale_range=scale_range,
            flip=flip,
            colors=colors,
            ignore_label=prepared.ignore_label,
        )

    def augment_all(numbers, *fields):
        images, labels = _empty_batch(len(numbers), crop_size)
        pairs = zip(fields[0::3], fields[1::3], fields[2::3], strict=True)
        for k, example in enumerate(pairs):
            augment_one(int(numbers[k]), *example, images[k], labels[k])
        return images, labels

    def load_and_augment(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        indices = [shuffled_index(n, len(source), seed) for n in tf.unstack(numbers)]
        fields = []
        for stored in read(source, *indices):
            fields += decode(*stored)
        images, labels = tf.numpy_function(
            augment_all, [numbers, *fields], [tf.uint8, tf.uint8], stateful=False
        )
        return {
            "image": tf.ensure_shape(images, [group, crop_size, crop_size, 3]),
            "label": tf.ensure_shape(labels, [group, crop_size, crop_size]),
        }

    number, num_workers = worker
    if batch_size % num_workers:
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of {num_workers} workers."
        )
    share = batch_size // num_workers
    group = max(g for g in range(1, EXAMPLES_A_CALL + 1) if share % g == 0)
    examples = tf.data.Dataset.range(first_example, last)
    if num_workers > 1:
        if num_examples is not None:  # a batch that is full for some is for none
            examples = examples.take(num_examples - num_examples % batch_size)
        examples = examples.filter(
            lambda n: (n - first_example) % batch_size // share == number
        )
    groups = examples.batch(group, drop_remainder=True).map(
        load_and_augment,
        num_parallel_calls=-(-EXAMPLES_AHEAD // group),
        deterministic=True,
    )
    if group < share:
        groups = groups.batch(share // group, drop_remainder=True).map(_merge)
    return untuned(groups.prefetch(READY_AHEAD))


def _merge(groups: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """[share / group, group, ...] -> [share, ...]."""
    return {
        name: tf.reshape(tensor, [-1, *tensor.shape[2:]])
        for name, tensor in groups.items()
    }


def _empty_batch(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [B, S, S, 3] and [B, S, S] that TensorFlow takes over without a copy."""
    pixels = size * side**2
    room = pixels + -pixels % ALIGNMENT
    memory = np.empty(4 * room + ALIGNMENT, np.uint8)  # one allocation, not two
    memory = memory[-memory.ctypes.data % ALIGNMENT :]
    return (
        memory[: 3 * pixels].reshape(size, side, side, 3),
        memory[3 * room : 3 * room + pixels].reshape(size, side, side),
    )


def to_model(
    batch: dict[str, tf.Tensor], normalize: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch as the networks and losses take it.

    For the device that trains: among tf.data's threads it would take as long as
    decoding, and four times the memory.

    Args:
        batch: What `train_batches` delivers.
        normalize: Maps float32 RGB [B, S, S, 3] in 0..255 to what the model takes.

    Returns:
        image [B, S, S, 3] float32, label [B, S, S] int32.
    """
    image = normalize(tf.cast(batch["image"], tf.float32))
    return image, tf.cast(batch["label"], tf.int32)


def eval_examples(
    prepared: PreparedDataset,
    split: str,
    *,
    limit: int | None = None,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Every example once, in stored order, as stored.

    Args:
        prepared: The data set.
        split: Its split.
        limit: Stop after this many examples; None for all.
        worker: (k, n) leaves the k-th of n workers the examples k, k + n, ...

    Returns:
        {"image": [H, W, 3] uint8 RGB, "label": [H, W] int32, "name": string},
        unbatched, because sizes may differ.

    Raises:
        ValueError: There is no such split.
    """
    source = prepared.source(split)
    count = len(source) if limit is None else min(limit, len(source))

    def checked(image, label, name):
        check(image, label, name, prepared.num_classes, prepared.ignore_label)
        return np.int32(label)

    def load(index: tf.Tensor) -> dict[str, tf.Tensor]:
        (stored,) = read(source, index)
        image, label, name = decode(*stored)
        ids = tf.numpy_function(checked, [image, label, name], tf.int32, stateful=False)
        return {
            "image": image,
            "label": tf.ensure_shape(ids, label.shape),
            "name": name,
        }

    return untuned(
        tf.data.Dataset.range(worker[0], count, worker[1])
        .map(load, num_parallel_calls=EVALUATION_READS, deterministic=True)
        .prefetch(READY_AHEAD)
    )


def untuned(examples: tf.data.Dataset) -> tf.data.Dataset:
    """The same without the thread that tunes tf.data.

    That thread sleeps for longer and longer, as long as the iteration has taken, and
    the end of the iteration waits until it wakes: about every third evaluation.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return examples.with_options(options)


# --- The steps, in running order ---------------------------------------------


def shuffled_index(n: tf.Tensor, size: int, seed: int) -> tf.Tensor:
    """Which stored example is the run's n-th: a fresh permutation every epoch.

    Args:
        n: Scalar int64, counted from 0 over the whole run.
        size: N, examples in the split.
        seed: 0..2^31 - 1.

    Returns:
        Scalar int64 in 0..N-1; n = k N ... (k + 1) N - 1 give each value once.
    """
    epoch = n // size
    return tf.random.experimental.index_shuffle(
        n % size,
        seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
        max_index=tf.constant(size - 1, tf.int64),
    )


def read(
    source: Sequence[dict[str, Any]], *indices: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Reads stored examples, by one call.

    Args:
        source: Random access to a split, from `PreparedDataset.source`.
        *indices: Scalars, int64.

    Returns:
        Of each example three scalar strings: encoded image, encoded label, name.
    """

    def fetch(*numbers):
        examples = [source[int(number)] for number in numbers]
        names = ("image", "label", "name")
        return [example[name] for example in examples for name in names]

    fields = tf.numpy_function(fetch, indices, 3 * len(indices) * [tf.string])
    fields = [tf.ensure_shape(field, []) for field in fields]
    return list(zip(fields[0::3], fields[1::3], fields[2::3], strict=True))


def decode(
    image_bytes: tf.Tensor, label_bytes: tf.Tensor, name: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes an encoded pair; the name passes through.

    Args:
        image_bytes: JPEG or PNG; grey becomes RGB.
        label_bytes: One-channel 8-bit PNG of class ids.
        name: Scalar string.

    Returns:
        image [H, W, 3] uint8, label [H, W] uint8, name.
    """
    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    label = tf.squeeze(tf.io.decode_png(label_bytes, channels=1), -1)  # no copy
    return image, label, name
