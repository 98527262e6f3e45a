"""Convolutions with the right gradients in bfloat16, and fast ones for large kernels.

TensorFlow's own kernels for CPUs, which run where oneDNN has none for bfloat16, add
gradients up in bfloat16: a sum stands still at 256 or 512 times an addend.  Over maps
of 2 x 160 x 160 cells 98 % of that at a bias are lost, at a kernel with few channels up
to 84 %, and that at the image is off by 1 to 2 % instead of 0.2.
"""

import contextlib
import functools
import itertools
import math

import keras
import tensorflow as tf

PRODUCT_FROM = 2**24  # weights of a kernel; of smaller ones the patches take more room
STRIP_FROM = 2**25  # numbers of an image's patches, 0.13 GB; of more, strip by strip
STRIP_ALL_FROM = 2**27  # of so many not only the gradient at the kernel, 0.54 GB
SHARE_LINES = 2**11  # numbers; rows of a multiple of it share lines of the cache
PAD_FROM = 2**19  # weights of a kernel; products with smaller ones are not padded


@keras.saving.register_keras_serializable("ss_gan_tf")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, same numbers and weights; other gradients in bfloat16.

    That at the bias is a sum, and the others are computed in float32 where the device
    adds in bfloat16; not so in groups, with dilation or with channels first. Kernels as
    large as fc6's of VGG16 learn by matrix products on a CPU, of float16 in float32;
    without oneDNN fc7's, too, and those of large maps strip by strip; the largest maps
    are convolved so as well. Kernels of one cell whose rows share lines of the cache
    are products there (`SHARE_LINES`).

    The first of `normalization.convolve_and_normalize` has the normalised map as its
    output while that normalisation is frozen.
    """

    # () -> what a frozen normalisation behind it does to a channel, or None where there
    # is none.
    scale_and_shift = None

    def add_weight(self, *args, **kwargs):
        """A weight that is not cast by itself: a scaled kernel is rounded once."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def call(self, inputs):
        """[B, H, W, F] -> [B, H', W', F']."""
        normalized = self.scale_and_shift() if self.scale_and_shift else None
        if not normalized and self.compute_dtype == self.variable_dtype:
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        bias = tf.convert_to_tensor(self.bias) if self.use_bias else None
        if normalized:
            scale, shift = normalized
            kernel = tf.cast(kernel, scale.dtype) * scale
            if bias is not None:
                shift += tf.cast(bias, scale.dtype) * scale
            bias = shift
        x = self.convolution_op(inputs, tf.cast(kernel, inputs.dtype))
        if bias is not None:
            x = _add_bias(x, tf.cast(bias, inputs.dtype), self.data_format)
        return x if self.activation is None else self.activation(x)

    def convolution_op(self, inputs, kernel):
        """[B, H, W, F] and [k, k, F, F'] -> [B, H', W', F'], without the bias."""
        convolve = super().convolution_op
        plain = self.data_format == "channels_last" and self.groups == 1
        if not plain or self.dilation_rate != (1, 1) or is_for_another_device():
            return convolve(inputs, kernel)
        product = self._is_like_a_product(kernel)
        strips = self._num_strips(inputs, kernel)
        large = self._num_patches(inputs) >= STRIP_ALL_FROM
        all_in_strips = large and strips > 1 and not product
        exact = inputs.dtype == tf.bfloat16 and not device_adds_right()
        exact |= inputs.dtype == tf.float16 and product  # it has no kernel that is fast
        exact |= inputs.dtype.size == 2 and strips > 1  # their sum is rounded once
        if not product and self._is_slow_pointwise(kernel):
            if exact or inputs.dtype == tf.float32:
                return _convolve_pointwise(inputs, kernel, convolve, exact)
        if not exact and not product and strips == 1:
            return convolve(inputs, kernel)
        how = {"strides": [1, *self.strides, 1], "padding": self.padding.upper()}

        @tf.custom_gradient
        def forward(image, kernel):
            def backward(gradient):
                x, w = image, kernel
                if exact:
                    x, w, gradient = in_float32(gradient, x, w)
                if product:
                    at_image = at_image_by_product(gradient, w)
                    # The room for it, and a copy of the kernel, go before the next.
                    with tf.control_dependencies([at_image]):
                        gradient = tf.identity(gradient)
                elif all_in_strips:
                    at_image = at_image_by_strips(gradient, w, x, strips)
                else:
                    at_image = tf.raw_ops.Conv2DBackpropInput(
                        input_sizes=tf.shape(x), filter=w, out_backprop=gradient, **how
                    )
                if few is True:
                    at_kernel = at_kernel_by_product(x, gradient, w.shape)
                elif strips > 1:
                    at_kernel = at_kernel_by_strips(x, gradient, w.shape, strips)
                else:
                    at_kernel = tf.raw_ops.Conv2DBackpropFilter(
                        input=x, filter_sizes=w.shape, out_backprop=gradient, **how
                    )
                return tf.cast(at_image, image.dtype), tf.cast(at_kernel, kernel.dtype)

            few = product and _has_few_patches(image, kernel)
            if all_in_strips:
                return convolve_by_strips(image, kernel, strips), backward
            if image.dtype != tf.float32 or few is False:  # bfloat16's is slower
                return convolve(image, kernel), backward
            if few is True:
                return convolve_by_product(image, kernel), backward
            ways = (convolve_by_product, convolve)
            ways = (functools.partial(way, image, kernel) for way in ways)
            return tf.cond(few, *ways), backward

        return forward(inputs, tf.convert_to_tensor(kernel))

    def _num_strips(self, image, kernel):
        """In how many strips the gradient at the kernel, or all of a map, is computed.

        TensorFlow's kernel for CPUs without oneDNN lays out what the kernel meets on an
        image, all of it at once: for one of 3x3 nine times as much as the map. Strips
        need room for a second gradient: what they save must be more.
        """
        patches = self._num_patches(image)
        strips = max(1, min(image.shape[1] or 1, math.ceil(patches / STRIP_FROM)))
        if patches - patches // strips <= math.prod(kernel.shape):
            return 1
        if not self._keeps_size_on_a_cpu() or _uses_onednn():
            return 1
        return strips

    def _num_patches(self, image):
        """How many numbers the kernel meets on one image; 0 where that is unknown."""
        sizes = image.shape[1:]
        known = sizes.is_fully_defined()
        return math.prod(sizes) * math.prod(self.kernel_size) if known else 0

    def _is_slow_pointwise(self, kernel):
        """Whether it is a product with a matrix of which an axis makes rows slow.

        Rows of outputs in the forward pass, of a map's cells for the gradients; of
        stride 1, of a kernel that is worth it, on a CPU without oneDNN.
        """
        return (
            self.kernel_size == self.strides == (1, 1)
            and math.prod(kernel.shape) >= PAD_FROM
            and any(size % SHARE_LINES == 0 for size in kernel.shape[2:])
            and not tf.config.list_logical_devices("GPU")
            and not _uses_onednn()
        )

    def _is_like_a_product(self, kernel):
        """Whether a CPU finds the gradient at the image faster by a matrix product."""
        return (
            math.prod(kernel.shape) >= PRODUCT_FROM
            and self._keeps_size_on_a_cpu()
            and (max(self.kernel_size) > 1 or not _uses_onednn())
        )

    def _keeps_size_on_a_cpu(self):
        """Whether it is of stride 1 with an odd kernel, SAME, and there is no GPU."""
        return (
            self.padding == "same"
            and self.strides == (1, 1)
            and all(size % 2 for size in self.kernel_size)
            and not tf.config.list_logical_devices("GPU")
        )


