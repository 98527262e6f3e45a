"""PASCAL VOC 2012 and SBD: 10,582 training images that keep clear of VOC val.

    trainaug = VOC train + (SBD train + SBD val, outside VOC train and VOC val)

SOURCE holds, as archives or extracted, VOCdevkit/VOC2012 (lists, JPEGs, palette PNGs)
and benchmark_RELEASE/dataset (lists, cls/*.mat), or ready-made masks in
SegmentationClassAug instead of the latter.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from data_prep import archives, downloads, examples, matlab
from data_prep.archives import File, Files, SourceError
from data_prep.builder import PairBuilder
from data_prep.examples import Pair
from data_prep.summary import SplitCount
from ss_gan_tf.datasets import DATASETS, IGNORE_LABEL

VOC = downloads.Archive(
    name="VOCtrainval_11-May-2012.tar",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
SBD = downloads.Archive(
    name="benchmark.tgz",
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
    home="http://home.bharathh.info/pubs/codes/SBD/download.html",
)
READY_MADE = "SegmentationClassAug"
TEST = "VOC2012test.tar"  # of the evaluation server, for those who register there

_LISTS = "ImageSets/Segmentation"
_LISTED = ("train", "val")
_ID = re.compile(r"\d{4}_\d{6}")  # of an image: year and number


class Builder(PairBuilder):
    """Reads both sets where they lie; downloads what is missing."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {VOC.name} (or VOCdevkit/) and {SBD.name} (or benchmark_RELEASE/, or "
        f"{READY_MADE}/) there."
    )
    FACTS = DATASETS["voc_sbd"]
    COMPOSED = {"trainaug": ("train", "sbd"), "trainval": ("train", "val")}
    HIDDEN = ("sbd",)
    OPTIONAL = ("test",)
    ORIENTED = False  # the masks were drawn on the pixels as stored
    DOWNLOADABLE = True

    def _plan(self, source: Path) -> dict[str, Sequence[Pair]]:
        folder = archives.list_folder(source)
        voc = self._find_voc(source, folder)
        ids = {split: read_list(voc[f"{_LISTS}/{split}.txt"]) for split in _LISTED}
        for name, file in voc.items():
            if name.startswith(f"{_LISTS}/train") and not name.endswith("val.txt"):
                check_apart(file, read_list(file), ids["val"])
        jpegs, masks = by_id(voc, "JPEGImages"), by_id(voc, "SegmentationClass")
        self._ready_made = find_ready_made(source, folder, voc)
        sbd = self._find_sbd(source, folder, jpegs)
        plan = {split: self._pairs(ids[split], jpegs, masks) for split in _LISTED}
        taken = {*ids["train"], *ids["val"]}
        if sbd:
            listed = sbd_ids(sbd)
            jpegs = by_id(sbd, "img") | jpegs
            masks = by_id(sbd, "cls")
        else:
            listed, masks = self._ready_made.keys(), self._ready_made
        if listed:
            plan["sbd"] = self._pairs(sorted(listed - taken), jpegs, masks)
        if test := self._test_pairs(source, voc):
            plan["test"] = test
            self.info.metadata["unlabelled_splits"] = ["test"]
        self._compared, self._differing = [], []
        return plan

    def _find_voc(self, source: Path, folder: Files) -> Files:
        """The files below VOC2012/, with the two lists among them."""
        root, where = archives.find_root(folder, f"{_LISTS}/train.txt"), source
        if root is None:
            where = self._find_archive(source, VOC)
            if where is None:
                raise SourceError(
                    f"{source}: holds neither VOCdevkit/VOC2012 with its "
                    f"{_LISTS}/train.txt nor {VOC.name}."
                )
            folder = archives.list_tar(where)
            root = archives.find_root(folder, f"{_LISTS}/train.txt")
        voc = archives.below(folder, root) if root is not None else {}
        for split in _LISTED:
            if f"{_LISTS}/{split}.txt" not in voc:
                raise SourceError(f"{where}: {_LISTS}/{split}.txt is missing.")
        return voc

    def _find_sbd(self, source: Path, folder: Files, jpegs: Files) -> Files:
        """The files below SBD's dataset/; nothing if there are none to be had."""
        folder = folder_of(folder, "cls", ".mat")
        if folder:
            return folder
        if self._ready_made and not (source / SBD.name).exists():
            return {}
        archive = self._find_archive(source, SBD)
        if archive is None:
            return {}

        def wanted(name: str) -> bool:
            path = PurePosixPath(name)
            if path.parent.name == "img":
                return path.stem not in jpegs  # VOC has them all
            return path.suffix == ".txt" or path.parent.name == "cls"

        found = folder_of(archives.stream_tar(archive, wanted), "cls", ".mat")
        if not found:
            raise SourceError(f"{archive}: holds no cls/*.mat.")
        return found

    def _find_archive(self, source: Path, archive: downloads.Archive) -> Path | None:
        path = source / archive.name
        if path.exists():
            return path
        if self._allow_partial:
            return None
        cache = Path(self.data_dir_root) / "downloads"
        return downloads.fetch(archive, cache, self._mirror, path)

    def _pairs(self, ids: Iterable[str], jpegs: Files, masks: Files) -> list[Pair]:
        """Pairs of listed images; a partial source may lack both files of one."""
        pairs = []
        for image_id in ids:
            image, mask = jpegs.get(image_id), masks.get(image_id)
            if image and mask:
                pairs.append(Pair(image_id, image, mask))
            elif image or mask or not self._allow_partial:
                there = f"{(image or mask).where}: " if image or mask else ""
                missing = "mask" if image else "image"
                raise SourceError(f"{there}{missing} of {image_id} is missing.")
        return pairs

    def _test_pairs(self, source: Path, voc: Files) -> list[Pair]:
        """Images of VOC test, whose masks are not public; none if they are not there.

        Extracted over VOCdevkit, or in their archive.
        """
        path, name = source / TEST, f"{_LISTS}/test.txt"
        if path.exists():
            found = archives.list_tar(path)
            root = archives.find_root(found, name)
            if root is None:
                raise SourceError(f"{path}: {name} is missing.")
            voc = archives.below(found, root)
        if name not in voc:
            return []
        jpegs = by_id(voc, "JPEGImages")
        ids = read_list(voc[name])
        missing = [image_id for image_id in ids if image_id not in jpegs]
        if missing and len(missing) < len(ids) and not self._allow_partial:
            raise SourceError(f"{voc[name].where}: image of {missing[0]} is missing.")
        return [Pair(each, jpegs[each], None) for each in ids if each in jpegs]

    def _read_label(self, pair: Pair) -> np.ndarray | None:
        if pair.label is None:
            return None
        if pair.label.suffix != ".mat":
            return super()._read_label(pair)
        label = read_mat(pair.label, self.FACTS.num_classes)
        if other := self._ready_made.get(pair.name):
            ready_made = examples.read_label(other, self.FACTS.num_classes)
            self._compared.append(pair.name)
            if not agree(label, ready_made):
                self._differing.append(pair.name)
        return label

    def _finish_split(self, split: str, count: SplitCount) -> list[str]:
        if not (split == "sbd" and self._compared):
            return []
        which = f", {min(self._differing)} the first" if self._differing else ""
        return [
            f"{READY_MADE} differs from SBD's masks in {len(self._differing)} of "
            f"{len(self._compared)} images{which}; SBD's were taken"
        ]


