"""--what=input: how fast images come from the disk, and what the pipeline adds.

Two data sets are drawn, stored by the program that stores real ones and read in turns
in two ways: only decoded, and as training takes them.  The first is what the files
allow; their quotient is what the pipeline makes of it.
"""

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from experiments.benchmarks.drawings import draw_example
from experiments.benchmarks.timing import interleave, spread, table
from ss_gan_tf import input_pipeline
from ss_gan_tf.allocation import keep_freed_memory
from ss_gan_tf.backbones import MEAN_RGB

SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set to draw and how it is trained on.

    Attributes:
        name: A word; becomes the split.
        height: H of the images, pixels.
        width: W.
        suffix: ".jpg" or ".png", the images' format.
        num_classes: C.
        regions: About how many regions lie side by side in an image.
        grain: Contrast of the finest texture, which decides the bytes.
        border: Width of unlabelled lines, pixels.
        crop_size: Side of the training crop, pixels.
        scale_range: Of the random scale.
        images: How many to draw.
        examples: How many to read in each round.
    """

    name: str
    height: int
    width: int
    suffix: str
    num_classes: int
    regions: int
    grain: float
    border: int
    crop_size: int
    scale_range: tuple[float, float]
    images: int
    examples: int


# Sizes, formats, crops and scales are those of the paper's data sets; the grain gives
# about as many bytes as theirs: 95 kB a JPEG of VOC, 2.3 MB a PNG of Cityscapes.
CASES = (
    Case("voc", 375, 500, ".jpg", 21, 4, 10.0, 5, 500, (0.5, 2.0), 64, 1200),
    Case("cityscapes", 1024, 2048, ".png", 19, 12, 1.5, 0, 500, (1.0, 1.0), 16, 160),
)
BATCH_SIZE = 2

flags.disclaim_key_flags()  # they are the program's: --help lists them

READS = ("bench_dir",)


def define_flags():
    """Defines the flags of this measurement."""
    flags.DEFINE_string(
        "bench_dir", None, "Keeps the drawn data sets; default: a temporary folder."
    )


def run(
    flags_values: flags.FlagValues,
    keep: Callable[[dict[str, Any]], None] = lambda part: None,
) -> dict[str, Any]:
    """Measures both data sets; see `measure`."""
    if flags_values.bench_dir:
        return measure(CASES, flags_values.repeats, flags_values.bench_dir, keep)
    with tempfile.TemporaryDirectory() as folder:
        return measure(CASES, flags_values.repeats, folder, keep)


def measure(
    cases: Sequence[Case],
    repeats: int,
    folder: str,
    keep: Callable[[dict[str, Any]], None] = lambda part: None,
) -> dict[str, Any]:
    """Draws, prepares and measures.

    Args:
        cases: What to measure.
        repeats: Rounds of each.
        folder: Gets the files; what already lies there is used.
        keep: Called with the result up to then, after each case.

    Returns:
        "settings" and one of "rows" for each case, with examples per second.

    Raises:
        OSError: The files cannot be written.
        ValueError: `data_prep.prepare` refuses them.
    """
    keep_freed_memory()  # as experiments.train does
    root = pathlib.Path(folder).resolve()
    source, data = root / "source", root / "data"
    sizes = {case.name: draw_source(case, source) for case in cases}
    prepare(source, data, cases)
    prepared = input_pipeline.open_dataset("folder", str(data))
    settings = {"repeats": repeats, "seed": SEED, "batch_size": BATCH_SIZE}
    result = {"settings": settings, "rows": []}
    for case in cases:
        rates = _rates(prepared, case, repeats)
        files = prepared.builder.info.splits[case.name].filepaths
        stored = sum(os.stat(file).st_size for file in files)
        result["rows"].append(
            dataclasses.asdict(case)
            | sizes[case.name]
            | {
                "stored_bytes_per_example": stored / case.images,
                "examples_per_second": rates,
                "ratio": rates["pipeline"]["median"] / rates["decode"]["median"],
            }
        )
        keep(result)
    return result


def format(result: dict[str, Any]) -> str:
    """The result of `run` as a table."""
    header = (
        "data",
        "kB stored",
        "decode /s",
        "range",
        "pipeline /s",
        "range",
        "share",
    )
    lines = [header]
    for row in result["rows"]:
        cells = [row["name"], f"{row['stored_bytes_per_example'] / 1000:.0f}"]
        for name in ("decode", "pipeline"):
            rate = row["examples_per_second"][name]
            cells.append(f"{rate['median']:.1f}")
            cells.append(f"{rate['lowest']:.1f}-{rate['highest']:.1f}")
        lines.append((*cells, f"{row['ratio']:.0%}"))
    settings = result["settings"]
    head = (
        f"examples a second, batches of {settings['batch_size']}, "
        f"{settings['repeats']} rounds"
    )
    return f"{head}\n\n{table(lines)}"


def draw_source(case: Case, source: pathlib.Path) -> dict[str, float]:
    """Draws a case's images and labels in the layout of `--dataset=folder`.

    Args:
        case: What to draw.
        source: The folder; files that are there already stay.

    Returns:
        Mean "image_bytes" and "label_bytes" of a file.
    """
    folders = [source / kind / case.name for kind in ("images", "labels")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

    def draw(index: int) -> tuple[int, int]:
        image, label = (folder / f"{index:04}" for folder in folders)
        files = image.with_suffix(case.suffix), label.with_suffix(".png")
        if not all(file.exists() for file in files):
            pictures = draw_example(
                np.random.default_rng([SEED, index]),
                (case.height, case.width),
                case.num_classes,
                regions=case.regions,
                grain=case.grain,
                border=case.border,
            )
            for file, picture in zip(files, pictures, strict=True):
                _write(file, picture)
        return tuple(file.stat().st_size for file in files)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = np.mean(list(pool.map(draw, range(case.images))), axis=0)
    return {"image_bytes": float(sizes[0]), "label_bytes": float(sizes[1])}


def _write(file: pathlib.Path, picture: np.ndarray):
    """Writes a picture whole or not at all: the next run may find it."""
    encoded = io.BytesIO()
    kind = {".jpg": "JPEG", ".png": "PNG"}[file.suffix]
    Image.fromarray(picture).save(encoded, kind, quality=95)
    partial = file.with_suffix(".partial")
    partial.write_bytes(encoded.getvalue())
    partial.replace(file)


def prepare(source: pathlib.Path, data: pathlib.Path, cases: Sequence[Case]):
    """Runs the command that a user runs, on what `draw_source` has drawn.

    Args:
        source: The drawn files.
        data: Gets the prepared data.
        cases: What was drawn.

    Raises:
        ValueError: The command refuses the files.
    """
    classes = range(max(case.num_classes for case in cases))
    (source / "classes.txt").write_text("".join(f"class{n}\n" for n in classes))
    command = [sys.executable, "-m", "data_prep.prepare", "--dataset=folder"]
    done = subprocess.run(
        [*command, f"--source_dir={source}", f"--data_dir={data}"],
        # The command of this very checkout, installed or not.
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError((done.stderr or done.stdout).strip().splitlines()[-1])


def _rates(
    prepared: input_pipeline.PreparedDataset, case: Case, repeats: int
) -> dict[str, dict[str, float]]:
    """Examples per second of "decode" and "pipeline"."""
    datasets = {
        "decode": _decoded(prepared, case),
        "pipeline": input_pipeline.train_batches(
            prepared,
            case.name,
            batch_size=BATCH_SIZE,
            crop_size=case.crop_size,
            scale_range=case.scale_range,
            pad_color=MEAN_RGB,
            seed=SEED,
            num_examples=case.examples,
        ),
    }
    variants = {name: _consume(dataset) for name, dataset in datasets.items()}
    seconds = interleave(variants, repeats)
    return {
        name: spread([case.examples / elapsed for elapsed in seconds[name]])
        for name in variants
    }


def _decoded(prepared: input_pipeline.PreparedDataset, case: Case) -> tf.data.Dataset:
    """The pipeline's reads, in its order and parallelism, decoded and no more."""
    source = prepared.source(case.name)

    def load(n: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = input_pipeline.shuffled_index(n, len(source), SEED)
        (stored,) = input_pipeline.read(source, index)
        image, label, _ = input_pipeline.decode(*stored)
        return image, label

    return input_pipeline.untuned(
        tf.data.Dataset.range(case.examples)
        .map(
            load,
            num_parallel_calls=input_pipeline.EXAMPLES_AHEAD,
            deterministic=True,
        )
        .prefetch(input_pipeline.READY_AHEAD)
    )


def _consume(dataset: tf.data.Dataset) -> Callable[[], None]:
    def consume():
        for _ in dataset:
            pass

    return consume
