"""Batch normalisation that costs nothing while it is frozen."""

import keras
import tensorflow as tf

from ss_gan_tf.convolution import Conv2D


@keras.saving.register_keras_serializable("ss_gan_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, same numbers and weights.

    Behind `convolve_and_normalize` it passes its input on while it is frozen, because
    the convolution has normalised it.
    """

    by_convolution = False

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor] | None:
        """What it does to a channel x: scale x + shift, float32 [F] each.

        Returns:
            None while it is not frozen, and as long as it has no weights.
        """
        if self.trainable or not self.built:
            return None
        mean, variance = (
            tf.cast(statistic, tf.float32)
            for statistic in (self.moving_mean, self.moving_variance)
        )
        scale = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            scale *= tf.cast(self.gamma, tf.float32)
        shift = -mean * scale
        if self.center:
            shift += tf.cast(self.beta, tf.float32)
        return scale, shift

    def call(self, inputs, training=None, mask=None):
        """[..., F] -> [..., F]."""
        if self.by_convolution and not self.trainable:
            return inputs
        return super().call(inputs, training=training, mask=mask)


def convolve_and_normalize(x, conv: Conv2D, norm: BatchNormalization):
    """The convolution, then the normalisation; one layer's work while it is frozen.

    With s = gamma / sqrt(moving variance + epsilon), frozen normalisation of a
    convolution is the convolution by s kernel with the bias s (bias - moving mean) +
    beta, which is fused with the ReLU behind it. Kernel and bias of `conv` stay what is
    trained and stored; the normalisation may be frozen and released at any time, a
    `tf.function` has to be traced again for it.

    Args:
        x: [B, H, W, F] (symbolic).
        conv: without an activation, channels last; not built yet.
        norm: over the last axis; not built yet.

    Returns:
        [B, H', W', F'].

    Raises:
        ValueError: `conv` or `norm` is of another kind.
    """
    if conv.activation is not keras.activations.linear:
        raise ValueError(f"{conv.name}: an activation stands before {norm.name}")
    if conv.data_format != "channels_last" or norm.axis not in (-1, 3):
        raise ValueError(f"{conv.name}, {norm.name}: channels must come last")
    norm.by_convolution = True
    conv.scale_and_shift = norm.scale_and_shift  # a method: Keras would track a layer
    return norm(conv(x))
