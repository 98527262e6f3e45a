"""A user's own images and masks, in one of two layouts.

    SOURCE/classes.txt                 line i + 1 names class i, then maybe r g b

    SOURCE/images/SPLIT/NAME.jpg|jpeg|png
    SOURCE/labels/SPLIT/NAME.png       one-channel or palette; 255 is ignored

    SOURCE/JPEGImages/NAME.jpg|jpeg|png               as VOC has it
    SOURCE/SegmentationClass/NAME.png
    SOURCE/ImageSets/Segmentation/SPLIT.txt           a NAME a line

NAME may contain sub-folders.  The splits are the folders in images/, or the lists.
SOURCE may be an archive, and classes.txt may lie in a folder of it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep import archives, examples
from data_prep.archives import File, Files, SourceError
from data_prep.builder import PairBuilder
from data_prep.examples import Pair
from data_prep.summary import SplitCount
from ss_gan_tf.datasets import IGNORE_LABEL, default_colors

_LISTS = "ImageSets/Segmentation"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"

MAX_NAME = 200  # characters of a line of classes.txt
_COLOUR = re.compile(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)")


class Builder(PairBuilder):
    """Class names are known only once the source is read."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put classes.txt, images/SPLIT/NAME.jpg and labels/SPLIT/NAME.png there, or "
        f"classes.txt, {_IMAGES}/, {_MASKS}/ and {_LISTS}/SPLIT.txt."
    )

    def _plan(self, source: Path) -> dict[str, Sequence[Pair]]:
        files = archives.open_source(source)
        root = archives.find_root(files, "classes.txt")
        if root is None:
            raise SourceError(
                f"{source}/classes.txt: file is missing; line i + 1 names class i."
            )
        source, files = source / root, archives.below(files, root)
        self.info.metadata.update(
            examples.metadata(*read_classes(files["classes.txt"]))
        )
        self._shared = {}
        if lists := archives.below(files, _LISTS):
            plan = listed_splits(source, files, lists)
            self._shared = shared_images(plan)
            return plan
        return {
            split: examples.match_pairs(
                f"{source}/images/{split}",
                archives.below(files, f"images/{split}"),
                archives.below(files, f"labels/{split}"),
            )
            for split in find_splits(source, files)
        }

    def _finish_split(self, split: str, count: SplitCount) -> list[str]:
        return [self._shared[split]] if split in self._shared else []


def listed_splits(source: Path, files: Files, lists: Files) -> dict[str, list[Pair]]:
    """The pairs that VOC's manner of lists names, by list.

    Args:
        source: What is read, for the errors.
        files: Its files.
        lists: Those in ImageSets/Segmentation.

    Raises:
        SourceError: There is no list, one is empty or names what is not there, or a
            file's name is no split's.
    """
    images = examples.by_name(archives.below(files, _IMAGES), examples.IMAGE_SUFFIXES)
    masks = examples.by_name(archives.below(files, _MASKS), (".png",))
    splits = {}
    for path in sorted(lists):
        split = path.removesuffix(".txt")
        check_split_name(lists[path].where, split)
        splits[split] = []
        for name in dict.fromkeys(names_in(lists[path])):
            for found, folder in ((images, _IMAGES), (masks, _MASKS)):
                if name not in found:
                    raise SourceError(
                        f"{lists[path].where}: names {name[:200]}, but "
                        f"{source}/{folder}/{name[:200]} with its suffix is missing."
                    )
            splits[split].append(Pair(name, images[name], masks[name]))
        if not splits[split]:
            raise SourceError(f"{lists[path].where}: the list is empty.")
    return splits


def names_in(file: File) -> list[str]:
    """The names that a list has, one a line; blank lines count for nothing."""
    lines = map(str.strip, examples.read_text(file).splitlines())
    return [line for line in lines if line]


def shared_images(splits: Mapping[str, Sequence[Pair]]) -> dict[str, str]:
    """Split -> a line on which of its images the lists behind its own have too.

    They are no mistake in themselves: trainval consists of train and val.
    """
    names = {split: {pair.name for pair in splits[split]} for split in splits}
    notes = {}
    for one, other in itertools.combinations(splits, 2):
        if both := names[one] & names[other]:
            note = f"{other} has {len(both)} of its images too, {min(both)} the first"
            notes[one] = f"{notes[one]}; {note}" if one in notes else f"{one}: {note}"
    return notes


def find_splits(source: Path, files: Files) -> list[str]:
    """The sub-folders of images/ that hold a file, sorted.

    Raises:
        SourceError: There is none, labels/ has others, a name is not a word, or an
            image or a label lies beside the splits.
    """
    found, loose = {}, []
    for kind, suffixes in (("images", examples.IMAGE_SUFFIXES), ("labels", (".png",))):
        inside = archives.below(files, kind)
        if not inside:
            raise SourceError(f"{source}/{kind}: folder is missing or empty.")
        alone = {name: inside[name] for name in inside if "/" not in name}
        loose += examples.by_name(alone, suffixes).values()
        found[kind] = {name.split("/")[0] for name in inside if "/" in name}
    if not found["images"]:
        raise SourceError(
            f"{source}/images: holds no split; expected folders such as train, val."
        )
    if loose:
        raise SourceError(
            f"{loose[0].where}: is in no split ({len(loose)} files are in none); move "
            "it into the folder of one, or out of the source."
        )
    for split in sorted(found["images"] ^ found["labels"]):
        there, missing = (
            ("images", "labels") if split in found["images"] else ("labels", "images")
        )
        raise SourceError(
            f"{source}/{there}/{split}: {source}/{missing}/{split} is missing or empty."
        )
    for split in sorted(found["images"]):
        check_split_name(f"{source}/images/{split}", split)
    return sorted(found["images"])


def check_split_name(where: str, split: str) -> None:
    """Refuses names that TFDS could not take for a split.

    Raises:
        SourceError: `split` is not a word, or is "all".
    """
    if not re.fullmatch(r"\w+", split, re.ASCII) or split == "all":
        raise SourceError(
            f"{where}: a split is named by the letters a to z, digits and "
            "underscores, and not 'all'."
        )


def read_classes(
    file: File,
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and RGB colours in order of class id; see the module.

    Raises:
        SourceError: The file is empty or too long, a line is blank or too long, a
            name holds control characters or occurs twice, or a colour is outside
            0..255.
    """
    lines = examples.read_text(file).rstrip().splitlines()
    if not 1 <= len(lines) <= IGNORE_LABEL:
        raise SourceError(
            f"{file.where}: has {len(lines)} lines, not 1..{IGNORE_LABEL}."
        )
    names, colors = [], list(default_colors(len(lines)))
    for class_id, line in enumerate(lines):
        where = f"{file.where}: line {class_id + 1}"
        name = line.strip()
        if len(name) > MAX_NAME:
            raise SourceError(
                f"{where} has {len(name)} characters; at most {MAX_NAME} are a name."
            )
        if match := _COLOUR.fullmatch(name):
            name, *color = match.groups()
            colors[class_id] = tuple(int(value) for value in color)
        if not name:
            raise SourceError(f"{where} is blank; line i + 1 names class i.")
        if not name.isprintable():
            raise SourceError(f"{where} names {name!r}: with control characters.")
        if name in names:
            raise SourceError(f"{where} names {name!r} a second time.")
        if max(colors[class_id]) > 255:
            raise SourceError(f"{where} has colour {colors[class_id]}, not 0..255.")
        names.append(name)
    return tuple(names), tuple(colors)
