"""Prepares a data set once, for all runs that use it.

    python -m data_prep.prepare --dataset=synthetic --data_dir=DATA
    python -m data_prep.prepare --dataset=voc_sbd --source_dir=VOC --data_dir=DATA
    python -m data_prep.prepare --dataset=cityscapes --source_dir=CITY --data_dir=DATA
    python -m data_prep.prepare --dataset=camvid --source_dir=CAMVID --data_dir=DATA
    python -m data_prep.prepare --dataset=folder --source_dir=MINE --data_dir=DATA

writes DATA/NAME/VERSION (TFDS, ArrayRecord files, and a summary) and prints what is in
it.  SOURCE is a folder with the original archives or with what they contain; nothing
has to be extracted.  A mistake in the source ends it with one line that names file,
value and rule, and leaves nothing behind that looks prepared.  A run that is
interrupted goes on with the first split that it has not finished.
"""

import errno
import sys
import tempfile
import warnings
from pathlib import Path

import tensorflow_datasets as tfds
from absl import app, flags, logging

from data_prep import summary
from data_prep.archives import SourceError, fingerprint, newest_change, sizes_alone
from data_prep.builder import ProgressFunction
from data_prep.camvid.camvid_dataset_builder import Builder as Camvid
from data_prep.cityscapes.cityscapes_dataset_builder import Builder as Cityscapes
from data_prep.folder.folder_dataset_builder import Builder as Folder
from data_prep.progress import SplitProgress
from data_prep.staging import Staging, alone_in
from data_prep.synthetic.synthetic_dataset_builder import Builder as Synthetic
from data_prep.synthetic.synthetic_dataset_builder import split_counts
from data_prep.verify import add_digests, verify
from data_prep.voc_sbd.voc_sbd_dataset_builder import Builder as VocSbd
from ss_gan_tf.messages import one_line

BUILDERS = {
    "synthetic": Synthetic,
    "voc_sbd": VocSbd,
    "cityscapes": Cityscapes,
    "camvid": Camvid,
    "folder": Folder,
}

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_enum(
        "dataset", None, list(BUILDERS), "What to prepare.", required=True
    )
    flags.DEFINE_string(
        "source_dir", None, "Folder of the original files; synthetic needs none."
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where prepared data sets live; as for experiments.train.",
        required=True,
    )
    flags.DEFINE_bool(
        "allow_partial",
        False,
        "Prepare what there is of a published data set, and mark it as partial.",
    )
    flags.DEFINE_string(
        "mirror", None, "Address below which missing archives lie; default: their own."
    )
    flags.DEFINE_bool(
        "verify", False, "Then read what is prepared and check every example."
    )
    flags.DEFINE_integer(
        "num_examples", None, "Training scenes of synthetic; the default is 400."
    )


def prepare(
    dataset: str,
    source_dir: str | None,
    data_dir: str,
    *,
    num_examples: int | None = None,
    allow_partial: bool = False,
    mirror: str | None = None,
    progress: ProgressFunction | None = None,
) -> tfds.core.DatasetBuilder:
    """Writes DATA_DIR/DATASET/VERSION unless it is there already.

    Args:
        dataset: A key of `BUILDERS`.
        source_dir: Folder of the original files; None for synthetic.
        data_dir: Where prepared data sets live.
        num_examples: Training scenes of synthetic; None for the usual number.
        allow_partial: Whether a published data set may be incomplete.
        mirror: Address below which missing archives lie; None for their own.
        progress: Told split, examples done and examples in all.

    Returns:
        The builder of the prepared data set; its `info` tells what is in it.

    Raises:
        SourceError: The source is missing or faulty, the disk is too small, or what
            is prepared there already came from another source or is partial.
    """
    if dataset not in BUILDERS:
        raise SourceError(f"dataset {dataset!r} is not one of {', '.join(BUILDERS)}.")
    options = {"allow_partial": allow_partial, "mirror": mirror, "progress": progress}
    if num_examples is not None:
        if dataset != "synthetic":
            raise SourceError(f"num_examples is for synthetic, not for {dataset}.")
        options["num_examples"] = num_examples
    prepared = BUILDERS[dataset](data_dir=data_dir).is_prepared()
    origin = _origin(dataset, source_dir, data_dir, num_examples, prepared)
    if BUILDERS[dataset].DOWNLOADABLE and not source_dir:
        source_dir = str(Path(data_dir) / "downloads")
    if prepared:
        builder = BUILDERS[dataset](data_dir=data_dir)
        _check_is_the_same(builder, origin, allow_partial)
        return builder
    folder = Path(data_dir) / dataset
    with alone_in(folder), tempfile.TemporaryDirectory() as downloads:
        staging = Staging(
            folder / f"unfinished-{BUILDERS[dataset].VERSION}",
            f"{origin} {newest_change(source_dir, Path(data_dir))} {allow_partial}",
        )
        builder = BUILDERS[dataset](
            data_dir=data_dir, source_dir=source_dir, staging=staging, **options
        )
        builder.info.metadata["origin"] = origin
        _write(builder, downloads, staging)
    return builder


