"""A trained generator as a SavedModel that takes pixels or encoded photographs.

    OUTPUT_DIR/saved_model.pb, variables/   for `tf.saved_model.load`, TensorFlow alone
    OUTPUT_DIR/classes.json                 names, colours, ignore label, metadata
    OUTPUT_DIR/generator.weights.h5         the weights for the Keras model, unfolded

What was added for training (the adversary, its extractor, the optimizers) is not in it:
the exported network is the plain segmentation network, its batch normalisation folded
into the convolutions where that is possible.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ss_gan_tf.convolution import on_another_device
from ss_gan_tf.folding import fold_batch_norm
from ss_gan_tf.inference import make_network

CLASSES_FILE = "classes.json"
WEIGHTS_FILE = "generator.weights.h5"


class _SavedGenerator(tf.Module):
    """The doors of the SavedModel; `weights` makes it hold the variables."""

    def __init__(self, generator: keras.Model, normalize: Callable):
        super().__init__(name="generator")
        # Keras' own variable class is unknown where Keras is not: keep TensorFlow's.
        self.weights = [weight.value for weight in generator.weights]
        self._network = make_network(generator, normalize)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def pixels(self, images):
        probs = self._network(images)
        ids = tf.cast(tf.argmax(probs, axis=-1), tf.uint8)
        return {"class_ids": ids, "probabilities": probs}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def plain(self, images):
        """`pixels` for converters: each dilated convolution is one operation."""
        with on_another_device():
            return self.pixels.python_function(images)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def encoded(self, image_bytes):
        return self.pixels(decode_images(image_bytes))


def decode_images(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG or PNG photographs of one size.

    Grey and palette images become RGB, transparency is dropped, 16 bits become 8.  An
    EXIF orientation is not applied.

    Args:
        image_bytes: [B] string, B at least 1.

    Returns:
        [B, H, W, 3] uint8 RGB.

    Raises:
        tf.errors.InvalidArgumentError: for bytes that are no image, sizes that differ,
            or no image at all.
    """

    def decode(encoded):
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    some = tf.debugging.assert_positive(
        tf.size(image_bytes), "image_bytes: needs at least one image"
    )
    with tf.control_dependencies([some]):
        size = tf.shape(decode(image_bytes[0]))

    def decode_checked(encoded):
        image = decode(encoded)
        same = tf.debugging.assert_equal(
            tf.shape(image),
            size,
            "image_bytes: all images of one call must have the same size",
        )
        with tf.control_dependencies([same]):
            return tf.identity(image)

    spec = tf.TensorSpec([None, None, 3], tf.uint8)
    return tf.map_fn(decode_checked, image_bytes, fn_output_signature=spec)


def export(
    generator: keras.Model,
    output_dir: str,
    *,
    class_names: Sequence[str],
    class_colors: Sequence[Sequence[int]],
    ignore_label: int,
    normalize: Callable,
    metadata: dict[str, Any],
):
    """Writes the SavedModel, the classes and the Keras weights.

    Signatures, both returning "class_ids" uint8 [B, H, W] and "probabilities" float32
    [B, H, W, C] at the size of the input:

        serving_default(images)     uint8 [B, H, W, 3] RGB, any size
        image_bytes(image_bytes)    string [B], JPEG or PNG of one size

    The loaded object's function `plain` is serving_default for converters: there each
    dilated convolution is one operation, whatever suits the CPU that exports.

    Args:
        generator: normalised float32 [B, H, W, 3] -> logits [B, H, W, C].
        output_dir: a new or empty folder, or an earlier export, which is replaced.
            It appears under this name only when it is complete.
        class_names: C names.
        class_colors: [C][3] RGB, 0..255.
        ignore_label: id that marked unlabelled pixels in training.
        normalize: float32 RGB 0..255 -> the generator's input; goes into the graph.
        metadata: where the weights come from; JSON-ready.

    Raises:
        FileExistsError: when output_dir is a file, or holds something else.
        ValueError: when names, colours and the generator's classes do not fit, or there
            are more than 255 classes.
    """
    num_classes = generator.output_shape[-1]
    if not num_classes == len(class_names) == len(class_colors):
        raise ValueError(
            f"the generator has {num_classes} classes, but there are "
            f"{len(class_names)} names and {len(class_colors)} colours"
        )
    if num_classes > 255:  # ids are 8 bits, and one value stays for "no class"
        raise ValueError(f"at most 255 classes can be exported, not {num_classes}")
    target = os.path.realpath(output_dir)
    _check_replaceable(target)
    classes = {
        "class_names": list(class_names),
        "class_colors": [[int(value) for value in color] for color in class_colors],
        "ignore_label": int(ignore_label),
        "metadata": metadata,
    }
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".export-", dir=os.path.dirname(target)
    ) as scratch:
        fresh = os.path.join(scratch, "fresh")
        _write(generator, normalize, classes, fresh)
        if os.path.exists(target):
            os.rename(target, os.path.join(scratch, "replaced"))
        os.rename(fresh, target)


def _write(generator: keras.Model, normalize: Callable, classes: dict, folder: str):
    module = _SavedGenerator(fold_batch_norm(generator), normalize)
    signatures = {"serving_default": module.pixels, "image_bytes": module.encoded}
    tf.saved_model.save(module, folder, signatures)
    generator.save_weights(os.path.join(folder, WEIGHTS_FILE))
    with open(os.path.join(folder, CLASSES_FILE), "w", encoding="utf-8") as file:
        json.dump(classes, file, indent=2, allow_nan=False)
        file.write("\n")


def _check_replaceable(target: str):
    if os.path.isdir(target):
        if os.listdir(target) and not is_export(target):
            raise FileExistsError(
                f"{target} is not empty and holds no export: choose another output_dir"
            )
    elif os.path.exists(target):
        raise FileExistsError(f"{target} is a file, not a folder")


def is_export(folder: str) -> bool:
    """Whether folder holds what `export` writes."""
    return all(
        os.path.isfile(os.path.join(folder, name))
        for name in ("saved_model.pb", CLASSES_FILE)
    )
