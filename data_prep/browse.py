r"""Shows what is in a prepared data set, and what training makes of it.

    python -m data_prep.browse --dataset=camvid --split=train --data_dir=DATA \
        --output_dir=OUT --crop_size=256 --scale_min=0.5 --scale_max=2

writes OUT/DATASET-SPLIT-examples.png (image and labels of some examples as stored and
after the training augmentation, with a legend) and OUT/DATASET-SPLIT-classes.png
(every class' share of the labelled pixels, before and after).  The flags of the
augmentation are those of experiments.train.
"""

import os
import sys
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from tqdm import tqdm

from data_prep.sheets import bar_chart, contact_sheet
from ss_gan_tf import input_pipeline, visualize
from ss_gan_tf.augmentation import check
from ss_gan_tf.input_pipeline import PreparedDataset
from ss_gan_tf.messages import first_line

FLAGS = flags.FLAGS

PADDING = (124.0, 117.0, 104.0)  # about the mean colour, as in training


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("dataset", None, "A prepared data set.", required=True)
    flags.DEFINE_string("split", "train", "Its split.")
    flags.DEFINE_string("data_dir", None, "Where it was prepared.", required=True)
    flags.DEFINE_string("output_dir", None, "Gets the pictures.", required=True)
    flags.DEFINE_integer("num_examples", 6, "On the sheet.", lower_bound=1)
    flags.DEFINE_integer(
        "limit", 0, "Examples that the shares are counted on; 0 is all.", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "Which examples, and how they are augmented.")
    flags.DEFINE_integer("crop_size", 500, "Pixels.", lower_bound=1)
    flags.DEFINE_float("scale_min", 1.0, "Smallest random enlargement.")
    flags.DEFINE_float("scale_max", 1.0, "Largest random enlargement.")
    flags.DEFINE_bool("flip", True, "Mirror half of the examples.")


# --- Examples ----------------------------------------------------------------


