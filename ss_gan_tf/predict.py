"""Photographs in, label maps and overlays out, through an exported model.

INPUT/street/a.jpg -> OUTPUT/street/a_ids.png      class ids, one channel
                      OUTPUT/street/a_color.png    the class colours
                      OUTPUT/street/a_overlay.png  the colours over the photograph
                      OUTPUT/legend.png            which colour is which class
"""

import collections
import contextlib
import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from ss_gan_tf import strict_json, visualize
from ss_gan_tf.export import CLASSES_FILE, is_export
from ss_gan_tf.inference import MIN_SIZE, sliding_bands
from ss_gan_tf.messages import first_line

SUFFIXES = (".jpg", ".jpeg", ".png")
KINDS = ("_ids.png", "_color.png", "_overlay.png")  # of an input's pictures
LEGEND = "legend.png"
MAX_PIXELS = 100_000_000  # larger images are refused before their pixels are decoded
MAX_WHOLE_PIXELS = 2048 * 1024  # larger images are run in windows: memory stays bounded
WINDOW, OVERLAP = 1024, 1 / 3  # pixels; share of a window
_PIXELS = tf.TensorSpec([None, None, None, 3], tf.uint8)  # what is given to a model

# EXIF orientation -> what makes the picture upright (1 is upright).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class Failure(NamedTuple):
    """An input without a result."""

    path: str
    reason: str


class Model(NamedTuple):
    """An exported generator: what `tf.saved_model.load` gives, and its classes."""

    saved_model: Any
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, ...], ...]


def predict(
    model_dir: str,
    input_path: str,
    output_dir: str,
    *,
    alpha: float = 0.5,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Failure]:
    """Segments a photograph, or every JPEG and PNG in a folder and its sub-folders.

    Args:
        model_dir: what `export.export` wrote.
        input_path: a file or a folder; links to folders are not followed.
        output_dir: gets the pictures, in the input's sub-folders.
        alpha: weight of the colours in the overlay, in [0, 1].
        max_pixels: images with more are refused before they are decoded.
        progress: called with the number of images done and of all images.

    Returns:
        The inputs that could not be read or written; all others have their results.

    Raises:
        FileNotFoundError: no such input.
        NotADirectoryError: output_dir is a file.
        ValueError: alpha out of range, a folder without images or that is also the
            output, a result in the place of an input, or a model_dir that holds no
            export.
        OSError: the disk is full.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    paths, failures = find_images(input_path, output_dir)
    if os.path.exists(output_dir) and not os.path.isdir(output_dir):
        raise NotADirectoryError(f"output_dir is a file: {output_dir}")
    base = input_path if os.path.isdir(input_path) else os.path.dirname(input_path)
    stems = output_stems(paths)
    _check_overwrites_no_input(base, stems, output_dir)
    model = load_model(model_dir)
    os.makedirs(output_dir, exist_ok=True)
    legend = visualize.legend(model.class_names, model.class_colors)
    _write_png(legend, os.path.join(output_dir, LEGEND))
    for done, (path, stem) in enumerate(stems.items(), start=1):
        source = os.path.join(base, path)
        try:
            image = read_image(source, max_pixels)
            ids = segment(model, image)
            _write_pictures(image, ids, model, os.path.join(output_dir, stem), alpha)
        except (ValueError, MemoryError, tf.errors.OpError) as error:
            failures.append(Failure(source, first_line(error)))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # every other image would fail too
            failures.append(Failure(source, first_line(error)))
        if progress:
            progress(done, len(paths))
    return failures


def find_images(input_path: str, output_dir: str) -> tuple[list[str], list[Failure]]:
    """The images to read.

    Args:
        input_path: a file, taken whatever its name, or a folder.
        output_dir: left out where it lies inside the folder: results are no inputs.

    Returns:
        Sorted paths relative to the folder, and the sub-folders that cannot be listed.

    Raises:
        FileNotFoundError: no such input.
        ValueError: no image in the folder, or the folder is output_dir.
    """
    if os.path.isfile(input_path):
        return [os.path.basename(input_path)], []
    if not os.path.isdir(input_path):
        raise FileNotFoundError(f"input not found: {input_path}")
    output = os.path.realpath(output_dir)
    if os.path.realpath(input_path) == output:
        raise ValueError(f"output_dir must not be the input folder: {input_path}")
    unlisted, paths = [], []
    for folder, folders, names in os.walk(input_path, onerror=unlisted.append):
        folders[:] = [
            name
            for name in folders
            if os.path.realpath(os.path.join(folder, name)) != output
        ]
        paths += [
            os.path.relpath(os.path.join(folder, name), input_path)
            for name in names
            if name.lower().endswith(SUFFIXES)
        ]
    failures = [Failure(str(error.filename), error.strerror) for error in unlisted]
    if not paths and not failures:
        raise ValueError(f"no image ({', '.join(SUFFIXES)}) in {input_path}")
    return sorted(paths), failures


def output_stems(paths: Sequence[str]) -> dict[str, str]:
    """The start of each input's output names; no two share one.

    An input gives its path without the suffix, and with it where another input would
    have the same: `a.jpg` alone becomes `a`; beside `a.png` they stay `a.jpg`, `a.png`.
    Upper and lower case count as the same, as they do on some file systems.

    Args:
        paths: relative paths, all different.

    Returns:
        path -> stem, in the order of paths.
    """
    short = {path: os.path.splitext(path)[0] for path in paths}
    count = collections.Counter(stem.casefold() for stem in short.values())
    stems, taken = {}, set()
    for path in paths:
        stem = short[path] if count[short[path].casefold()] == 1 else path
        while stem.casefold() in taken:
            stem += "+"
        taken.add(stem.casefold())
        stems[path] = stem
    return stems


def _check_overwrites_no_input(base, stems, output_dir):
    """Refuses results that would take the place of an input, a path below `base`."""
    names = [LEGEND, *(stem + kind for stem in stems.values() for kind in KINDS)]
    results = {os.path.realpath(os.path.join(output_dir, name)) for name in names}
    for path in stems:
        source = os.path.join(base, path)
        if os.path.realpath(source) in results:
            raise ValueError(
                f"{source}: a result would take its place; choose another output_dir"
            )


def load_model(model_dir: str) -> Model:
    """Loads what `export.export` wrote.

    Raises:
        ValueError: model_dir holds no export, or a damaged one.
    """
    if not is_export(model_dir):
        inside = os.path.join(model_dir, "export")
        hint = f"; there is one in {inside}" if is_export(inside) else ""
        raise ValueError(
            f"no exported model in {model_dir}: saved_model.pb and "
            f"{CLASSES_FILE} must be there{hint}"
        )
    try:
        classes = strict_json.read(os.path.join(model_dir, CLASSES_FILE))
        names, colors = strict_json.class_table(classes)
        loaded = tf.saved_model.load(model_dir)
        _check_signature(loaded, len(names))
    except (OSError, ValueError, LookupError, TypeError, tf.errors.OpError) as error:
        raise ValueError(
            f"the export in {model_dir} is damaged: {first_line(error)}"
        ) from error
    return Model(loaded, names, colors)


def _check_signature(saved_model: Any, num_classes: int):
    """Refuses a SavedModel that `segment` cannot call, or of other classes."""
    if "serving_default" not in saved_model.signatures:
        raise ValueError("saved_model.pb has no signature serving_default")
    serve = saved_model.signatures["serving_default"]
    inputs, outputs = serve.structured_input_signature[1], serve.structured_outputs
    if set(inputs) != {"images"} or not _PIXELS.is_subtype_of(inputs["images"]):
        raise ValueError("serving_default must take images, uint8 [B, H, W, 3]")
    if not {"class_ids", "probabilities"} <= set(outputs):
        raise ValueError("serving_default must give class_ids and probabilities")
    shape = outputs["probabilities"].shape
    given = shape[-1] if shape.rank else None
    if given not in (None, num_classes):
        raise ValueError(
            f"the network has {given} classes, {CLASSES_FILE} names {num_classes}"
        )


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a JPEG or PNG by its content, whatever its name, upright and in colour.

    Grey, palette and CMYK images become RGB, 16 bits become 8, transparency is dropped,
    an EXIF orientation is applied.

    Args:
        path: a regular file.
        max_pixels: images whose header announces more are not decoded.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ValueError: for everything that is wrong with the file.
    """
    if not os.path.isfile(path):
        raise ValueError("not a regular file")
    return decode_image(path, max_pixels)


