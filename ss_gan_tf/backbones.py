"""VGG16 and ResNet50 trunks (Table 1), their ImageNet weights and normalisation.

Layer names are those of `keras.applications`, so weights are copied by name. The
ResNet trunk adds what `keras.applications` lacks: dilation instead of stride.
"""

import hashlib
import logging
import os
import warnings

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ss_gan_tf.convolution import Conv2D
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.normalization import BatchNormalization, convolve_and_normalize

_LOG = logging.getLogger(__name__)

MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet, 0..255


def normalize(image: tf.Tensor) -> tf.Tensor:
    """RGB in 0..255 -> what the ImageNet weights were trained on.

    Args:
        image: [..., 3] RGB, floating, 0..255.

    Returns:
        [..., 3] BGR minus the mean colour, same dtype; the mean colour maps to 0.
    """
    return tf.reverse(image - tf.constant(MEAN_RGB, image.dtype), axis=[-1])


def scaled(filters: int, width: float) -> int:
    """`filters` times `width`, a multiple of 8, at least 8."""
    return max(8, int(round(filters * width / 8)) * 8)


def check_backbone(backbone: str):
    """Refuses what is no backbone.

    Raises:
        ValueError: the name is neither `vgg16` nor `resnet50`.
    """
    if backbone not in _APPLICATIONS:
        raise ValueError(f"backbone={backbone!r}: must be one of {[*_APPLICATIONS]}")


# --- VGG16, Table 1 rows 0-4 -------------------------------------------------


