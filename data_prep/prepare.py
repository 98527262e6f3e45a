"""Prepares a data set once, for all runs that use it.

    python -m data_prep.prepare --dataset=synthetic --data_dir=DATA
    python -m data_prep.prepare --dataset=camvid --source_dir=CAMVID --data_dir=DATA
    python -m data_prep.prepare --dataset=folder --source_dir=MINE --data_dir=DATA

writes DATA/NAME/VERSION (TFDS, ArrayRecord files) and prints what is in it.  A
mistake in the source ends it with one line that names file, value and rule, and
leaves nothing behind that looks prepared.
"""

import sys
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds
from absl import app, flags, logging

from data_prep.camvid.camvid_dataset_builder import Builder as Camvid
from data_prep.examples import SourceError, fingerprint
from data_prep.folder.folder_dataset_builder import Builder as Folder
from data_prep.synthetic.synthetic_dataset_builder import Builder as Synthetic
from data_prep.synthetic.synthetic_dataset_builder import split_counts
from ss_gan_tf.datasets import DATASETS

BUILDERS = {"synthetic": Synthetic, "camvid": Camvid, "folder": Folder}

_DATASET = flags.DEFINE_enum("dataset", None, list(BUILDERS), "What to prepare.")
_SOURCE_DIR = flags.DEFINE_string(
    "source_dir", None, "Folder of the original files; synthetic needs none."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where prepared data sets live; as for experiments.train."
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", None, "Training scenes of synthetic; the default is 400."
)


def prepare(
    dataset: str,
    source_dir: str | None,
    data_dir: str,
    *,
    num_examples: int | None = None,
) -> tfds.core.DatasetBuilder:
    """Writes DATA_DIR/DATASET/VERSION unless it is there already.

    Args:
        dataset: A key of `BUILDERS`.
        source_dir: Folder of the original files; None for synthetic.
        data_dir: Where prepared data sets live.
        num_examples: Training scenes of synthetic; None for the usual number.

    Returns:
        The builder of the prepared data set; its `info` tells what is in it.

    Raises:
        SourceError: The source is missing or faulty, or what is prepared there
            already came from another source.
    """
    if dataset not in BUILDERS:
        raise SourceError(f"dataset {dataset!r} is not one of {', '.join(BUILDERS)}.")
    options = {}
    if num_examples is not None:
        if dataset != "synthetic":
            raise SourceError(f"num_examples is for synthetic, not for {dataset}.")
        options["num_examples"] = num_examples
    builder = BUILDERS[dataset](data_dir=data_dir, **options)
    origin = _origin(dataset, source_dir, num_examples, builder.is_prepared())
    if builder.is_prepared():
        if origin not in (None, builder.info.metadata.get("origin")):
            raise SourceError(
                f"{builder.data_dir}: was prepared from another source; choose "
                "another --data_dir or delete that folder."
            )
        return builder
    builder.info.metadata["origin"] = origin
    # TFDS wants a folder for downloads; there are none.
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            file_format="array_record",
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=source_dir, try_download_gcs=False
            ),
        )
    return builder


def summary(builder: tfds.core.DatasetBuilder) -> str:
    """What a prepared data set holds, for people.

    Splits whose size is not the published one are pointed out.
    """
    facts = DATASETS.get(builder.name)
    lines = [f"{builder.name} in {builder.data_dir}"]
    for split, info in builder.info.splits.items():
        expected = facts.counts.get(split) if facts else None
        note = "" if expected in (None, info.num_examples) else f" (of {expected})"
        lines.append(f"  {split}: {info.num_examples} examples{note}")
    names = builder.info.metadata["class_names"]
    lines.append(f"  {len(names)} classes: {', '.join(names)}")
    return "\n".join(lines)


def _origin(
    dataset: str, source_dir: str | None, num_examples: int | None, prepared: bool
) -> str | None:
    """Identifies the source asked for; None if any will do."""
    if dataset == "synthetic":
        if prepared and num_examples is None:
            return None
        return f"scenes {split_counts(num_examples)}"
    if not source_dir:
        if prepared:
            return None
        raise SourceError(f"--source_dir is missing: {dataset} is made from files.")
    if not Path(source_dir).is_dir():
        raise SourceError(f"--source_dir={source_dir}: there is no such folder.")
    return fingerprint(source_dir)


def main(argv: list[str]) -> None:
    """Reads the flags, prepares, prints a summary."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TFDS reports every file it writes
    try:
        builder = BUILDERS[_DATASET.value](data_dir=_DATA_DIR.value)
        done = "Already prepared" if builder.is_prepared() else "Prepared"
        builder = prepare(
            _DATASET.value,
            _SOURCE_DIR.value,
            _DATA_DIR.value,
            num_examples=_NUM_EXAMPLES.value,
        )
    except (SourceError, OSError) as error:
        sys.exit(f"prepare: {error}")
    print(f"{done}: {summary(builder)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["dataset", "data_dir"])
    app.run(main)