def stored(
    prepared: PreparedDataset, split: str, seed: int, count: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The first examples of `train_batches` with this seed, as they are on disk.

    Args:
        prepared: the data set.
        split: its split.
        seed: of the order.
        count: how many.

    Yields:
        name, image [H, W, 3] uint8, label [H, W] uint8.
    """
    source = prepared.source(split)

    def load(n):
        index = input_pipeline.shuffled_index(n, len(source), seed)
        (example,) = input_pipeline.read(source, index)
        return input_pipeline.decode(*example)

    examples = tf.data.Dataset.range(count).map(
        load, num_parallel_calls=input_pipeline.EVALUATION_READS
    )
    facts = prepared.num_classes, prepared.ignore_label
    for image, label, name in input_pipeline.untuned(examples).as_numpy_iterator():
        check(image, label, name, *facts)
        yield name.decode(errors="replace"), image, label


def augmented(
    prepared: PreparedDataset, split: str, seed: int, count: int, **augmentation
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same examples as `train_batches` hands them to the networks.

    Args:
        prepared: the data set.
        split: its split.
        seed: of order and augmentation.
        count: how many.
        **augmentation: `crop_size`, `scale_range` and `flip` of
            `input_pipeline.train_batches`.

    Yields:
        image [S, S, 3] uint8, label [S, S] uint8.
    """
    batches = input_pipeline.train_batches(
        prepared,
        split,
        batch_size=1,
        pad_color=PADDING,
        seed=seed,
        num_examples=count,
        **augmentation,
    )
    for batch in batches.as_numpy_iterator():
        yield batch["image"][0], batch["label"][0]


# --- Shares ------------------------------------------------------------------


def count_ids(labels: Iterable[np.ndarray]) -> np.ndarray:
    """How many pixels carry each value, [256] int64; labels in 0..255."""
    counts = np.zeros(256, np.int64)
    for label in labels:
        counts += np.bincount(label.ravel(), minlength=256)
    return counts


def shares(counts: np.ndarray, num_classes: int, ignore_label: int) -> list[float]:
    """Fractions of the pixels, from `count_ids`.

    Args:
        counts: [256] pixels of each value.
        num_classes: C.
        ignore_label: value of the pixels without a class.

    Returns:
        C shares of the labelled pixels (zeros where there is none), then the ignored
        pixels' share of all.
    """
    ignored, classes = counts[ignore_label], counts[:num_classes].copy()
    if ignore_label < num_classes:
        classes[ignore_label] = 0
    fractions = classes / max(classes.sum(), 1)
    return [*fractions.tolist(), float(ignored / max(counts.sum(), 1))]


# --- The command -------------------------------------------------------------


def browse(
    prepared: PreparedDataset,
    split: str,
    output_dir: str,
    *,
    num_examples: int = 6,
    limit: int = 0,
    seed: int = 0,
    crop_size: int = 500,
    scale_range: tuple[float, float] = (1.0, 1.0),
    flip: bool = True,
) -> list[str]:
    """Writes both pictures.

    Args:
        prepared: the data set.
        split: its split.
        output_dir: gets them; it is made.
        num_examples: on the contact sheet, at most all.
        limit: examples that the shares are counted on; 0 is all.
        seed: which examples, and how they are augmented.
        crop_size: side of the training crop, pixels.
        scale_range: lowest and highest enlargement of the augmentation.
        flip: whether half of the examples are mirrored.

    Returns:
        The paths of contact sheet and histogram.

    Raises:
        ValueError: no such split, or an augmentation that cannot be.
    """
    total = len(prepared.source(split))
    counted = min(limit or total, total)
    settings = dict(crop_size=crop_size, scale_range=scale_range, flip=flip)
    changes = f"crop {crop_size}" + ", half mirrored" * flip
    if scale_range != (1.0, 1.0):
        changes += ", scaled by {:g} to {:g}".format(*scale_range)
    titles = "as stored", f"as trained on: {changes}"
    pictures = {
        "examples": _draw_examples(
            prepared, split, seed, min(num_examples, total), settings, titles
        ),
        "classes": _draw_classes(prepared, split, seed, counted, settings, titles),
    }
    os.makedirs(output_dir, exist_ok=True)
    paths = []
    for kind, picture in pictures.items():
        paths.append(os.path.join(output_dir, f"{prepared.name}-{split}-{kind}.png"))
        if not cv2.imwrite(paths[-1], picture[..., ::-1]):
            raise OSError(f"{paths[-1]}: cannot be written")
    return paths


def _draw_examples(prepared, split, seed, count, settings, titles):
    names = [*prepared.class_names, "ignored"]
    colors = [*prepared.class_colors, visualize.UNLABELLED_RGB]

    def tiles(image, label):
        # White where the label is ignored, as the legend says.
        color = visualize.colorize(label, prepared.class_colors)
        return image, cv2.addWeighted(image, 0.4, color, 0.6, 0)

    before = stored(prepared, split, seed, count)
    after = augmented(prepared, split, seed, count, **settings)
    rows = [
        (name, tiles(image, label), tiles(*pair))
        for (name, image, label), pair in zip(before, after, strict=True)
    ]
    return contact_sheet(rows, titles, visualize.legend(names, colors))


def _draw_classes(prepared, split, seed, count, settings, titles):
    before = (label for *_, label in stored(prepared, split, seed, count))
    after = (label for _, label in augmented(prepared, split, seed, count, **settings))
    both = []
    for labels, what in (before, "stored"), (after, "augmented"):
        seen = tqdm(labels, what, count, unit=" images", leave=False, disable=None)
        facts = prepared.num_classes, prepared.ignore_label
        both.append(shares(count_ids(seen), *facts))
    names = [*prepared.class_names, "ignored, of all pixels"]
    colors = [*prepared.class_colors, visualize.UNLABELLED_RGB]
    what = f"{prepared.name} {split}, {count} images: share of the labelled pixels, %"
    return bar_chart(names, colors, tuple(both), (what, *titles))


def main(argv):
    """Browses as the flags say; exits with 1 and one line when it cannot."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # TFDS reports every file it reads
    try:
        paths = browse(
            input_pipeline.open_dataset(FLAGS.dataset, FLAGS.data_dir),
            FLAGS.split,
            FLAGS.output_dir,
            num_examples=FLAGS.num_examples,
            limit=FLAGS.limit,
            seed=FLAGS.seed,
            crop_size=FLAGS.crop_size,
            scale_range=(FLAGS.scale_min, FLAGS.scale_max),
            flip=FLAGS.flip,
        )
    except (OSError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"browse: {first_line(error)}")
    print("\n".join(paths))


if __name__ == "__main__":
    define_flags()
    app.run(main)
