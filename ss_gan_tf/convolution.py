"""Convolutions with the right gradients in bfloat16.

TensorFlow's own kernels for CPUs, which run where oneDNN has none for bfloat16, add
gradients up in bfloat16: a sum stands still at 256 or 512 times an addend.  Over maps
of 2 x 160 x 160 cells 98 % of that at a bias are lost, at a kernel with few channels up
to 84 %, and that at the image is off by 1 to 2 % instead of 0.2.
"""

import contextlib
import functools

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ss_gan_tf")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, same numbers and weights; other gradients in bfloat16.

    That at the bias is a sum, and the others are computed in float32 where the device
    adds in bfloat16; not so in groups, with dilation or with channels first.
    """

    # () -> what a frozen normalisation behind it does to a channel, or None where there
    # is none: `normalization.convolve_and_normalize` sets it.
    scale_and_shift = None

    def call(self, inputs):
        """[B, H, W, F] -> [B, H', W', F']."""
        normalized = self.scale_and_shift() if self.scale_and_shift else None
        in_bfloat16 = self.use_bias and self.compute_dtype == "bfloat16"
        if normalized:
            kernel, bias = self._normalize(*normalized)
        elif in_bfloat16 and self.data_format == "channels_last":
            kernel, bias = self.kernel, tf.convert_to_tensor(self.bias)
        else:
            return super().call(inputs)
        x = _add_bias(self.convolution_op(inputs, kernel), bias)
        return x if self.activation is None else self.activation(x)

    def _normalize(self, scale, shift):
        """Kernel and bias with a normalisation in them."""
        kernel = tf.cast(self.kernel, scale.dtype) * scale
        if self.use_bias:
            shift += tf.cast(self.bias, scale.dtype) * scale
        return tf.cast(kernel, self.compute_dtype), tf.cast(shift, self.compute_dtype)

    def convolution_op(self, inputs, kernel):
        """[B, H, W, F] and [k, k, F, F'] -> [B, H', W', F'], without the bias."""
        convolve = super().convolution_op
        plain = self.data_format == "channels_last" and self.groups == 1
        if (
            inputs.dtype != tf.bfloat16
            or not plain
            or self.dilation_rate != (1, 1)
            or is_for_another_device()
            or _device_adds_right()
        ):
            return convolve(inputs, kernel)
        how = {"strides": [1, *self.strides, 1], "padding": self.padding.upper()}

        @tf.custom_gradient
        def forward(image, kernel):
            def backward(gradient):
                x, w, gradient = in_float32(gradient, image, kernel)
                at_image = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(x), filter=w, out_backprop=gradient, **how
                )
                at_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=x, filter_sizes=w.shape, out_backprop=gradient, **how
                )
                return tf.cast(at_image, image.dtype), tf.cast(at_kernel, kernel.dtype)

            return convolve(image, kernel), backward

        return forward(inputs, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def _add_bias(x, bias):
    """BiasAdd, which is fused with convolution and ReLU, and the gradient of a sum."""

    def backward(gradient):
        return gradient, tf.reduce_sum(gradient, axis=[0, 1, 2])

    return tf.nn.bias_add(x, bias), backward


@keras.saving.register_keras_serializable("ss_gan_tf")
class LeakyReLU(keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU`, same numbers and gradients, in less memory.

    The gradient takes the side of the kink from the output, so that the input need not
    be kept.  Nor can TensorFlow 2.21 fuse a convolution with a LeakyReLU whose gradient
    reads the input: it tries, fails, and then fuses nothing in the whole graph.
    """

    def call(self, inputs):
        """[...] -> [...]: x, or `negative_slope` x below 0."""
        slope = self.negative_slope

        @tf.custom_gradient
        def forward(x):
            y = tf.nn.leaky_relu(x, slope)

            def backward(gradient):
                return tf.raw_ops.LeakyReluGrad(
                    gradients=gradient, features=y, alpha=slope
                )

            return y, backward

        return forward(inputs)


def in_float32(gradient: tf.Tensor, *others: tf.Tensor) -> list[tf.Tensor]:
    """The others and the gradient, cast no sooner than the gradient is there.

    A cast that waits for nothing runs with the forward pass, and the copy is kept.
    """
    with tf.control_dependencies([gradient]):
        return [tf.cast(x, tf.float32) for x in (*others, gradient)]


@functools.cache
def _device_adds_right() -> bool:
    """Whether a gradient in bfloat16 counts every cell here, found out by counting."""

    @tf.function
    def count(image):
        return tf.raw_ops.Conv2DBackpropFilter(
            input=image,
            filter_sizes=[1, 1, 4, 4],
            out_backprop=image,
            strides=[1] * 4,
            padding="SAME",
        )

    with tf.init_scope():  # it pauses tapes and leaves the graph that is being built
        counted = count(tf.ones([2, 80, 80, 4], tf.bfloat16))
        return bool(tf.reduce_all(counted == 2 * 80 * 80))


# --- Programs for other devices ----------------------------------------------

_FOR_ANOTHER_DEVICE = []


@contextlib.contextmanager
def on_another_device():
    """What is traced inside is written for a device whose kernels can do everything.

    XLA's programs say what is to be computed and leave it to their device, so what this
    machine's kernels can do does not matter to them.
    """
    _FOR_ANOTHER_DEVICE.append(True)
    try:
        yield
    finally:
        _FOR_ANOTHER_DEVICE.pop()


def is_for_another_device() -> bool:
    """Whether `on_another_device` is in force."""
    return bool(_FOR_ANOTHER_DEVICE)
