"""Source files -> checked examples: what all builders have in common.

An example is {"image", "label", "name"}.  JPEG and PNG images keep their bytes,
so nothing is lost by preparing; labels become one-channel PNGs of class ids.
Everything that a user can get wrong is found here, and the error is one line
that names file, value and rule.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ss_gan_tf.datasets import IGNORE_LABEL

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# Pillow's modes: stored as they are, and turned into an RGB PNG.
_KEEP_MODES = ("RGB", "L")
_CONVERT_MODES = ("1", "P", "PA", "LA", "RGBA", "CMYK")

_UPRIGHT = (0, 1)  # EXIF orientation: unset, normal
_EXIF_ORIENTATION = 0x0112

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class SourceError(ValueError):
    """The source is not what the builder needs; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and the file of its label."""

    name: str  # unique, relative, without suffix: "aachen/x"
    image: Path
    label: Path


def features(class_names: Sequence[str] | None = None) -> tfds.features.FeaturesDict:
    """The features of every prepared data set.

    Args:
        class_names: Names of ids 0, 1, ...; None where only the source knows.

    Returns:
        image [H, W, 3] uint8, label [H, W, 1] uint8, name.
    """
    names = list(class_names) if class_names else None
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(doc="RGB, as encoded in the source."),
            "label": tfds.features.LabeledImage(
                labels=names, encoding_format="png", doc="Class ids or 255."
            ),
            "name": tfds.features.Text(doc="Unique and usable as a file name."),
        }
    )


def metadata(
    class_names: Sequence[str], class_colors: Sequence[tuple[int, int, int]]
) -> dict[str, object]:
    """What a prepared data set says about itself."""
    return {
        "class_names": list(class_names),
        "class_colors": [list(color) for color in class_colors],
        "ignore_label": IGNORE_LABEL,
    }


def fingerprint(source_dir: str | Path) -> str:
    """Identifies a source by the relative paths and sizes of its files.

    Contents are not read: it tells two sources apart, it is no checksum.
    """
    root = Path(source_dir)
    digest = hashlib.sha256()
    for path in _files_below(root):
        digest.update(f"{path.relative_to(root)}\t{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def find_pairs(image_dir: Path, label_dir: Path) -> list[Pair]:
    """Matches images with labels by relative path, suffix aside, sorted by name.

    Args:
        image_dir: Holds .jpg, .jpeg or .png files, sub-folders allowed.
        label_dir: Holds .png files at the same relative paths.

    Raises:
        SourceError: A folder is missing or empty, an image or a label has no
            partner, or two images share a name.
    """
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise SourceError(f"{folder}: folder is missing.")
    images = _by_name(image_dir, IMAGE_SUFFIXES)
    labels = _by_name(label_dir, (".png",))
    if not images:
        raise SourceError(f"{image_dir}: holds no {' or '.join(IMAGE_SUFFIXES)} file.")
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise SourceError(
                f"{images[name]}: no label for this image, {label_dir / name}.png "
                "is missing."
            )
        raise SourceError(
            f"{labels[name]}: no image for this label, {image_dir / name}"
            f"{'|'.join(IMAGE_SUFFIXES)} is missing."
        )
    return [Pair(name, images[name], labels[name]) for name in sorted(images)]


def read_pairs(
    pairs: Iterable[Pair], num_classes: int, remap: Mapping[int, int] | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Reads and checks pairs; yields (key, example) as TFDS wants them.

    Args:
        pairs: From `find_pairs`.
        num_classes: C; ids are 0..C-1 or the ignore label.
        remap: File id -> stored id, applied before the range is checked.

    Raises:
        SourceError: See `read_image` and `read_label`; or sizes differ.
    """
    for pair in pairs:
        encoded, image_size = read_image(pair.image)
        label = read_label(pair.label, num_classes, remap)
        if image_size != label.shape:
            raise SourceError(
                f"{pair.label}: label is {_size(label.shape)} but image {pair.image} "
                f"is {_size(image_size)} (width x height); they must agree."
            )
        example = {"image": encoded, "label": label[..., None], "name": pair.name}
        yield pair.name, example


def read_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Reads an image to its last byte.

    RGB and grey files pass through; palettes, transparency and CMYK become an
    RGB PNG, because decoders disagree on them.

    Returns:
        Encoded JPEG or PNG, and (height, width).

    Raises:
        SourceError: Not an intact 8-bit JPEG or PNG; or EXIF says that it is to
            be shown rotated, so that it is unclear which way its label lies.
    """
    encoded = path.read_bytes()
    image = _decode(path, encoded)
    if image.format not in ("JPEG", "PNG"):
        raise SourceError(f"{path}: is {image.format}; images must be JPEG or PNG.")
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation not in _UPRIGHT:
        raise SourceError(
            f"{path}: EXIF orientation is {orientation}; images must be stored "
            "upright (orientation 1), as their labels are."
        )
    if image.mode not in _KEEP_MODES + _CONVERT_MODES:
        raise SourceError(f"{path}: pixel type is {image.mode}; it must have 8 bits.")
    if image.mode in _CONVERT_MODES:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        encoded = buffer.getvalue()
    return encoded, (image.height, image.width)


def read_label(
    path: Path, num_classes: int, remap: Mapping[int, int] | None = None
) -> np.ndarray:
    """Reads class ids from a one-channel or palette PNG.

    Pillow alone returns the indices of a palette; other decoders return colours.

    Args:
        path: The PNG.
        num_classes: C.
        remap: File id -> stored id, applied before the range is checked.

    Returns:
        [H, W] uint8, ids in 0..C-1 or the ignore label.

    Raises:
        SourceError: Not an intact PNG of that kind, or an id is out of range.
    """
    encoded = path.read_bytes()
    image = _decode(path, encoded)
    if image.format != "PNG":
        raise SourceError(f"{path}: is {image.format}; labels must be PNG.")
    # Bytes 24 and 25 of a PNG: bits per channel and colour type, 0 grey, 3
    # palette.  Decoders stretch grey of fewer bits to 0..255, which loses ids.
    bits, kind = encoded[24], encoded[25]
    if kind not in (0, 3):
        raise SourceError(
            f"{path}: label is saved as colours (mode {image.mode}); it must be a "
            "one-channel or palette PNG of class ids."
        )
    if kind == 0 and bits != 8:
        raise SourceError(f"{path}: label has {bits} bits; a grey label must have 8.")
    stored = np.asarray(image, np.uint8)
    label = stored.copy()
    for file_id, class_id in (remap or {}).items():
        label[stored == file_id] = class_id
    unknown = label[(label >= num_classes) & (label != IGNORE_LABEL)]
    if unknown.size:
        raise SourceError(
            f"{path}: label holds id {unknown.max()}; ids must be in "
            f"0..{num_classes - 1} or {IGNORE_LABEL}."
        )
    return label


def _decode(path: Path, encoded: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()  # finds files that end too early
    except _UNREADABLE as error:
        reason = str(error).split("\n")[0]
        raise SourceError(f"{path}: is not a readable image ({reason}).") from error
    return image


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found = {}
    for path in _files_below(folder):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise SourceError(f"{path}: {found[name]} has the same name.")
        found[name] = path
    return found


def _files_below(folder: Path) -> list[Path]:
    """Files at any depth, sorted; hidden ones (.DS_Store) left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