def _has_few_patches(image, kernel):
    """Whether a map's patches take no more room than the kernel.

    Where that is unknown, a tensor; False with oneDNN, where a choice is not measured.
    """
    if image.shape[:3].is_fully_defined():
        return math.prod(image.shape[:3]) <= kernel.shape[-1]
    if _uses_onednn():
        return False
    return tf.reduce_prod(tf.shape(image)[:3]) <= kernel.shape[-1]


def convolve_by_product(image: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A convolution of stride 1 with an odd kernel, SAME, as one matrix product.

    oneDNN lays the kernel out anew in each call; a product takes it as it lies. For
    CPUs without oneDNN see `_product`.

    Args:
        image: [B, H, W, F].
        kernel: [k, k', F, F'].

    Returns:
        [B, H, W, F'].
    """
    filters = kernel.shape[-1]
    patches = _patches(image, kernel.shape)
    product = _product(patches, tf.reshape(kernel, [-1, filters]))
    return tf.reshape(product, [-1, *height_width(image), filters])


def at_kernel_by_product(image: tf.Tensor, gradient: tf.Tensor, shape) -> tf.Tensor:
    """The gradient at the kernel of a convolution of stride 1 with an odd one, SAME.

    One product of the patches, B H W k k' F values, with the gradient. For fc6 of VGG16
    on 2x16x16 cells they are 0.03 GB in bfloat16, where oneDNN takes 1.2 GB of room.
    In float32 without oneDNN it is one product for each row of the kernel. Their rows
    are made an odd number of cache lines long (see `_product`); cutting that off again
    takes the kernel's room once more.

    Args:
        image: [B, H, W, F], B, H and W known.
        gradient: [B, H, W, F'] at the output.
        shape: of the kernel, (k, k', F, F').

    Returns:
        [k, k', F, F'].
    """
    with tf.control_dependencies([gradient]):  # else they are kept from forwards on
        patches = _patches(image, shape)
    filters = shape[-1]
    columns = tf.reshape(gradient, [-1, filters])
    if columns.dtype != tf.float32 or _uses_onednn():
        return tf.reshape(tf.matmul(patches, columns, transpose_a=True), shape)
    padded = _pad_to_odd_lines(columns, axis=1)
    products = [
        tf.matmul(of_row, padded, transpose_a=True)[:, :filters]
        for of_row in tf.split(patches, shape[0], axis=1)
    ]
    return tf.reshape(tf.concat(products, axis=0), shape)


def convolve_by_strips(image: tf.Tensor, kernel: tf.Tensor, strips: int) -> tf.Tensor:
    """A convolution of stride 1 with an odd kernel, SAME, one strip after the other.

    On a CPU without oneDNN TensorFlow lays out what the kernel meets on all images:
    1.2 GB at conv1_2 of VGG16 and 2x512x512 cells. A bias and ReLU behind it go over
    the map by themselves; only those of one convolution are fused with it.

    Args:
        image: [B, H, W, F], H known.
        kernel: [k, k', F, F'].
        strips: how many, at most H.

    Returns:
        [B, H, W, F'].
    """
    around, found = kernel.shape[0] // 2, []
    for top, bottom, above, below in _strips(image.shape[1], around, strips):
        with tf.control_dependencies(found[-1:]):
            seen = image[:, top - above : bottom + below]
        missing = [around - above, around - below]
        sides = [kernel.shape[1] // 2] * 2
        found.append(tf.nn.conv2d(seen, kernel, 1, [[0, 0], missing, sides, [0, 0]]))
    return tf.concat(found, axis=1)


def at_image_by_strips(
    gradient: tf.Tensor, kernel: tf.Tensor, image: tf.Tensor, strips: int
) -> tf.Tensor:
    """The gradient at the image of a convolution of stride 1 with an odd kernel, SAME.

    One strip after the other: TensorFlow's kernel for CPUs without oneDNN lays out what
    the kernel meets on an image, as it does for `at_kernel_by_strips`.

    Args:
        gradient: [B, H, W, F'] at the output.
        kernel: [k, k', F, F'].
        image: [B, H, W, F], of which the shape is taken, H known.
        strips: how many, at most H.

    Returns:
        [B, H, W, F].
    """
    around, found = kernel.shape[0] // 2, []
    sizes = tf.shape(image)
    for top, bottom, above, below in _strips(image.shape[1], around, strips):
        with tf.control_dependencies(found[-1:]):
            sent = gradient[:, top - above : bottom + below]
        beyond = [around + above, around + below]  # rows that see some of the strip
        of_strip = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.stack([sizes[0], bottom - top, sizes[2], sizes[3]]),
            filter=kernel,
            out_backprop=sent,
            strides=[1] * 4,
            padding="EXPLICIT",
            explicit_paddings=[0, 0, *beyond, *[kernel.shape[1] // 2] * 2, 0, 0],
        )
        found.append(of_strip)
    return tf.concat(found, axis=1)


def at_kernel_by_strips(
    image: tf.Tensor, gradient: tf.Tensor, shape, strips: int
) -> tf.Tensor:
    """The gradient at the kernel of a convolution of stride 1 with an odd one, SAME.

    The sum of those of strips of the map, of which one after the other is computed. A
    strip's image goes as far beyond it as the kernel reaches.

    Args:
        image: [B, H, W, F], H known.
        gradient: [B, H, W, F'] at the output.
        shape: of the kernel, (k, k', F, F').
        strips: how many, at most H.

    Returns:
        [k, k', F, F'].
    """
    around, total = shape[0] // 2, None
    for top, bottom, above, below in _strips(image.shape[1], around, strips):
        with tf.control_dependencies([gradient] if total is None else [total]):
            seen = image[:, top - above : bottom + below]
            sent = gradient[:, top:bottom]
        missing = [around - above, around - below]
        of_strip = tf.raw_ops.Conv2DBackpropFilter(
            input=seen,
            filter_sizes=shape,
            out_backprop=sent,
            strides=[1] * 4,
            padding="EXPLICIT",
            explicit_paddings=[0, 0, *missing, *[shape[1] // 2] * 2, 0, 0],
        )
        total = of_strip if total is None else total + of_strip
    return total


def _strips(height, around, strips):
    """(top, bottom, rows seen above, below) of each; a kernel reaches `around` rows."""
    edges = [height * i // strips for i in range(strips + 1)]
    for top, bottom in itertools.pairwise(edges):
        yield top, bottom, min(around, top), min(around, height - bottom)


def _patches(image, shape):
    """What a kernel of this shape meets at each cell: [B H W, k k' F], odd, SAME."""
    rows, columns, filters_in, _ = shape
    height, width = height_width(image)
    around = [[0, 0], *([size // 2] * 2 for size in (rows, columns)), [0, 0]]
    padded = tf.pad(image, around)
    # tf.image.extract_patches takes XLA longer.
    met = [
        padded[:, row : row + height, column : column + width]
        for row in range(rows)
        for column in range(columns)
    ]
    return tf.reshape(tf.concat(met, axis=-1), [-1, rows * columns * filters_in])


def height_width(x: tf.Tensor) -> tuple:
    """Height and width of [B, H, W, F]: ints where static, scalars where not."""
    dynamic = tf.shape(x)
    return tuple(
        static if static is not None else dynamic[axis]
        for axis, static in ((1, x.shape[1]), (2, x.shape[2]))
    )


def _convolve_pointwise(image, kernel, convolve, exact):
    """A convolution of stride 1 by a kernel of one cell; its gradients are products.

    Args:
        image: [B, H, W, F], float32, or anything where `exact`.
        kernel: [1, 1, F, F'], F or F' a multiple of `SHARE_LINES`.
        convolve: (image, kernel) -> the same, by the device.
        exact: whether gradients are computed in float32.

    Returns:
        [B, H, W, F'].
    """

    @tf.custom_gradient
    def forward(image, kernel):
        def backward(gradient):
            x, w = image, kernel
            if exact:
                x, w, gradient = in_float32(gradient, x, w)
            with tf.control_dependencies([gradient]):  # else padded with the forward
                at_image = _multiply_cells(gradient, w, transpose_b=True)
                at_kernel = _multiply_maps(x, gradient, w.shape)
            return tf.cast(at_image, image.dtype), tf.cast(at_kernel, kernel.dtype)

        if exact or kernel.shape[-1] % SHARE_LINES:
            return convolve(image, kernel), backward
        return _multiply_cells(image, kernel), backward

    return forward(image, tf.convert_to_tensor(kernel))


def _multiply_cells(image, kernel, transpose_b=False):
    """[B, H, W, F] and [1, 1, F, F'] -> [B, H, W, F']; F' to F with `transpose_b`."""
    matrix = tf.reshape(kernel, kernel.shape[2:])
    filters_in, filters = reversed(matrix.shape) if transpose_b else matrix.shape
    cells = tf.reshape(image, [-1, filters_in])
    product = _padded_matmul(cells, matrix, transpose_b=transpose_b)
    product = tf.reshape(product, tf.concat([tf.shape(image)[:3], [filters]], axis=0))
    return tf.ensure_shape(product, [*image.shape[:3], filters])


def _multiply_maps(image, gradient, shape):
    """[B, H, W, F] and [B, H, W, F'] -> [1, 1, F, F'], `shape`; the sum over cells."""
    cells = tf.reshape(image, [-1, shape[2]])
    sent = tf.reshape(gradient, [-1, shape[3]])
    return tf.reshape(_padded_matmul(cells, sent, transpose_a=True), shape)


def _padded_matmul(left, right, transpose_a=False, transpose_b=False):
    """[M, K] and [K, N] -> [M, N], as `tf.matmul`; faster where rows share lines.

    What becomes the product's columns is padded, and with `transpose_a` what becomes
    its rows, too, because it lies along rows; that is cut off again. Along what is
    summed over, padding gains nothing.
    """
    how = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    rows, columns = left.shape[int(transpose_a)], right.shape[int(not transpose_b)]
    if transpose_a:
        left = pad_where_lines_are_shared(left, 1)
    right = pad_where_lines_are_shared(right, int(not transpose_b))
    return tf.matmul(left, right, **how)[:rows, :columns]


def pad_where_lines_are_shared(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """With zeros behind along an axis, where rows of that length are slow to go down.

    TensorFlow's products of float32 without oneDNN go down some columns of a matrix at
    a time. Where rows lie a multiple of 8 KB apart, these columns are in few lines of
    the cache, and each product takes 1.2 to 1.5 times as long (`SHARE_LINES`).

    Args:
        x: [..., N, ...], whose N along the axis becomes the length of rows.
        axis: of x, of a size that is known.

    Returns:
        x itself where there is nothing to gain, else 16 numbers longer.
    """
    if x.dtype != tf.float32 or x.shape[axis] % SHARE_LINES or _uses_onednn():
        return x
    return _pad_to_odd_lines(x, axis)


def _product(left, right, transpose_b=False):
    """[M, K] and [K, N], or [N, K] to be transposed -> [M, N].

    TensorFlow's kernel for CPUs without oneDNN takes up to twice as long where N or K
    is a power of two: rows that lie so far apart share a few lines of the cache, and
    fc6 and fc7 have 4,096 filters. Without oneDNN the transposed product is computed,
    whose rows are made an odd number of lines long.
    """
    if left.dtype != tf.float32 or _uses_onednn():
        return tf.matmul(left, right, transpose_b=transpose_b)
    rows = left.shape[0] if left.shape[0] is not None else tf.shape(left)[0]
    padded = _pad_to_odd_lines(left, axis=0)
    product = tf.matmul(right, padded, transpose_a=not transpose_b, transpose_b=True)
    return tf.transpose(product)[:rows]


def _pad_to_odd_lines(x, axis):
    """With zeros behind, an odd number of lines of 16 numbers along an axis."""
    size = x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]
    paddings = [[0, 0] for _ in x.shape]
    paddings[axis] = [0, (16 - size) % 32]
    return tf.pad(x, paddings)


def _uses_onednn():
    """Whether this CPU's convolutions and products are oneDNN's."""
    return device_differentiates_dilation(tf.float32)


def at_image_by_product(gradient: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The gradient at the image of a convolution of stride 1 with an odd kernel, SAME.

    With y[u] = sum_i x[u + i - k // 2] w[i] it is sum_i y'[v - i + k // 2] w[i]: one
    product of all cells with all taps, whose parts are added up where they belong.
    oneDNN takes twice as long for fc6 of VGG16, a kernel of 7x7x512x4096 on 16x16
    cells. B H W k k' F values are kept meanwhile, twice.

    Args:
        gradient: [B, H, W, F'] at the output.
        kernel: [k, k', F, F'].

    Returns:
        [B, H, W, F], of the gradient's type; taps are added up in float32 or better.
    """
    rows, columns, filters_in, filters = kernel.shape
    batch, height, width = tf.unstack(tf.shape(gradient)[:3])
    sent = _product(
        tf.reshape(gradient, [-1, filters]),
        tf.reshape(kernel, [-1, filters]),
        transpose_b=True,
    )
    sent = tf.reshape(sent, [batch, height, width, rows, columns, filters_in])
    if gradient.dtype.size == 2:
        sent = tf.cast(sent, tf.float32)
    moved = [
        tf.pad(
            sent[:, :, :, i, j],
            [[0, 0], [i, rows - 1 - i], [j, columns - 1 - j], [0, 0]],
        )
        for i in range(rows)
        for j in range(columns)
    ]
    top, left = rows // 2, columns // 2
    total = tf.add_n(moved)[:, top : top + height, left : left + width]
    return tf.cast(total, gradient.dtype)


def _add_bias(x, bias, data_format):
    """BiasAdd, which is fused with convolution and ReLU; bfloat16 sums its gradient."""
    if data_format == "channels_first":
        return tf.nn.bias_add(x, bias, "NCHW")

    @tf.custom_gradient
    def forward(x, bias):
        def backward(gradient):
            return gradient, tf.reduce_sum(gradient, axis=[0, 1, 2])

        return tf.nn.bias_add(x, bias), backward

    return (forward if x.dtype == tf.bfloat16 else tf.nn.bias_add)(x, bias)


@keras.saving.register_keras_serializable("ss_gan_tf")
class LeakyReLU(keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU`, same numbers and gradients, in less memory.

    The gradient takes the side of the kink from the output, so that the input need not
    be kept and the convolution before it computes both.  Of Keras' LeakyReLU TensorFlow
    2.21 tries the same, fails with an error in the log, and goes over each map again.
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
def device_adds_right() -> bool:
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


@functools.cache
def device_differentiates_dilation(dtype: tf.DType) -> bool:
    """Whether there are kernels for both gradients here, found out by calling them.

    Of CPUs those that use oneDNN have them.
    """
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
            both_gradients(tf.ones([1, 5, 5, 1], dtype), tf.ones([3, 3, 1, 1], dtype))
        except tf.errors.OpError:
            return False
    return True


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
