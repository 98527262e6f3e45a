"""Dilated convolutions at the speed of the device's own kernels.

Keras computes a dilated convolution as an ordinary one on interleaved sub-images
(space to batch). At the rates of the ASPP head, on maps hardly larger than the rate,
most of what that multiplies is padding. oneDNN (CPU) and cuDNN (GPU) take the
dilation itself, in both directions; a CPU without oneDNN takes it forwards alone, and
that is enough: the gradient with respect to the input is a dilated convolution too,
and that with respect to the kernel one matrix product for each of its positions. Such a
CPU multiplies the padding as well; there the map is cut where the dilated kernel meets
its edges, and each part convolved with what lies on the map. oneDNN multiplies it in
the gradient with respect to the kernel alone, which is made of products there too. One
image by itself is convolved by products, which are sooner done on both kinds.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf.convolution import (
    Conv2D,
    device_adds_right,
    device_differentiates_dilation,
    height_width,
    in_float32,
    is_for_another_device,
    pad_where_lines_are_shared,
)

CUT_FROM = 8  # rate, in cells; below it padding is little
ALONE_UP_TO = 2**14  # cells; beyond, products hardly gain, and copies take room


@keras.saving.register_keras_serializable("ss_gan_tf")
class DilatedConv2D(Conv2D):
    """`keras.layers.Conv2D`, same numbers and weights, dilated by the device."""

    def convolution_op(self, inputs, kernel):
        """[B, H, W, F] and [k, k, F, F'] -> [B, H', W', F'], without the bias."""
        rates, padding = self.dilation_rate, self.padding.upper()
        if rates == (1, 1) or self.data_format == "channels_first":
            return super().convolution_op(inputs, kernel)
        # Keras refuses other strides where there is dilation.
        elsewhere = is_for_another_device() or tf.config.list_logical_devices("GPU")
        differentiates = elsewhere or device_differentiates_dilation(inputs.dtype)
        if differentiates and (elsewhere or self.groups > 1):
            return tf.nn.conv2d(inputs, kernel, 1, padding, dilations=rates)
        if self.groups > 1:
            return super().convolution_op(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        return convolve(inputs, kernel, rates, padding, differentiates)


def convolve(
    image: tf.Tensor,
    kernel: tf.Tensor,
    rates: tuple[int, int],
    padding: str,
    differentiates: bool = False,
) -> tf.Tensor:
    """A dilated convolution of stride 1 whose gradients need its forward kernel alone.

    With y[u] = sum_i x[u + rate i - before] k[i], `before` the padding there, the
    gradient at x[v] is sum_i y'[v - rate i + before] k[i]: y' convolved with the
    reversed kernel. That at k[i] is the product of x, moved by rate i - before, with y'
    where they overlap. Kernels of odd sizes with SAME
    padding and a rate of CUT_FROM or more multiply nothing that lies on padding; one
    small float32 image by itself is convolved by products at such a rate, which are
    sooner done: they take the kernel as it lies.

    Args:
        image: [B, H, W, F].
        kernel: [k, k', F, F'].
        rates: along H and W.
        padding: "SAME" or "VALID".
        differentiates: whether the device has a kernel for the gradient at x that
            leaves padding out as its forward kernel does; then both are taken.

    Returns:
        [B, H', W', F'].
    """
    spans = [
        (size - 1) * rate for size, rate in zip(kernel.shape[:2], rates, strict=True)
    ]
    same = padding == "SAME"
    before = [span // 2 if same else 0 for span in spans]
    after = [span - span // 2 if same else 0 for span in spans]
    odd = all(size % 2 for size in kernel.shape[:2])
    wide = same and odd and max(rates) >= CUT_FROM
    cut = wide and not differentiates

    @tf.custom_gradient
    def forward(image, kernel):
        together = functools.partial(
            tf.nn.conv2d, image, kernel, 1, padding, dilations=rates
        )
        if cut:
            together = functools.partial(_in_parts, image, kernel, rates)
        if wide and image.dtype == tf.float32:
            out = _by_products_if_alone(image, kernel, rates, together)
        else:
            out = together()

        def backward(gradient):
            full = image, gradient
            halves = gradient.dtype.size == 2
            if halves and not (differentiates and device_adds_right()):
                # There bfloat16's product cuts off what it should round, 0.3 %.
                full = in_float32(gradient, image)
            at_kernel = _at_kernel(*full, kernel.shape, rates, before)
            at_kernel = tf.cast(at_kernel, kernel.dtype)
            if differentiates:
                at_image = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(image),
                    filter=kernel,
                    out_backprop=gradient,
                    strides=[1] * 4,
                    padding=padding,
                    dilations=[1, *rates, 1],
                )
                return at_image, at_kernel
            with tf.control_dependencies([gradient]):  # else it is made forwards
                reversed_kernel = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
            if cut:  # SAME with an odd kernel: padded alike in both directions
                return _in_parts(gradient, reversed_kernel, rates), at_kernel
            around = [
                [span - first, span - last]
                for span, first, last in zip(spans, before, after, strict=True)
            ]
            at_image = tf.nn.conv2d(
                gradient, reversed_kernel, 1, [[0, 0], *around, [0, 0]], dilations=rates
            )
            return at_image, at_kernel

        return out, backward

    return forward(image, kernel)


def _by_products_if_alone(image, kernel, rates, together):
    """[B, H, W, F] -> [B, H, W, F'], SAME; odd kernels.

    By products where B is 1 and the map is small, whatever of that is known, else by
    `together`.
    """
    alone = functools.partial(_by_products, image, kernel, rates)
    if image.shape[:3].is_fully_defined():
        batch_size, *size = image.shape[:3]
        is_alone = batch_size == 1 and math.prod(size) <= ALONE_UP_TO
        return alone() if is_alone else together()
    if image.shape[0] not in (None, 1):
        return together()
    shape = tf.shape(image)
    is_small = tf.reduce_prod(shape[1:3]) <= ALONE_UP_TO
    return tf.cond(tf.equal(shape[0], 1) & is_small, alone, together)


def _by_products(image, kernel, rates):
    """[1, H, W, F] -> [1, H, W, F'], SAME: a product for each tap; odd kernels.

    The columns of the map that a tap beside the middle meets are copied, once for all
    taps above each other and one copy after the other. Rows come first here, so they
    need no copy.
    """
    taps_down, taps_across, filters_in, filters_out = kernel.shape
    taps = tf.reshape(kernel, [-1, filters_in, filters_out])
    map_height, map_width = height_width(image)
    sums = []
    for across in range(taps_across):
        shift = rates[1] * (across - taps_across // 2)
        columns, there_w = _overlap(map_width, map_width, shift)
        with tf.control_dependencies(sums[-1:]):
            part = image[0, :, columns] if shift else image[0]
        products = []
        for down in range(taps_down):
            shift = rates[0] * (down - taps_down // 2)
            rows, there_h = _overlap(map_height, map_height, shift)
            factor = tf.reshape(part[rows], [-1, filters_in])
            product = factor @ taps[down * taps_across + across]
            height, width = rows.stop - rows.start, columns.stop - columns.start
            product = tf.reshape(product, [height, width, filters_out])
            around = [there_h.start, map_height - there_h.stop]
            products.append(tf.pad(product, [around, [0, 0], [0, 0]]))
        around = [there_w.start, map_width - there_w.stop]
        sums.append(tf.pad(tf.add_n(products), [[0, 0], around, [0, 0]]))
    out = tf.add_n(sums)[tf.newaxis]
    return tf.ensure_shape(out, [1, *image.shape[1:3], filters_out])


def _in_parts(image, kernel, rates):
    """[B, H, W, F] -> [B, H, W, F'], SAME: no product with padding; odd kernels."""
    rows, columns = map(_parts, height_width(image), kernel.shape[:2], rates)
    padded = pad_where_lines_are_shared(kernel)
    out = tf.concat(
        [
            tf.concat(
                [
                    _convolve_part(image[:, high, wide], padded[up, across], rates)
                    for wide, across in columns
                ],
                axis=2,
            )
            for high, up in rows
        ],
        axis=1,
    )
    return out if padded is kernel else out[..., : kernel.shape[-1]]


def _convolve_part(image, kernel, rates):
    """[B, h, w, F] -> [B, h', w', F'], VALID."""
    out = tf.nn.conv2d(image, kernel, 1, "VALID", dilations=rates)
    if None not in image.shape[1:3]:
        return out
    # Where nothing is to be computed oneDNN returns a map of the image's size.
    height, width = (
        tf.maximum(tf.shape(image)[axis] - rate * (tf.shape(kernel)[axis - 1] - 1), 0)
        for axis, rate in enumerate(rates, start=1)
    )
    shape = [tf.shape(image)[0], height, width, kernel.shape[-1]]
    return tf.reshape(out[:, :height, :width], shape)


def _parts(size, taps, rate):
    """Cuts an axis of the output where a tap of the kernel leaves the map.

    Args:
        size: of the axis, a number or a scalar tensor.
        taps: of the kernel, odd.
        rate: distance of the taps, in cells.

    Returns:
        For each part, from the first cell on: the cells of the input it needs, and the
        taps of the kernel that lie on the map in the whole part.
    """
    known = not tf.is_tensor(size)
    ops = np if known else tf  # the names are the same
    middle = taps // 2
    enter = [ops.minimum(rate * n, size) for n in range(1, middle + 1)]
    leave = [ops.maximum(size - rate * n, 0) for n in range(1, middle + 1)]
    edges = ops.sort(ops.stack([0, *enter, *leave, size]))
    parts = []
    for n in range(2 * middle + 1):
        start, stop = edges[n], edges[n + 1]
        if known and start == stop:
            continue  # where the size is unknown, a part may be empty
        first = ops.maximum(middle - start // rate, 0)
        last = ops.minimum(middle + (size - stop) // rate, taps - 1)
        cells = slice(start + rate * (first - middle), stop + rate * (last - middle))
        parts.append((cells, slice(first, last + 1)))
    return parts


def _at_kernel(image, gradient, shape, rates, before):
    """The gradient at each position of a kernel of this shape.

    One after the other: a product takes all cores, and the parts of the map that it is
    made of are copies.
    """
    height, width, filters_in, filters_out = shape
    heights, widths = zip(height_width(image), height_width(gradient), strict=True)
    with tf.control_dependencies([gradient]):  # else padded with the forward pass
        padded = pad_where_lines_are_shared(image)
    products = []
    for row in range(height):
        here_h, there_h = _overlap(*heights, row * rates[0] - before[0])
        for column in range(width):
            here_w, there_w = _overlap(*widths, column * rates[1] - before[1])
            with tf.control_dependencies(products[-1:]):
                parts = padded[:, here_h, here_w], gradient[:, there_h, there_w]
            product = tf.matmul(
                tf.reshape(parts[0], [-1, padded.shape[-1]]),
                tf.reshape(parts[1], [-1, filters_out]),
                transpose_a=True,
            )
            products.append(product if padded is image else product[:filters_in])
    return tf.reshape(tf.stack(products), shape)


def _overlap(size, out_size, shift):
    """Along an axis, where u + shift is on the map: these cells, and those u.

    Args:
        size: of the map, a number or a scalar tensor.
        out_size: how many u there are.
        shift: in cells.
    """
    start = tf.minimum(max(0, -shift), out_size)
    stop = tf.maximum(start, tf.minimum(out_size, size - shift))  # it may lead beyond
    return slice(start + shift, stop + shift), slice(start, stop)