def read_list(file: File) -> list[str]:
    """The images that a list names, sorted; one a line, as VOC and SBD write them.

    Raises:
        SourceError: A line names none, or the list is empty.
    """
    ids = set()
    for line in examples.read_text(file, "replace").splitlines():
        match = _ID.search(line)
        if line.strip() and not match:
            raise SourceError(
                f"{file.where}: {line.strip()[:40]!r} is not the name of a VOC image; "
                "it must be like 2007_000032."
            )
        ids |= {match[0]} if match else set()
    if not ids:
        raise SourceError(f"{file.where}: the list is empty.")
    return sorted(ids)


def check_apart(file: File, ids: Iterable[str], val: Iterable[str]) -> None:
    """Refuses a training list with images of VOC val.

    Args:
        file: The list, for the error.
        ids: What it names.
        val: What VOC's val.txt names.

    Raises:
        SourceError: They have an image in common.
    """
    if both := sorted({*ids} & {*val}):
        raise SourceError(
            f"{file.where}: names {both[0]}, which is in VOC val ({len(both)} images "
            "are); training images must not be. SBD's own train.txt and val.txt "
            "overlap with it and are no substitute for VOC's."
        )


def sbd_ids(sbd: Files) -> set[str]:
    """All images that SBD has masks of: its train.txt and val.txt together.

    Raises:
        SourceError: One of the lists is missing.
    """
    ids = set()
    for name in ("train.txt", "val.txt"):
        if name not in sbd:
            where = next(iter(sbd.values())).where
            raise SourceError(f"{where}: {name} of SBD is missing beside cls/.")
        ids |= {*read_list(sbd[name])}
    return ids


def find_ready_made(source: Path, folder: Files, voc: Files) -> dict[str, File]:
    """Image -> ready-made mask, from a folder or a zip; empty if there is neither."""
    for files in (folder, voc):
        if found := folder_of(files, READY_MADE, ".png"):
            return by_id(found, READY_MADE)
    path = source / f"{READY_MADE}.zip"
    if not path.exists():
        return {}
    found = by_id(folder_of(archives.list_zip(path), READY_MADE, ".png"), READY_MADE)
    if not found:
        raise SourceError(f"{path}: holds no {READY_MADE}/*.png.")
    return found


def folder_of(files: Files, name: str, suffix: str) -> dict[str, File]:
    """The files around the folder `name` that holds files of that suffix."""
    for path in map(PurePosixPath, files):
        if path.parent.name == name and path.suffix == suffix:
            root = str(path.parent.parent)
            return archives.below(files, "" if root == "." else root)
    return {}


def by_id(files: Files, folder: str) -> dict[str, File]:
    """Image -> file, of one folder's files."""
    inside = archives.below(files, folder)
    return {PurePosixPath(name).stem: inside[name] for name in inside}


def read_mat(file: File, num_classes: int) -> np.ndarray:
    """Reads GTcls.Segmentation of one of SBD's .mat files.

    Returns:
        [H, W] uint8 class ids; SBD ignores no pixel.

    Raises:
        SourceError: It cannot be read, or an id is out of range.
    """
    content = examples.read_content(file)
    try:
        ids = matlab.read_field(content, "GTcls", "Segmentation")
    except ValueError as error:
        raise SourceError(
            f"{file.where}: GTcls.Segmentation cannot be read ({error})."
        ) from error
    return examples.to_classes(file, ids, num_classes)


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks give each pixel the same class, ignored pixels aside."""
    if one.shape != other.shape:
        return False
    return bool(
        ((one == other) | (one == IGNORE_LABEL) | (other == IGNORE_LABEL)).all()
    )
