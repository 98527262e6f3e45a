"""Resampling layers that both networks share: any size in, any size out.

Each works in graph mode with dynamic height and width, passes gradient to every
input cell, and keeps static shapes where the caller has them.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf.convolution import height_width, is_for_another_device


def adaptive_average_pool(x: tf.Tensor, size: tuple) -> tf.Tensor:
    """Exact area average of each output cell.

    Output cell i of m covers input [i*n/m, (i+1)*n/m); input cells that an edge
    cuts count with the share that lies inside. Where m > n a cell repeats. When
    sizes divide, this is average pooling. Sums are float32 in every precision.

    Args:
        x: [B, H, W, F], floating.
        size: (h, w) of the output, ints or scalar int tensors.

    Returns:
        [B, h, w, F], dtype of x.
    """
    sizes = (*height_width(x), *size)
    if all(isinstance(n, int) for n in sizes):
        height, width, h, w = sizes
        if (height, width) == (h, w):
            return x
        if height % h == 0 and width % w == 0:
            return average_pool(x, (height // h, width // w))
    full = tf.cast(x, tf.float32) if x.dtype.size == 2 else x
    rows = _area_weights(sizes[0], size[0], full.dtype)  # [h, H]
    columns = _area_weights(sizes[1], size[1], full.dtype)  # [w, W]
    pooled = tf.einsum("ih,bhwf->biwf", rows, full)
    pooled = tf.einsum("jw,biwf->bijf", columns, pooled)
    static = [m if isinstance(m, int) else None for m in size]
    pooled = tf.ensure_shape(pooled, [x.shape[0], *static, x.shape[3]])
    return tf.cast(pooled, x.dtype)


def average_pool(x: tf.Tensor, window: tuple[int, int]) -> tf.Tensor:
    """Average of each window; windows lie side by side, what is left over is cut.

    Rounded once: TensorFlow's kernel for CPUs adds up in bfloat16, and is off by 0.4
    to 0.5 % instead of 0.17 with windows of 4x4.

    Args:
        x: [B, H, W, F], floating.
        window: (rows, columns).

    Returns:
        [B, H // rows, W // columns, F], dtype of x.
    """
    full = x
    if x.dtype.size == 2 and (
        is_for_another_device() or not device_averages_right(x.dtype)
    ):
        full = tf.cast(x, tf.float32)
    return tf.cast(tf.nn.avg_pool2d(full, window, window, "VALID"), x.dtype)


@functools.cache
def device_averages_right(dtype: tf.DType) -> bool:
    """Whether averages of that type are summed in float32 here, found out by trying."""
    # Behind this number a sum of 8 or 11 bits takes no 1 any more.
    large = {tf.bfloat16: 256.0, tf.float16: 2048.0}[dtype]
    windows = np.ones([16, 4, 4, 1], np.float32)
    for place, window in enumerate(windows.reshape(16, 16)):
        window[place], window[place - 1] = large, 0.0

    @tf.function
    def average(x):
        return tf.nn.avg_pool2d(x, 4, 4, "VALID")

    with tf.init_scope():  # it pauses tapes and leaves the graph that is being built
        averages = average(tf.constant(windows, dtype))
        return bool(tf.reduce_all(averages == (large + 14) / 16))


@keras.saving.register_keras_serializable("ss_gan_tf")
class AveragePooling2D(keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` with sums in float32, as `average_pool`.

    Raises:
        ValueError: padding, strides or an order of axes that are not Keras' defaults.
    """

    def __init__(self, pool_size, **kwargs):
        super().__init__(pool_size, **kwargs)
        if (self.strides, self.padding, self.data_format) != (
            self.pool_size,
            "valid",
            "channels_last",
        ):
            raise ValueError(
                f"strides={self.strides}, padding={self.padding}, "
                f"data_format={self.data_format}: must be {self.pool_size}, valid, "
                "channels_last"
            )

    def call(self, x):
        """[B, H, W, F] -> [B, H // rows, W // columns, F]."""
        return average_pool(x, self.pool_size)


def _area_weights(n, m, dtype) -> tf.Tensor:
    """[m, n] shares of input cell j in output cell i; each row sums to 1.

    Counted in units of 1/m input cells, so every overlap is an exact integer and
    a cell that only touches an edge weighs exactly 0.
    """
    i = tf.range(m)[:, tf.newaxis]  # [m, 1]
    j = tf.range(n)[tf.newaxis]  # [1, n]
    overlap = tf.minimum((i + 1) * n, (j + 1) * m) - tf.maximum(i * n, j * m)
    shares = tf.cast(tf.maximum(overlap, 0), tf.float32) / tf.cast(n, tf.float32)
    return tf.cast(shares, dtype)


@keras.saving.register_keras_serializable("ss_gan_tf")
class AdaptiveAveragePooling(keras.layers.Layer):
    """`adaptive_average_pool` as a layer; give `size`, or `stride`, or a reference.

    Args:
        size: cells a side of the output.
        stride: input cells per output cell, used where no size is given.
    """

    def __init__(self, size: int | None = None, stride: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.stride = stride

    def call(self, x, reference=None):
        """[B, H, W, F] -> [B, h, w, F]; `reference` [B, h, w, *] lends its size."""
        if reference is not None:
            return adaptive_average_pool(x, height_width(reference))
        if self.size is not None:
            return adaptive_average_pool(x, (self.size, self.size))
        size = tuple(n // self.stride for n in height_width(x))
        return adaptive_average_pool(x, size)

    def get_config(self):
        """Constructor arguments."""
        return {**super().get_config(), "size": self.size, "stride": self.stride}


@keras.saving.register_keras_serializable("ss_gan_tf")
class PadToMultiple(keras.layers.Layer):
    """Pads bottom and right with 0, the mean colour of a normalised image.

    Args:
        multiple: height and width of the output are multiples of it.
    """

    def __init__(self, multiple: int, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x):
        """[B, H, W, F] -> [B, H', W', F] with H' = ceil(H / multiple) * multiple."""
        height, width = height_width(x)
        # No remainder of a negative number: converters take its sign for C's.
        bottom, right = (
            (self.multiple - n % self.multiple) % self.multiple for n in (height, width)
        )
        return tf.pad(x, [[0, 0], [0, bottom], [0, right], [0, 0]])

    def get_config(self):
        """Constructor arguments."""
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable("ss_gan_tf")
class BilinearUpsampling(keras.layers.Layer):
    """Bilinear enlargement by `factor` in float32, cut to a reference's size.

    Args:
        factor: output cells per input cell and side.
    """

    def __init__(self, factor: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.factor = factor

    def call(self, x, reference):
        """[B, h, w, C] -> [B, H, W, C], H W of `reference`, at most factor * h, w."""
        height, width = height_width(x)
        x = tf.image.resize(x, [height * self.factor, width * self.factor])
        height, width = height_width(reference)
        return x[:, :height, :width]

    def get_config(self):
        """Constructor arguments."""
        config = super().get_config()
        del config["dtype"]
        return {**config, "factor": self.factor}


@keras.saving.register_keras_serializable("ss_gan_tf")
class BroadcastLike(keras.layers.Layer):
    """Repeats an image-level feature over a reference's height and width."""

    def call(self, x, reference):
        """[B, 1, 1, F] -> [B, H, W, F]."""
        height, width = height_width(reference)
        return tf.tile(x, [1, height, width, 1])


@keras.saving.register_keras_serializable("ss_gan_tf")
class UnitRMS(keras.layers.Layer):
    """Scales the features of each position to a root mean square of 1 (float32)."""

    def call(self, x):
        """[B, H, W, F] -> [B, H, W, F]; a position without any activation stays 0."""
        full = tf.cast(x, tf.float32)
        mean_square = tf.reduce_mean(tf.square(full), axis=-1, keepdims=True)
        return tf.cast(full * tf.math.rsqrt(mean_square + 1e-6), x.dtype)
