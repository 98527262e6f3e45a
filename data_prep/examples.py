"""Source files -> checked examples: what all builders have in common.

An example is {"image", "label", "name"}.  JPEG and PNG images keep their bytes,
so nothing is lost by preparing; labels become one-channel PNGs of class ids.
Everything that a user can get wrong is found here, and the error is one line
that names file, value and rule.
"""

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import archives
from data_prep.archives import File, Files, SourceError
from ss_gan_tf.datasets import IGNORE_LABEL
from ss_gan_tf.messages import first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# Pillow's modes: stored as they are, and turned into an RGB PNG.
_KEEP_MODES = ("RGB", "L")
_CONVERT_MODES = ("1", "P", "PA", "LA", "RGBA", "CMYK")

_UPRIGHT = (0, 1)  # EXIF orientation: unset, normal
_EXIF_ORIENTATION = 0x0112

# JPEG with several pictures, as some telephones write it, calls itself MPO.
_FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG"}
# The other formats are told apart for the error alone: nothing of them is decoded.
_TOLD_APART = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
_MAX_NAME_BYTES = 1000


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and the file of its label.

    Attributes:
        name: Unique, relative, without suffix: "aachen/x".
        image: The image.
        label: Its label; None if nobody has labelled it.
    """

    name: str
    image: File
    label: File | None

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.image.size + (self.label.size if self.label else 0)


@dataclasses.dataclass(frozen=True)
class Example:
    """A checked example, encoded, with what the summary counts.

    Attributes:
        name: Unique name.
        image: JPEG or PNG.
        label: One-channel PNG of class ids.
        height: H, pixels.
        width: W, pixels.
        histogram: [256] int64; how many pixels have which id.
        digest: 128 bits of name, encoded image and ids.
    """

    name: str
    image: bytes
    label: bytes
    height: int
    width: int
    histogram: np.ndarray = dataclasses.field(compare=False)
    digest: int = 0


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


def match_pairs(where: str, images: Files, labels: Files) -> list[Pair]:
    """Matches images with labels by name, suffix aside, sorted by name.

    Args:
        where: What is matched, for the error when there is nothing.
        images: Relative names of images; .jpg, .jpeg and .png count.
        labels: Relative names of labels; .png counts.

    Raises:
        SourceError: There is no image, an image or a label has no partner, or two
            images share a name.
    """
    images = by_name(images, IMAGE_SUFFIXES)
    labels = by_name(labels, (".png",))
    if not images:
        raise SourceError(f"{where}: holds no {' or '.join(IMAGE_SUFFIXES)} file.")
    for name in sorted(images.keys() ^ labels.keys()):
        if name in images:
            raise SourceError(
                f"{images[name].where}: no label for this image, {name}.png is missing."
            )
        raise SourceError(
            f"{labels[name].where}: no image for this label, {name}"
            f"{'|'.join(IMAGE_SUFFIXES)} is missing."
        )
    return [Pair(name, images[name], labels[name]) for name in sorted(images)]


def by_name(files: Files, suffixes: Sequence[str]) -> dict[str, File]:
    """Relative name without suffix -> file, of the files with these suffixes.

    Raises:
        SourceError: Two files share a name, or a name could not be written.
    """
    found = {}
    for path, file in files.items():
        if file.suffix not in suffixes:
            continue
        name = str(PurePosixPath(path).with_suffix(""))
        if name in found:
            raise SourceError(f"{file.where}: {found[name].where} has the same name.")
        _check_name(file, name)
        found[name] = file
    return found


def _check_name(file: File, name: str) -> None:
    """Names go into records, tables and other files' names."""
    if not name.isprintable():
        raise SourceError(
            f"{file.where}: its name holds control characters or is not UTF-8; "
            "rename it."
        )
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise SourceError(
            f"{file.where}: its name is longer than {_MAX_NAME_BYTES} bytes."
        )


def encode_pair(
    pair: Pair, encoded: bytes, size: Sequence[int], label: np.ndarray | None
) -> Example:
    """Puts an example together.

    Args:
        pair: Where it comes from.
        encoded: The image as `read_image` returns it.
        size: (height, width) of the image.
        label: [H, W] uint8 ids as `read_label` returns them; None for an image that
            nobody has labelled, which makes every pixel ignored.

    Returns:
        The example.

    Raises:
        SourceError: Image and label differ in size.
    """
    if label is None:
        label = np.full(size, IGNORE_LABEL, np.uint8)
    if tuple(size) != label.shape:
        raise SourceError(
            f"{pair.label.where}: label is {_size(label.shape)} but image "
            f"{pair.image.where} is {_size(size)} (width x height); they must agree."
        )
    return encode(pair.name, encoded, label)