def decode_image(file: str | BinaryIO, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`read_image` for a file that is open already, or for bytes in memory.

    Raises:
        ValueError: for everything that is wrong with them.
    """
    try:
        with _own_pixel_limit(), Image.open(file, formats=("JPEG", "PNG")) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than the limit of "
                    f"{max_pixels}"
                )
            image.load()
            return _to_rgb(_turn_upright(image))
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG or PNG image") from error
    except ValueError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly every kind of error on broken data.
        raise ValueError(f"cannot be read: {first_line(error)}") from error


@contextlib.contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Takes Pillow's fixed limit out of the way of max_pixels."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, which is not used
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF says nothing, and the pixels are there
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
        grey = (np.asarray(image).astype(np.int32) >> 8).clip(0, 255)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def segment(model: Model, image: np.ndarray) -> np.ndarray:
    """Class ids of one image; a large one is run in windows, averaging probabilities.

    Args:
        model: from `load_model`.
        image: [H, W, 3] uint8 RGB.

    Returns:
        [H, W] uint8.
    """
    serve = model.saved_model.signatures["serving_default"]
    height, width = image.shape[:2]
    if max(height, MIN_SIZE) * max(width, MIN_SIZE) <= MAX_WHOLE_PIXELS:
        return serve(images=tf.constant(image[None]))["class_ids"][0].numpy()
    # Memory holds one band of windows: let it lie across the shorter side.
    turned = width > height

    def probabilities(windows):
        windows = windows.swapaxes(1, 2) if turned else windows
        probs = serve(images=tf.constant(windows))["probabilities"].numpy()
        return probs.swapaxes(1, 2) if turned else probs

    long_way = image.swapaxes(0, 1) if turned else image
    bands = sliding_bands(probabilities, long_way, WINDOW, OVERLAP, window_batch=1)
    ids = np.concatenate([band.argmax(axis=-1).astype(np.uint8) for band in bands])
    return ids.T if turned else ids


def _write_pictures(
    image: np.ndarray, ids: np.ndarray, model: Model, stem: str, alpha: float
):
    os.makedirs(os.path.dirname(stem), exist_ok=True)
    colors = model.class_colors
    pictures = (
        ids,
        visualize.colorize(ids, colors),
        visualize.overlay(image, ids, colors, alpha),
    )
    for picture, kind in zip(pictures, KINDS, strict=True):
        _write_png(picture, stem + kind)


def _write_png(picture: np.ndarray, path: str):
    """Whole or not at all, so that an interrupted run leaves no broken picture."""
    partial = f"{path}.partial"
    try:
        Image.fromarray(picture).save(partial, "PNG", compress_level=3)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
