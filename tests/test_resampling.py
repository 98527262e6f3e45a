"""Exact areas, gradients at every pixel, and any size with static or dynamic shapes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import resampling
from ss_gan_tf.convolution import on_another_device
from ss_gan_tf.resampling import adaptive_average_pool

SIZES = [
    ((8, 12), (4, 4)),  # divides
    ((7, 5), (4, 4)),  # does not
    ((7, 8), (3, 4)),  # in one direction
    ((2, 3), (4, 4)),  # enlarges
    ((5, 5), (5, 5)),  # stays
    ((9, 6), (1, 1)),  # the mean
    ((3, 10), (5, 4)),  # enlarges and shrinks
]


def numpy_area_weights(n, m):
    """[m, n]: length of the overlap of [i n/m, (i+1) n/m) and [j, j+1), over n/m."""
    weights = np.zeros((m, n))
    for i in range(m):
        low, high = i * n / m, (i + 1) * n / m
        for j in range(n):
            weights[i, j] = max(0.0, min(high, j + 1) - max(low, j)) / (n / m)
    return weights


def numpy_pool(x, size):
    rows = numpy_area_weights(x.shape[1], size[0])
    columns = numpy_area_weights(x.shape[2], size[1])
    return np.einsum("ih,jw,bhwf->bijf", rows, columns, np.float64(x))


def random_input(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- Adaptive average pooling ------------------------------------------------


def test_pooling_by_hand():
    # 3 cells to 2: edges at 0, 1.5, 3. (1 + 2/2) / 1.5 = 4/3; (2/2 + 6) / 1.5 = 14/3.
    x = tf.reshape(tf.constant([1.0, 2.0, 6.0]), [1, 1, 3, 1])
    pooled = adaptive_average_pool(x, (1, 2))
    np.testing.assert_allclose(pooled[0, 0, :, 0], [4 / 3, 14 / 3], rtol=1e-6)
    # 2 cells to 4: each twice.
    x = tf.reshape(tf.constant([1.0, 2.0]), [1, 1, 2, 1])
    pooled = adaptive_average_pool(x, (1, 4))
    np.testing.assert_array_equal(pooled[0, 0, :, 0], [1, 1, 2, 2])


@pytest.mark.parametrize("shape, size", SIZES)
def test_pooling_agrees_with_numpy_for_static_and_dynamic_shapes(shape, size):
    x = random_input(2, *shape, 3)
    static = adaptive_average_pool(tf.constant(x), size)
    assert static.shape == (2, *size, 3)
    np.testing.assert_allclose(static, numpy_pool(x, size), atol=1e-6)

    traced = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def dynamic(x):
        pooled = adaptive_average_pool(x, size)
        traced.append(pooled.shape)
        return pooled

    np.testing.assert_allclose(dynamic(x), static, atol=1e-6)
    # A size that is known stays known.
    assert traced[0].as_list() == [None, *size, 3]


def test_output_size_may_be_a_tensor():
    x = random_input(1, 7, 5, 2)

    @tf.function
    def pool(x, reference):
        return adaptive_average_pool(x, tuple(tf.unstack(tf.shape(reference)[1:3])))

    pooled = pool(x, tf.zeros([1, 3, 4, 9]))
    np.testing.assert_allclose(pooled, numpy_pool(x, (3, 4)), atol=1e-6)


@pytest.mark.parametrize(
    "n, m", [(7, 4), (2, 4), (500, 125), (500, 4), (31, 4), (4, 7)]
)
def test_shares_sum_to_one_and_cells_that_touch_an_edge_have_none(n, m):
    shares = resampling._area_weights(n, m, tf.float32).numpy()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(shares, numpy_area_weights(n, m), atol=1e-6)
    # Exactly 0 outside [i n/m, (i+1) n/m), decided in integers.
    i, j = np.arange(m)[:, None], np.arange(n)[None]
    outside = ((j + 1) * m <= i * n) | (j * m >= (i + 1) * n)
    np.testing.assert_array_equal(shares == 0, outside)


@pytest.mark.parametrize("shape, size", SIZES)
def test_every_cell_gets_its_share_of_the_gradient(shape, size):
    # The sum over outputs weighs input (h, w) with its column sums, all above 0.
    x = tf.constant(random_input(1, *shape, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(adaptive_average_pool(x, size))
    gradient = tape.gradient(total, x).numpy()
    expected = np.outer(
        numpy_area_weights(shape[0], size[0]).sum(0),
        numpy_area_weights(shape[1], size[1]).sum(0),
    )
    assert np.all(gradient > 0)
    np.testing.assert_allclose(
        gradient, np.broadcast_to(expected[None, ..., None], gradient.shape), atol=1e-5
    )


def test_pooling_keeps_the_precision():
    for dtype in (tf.bfloat16, tf.float16, tf.float64):
        for size in ((4, 4), (3, 4)):
            x = tf.ones([1, 7, 8, 1], dtype)
            pooled = adaptive_average_pool(x, size)
            assert pooled.dtype == dtype
            np.testing.assert_allclose(tf.cast(pooled, tf.float32), 1, atol=1e-2)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (5, 4)])
def test_halves_are_summed_in_float32_and_rounded_once(dtype, size):
    """(4, 4) has windows of 4x4, the others weigh cells by the share inside."""
    x = tf.cast(random_input(2, 16, 16, 3) + 2, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = adaptive_average_pool(x, size)
    full = adaptive_average_pool(tf.cast(x, tf.float32), size)
    np.testing.assert_array_equal(pooled, tf.cast(full, dtype))
    gradient = tape.gradient(pooled, x)
    assert gradient.dtype == dtype
    total = tf.reduce_sum(tf.cast(gradient, tf.float64))
    np.testing.assert_allclose(total, 2 * 3 * size[0] * size[1], rtol=2e-3)


@pytest.mark.parametrize("right", [True, False])
def test_the_device_averages_by_itself_where_it_does_so_right(monkeypatch, right):
    asked = []
    monkeypatch.setattr(
        resampling, "device_averages_right", lambda dtype: asked.append(dtype) or right
    )
    layer = resampling.AveragePooling2D(2, dtype="mixed_bfloat16")

    def kinds(dtype):
        image = tf.TensorSpec([2, 8, 8, 3], dtype)
        graph = tf.function(layer).get_concrete_function(image).graph
        return {
            x.inputs[0].dtype for x in graph.get_operations() if x.type == "AvgPool"
        }

    assert kinds(tf.bfloat16) == {tf.bfloat16 if right else tf.float32}
    assert asked == [tf.bfloat16]
    with on_another_device():
        assert kinds(tf.bfloat16) == {tf.float32}
    assert asked == [tf.bfloat16]


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_the_device_is_asked_by_averaging(monkeypatch, dtype):
    real = tf.nn.avg_pool2d

    def in_float32(x, *args):
        return tf.cast(real(tf.cast(x, tf.float32), *args), x.dtype)

    def one_by_one(x, *args):
        cells = tf.unstack(tf.reshape(x, [-1, 16]), axis=1)
        return tf.reshape(functools.reduce(tf.add, cells) / 16, [-1, 1, 1, 1])

    for kernel, right in ((in_float32, True), (one_by_one, False)):
        monkeypatch.setattr(tf.nn, "avg_pool2d", kernel)
        assert resampling.device_averages_right.__wrapped__(dtype) == right


def test_the_device_may_be_asked_while_a_step_is_traced():
    layer = resampling.AveragePooling2D(4, dtype="mixed_bfloat16")

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(layer(x), tf.float32)
        return y, tape.gradient(y, x)

    resampling.device_averages_right.cache_clear()
    x = tf.cast(tf.reshape([256.0] + [1.0] * 14 + [0.0], [1, 4, 4, 1]), tf.bfloat16)
    average, at_x = gradient(x)
    assert average == 16.875
    np.testing.assert_array_equal(
        tf.cast(at_x, tf.float32), np.full([1, 4, 4, 1], 1 / 16)
    )
    assert resampling.device_averages_right.cache_info().misses == 1


@pytest.mark.parametrize(
    "other", [{"strides": 1}, {"padding": "same"}, {"data_format": "channels_first"}]
)
def test_other_average_poolings_are_refused(other):
    with pytest.raises(ValueError, match="must be"):
        resampling.AveragePooling2D(2, **other)


def test_average_pooling_is_keras_own_in_float32():
    x = random_input(2, 9, 7, 3)
    ours, theirs = resampling.AveragePooling2D(2), keras.layers.AveragePooling2D(2)
    np.testing.assert_array_equal(ours(x), theirs(x))
    assert ours.compute_output_shape(x.shape) == theirs.compute_output_shape(x.shape)


def test_layer_takes_a_size_or_a_stride_or_a_reference():
    x = random_input(1, 21, 18, 2)
    layer = resampling.AdaptiveAveragePooling
    np.testing.assert_allclose(layer(4)(x), numpy_pool(x, (4, 4)), atol=1e-6)
    # 21 // 4 = 5 rows, 18 // 4 = 4 columns.
    np.testing.assert_allclose(layer(stride=4)(x), numpy_pool(x, (5, 4)), atol=1e-6)
    reference = tf.zeros([1, 6, 7, 9])
    np.testing.assert_allclose(
        layer()(x, reference=reference), numpy_pool(x, (6, 7)), atol=1e-6
    )


# --- The other layers --------------------------------------------------------


@pytest.mark.parametrize(
    "shape, expected", [((33, 64), (64, 64)), ((32, 1), (32, 32)), ((64, 96), (64, 96))]
)
def test_padding_goes_to_the_bottom_and_the_right(shape, expected):
    x = 1 + np.abs(random_input(2, *shape, 3))
    padded = resampling.PadToMultiple(32)(x).numpy()
    assert padded.shape == (2, *expected, 3)
    np.testing.assert_array_equal(padded[:, : shape[0], : shape[1]], x)
    assert not padded[:, shape[0] :].any() and not padded[:, :, shape[1] :].any()


def test_upsampling_interpolates_between_cell_centres_and_is_cut():
    # Factor 2: output i lies at (i + 1/2)/2 - 1/2 = -1/4, 1/4, 3/4, 5/4 input cells,
    # held at the ends: 0, 1/4, 3/4, 1 times 8. The reference keeps three of them.
    x = tf.reshape(tf.constant([0.0, 8.0]), [1, 1, 2, 1])
    layer = resampling.BilinearUpsampling(2)
    enlarged = layer(x, reference=tf.zeros([1, 2, 3, 5]))
    np.testing.assert_allclose(enlarged[0, :, :, 0], [[0, 2, 6], [0, 2, 6]], atol=1e-6)


def test_upsampling_is_float32_under_mixed_bfloat16():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = resampling.BilinearUpsampling(2)
    finally:
        keras.config.set_dtype_policy(policy)
    x = tf.reshape(tf.constant([0.0, 1.0], tf.bfloat16), [1, 1, 2, 1])
    enlarged = layer(x, reference=tf.zeros([1, 2, 4, 3], tf.bfloat16))
    assert enlarged.dtype == tf.float32
    np.testing.assert_allclose(enlarged[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_unit_rms_by_hand():
    # (3, 4): mean square 12.5; sizes from hundredths to hundreds come out alike.
    x = np.float32([3, 4]) * np.float32([0.1, 1, 100]).reshape(1, 1, 3, 1)
    y = resampling.UnitRMS()(x).numpy()
    expected = np.broadcast_to(np.array([3, 4]) / np.sqrt(12.5), y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4)
    np.testing.assert_allclose(np.mean(y**2, -1), 1, rtol=1e-4)


def test_unit_rms_leaves_zero_and_its_gradient_is_finite_there():
    x = tf.constant([[[[0.0, 0.0], [1e-20, 0.0], [1e4, 0.0]]]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = resampling.UnitRMS()(x)
    assert np.all(y[0, 0, 0] == 0) and np.all(np.isfinite(y))
    assert np.all(np.isfinite(tape.gradient(y, x)))


def test_unit_rms_of_half_precision_does_not_overflow():
    # 300 squared is beyond float16.
    x = tf.fill([1, 2, 2, 64], tf.constant(300.0, tf.float16))
    y = resampling.UnitRMS(dtype="float16")(x)
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, 1, rtol=1e-3)


def test_broadcast_repeats_an_image_level_feature():
    x = tf.constant(random_input(2, 1, 1, 3))
    y = resampling.BroadcastLike()(x, reference=tf.zeros([2, 4, 5, 7]))
    np.testing.assert_array_equal(y, np.broadcast_to(x, (2, 4, 5, 3)))


def test_layers_are_rebuilt_from_their_config():
    for layer in (
        resampling.AdaptiveAveragePooling(size=3, name="a"),
        resampling.AdaptiveAveragePooling(stride=4, name="b"),
        resampling.AveragePooling2D(2, name="g"),
        resampling.PadToMultiple(8, name="c"),
        resampling.BilinearUpsampling(8, name="d"),
        resampling.BroadcastLike(name="e"),
        resampling.UnitRMS(name="f"),
    ):
        config = layer.get_config()
        again = type(layer).from_config(config)
        assert again.get_config() == config
        for name in ("size", "stride", "multiple", "factor", "pool_size"):
            assert getattr(again, name, None) == getattr(layer, name, None)