def vgg16_trunk(x, width: float = 1.0, num_blocks: int = 5) -> dict:
    """Five blocks of 3x3 convolutions, each ended by 2x2 max pooling.

    Args:
        x: [B, H, W, 3] normalised image (symbolic).
        width: factor on filter counts.
        num_blocks: how many of the blocks are built.

    Returns:
        `block1_pool` ... `block5_pool`: [B, H/2^k, W/2^k, F_k].
    """
    features = {}
    plan = [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]
    for block, (convs, filters) in enumerate(plan[:num_blocks], start=1):
        for conv in range(1, convs + 1):
            x = Conv2D(
                scaled(filters, width),
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=f"block{block}_conv{conv}",
            )(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        features[f"block{block}_pool"] = x
    return features


# --- ResNet50, Table 1 rows 0-4 ----------------------------------------------


def resnet50_stem(x, width: float = 1.0):
    """7x7 convolution and 3x3 max pooling: [B, H, W, 3] -> [B, H/4, W/4, 64]."""
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    conv = Conv2D(
        scaled(64, width),
        7,
        strides=2,
        kernel_initializer="he_normal",
        name="conv1_conv",
    )
    x = convolve_and_normalize(x, conv, _norm("conv1_bn"))
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def resnet50_trunk(x, width: float = 1.0):
    """Bottleneck stages x3, x4, x6, x3 at output stride 8.

    Rows 3 and 4 (`conv4_*`, `conv5_*`) keep the resolution: their 3x3 convolutions
    are dilated with rates 2 and 4 where the original network strides.

    Args:
        x: [B, H, W, 3] normalised image (symbolic), H and W multiples of 8.
        width: factor on filter counts.

    Returns:
        [B, H/8, W/8, 2048].
    """
    x = resnet50_stem(x, width)
    plan = [(3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 1, 2), (3, 512, 1, 4)]
    for stage, (blocks, filters, strides, rate) in enumerate(plan, start=2):
        for block in range(1, blocks + 1):
            x = _bottleneck(
                x,
                scaled(filters, width),
                strides=strides if block == 1 else 1,
                dilation_rate=rate,
                project=block == 1,
                name=f"conv{stage}_block{block}",
            )
    return x


def _bottleneck(x, filters, *, strides, dilation_rate, project, name):
    """1x1, 3x3, 1x1 with batch norm around an identity or projected shortcut."""

    def conv_bn(x, filters, size, index, conv=Conv2D, **kwargs):
        layer = conv(
            filters,
            size,
            padding="same",
            kernel_initializer="he_normal",
            name=f"{name}_{index}_conv",
            **kwargs,
        )
        return convolve_and_normalize(x, layer, _norm(f"{name}_{index}_bn"))

    shortcut = conv_bn(x, 4 * filters, 1, 0, strides=strides) if project else x
    x = conv_bn(x, filters, 1, 1, strides=strides)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = conv_bn(x, filters, 3, 2, DilatedConv2D, dilation_rate=dilation_rate)
    x = layers.ReLU(name=f"{name}_2_relu")(x)
    x = conv_bn(x, 4 * filters, 1, 3)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def _norm(name):
    """With the epsilon of `keras.applications`."""
    return BatchNormalization(epsilon=1.001e-5, name=name)


def freeze_batch_norm(model: keras.Model):
    """Fixes statistics, gamma and beta of the backbone's batch normalisation.

    A frozen Keras BatchNormalization uses its moving statistics in training too.
    """
    for layer in model.layers:
        is_norm = isinstance(layer, layers.BatchNormalization)
        if is_norm and layer.name.startswith("conv"):
            layer.trainable = False


# --- ImageNet weights --------------------------------------------------------

_APPLICATIONS = {
    "vgg16": keras.applications.VGG16,
    "resnet50": keras.applications.ResNet50,
}
_DOWNLOADS = {  # what keras.applications names its files under ~/.keras/models
    "vgg16": "vgg16_weights_tf_dim_ordering_tf_kernels.h5",
    "resnet50": "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
}


def load_imagenet(model: keras.Model, backbone: str, weights: str) -> dict:
    """Copies ImageNet weights into the layers of `model` that carry their names.

    fc6 and fc7 of the VGG16 generator are the classifier's fully connected layers
    (25088, 4096) and (4096, 4096) as convolutions 7x7 and 1x1; they are grafted when
    the weights hold the classifier and the generator has as many filters, and start at
    random otherwise.

    Args:
        model: built with this module's trunks at width 1.
        backbone: `vgg16` or `resnet50`.
        weights: `imagenet` (downloads through keras.applications), the path of a
            file that `keras.applications` can load, or `none`.

    Returns:
        `weights`, `sha256` of the file, and `classifier`: grafted, random or absent.

    Raises:
        FileNotFoundError: no such file.
        OSError: the download failed.
        ValueError: the file is not of this backbone.
    """
    # None: no classifier here.
    filters = next((x.filters for x in model.layers if x.name == "fc6"), None)
    if weights == "none":
        _LOG.warning("%s starts from random weights: backbone_weights=none", backbone)
        classifier = "random" if filters else "absent"
        return {"weights": "none", "sha256": None, "classifier": classifier}
    source, path = _open_application(backbone, weights, filters == 4096)
    by_name = {layer.name: layer for layer in source.layers}
    for layer in model.layers:
        if layer.weights and layer.name in by_name:
            layer.set_weights(by_name[layer.name].get_weights())
    classifier = "absent"
    if filters:
        there = by_name["fc1"].units if "fc1" in by_name else None
        classifier = "grafted" if there == filters else "random"
        if classifier == "grafted":
            _graft_classifier(model, by_name)
        elif there is None and weights != "imagenet":
            _LOG.warning("%s has no classifier: fc6 and fc7 start at random", path)
        else:
            _LOG.warning("fc6 and fc7 start at random: they have %d filters", filters)
    return {"weights": weights, "sha256": _sha256(path), "classifier": classifier}


def _graft_classifier(model, by_name):
    for name, dense in (("fc6", "fc1"), ("fc7", "fc2")):
        layer = model.get_layer(name)
        kernel, bias = by_name[dense].get_weights()
        layer.set_weights([kernel.reshape(layer.kernel.shape), bias])


def _open_application(backbone, weights, wants_classifier):
    """(keras.applications model with the weights, path of the file)."""
    build = _APPLICATIONS[backbone]
    if weights == "imagenet":
        include_top = backbone == "vgg16" and wants_classifier
        try:
            model = build(include_top=include_top, weights="imagenet")
        except Exception as error:  # Keras raises no narrower one
            raise OSError(
                f"backbone_weights=imagenet: the download failed ({error}); "
                "give a file, or none"
            ) from error
        name = _DOWNLOADS[backbone]
        if backbone == "vgg16" and not include_top:
            name = name.replace(".h5", "_notop.h5")
        home = os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras"))
        return model, os.path.join(home, "models", name)
    check_weights_file(backbone, weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a line a layer, before the one error
            model = build(include_top=_has_classifier(weights), weights=weights)
        return model, weights
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise _not_weights(backbone, weights, error) from error


def check_weights_file(backbone: str, weights: str):
    """Refuses a file that cannot hold weights, before the long work.

    Args:
        backbone: `vgg16` or `resnet50`.
        weights: `imagenet` and `none` are no files.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not one of HDF5, is cut short, or may not be read.
    """
    if weights in ("imagenet", "none"):
        return
    if not os.path.isfile(weights):
        raise FileNotFoundError(
            f"backbone_weights={weights}: no such file "
            "(imagenet downloads, none starts at random)"
        )
    try:
        h5py.File(weights, "r").close()
    except OSError as error:
        raise _not_weights(backbone, weights, error) from error


def _not_weights(backbone, weights, error):
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        f"backbone_weights={weights}: not a weights file of {backbone} as "
        f"keras.applications saves it ({reason})"
    )


def _has_classifier(path: str) -> bool:
    """True when the file holds the 1000-class output layer."""
    found = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset) and item.shape in (
            (4096, 1000),
            (2048, 1000),
        ):
            found.append(item.name)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return bool(found)


def _sha256(path: str) -> str | None:
    if not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@keras.saving.register_keras_serializable("ss_gan_tf")
def bilinear_kernel(shape, dtype=None) -> np.ndarray:
    """Initial value of a transposed convolution that interpolates bilinearly.

    Args:
        shape: (k, k, out, in) with out = in and k even.
        dtype: of the result.

    Returns:
        Kernel whose diagonal (c to c) holds the 2-D tent and whose rest is 0.
    """
    size = shape[0]
    tent = 1 - np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)
    kernel = np.zeros(shape, np.float32)
    for channel in range(shape[2]):
        kernel[:, :, channel, channel] = np.outer(tent, tent)
    return keras.ops.convert_to_tensor(kernel, dtype)
