"""Dilated convolutions at the speed of the device's own kernels.

Keras computes a dilated convolution as an ordinary one on interleaved sub-images
(space to batch). At the rates of the ASPP head, on maps hardly larger than the rate,
most of what that multiplies is padding. oneDNN (CPU) and cuDNN (GPU) take the
dilation itself.
"""

import contextlib
import functools

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ss_gan_tf")
class DilatedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, same numbers and weights, dilated by the device.

    Where the device cannot differentiate it (a CPU build without oneDNN, float16 on
    CPUs), Keras' way is taken.
    """

    def convolution_op(self, inputs, kernel):
        """[B, H, W, F] and [k, k, F, F'] -> [B, H', W', F'], without the bias."""
        if not (_FOR_ANOTHER_DEVICE or _device_differentiates_dilation(inputs.dtype)):
            return super().convolution_op(inputs, kernel)
        return tf.nn.conv2d(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )


_FOR_ANOTHER_DEVICE = []


@contextlib.contextmanager
def on_another_device():
    """What is traced inside is written for a device that takes the dilation itself.

    XLA's programs say the dilation and leave it to their device, so what this machine
    can differentiate does not matter to them.
    """
    _FOR_ANOTHER_DEVICE.append(True)
    try:
        yield
    finally:
        _FOR_ANOTHER_DEVICE.pop()


@functools.cache
def _device_differentiates_dilation(dtype: tf.DType) -> bool:
    """Whether the kernels of both gradients exist here, found out by calling them."""
    if dtype == tf.float16 and not tf.config.list_logical_devices("GPU"):
        return False  # which kernel a CPU takes depends on the shapes

    @tf.function
    def both_gradients(image, kernel):
        same = {"strides": [1] * 4, "padding": "SAME", "dilations": [1, 2, 2, 1]}
        return (
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=image.shape, filter=kernel, out_backprop=image, **same
            ),
            tf.raw_ops.Conv2DBackpropFilter(
                input=image, filter_sizes=kernel.shape, out_backprop=image, **same
            ),
        )

    with tf.init_scope():  # it pauses tapes: the kernels are called by their names
        try:
            both_gradients(tf.ones([1, 5, 5, 1]), tf.ones([3, 3, 1, 1]))
        except tf.errors.OpError:
            return False
    return True