def _write(builder: tfds.core.DatasetBuilder, downloads: str, staging: Staging) -> None:
    """Runs the builder; what it has finished outlives everything but a mistake."""
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_dir=downloads,  # TFDS wants one; builders see to their own
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except SourceError:
        staging.remove()
        raise
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise SourceError(
            f"{builder.data_dir_root}: the disk is full; nothing was prepared."
        ) from error
    staging.remove()


def describe(builder: tfds.core.DatasetBuilder) -> str:
    """What a prepared data set holds, for people."""
    text = f"{builder.name} in {builder.data_dir}"
    if stored := summary.read(Path(builder.data_dir)):
        text += "\n" + summary.to_text(stored)
    return text.replace("\n", "\n  ")


def _origin(
    dataset: str,
    source_dir: str | None,
    data_dir: str,
    num_examples: int | None,
    prepared: bool,
) -> str | None:
    """Identifies the source asked for; None if any will do.

    What is written may lie in the source, in a folder that does not count as its.
    """
    if dataset == "synthetic":
        if prepared and num_examples is None:
            return None
        return f"scenes {split_counts(num_examples)}"
    if not source_dir:
        if prepared:
            return None
        if BUILDERS[dataset].DOWNLOADABLE:
            return "downloaded"
        raise SourceError(f"--source_dir is missing: {dataset} is made from files.")
    if not Path(source_dir).exists():
        raise SourceError(f"--source_dir={source_dir}: there is no such folder.")
    if Path(source_dir).resolve() == Path(data_dir).resolve():
        raise SourceError(
            f"--data_dir={data_dir}: is --source_dir too; what is prepared needs a "
            "folder of its own."
        )
    return fingerprint(source_dir, Path(data_dir))


def _check_is_the_same(
    builder: tfds.core.DatasetBuilder, origin: str | None, allow_partial: bool
) -> None:
    """Refuses to take what is prepared for something that it is not."""
    metadata = builder.info.metadata
    remedy = "choose another --data_dir or delete that folder"
    if origin and metadata.get("origin") not in (origin, sizes_alone(origin)):
        raise SourceError(
            f"{builder.data_dir}: was prepared from another source; {remedy}."
        )
    if metadata.get("partial") and not allow_partial:
        raise SourceError(
            f"{builder.data_dir}: was prepared from a partial source; {remedy}, or "
            "say --allow_partial."
        )


def _is_disk_full(error: BaseException) -> bool:
    """Whether an error says so; not all writers pass the number on."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or "No space left" in str(error)


def main(argv: list[str]) -> None:
    """Prepares as the flags say; exits with 1 and one line when it cannot."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)  # TFDS tells of new folders
    tfds.disable_progress_bar()  # there is our own
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata
    try:
        builder = BUILDERS[FLAGS.dataset](data_dir=FLAGS.data_dir)
        done = "Already prepared" if builder.is_prepared() else "Prepared"
        builder = prepare(
            FLAGS.dataset,
            FLAGS.source_dir,
            FLAGS.data_dir,
            num_examples=FLAGS.num_examples,
            allow_partial=FLAGS.allow_partial,
            mirror=FLAGS.mirror,
            progress=SplitProgress(),
        )
        print(f"{done}: {describe(builder)}")
        if FLAGS.verify:
            folder = Path(builder.data_dir)
            totals = verify(folder, SplitProgress())
            number = sum(total.examples for total in totals.values())
            print(f"Verified: {number} examples of {len(totals)} splits")
            try:
                add_digests(folder, totals)
            except OSError as error:  # others' data: whole, and not ours to write to
                print(
                    f"Digests that the summary lacks were not added: {one_line(error)}"
                )
    except (SourceError, OSError) as error:
        sys.exit(f"prepare: {one_line(error)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
