"""Batch normalisation inside the convolutions before it, for inference."""

import logging

import keras
import numpy as np
from keras import layers

from ss_gan_tf.convolution import Conv2D
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.normalization import BatchNormalization, scale_and_shift

_LOG = logging.getLogger(__name__)
_FOLDED = (layers.Conv2D, Conv2D, DilatedConv2D)  # others may compute otherwise
_NORMS = (layers.BatchNormalization, BatchNormalization)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A copy without the batch normalisations that stand behind a convolution.

    With moving mean m and variance v, gamma (x * k + b - m) / sqrt(v + eps) + beta is
    the convolution x * (s k) + s (b - m) + beta with s = gamma / sqrt(v + eps): the
    same numbers up to rounding, and one pass over the map less.  A convolution with an
    activation or with another reader keeps its normalisation, and so does one that
    several layers or models share.

    Args:
        model: a functional one; it is left as it is.

    Returns:
        A model of the same input and output, for `training=False`.  Layers keep their
        names (the input does not), and weights their values where nothing was folded.
        The model itself where there is nothing to fold, where it is not functional, or
        holds a layer that cannot be built again from its settings.
    """
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        return model
    norms = {}  # of a convolution
    for layer in model.layers:
        conv = _folds_into(layer)
        if conv is not None and not any(conv.output is out for out in model.outputs):
            norms[conv.name] = layer
    if not norms:
        return model
    gone = {norm.name for norm in norms.values()}

    def copy(layer):
        config = layer.get_config()
        if layer.name in norms:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    def call(layer, x, *args, **kwargs):
        return x if layer.name in gone else layer(x, *args, **kwargs)

    try:
        folded = keras.models.clone_model(
            model, clone_function=copy, call_function=call
        )
    except (TypeError, ValueError) as error:  # of custom layers and lambdas
        _LOG.warning("batch normalisation stays in the model: %s", error)
        return model
    for layer in model.layers:
        if layer.name in norms:
            weights = _fold(layer, norms[layer.name])
            folded.get_layer(layer.name).set_weights(weights)
        elif layer.weights and layer.name not in gone:
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    return folded


def _folds_into(norm):
    """The convolution that may take this layer's work, or None."""
    if type(norm) not in _NORMS or norm.axis not in (-1, 3):
        return None
    if len(norm._inbound_nodes) != 1:
        return None
    conv = norm.input._keras_history.operation
    folds = (
        type(conv) in _FOLDED
        and len(conv.weights) == 1 + conv.use_bias  # not so with LoRA
        and conv.data_format == "channels_last"
        and conv.activation is keras.activations.linear
        and len(conv._inbound_nodes) == len(conv._outbound_nodes) == 1
    )
    return conv if folds else None


def _fold(conv, norm):
    """[kernel, bias] of the convolution with the normalisation in it."""
    kernel, *bias = (weight.astype(np.float64) for weight in conv.get_weights())
    scale, shift = (x.numpy() for x in scale_and_shift(norm, "float64"))
    # scale: along the last axis, the filters
    return [kernel * scale, sum(bias) * scale + shift]