def encode(name: str, image: bytes, label: np.ndarray) -> Example:
    """An example of an encoded image and an [H, W] uint8 label."""
    # Of the ids, not of their PNG: another OpenCV may pack them otherwise.
    digest = hashlib.blake2b(digest_size=16)
    for part in (name.encode(), image, repr(label.shape).encode(), label.tobytes()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return Example(
        name=name,
        image=image,
        label=png(label),
        height=label.shape[0],
        width=label.shape[1],
        histogram=np.bincount(label.ravel(), minlength=256),
        digest=int.from_bytes(digest.digest(), "big"),
    )


def png(pixels: np.ndarray) -> bytes:
    """[H, W] ids or [H, W, 3] RGB, uint8, as a PNG."""
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    done, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert done
    return encoded.tobytes()


def read_image(file: File, *, oriented: bool = True) -> tuple[bytes, tuple[int, int]]:
    """Reads an image to its last byte.

    RGB and grey files pass through; palettes, transparency and CMYK become an
    RGB PNG, because decoders disagree on them.

    Args:
        file: The image.
        oriented: Whether EXIF's orientation counts.  It does not where masks are
            known to lie on the pixels as stored.

    Returns:
        Encoded JPEG or PNG, and (height, width).

    Raises:
        SourceError: Not an intact 8-bit JPEG or PNG, or too large, or nothing that
            training's decoder reads; or EXIF says that it is to be shown rotated, so
            that it is unclear which way its label lies.
    """
    encoded = read_content(file)
    image = _decode(file, encoded, ("JPEG", "PNG"), "images must be JPEG or PNG")
    orientation = _orientation(image)
    if oriented and orientation not in _UPRIGHT:
        raise SourceError(
            f"{file.where}: EXIF orientation is {orientation}; images must be stored "
            "upright (orientation 1), as their labels are."
        )
    if image.mode not in _KEEP_MODES + _CONVERT_MODES:
        raise SourceError(
            f"{file.where}: pixel type is {image.mode}; it must have 8 bits."
        )
    if image.mode in _CONVERT_MODES:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        encoded = buffer.getvalue()
    _check_decoder(file, encoded)
    return encoded, (image.height, image.width)


def read_ids(file: File) -> np.ndarray:
    """Reads the ids that a one-channel or palette PNG holds.

    Pillow alone returns the indices of a palette; other decoders return colours.

    Returns:
        [H, W] uint8.

    Raises:
        SourceError: Not an intact PNG of that kind.
    """
    encoded = read_content(file)
    image = _decode(file, encoded, ("PNG",), "labels must be PNG")
    # Bytes 24 and 25 of a PNG: bits per channel and colour type, 0 grey, 3
    # palette.  Decoders stretch grey of fewer bits to 0..255, which loses ids.
    bits, kind = encoded[24], encoded[25]
    if encoded[12:16] != b"IHDR":
        raise _unreadable(file, ValueError("its header does not come first"))
    if kind not in (0, 3):
        raise SourceError(
            f"{file.where}: label is saved as colours (mode {image.mode}); it must be "
            "a one-channel or palette PNG of class ids."
        )
    if kind == 0 and bits != 8:
        raise SourceError(
            f"{file.where}: label has {bits} bits; a grey label must have 8."
        )
    return np.asarray(image, np.uint8)


def to_classes(
    file: File,
    ids: np.ndarray,
    num_classes: int,
    remap: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Turns a file's ids into class ids and checks their range.

    Args:
        file: Where they come from, for the error.
        ids: [H, W] uint8.
        num_classes: C.
        remap: File id -> class id or the ignore label; other ids stay as they are.

    Returns:
        [H, W] uint8, ids in 0..C-1 or the ignore label.

    Raises:
        SourceError: An id is out of range.
    """
    table = np.arange(256, dtype=np.uint8)
    for file_id, class_id in (remap or {}).items():
        table[file_id] = class_id
    label = table[ids]
    unknown = label[(label >= num_classes) & (label != IGNORE_LABEL)]
    if unknown.size:
        raise SourceError(
            f"{file.where}: label holds id {unknown.max()}; ids must be in "
            f"0..{num_classes - 1} or {IGNORE_LABEL}."
        )
    return label


def read_label(
    file: File, num_classes: int, remap: Mapping[int, int] | None = None
) -> np.ndarray:
    """`read_ids`, then `to_classes`."""
    return to_classes(file, read_ids(file), num_classes, remap)


def read_content(file: File) -> bytes:
    """A file's bytes, unless there are too many."""
    archives.check_size(file)
    return file.read()


def read_text(file: File, errors: str = "strict") -> str:
    """A file's text.

    Args:
        file: In UTF-8, with or without the mark that some editors put first.
        errors: What to do about bytes that are not, as for `bytes.decode`.

    Raises:
        SourceError: It is not UTF-8, or too long for a list.
    """
    if file.size > archives.MAX_TEXT_BYTES:
        raise SourceError(
            f"{file.where}: has {file.size} bytes; a text may have "
            f"{archives.MAX_TEXT_BYTES}."
        )
    try:
        return file.read().decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise SourceError(f"{file.where}: must be UTF-8 text ({error}).") from error


def _decode(
    file: File, encoded: bytes, formats: Sequence[str], rule: str
) -> Image.Image:
    """Opens an image of these formats and reads its pixels."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=_TOLD_APART)
    except Exception as error:  # of nearly every kind
        raise _unreadable(file, error) from error
    if _FORMATS.get(image.format) not in formats:
        raise SourceError(f"{file.where}: is {image.format}; {rule}.")
    if image.width * image.height > MAX_PIXELS:
        raise SourceError(
            f"{file.where}: has {image.width}x{image.height} pixels (width x height); "
            f"{MAX_PIXELS} in all are the limit."
        )
    try:
        image.load()  # finds files that end too early
    except Exception as error:
        raise _unreadable(file, error) from error
    return image


def _check_decoder(file: File, encoded: bytes) -> None:
    """Training decodes with TensorFlow, which lets less pass than Pillow."""
    try:
        with tf.device("CPU"):
            tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        reason = f"TensorFlow cannot decode it: {error.message}"
        raise _unreadable(file, ValueError(reason)) from error


def _unreadable(file: File, error: Exception) -> SourceError:
    return SourceError(f"{file.where}: is not a readable image ({first_line(error)}).")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing, and the pixels are there
        return 1


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
