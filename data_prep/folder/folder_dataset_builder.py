"""A user's own images and masks.

    SOURCE/classes.txt                 line i + 1 names class i, then maybe r g b
    SOURCE/images/SPLIT/NAME.jpg|jpeg|png
    SOURCE/labels/SPLIT/NAME.png       one-channel or palette; 255 is ignored

NAME may contain sub-folders; the splits are the folders in images/.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep import examples
from data_prep.examples import SourceError
from ss_gan_tf.datasets import IGNORE_LABEL, default_colors

_COLOUR = re.compile(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Class names are known only once the source is read."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put classes.txt, images/SPLIT/NAME.jpg|png and labels/SPLIT/NAME.png there."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=examples.features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        source = Path(dl_manager.manual_dir)
        names, colors = read_classes(source / "classes.txt")
        self.info.metadata.update(examples.metadata(names, colors))
        pairs = {
            split: examples.find_pairs(
                source / "images" / split, source / "labels" / split
            )
            for split in find_splits(source)
        }
        return {
            split: self._generate_examples(pairs[split], len(names)) for split in pairs
        }

    def _generate_examples(
        self, pairs: Sequence[examples.Pair], num_classes: int
    ) -> Iterator[tuple[str, dict]]:
        return examples.read_pairs(pairs, num_classes)


def find_splits(source: Path) -> list[str]:
    """The sub-folders of images/, sorted.

    Raises:
        SourceError: There is none, labels/ has others, a name is not a word.
    """
    found = {}
    for kind in ("images", "labels"):
        if not (source / kind).is_dir():
            raise SourceError(f"{source / kind}: folder is missing.")
        found[kind] = {p.name for p in (source / kind).iterdir() if p.is_dir()}
    if not found["images"]:
        raise SourceError(
            f"{source / 'images'}: holds no split; expected folders such as train, val."
        )
    for split in sorted(found["images"] ^ found["labels"]):
        there, missing = (
            ("images", "labels") if split in found["images"] else ("labels", "images")
        )
        raise SourceError(
            f"{source / there / split}: {source / missing / split} is missing."
        )
    for split in sorted(found["images"]):
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise SourceError(
                f"{source / 'images' / split}: a split is named by letters, digits "
                "and underscores, and not 'all'."
            )
    return sorted(found["images"])


def read_classes(
    path: Path,
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and RGB colours in order of class id; see the module.

    Raises:
        SourceError: The file is missing, empty or too long, a line is blank, a
            name occurs twice, or a colour is outside 0..255.
    """
    if not path.exists():
        raise SourceError(f"{path}: file is missing; line i + 1 names class i.")
    lines = path.read_text().rstrip().splitlines()
    if not 1 <= len(lines) <= IGNORE_LABEL:
        raise SourceError(f"{path}: has {len(lines)} lines, not 1..{IGNORE_LABEL}.")
    names, colors = [], list(default_colors(len(lines)))
    for class_id, line in enumerate(lines):
        where = f"{path}: line {class_id + 1}"
        name = line.strip()
        if match := _COLOUR.fullmatch(name):
            name, *color = match.groups()
            colors[class_id] = tuple(int(value) for value in color)
        if not name:
            raise SourceError(f"{where} is blank; line i + 1 names class i.")
        if name in names:
            raise SourceError(f"{where} names {name!r} a second time.")
        if max(colors[class_id]) > 255:
            raise SourceError(f"{where} has colour {colors[class_id]}, not 0..255.")
        names.append(name)
    return tuple(names), tuple(colors)
