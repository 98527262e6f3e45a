"""Batch normalisation that goes over no map while it is frozen."""

import keras
import tensorflow as tf

from ss_gan_tf.convolution import Conv2D


@keras.saving.register_keras_serializable("ss_gan_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, same numbers and weights.

    That of `convolve_and_normalize` passes its input on while it is frozen, because the
    convolution has normalised it: it is of no use on another tensor.
    """

    by_convolution = False

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor] | None:
        """`scale_and_shift`, at least float32; None unless it is frozen and built."""
        if self.trainable or not self.built:
            return None
        return scale_and_shift(
            self, keras.backend.result_type(self.variable_dtype, "float32")
        )

    def call(self, inputs, training=None, mask=None):
        """[..., F] -> [..., F]."""
        if self.by_convolution and not self.trainable:
            return inputs
        return super().call(inputs, training=training, mask=mask)


def scale_and_shift(
    norm: keras.layers.BatchNormalization, dtype: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """What a normalisation by moving statistics does to a channel x: scale x + shift.

    With moving mean m and variance v, scale = gamma / sqrt(v + epsilon) and
    shift = beta - m scale.

    Args:
        norm: with its weights.
        dtype: of the result, and of what it is computed in.

    Returns:
        scale and shift, [F] each.
    """
    scale = tf.math.rsqrt(tf.cast(norm.moving_variance, dtype) + norm.epsilon)
    if norm.scale:
        scale *= tf.cast(norm.gamma, dtype)
    shift = -tf.cast(norm.moving_mean, dtype) * scale
    if norm.center:
        shift += tf.cast(norm.beta, dtype)
    return scale, shift


def convolve_and_normalize(x, conv: Conv2D, norm: BatchNormalization):
    """The convolution, then the normalisation; one layer's work while it is frozen.

    With s = gamma / sqrt(moving variance + epsilon), frozen normalisation of a
    convolution is the convolution by s kernel with the bias s (bias - moving mean) +
    beta, which is fused with the ReLU behind it. Kernel and bias of `conv` stay what is
    trained and stored; the normalisation may be frozen and released at any time, a
    `tf.function` has to be traced again for it.

    Args:
        x: [B, H, W, F] (symbolic).
        conv: without an activation, channels last; of this call alone.
        norm: over the last axis; of this call alone.

    Returns:
        [B, H', W', F'].

    Raises:
        ValueError: `conv` or `norm` is of another kind, or in use already.
    """
    if not isinstance(norm, BatchNormalization) or type(conv).call is not Conv2D.call:
        raise ValueError(f"{conv.name}, {norm.name}: must be layers of ss_gan_tf")
    if conv.built or norm.built or conv.scale_and_shift or norm.by_convolution:
        raise ValueError(f"{conv.name}, {norm.name}: must be new")
    if conv.activation is not keras.activations.linear:
        raise ValueError(f"{conv.name}: an activation stands before {norm.name}")
    if conv.data_format != "channels_last" or norm.axis not in (-1, 3):
        raise ValueError(f"{conv.name}, {norm.name}: channels must come last")
    norm.by_convolution = True
    conv.scale_and_shift = norm.scale_and_shift  # a method: Keras would track a layer
    return norm(conv(x))
