"""The counts of every image of a split, kept so that all can be resampled later.

Figures of any subset of the images, or of a bootstrap sample of them, come from sums
over the first axis.  The confusion matrices take 8 N C^2 bytes in memory (500 images
of 19 classes: 1.4 MB, 2,000 of 150 classes: 360 MB), less in the file, which is
compressed; all other counts of an image take 536 C bytes.

Shapes: N images, C classes.
"""

import dataclasses
import io
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from ss_gan_tf.messages import first_line

MAX_BYTES = 2**32  # of the unpacked arrays

# What NumPy raises for an archive that is damaged.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class PerImage:
    """Counts of N images, sorted by name.

    Attributes:
        names: N names.
        class_names: C names.
        counts: {"confusion": [N, C, C] int64, and maybe others, [N, ...]}.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: dict[str, np.ndarray]

    def total(self) -> dict[str, np.ndarray]:
        """The counts of all images together, without their first axis."""
        return {name: values.sum(axis=0) for name, values in self.counts.items()}


class Collector:
    """Takes the counts of one image after the other."""

    def __init__(self):
        self._images: list[tuple[str, dict[str, np.ndarray]]] = []

    def __len__(self):
        return len(self._images)

    def add(self, name: str, counts: dict[str, np.ndarray]):
        """One image more; all have counts of the same names and shapes."""
        self._images.append((name, counts))

    def result(self, class_names: Sequence[str]) -> PerImage:
        """All images so far, at least one, in an order that only their names decide."""
        images = sorted(self._images, key=lambda image: image[0])
        return PerImage(
            tuple(name for name, _ in images),
            tuple(class_names),
            {key: np.stack([c[key] for _, c in images]) for key in images[0][1]},
        )


def join(parts: Sequence[PerImage]) -> PerImage:
    """The images of several parts, at least one; the same as from one collector."""
    names = [name for part in parts for name in part.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    return PerImage(
        tuple(names[index] for index in order),
        parts[0].class_names,
        {
            key: np.concatenate([part.counts[key] for part in parts])[order]
            for key in parts[0].counts
        },
    )


def to_bytes(images: PerImage) -> bytes:
    """The counts for another process, which reads them by `from_bytes`."""
    buffer = io.BytesIO()
    _save(np.savez, buffer, images)
    return buffer.getvalue()


def from_bytes(data: bytes) -> PerImage:
    """What `to_bytes` wrote; nothing in it is executed.

    Raises:
        ValueError: it is damaged.
    """
    return _load(io.BytesIO(data), "counts of another process")


def write_per_image(images: PerImage, path: str):
    """Writes the counts as compressed NumPy arrays, whole or not at all.

    Args:
        images: the counts.
        path: the file, .npz; its folder is made.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial"
    with open(partial, "wb") as file:
        _save(np.savez_compressed, file, images)
    os.replace(partial, path)


def _save(save, file: BinaryIO, images: PerImage):
    save(
        file,
        names=np.array(images.names, np.str_),
        class_names=np.array(images.class_names, np.str_),
        **images.counts,
    )


def read_per_image(path: str) -> PerImage:
    """Reads what `write_per_image` wrote; nothing in the file is executed.

    Args:
        path: the file.

    Returns:
        The counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its arrays do not fit each other.
    """
    return _load(path, path)


def _load(source: str | BinaryIO, path: str) -> PerImage:
    """`read_per_image`; errors say `path`."""
    try:
        _check_size(source)
        if hasattr(source, "seek"):
            source.seek(0)
        file = np.load(source, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{path}: not a file of counts ({first_line(error)})"
        ) from error
    for name in ("names", "class_names", "confusion"):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name!r}")
    names, class_names = arrays.pop("names"), arrays.pop("class_names")
    for name, array in (("names", names), ("class_names", class_names)):
        if array.ndim != 1 or array.dtype.kind != "U":
            raise ValueError(f"{path}: {name} must be a list of words")
    size, num_classes = len(names), len(class_names)
    matrices = arrays["confusion"]
    shape = (size, num_classes, num_classes)
    if matrices.shape != shape or matrices.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: confusion must be integers {shape}, is {matrices.dtype} "
            f"{matrices.shape}"
        )
    for name, array in arrays.items():
        if array.shape[:1] != (size,) or array.dtype.kind not in "iuf":
            raise ValueError(f"{path}: {name} must have a number for each image")
        if not np.all(array >= 0):  # NaN too
            raise ValueError(f"{path}: {name} holds a value below 0 or no number")
    return PerImage(tuple(names.tolist()), tuple(class_names.tolist()), arrays)


def _check_size(source):
    """Refuses what unpacks to more than is read, by its table of contents."""
    if not zipfile.is_zipfile(source):
        return  # NumPy knows what else it may be
    with zipfile.ZipFile(source) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"unpacks to {size} bytes, at most {MAX_BYTES} are read")


def check_same_images(first: PerImage, second: PerImage):
    """Refuses to compare what was not measured on the same images and truth.

    Args:
        first: one run's counts.
        second: another's.

    Raises:
        ValueError: classes or images differ, or the true pixels of a class in one.
    """
    if first.class_names != second.class_names:
        raise ValueError(
            f"classes differ: {', '.join(first.class_names)} and "
            f"{', '.join(second.class_names)}"
        )
    if first.names != second.names:
        alone = sorted(set(first.names) ^ set(second.names))
        raise ValueError(
            f"images differ: {len(first.names)} and {len(second.names)}, only in one: "
            f"{', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''}"
        )
    truths = [images.counts["confusion"].sum(axis=2) for images in (first, second)]
    differ = np.flatnonzero((truths[0] != truths[1]).any(axis=1))
    if differ.size:
        raise ValueError(f"{first.names[differ[0]]}: the truth differs")
