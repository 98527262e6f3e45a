"""Fig. 6: images, their truth, and what several runs make of them."""

import os
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ss_gan_tf import checkpoints
from ss_gan_tf.backbones import normalize
from ss_gan_tf.inference import make_predictor
from ss_gan_tf.input_pipeline import eval_examples, open_dataset
from ss_gan_tf.visualize import colorize, error_map

Tile = tuple[str, np.ndarray]  # caption, [H, W, 3] uint8 RGB

# In RUN/eval/SPLIT of a run without weights: name of an image -> its class ids as PNG.
CLASS_IDS = "class_ids.npz"


def draw_panels(
    runs: Mapping[str, checkpoints.Run],
    split: str,
    names: Sequence[str],
    data_dir: str | None = None,
) -> dict[str, list[Tile]]:
    """Image, truth, and for each run its prediction and where that is wrong.

    Args:
        runs: caption -> a run; all of one data set. Its last checkpoint is shown, or
            what it predicted where `CLASS_IDS` has that.
        split: of the data set.
        names: of images in the split.
        data_dir: prepared data; None for the first run's own.

    Returns:
        name -> captions and pictures in order.

    Raises:
        FileNotFoundError: no data or no checkpoint.
        ValueError: no such split, or an image that it does not hold.
    """
    first = next(iter(runs.values()))
    data = open_dataset(first.config.dataset, data_dir or first.data_dir)
    examples = _find(eval_examples(data, split), names)
    panels = {
        name: [
            ("image", example["image"]),
            ("truth", colorize(example["label"], first.class_colors)),
        ]
        for name, example in examples.items()
    }
    for caption, run in runs.items():
        for name, pred in _predict(run, split, examples).items():
            example = examples[name]
            label = example["label"]
            wrong = np.mean((label != pred)[label != run.ignore_label])
            panels[name] += [
                (caption, colorize(pred, run.class_colors)),
                (
                    f"{caption}: {wrong:.1%} wrong",
                    error_map(label, pred, run.ignore_label),
                ),
            ]
    return panels


def _find(examples, names) -> dict[str, dict]:
    """The named examples, in the order of the names."""
    found = {}
    for example in examples.as_numpy_iterator():
        name = example["name"].decode(errors="replace")
        if name in names:
            found[name] = example
        if len(found) == len(set(names)):
            break
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"the split holds no image {missing[0]!r}")
    return {name: found[name] for name in names}


def _predict(run, split, examples) -> dict[str, np.ndarray]:
    """Class ids [H, W] of each example."""
    path = os.path.join(run.workdir, "eval", split, CLASS_IDS)
    if os.path.exists(path):
        with np.load(path, allow_pickle=False) as stored:
            return {
                name: cv2.imdecode(stored[name], cv2.IMREAD_UNCHANGED)
                for name in examples
            }
    predict = _predictor(run).predict
    return {
        name: predict(example["image"][np.newaxis], False).class_ids[0]
        for name, example in examples.items()
    }


def _predictor(run):
    generator, _ = checkpoints.load_generator(run, "last")
    config = run.config
    return make_predictor(
        generator,
        num_classes=len(run.class_names),
        normalize=normalize,
        mode=config.eval_mode,
        window=config.eval_window,
        overlap=config.eval_overlap,
        scales=config.eval_scales,
        flip=config.eval_flip,
    )
