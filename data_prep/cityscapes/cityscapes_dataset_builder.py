"""Cityscapes: labelIds to the 19 classes of its benchmark, everything else ignored.

SOURCE holds, as archives or extracted,

    leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    gtFine/SPLIT/CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png

and, where there are coarse masks, gtCoarse/ in the same manner.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, downloads, examples
from data_prep.archives import File, Files, SourceError
from data_prep.builder import PairBuilder
from data_prep.examples import Pair
from data_prep.summary import SplitCount
from ss_gan_tf.datasets import (
    CITYSCAPES_CITIES,
    CITYSCAPES_LABEL_IDS,
    DATASETS,
    IGNORE_LABEL,
)

IMAGES, FINE, COARSE = "leftImg8bit", "gtFine", "gtCoarse"
LABEL_IDS = range(34)  # that files of labelIds hold
TRAIN_IDS = {label_id: i for i, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
REMAP = {i: TRAIN_IDS.get(i, IGNORE_LABEL) for i in LABEL_IDS}

# What a source must have; further parts are taken if they are there.
ARCHIVES = tuple(
    downloads.Archive(
        name=f"{part}_trainvaltest.zip",
        url=None,
        digest=None,
        home="https://www.cityscapes-dataset.com/downloads/",
    )
    for part in (IMAGES, FINE)
)


class Builder(PairBuilder):
    """Reads zips where they lie, or what was extracted from them."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {' and '.join(archive.name for archive in ARCHIVES)} there, or "
        f"{IMAGES}/ and {FINE}/."
    )
    FACTS = DATASETS["cityscapes"]
    COMPOSED = {"trainval": ("train", "val")}
    OPTIONAL = ("test", "train_coarse", "train_extra")

    def _plan(self, source: Path) -> dict[str, Sequence[Pair]]:
        parts = self._find_parts(source)
        images = {
            split: with_suffix(parts[IMAGES], split, f"_{IMAGES}.png")
            for split in ("train", "val", "test", "train_extra")
        }
        self._source, self._toolbox_masks = source, {}
        self._cities = {split: count_cities(images[split]) for split in images}
        for split, found in self._cities.items():
            check_cities(f"{source}/{IMAGES}/{split}", split, found)
        plan = {
            split: self._pairs(FINE, split, images[split], parts[FINE])
            for split in ("train", "val")
        }
        plan["test"] = [
            Pair(PurePosixPath(name).name, image, None)
            for name, image in images["test"].items()
        ]
        if plan["test"]:
            self.info.metadata["unlabelled_splits"] = ["test"]
        if parts[COARSE]:
            for split, of in (("train_coarse", "train"), ("train_extra",) * 2):
                if images[of]:
                    plan[split] = self._pairs(COARSE, of, images[of], parts[COARSE])
        return plan

    def _find_parts(self, source: Path) -> dict[str, Files]:
        """The files below leftImg8bit/, gtFine/ and gtCoarse/."""
        folder = archives.list_folder(source)
        found = {part: root_of(folder, part) for part in (IMAGES, FINE, COARSE)}
        for archive in ARCHIVES:
            part = archive.name.split("_")[0]
            if not found[part]:
                path = source / archive.name
                if not path.exists() and not self._allow_partial:
                    cache = Path(self.data_dir_root) / "downloads"
                    path = downloads.fetch(archive, cache, self._mirror, path)
                if path.exists():
                    found[part] = root_of(archives.list_zip(path), part)
            if not found[part]:
                raise SourceError(
                    f"{source}: holds neither {part}/ nor {archive.name}."
                )
        for part, names in (
            (IMAGES, f"{IMAGES}_trainextra*.zip"),
            (COARSE, "gtCoarse*.zip"),
        ):
            for path in sorted(source.glob(names)):
                found[part] = root_of(archives.list_zip(path), part) | found[part]
        return found

    def _pairs(self, kind: str, split: str, images: Files, masks: Files) -> list[Pair]:
        labels = with_suffix(masks, split, f"_{kind}_labelIds.png")
        toolbox = with_suffix(masks, split, f"_{kind}_labelTrainIds.png")
        pairs = []
        for name in sorted(images.keys() | labels.keys()):
            image, label = images.get(name), labels.get(name)
            if image and label:
                pairs.append(Pair(PurePosixPath(name).name, image, label))
                if name in toolbox:
                    self._toolbox_masks[label.where] = toolbox[name]
            elif image:
                raise SourceError(
                    f"{image.where}: no label for this image, "
                    f"{kind}/{split}/{name}_{kind}_labelIds.png is missing."
                )
            elif kind == FINE or not self._allow_partial:
                raise SourceError(
                    f"{label.where}: no image for this label, "
                    f"{IMAGES}/{split}/{name}_{IMAGES}.png is missing."
                )
        return pairs

    def _read_label(self, pair: Pair) -> np.ndarray | None:
        if pair.label is None:
            return None
        label = to_train_ids(pair.label, examples.read_ids(pair.label))
        if other := self._toolbox_masks.get(pair.label.where):
            check_agrees(other, examples.read_ids(other), label)
        return label

    def _finish_split(self, split: str, count: SplitCount) -> list[str]:
        # TrainIds end at 18; of labelIds up to there come the first six classes.
        if count.pixels[:19].sum() and not count.pixels[6:19].sum():
            raise SourceError(
                f"{self._source}: no labelIds file of {split} holds an id above 18; "
                "these look like trainIds, and labelIds (0 to 33) belong there."
            )
        return []

    def _where_short(self, split: str) -> str:
        expected, found = CITYSCAPES_CITIES.get(split), self._cities.get(split)
        if expected is None:
            return ""
        short = [
            f"{city} {found.get(city, 0)} of {count}"
            for city, count in expected.items()
            if found.get(city, 0) != count
        ]
        return f" ({', '.join(short)})"


