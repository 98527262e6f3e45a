"""--what=evaluate: how fast a split is evaluated, and how busy the device is meanwhile.

Images of the sizes of VOC and Cityscapes are drawn, stored by the program that stores
real ones, and evaluated as `experiments.evaluate` does. In turns with that the network
alone runs on the same images, or the same windows, in memory: its share of the time is
the share in which the device is busy. On a CPU, where the network takes all cores,
reading and counting take them from it; on a GPU they cost nothing as long as they keep
up.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.benchmarks import input as input_benchmark
from experiments.benchmarks import timing, workers
from ss_gan_tf.measures import METRICS

IMAGES = {"voc": 8, "cityscapes": 2}  # of input's cases; how many are drawn
ROWS = (("voc", "whole"), ("cityscapes", "whole"), ("cityscapes", "sliding"))
WINDOW, OVERLAP = 500, 1 / 3  # pixels; share of a window, as the paper has them

flags.disclaim_key_flags()  # they are the program's: --help lists them

READS = ("arm", "eval_width", "eval_metrics", "bench_dir")


def define_flags():
    """Defines the flags of this measurement."""
    flags.DEFINE_float(
        "eval_width", 1.0, "evaluate: factor on all filter counts.", 0.03125, 1.0
    )
    flags.DEFINE_multi_enum(
        "eval_metrics", ["basic"], METRICS, "evaluate: each is measured."
    )


def run(
    values: flags.FlagValues, keep: Callable[[dict[str, Any]], None] = lambda part: None
) -> dict[str, Any]:
    """Draws, prepares and measures.

    Args:
        values: the parsed flags.
        keep: called with the result up to then, after each row.

    Returns:
        "settings", and "rows" with seconds of "evaluate" and "network" for all images,
        images_per_second, busy (network over evaluate, medians) and peak_memory of the
        process, which is the row's own, bytes.

    Raises:
        OSError: the files cannot be written.
        ValueError: `data_prep.prepare` refuses them, or a measured process failed.
    """
    settings = {"arm": values.arm, "width": values.eval_width}
    result = {"settings": settings | {"repeats": values.repeats}, "rows": []}
    with contextlib.ExitStack() as stack:
        folder = values.bench_dir or stack.enter_context(tempfile.TemporaryDirectory())
        data_dir = draw(pathlib.Path(folder).resolve() / "evaluate")
        for metrics, (name, mode) in itertools.product(values.eval_metrics, ROWS):
            row = {"data": name, "mode": mode, "metrics": metrics}
            measured = _measure(settings | row, data_dir, values.repeats)
            result["rows"].append(measured)
            keep(result)
    return result


def draw(root: pathlib.Path) -> str:
    """Draws and prepares one split for each data set; what is there already is used.

    Args:
        root: gets the files.

    Returns:
        The folder of the prepared data.
    """
    cases = [
        dataclasses.replace(case, images=IMAGES[case.name])
        for case in input_benchmark.CASES
    ]
    for case in cases:
        input_benchmark.draw_source(case, root / "source")
    input_benchmark.prepare(root / "source", root / "data", cases)
    return str(root / "data")


def _measure(settings, data_dir, repeats):
    """One row: evaluation and network in turns, in a process of their own."""
    spec = settings | {"data_dir": data_dir}
    with workers.Worker(f"{__name__}:build", spec) as worker:
        variants = {name: lambda name=name: worker.call(name) for name in worker.names}
        seconds = timing.interleave(variants, repeats)
        peak_memory = worker.peak_memory()
    spreads = {name: timing.spread(times) for name, times in seconds.items()}
    median = spreads["evaluate"]["median"]
    return {
        **{name: settings[name] for name in ("data", "mode", "metrics")},
        "images": IMAGES[settings["data"]],
        "seconds": spreads,
        "images_per_second": IMAGES[settings["data"]] / median,
        "busy": spreads["network"]["median"] / median,
        "peak_memory": peak_memory,
    }


def format(result: dict[str, Any]) -> str:
    """The rows as a table."""
    settings = result["settings"]
    head = ["data", "mode", "metrics", "images", "s", "range", "network s", "range"]
    table = [[*head, "images/s", "busy", "peak GB"]]
    for row in result["rows"]:
        cells = [row["data"], row["mode"], row["metrics"], row["images"]]
        for name in ("evaluate", "network"):
            spread = row["seconds"][name]
            cells.append(f"{spread['median']:.3g}")
            cells.append(f"{spread['lowest']:.3g}-{spread['highest']:.3g}")
        cells += [f"{row['images_per_second']:.3g}", f"{row['busy']:.0%}"]
        table.append([*cells, f"{row['peak_memory'] / 1e9:.2f}"])
    lines = (
        f"{settings['arm']}, width {settings['width']:g}, one image at a time, windows "
        f"of {WINDOW}, {settings['repeats']} rounds"
    )
    return f"{lines}\n\n{timing.table(table)}"


# --- In the worker -----------------------------------------------------------


def build(settings: dict[str, Any]) -> dict[str, Callable]:
    """Makes "evaluate", of the split, and "network", alone on the same pixels."""
    import keras

    from ss_gan_tf import inference
    from ss_gan_tf.backbones import normalize
    from ss_gan_tf.evaluate import evaluate
    from ss_gan_tf.generator import build_generator
    from ss_gan_tf.input_pipeline import eval_examples, open_dataset

    prepared = open_dataset("folder", settings["data_dir"])
    keras.utils.set_random_seed(0)
    generator = build_generator(
        settings["arm"].removesuffix("_g"),
        prepared.num_classes,
        width=settings["width"],
    )
    common = {"num_classes": prepared.num_classes, "normalize": normalize}
    views = {"mode": settings["mode"], "window": WINDOW, "overlap": OVERLAP}
    predictor = inference.make_predictor(generator, **common, **views)
    network = inference.make_predictor(generator, **common)
    examples = eval_examples(prepared, settings["data"])
    batches = [
        batch
        for example in examples.as_numpy_iterator()
        for batch in _batches(example["image"], settings["mode"], prepared.num_classes)
    ]

    def evaluate_split():
        return evaluate(
            generator,
            examples,
            class_names=prepared.class_names,
            ignore_label=prepared.ignore_label,
            normalize=normalize,
            predictor=predictor,
            full=settings["metrics"] == "full",
            **views,
        )["num_images"]

    def network_alone():
        for batch in batches:
            network.predict(batch, settings["metrics"] == "full")

    return {"evaluate": evaluate_split, "network": network_alone}


def _batches(image, mode, num_classes):
    """The batches in which `evaluate` shows an image to the network."""
    import numpy as np

    from ss_gan_tf.inference import WINDOW_BATCH, sliding_bands

    if mode == "whole":
        return [image[np.newaxis]]
    seen = []

    def note(windows):
        seen.append(windows)
        return np.zeros((*windows.shape[:3], num_classes), np.float32)

    for _ in sliding_bands(note, image, WINDOW, OVERLAP, WINDOW_BATCH):
        pass
    return seen
