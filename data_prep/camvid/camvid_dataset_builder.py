"""CamVid: driving scenes with 11 classes, in the layout of the SegNet tutorial.

    {train,val,test}/ID.png|jpg
    {train,val,test}annot/ID.png    ids 0..10, and 11 for unlabelled

in SOURCE or in a folder of it.  SOURCE may be an archive, or hold just one: the
tutorial's repository as GitHub packs it will do.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, examples
from data_prep.archives import ARCHIVE_SUFFIXES, Files, SourceError
from data_prep.builder import PairBuilder
from data_prep.examples import Pair
from ss_gan_tf.datasets import DATASETS

UNLABELLED = 11  # in the files


class Builder(PairBuilder):
    """Reads a copy that one has; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put {train,val,test}/ID.png|jpg and {train,val,test}annot/ID.png there."
    )
    FACTS = DATASETS["camvid"]

    def _plan(self, source: Path) -> dict[str, Sequence[Pair]]:
        files = archives.open_source(source)
        root = find_camvid(files)
        if root is None:
            packed = [name for name in files if name.endswith(ARCHIVE_SUFFIXES)]
            if len(packed) == 1:
                source = source / packed[0]
                files = archives.open_source(source)
                root = find_camvid(files)
        source, files = source / (root or ""), archives.below(files, root or "")
        plan = {}
        for split in self.FACTS.counts:
            parts = {}
            for folder in (split, f"{split}annot"):
                parts[folder] = archives.below(files, folder)
                if not parts[folder]:
                    raise SourceError(f"{source}/{folder}: folder is missing or empty.")
            plan[split] = examples.match_pairs(f"{source}/{split}", *parts.values())
        return plan

    def _read_label(self, pair: Pair) -> np.ndarray:
        remap = {UNLABELLED: self.FACTS.ignore_label}
        return examples.read_label(pair.label, self.FACTS.num_classes, remap)


def find_camvid(files: Files) -> str | None:
    """The folder that holds trainannot/, or one of the others; None if none does."""
    folders = {str(PurePosixPath(name).parent) for name in files}
    for split in DATASETS["camvid"].counts:
        for folder in sorted(folders, key=len):
            if PurePosixPath(folder).name == f"{split}annot":
                return str(PurePosixPath(folder).parent).removeprefix(".")
    return None