def root_of(files: Files, folder: str) -> dict[str, File]:
    """The files below the folder of this name, at whatever depth it lies."""
    for name in files:
        parts = name.split("/")[:-1]
        if folder in parts:
            root = parts[: parts.index(folder) + 1]
            return archives.below(files, "/".join(root))
    return {}


def with_suffix(files: Files, split: str, suffix: str) -> dict[str, File]:
    """CITY/CITY_SEQUENCE_FRAME -> file, of a split's files that end in `suffix`."""
    return {
        name.removesuffix(suffix): file
        for name, file in archives.below(files, split).items()
        if name.endswith(suffix)
    }


def count_cities(images: Files) -> Counter:
    """City -> number of its images."""
    return Counter(name.split("/")[0] for name in images)


def check_cities(where: str, split: str, found: Counter) -> None:
    """Refuses images of a city that belongs to another split.

    Args:
        where: The folder of the split, for the error.
        split: Its name.
        found: The cities in it.

    Raises:
        SourceError: There is such a city.
    """
    for other, cities in CITYSCAPES_CITIES.items():
        if other != split and (wrong := sorted(found.keys() & cities.keys())):
            raise SourceError(
                f"{where}: holds {found[wrong[0]]} images of {wrong[0]}, a city of "
                f"{other}; the splits have no city in common."
            )


def to_train_ids(file: File, ids: np.ndarray) -> np.ndarray:
    """Turns labelIds into trainIds.

    Args:
        file: Where they come from, for the error.
        ids: [H, W] uint8 labelIds.

    Returns:
        [H, W] uint8, 0..18 or 255.

    Raises:
        SourceError: There is an id that is no labelId.
    """
    if (highest := ids.max()) not in LABEL_IDS:
        hint = " 255 is a trainId; labelIds belong there." if highest == 255 else ""
        raise SourceError(
            f"{file.where}: holds id {highest}; labelIds are in 0..33.{hint}"
        )
    return examples.to_classes(file, ids, len(CITYSCAPES_LABEL_IDS), REMAP)


def check_agrees(file: File, ids: np.ndarray, label: np.ndarray) -> None:
    """Holds a labelTrainIds file against what the labelIds give.

    Args:
        file: The labelTrainIds file, for the error.
        ids: [H, W] uint8, what it holds.
        label: [H, W] uint8, what it should hold.

    Raises:
        SourceError: They differ.
    """
    if ids.shape != label.shape or (ids != label).any():
        where = ids != label if ids.shape == label.shape else np.ones_like(ids, bool)
        raise SourceError(
            f"{file.where}: differs from its labelIds file in {where.sum()} pixels; "
            "delete it, it is not needed, or mend the labelIds."
        )
