import keras
import pytest
import tensorflow as tf

from experiments.benchmarks.flops import count_flops
from ss_gan_tf.dilation import DilatedConv2D


def traced(function, *shapes):
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return tf.function(function).get_concrete_function(*specs)


def convolution_and_gradients(layer, shape):
    layer.build(shape)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, [x, *layer.trainable_weights])

    return traced(step, shape)


@pytest.mark.parametrize("conv", [keras.layers.Conv2D, DilatedConv2D])
def test_a_convolution_by_hand(conv):
    layer = conv(4, 3, padding="same", use_bias=False)
    # 2 images of 5 x 7, 3 -> 4 channels: 2*5*7*4 sums of 3*3*3 products. The forward
    # pass, the gradient of the image and that of the kernel each take all of them.
    forward = 2 * (2 * 5 * 7 * 4) * (3 * 3 * 3)
    traced_step = convolution_and_gradients(layer, [2, 5, 7, 3])
    # The sum's gradient does not need the forward pass, so that never runs.
    assert count_flops(traced_step) == 2 * forward
    assert count_flops(traced(layer, [2, 5, 7, 3])) == forward


def test_strides_and_transposed_convolutions_by_hand():
    strided = keras.layers.Conv2D(4, 3, strides=2, padding="same")
    assert count_flops(traced(strided, [1, 8, 8, 3])) == 2 * (4 * 4 * 4) * (9 * 3)
    # Each of 4*4*3 inputs goes to a 4 x 4 window of 5 channels.
    up = keras.layers.Conv2DTranspose(5, 4, strides=2, padding="same")
    assert count_flops(traced(up, [1, 4, 4, 3])) == 2 * (4 * 4 * 3) * (4 * 4 * 5)


def test_matrix_products_by_hand():
    def products(a, b):
        return tf.matmul(a, b), tf.matmul(a, a, transpose_a=True)

    # [5, 7] [7, 11], and [7, 5] [5, 7].
    expected = 2 * 5 * 7 * 11 + 2 * 7 * 5 * 7
    assert count_flops(traced(products, [5, 7], [7, 11])) == expected


def test_what_never_runs_is_not_counted():
    kept = tf.Variable(tf.zeros([5, 11]))

    def products(a, b):
        tf.matmul(a, a, transpose_a=True)  # nothing reads it
        kept.assign(tf.matmul(a, b))
        return tf.matmul(b, a, transpose_a=True, transpose_b=True)

    # [5, 7] [7, 11] for the variable, [11, 7] [7, 5] for the result.
    expected = 2 * 5 * 7 * 11 + 2 * 11 * 7 * 5
    assert count_flops(traced(products, [5, 7], [7, 11])) == expected


def test_what_cannot_be_counted_is_an_error():
    conv = keras.layers.Conv2D(4, 3)
    with pytest.raises(ValueError, match="a shape is not known"):
        count_flops(traced(conv, [None, 8, 8, 3]))

    def loop(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 9, lambda x: (x @ x,), (x,))

    with pytest.raises(ValueError, match="is not counted"):
        count_flops(traced(loop, [2, 2]))


@pytest.mark.parametrize("works", [False, True])
def test_a_branch_may_choose_but_not_work(works):
    def function(x):
        then = (lambda: x @ x) if works else (lambda: x)
        return tf.cond(tf.reduce_sum(x) > 0, then, lambda: tf.zeros_like(x)) @ x

    traced = tf.function(function).get_concrete_function(
        tf.TensorSpec([4, 4], tf.float32)
    )
    if works:
        with pytest.raises(ValueError, match="StatelessIf is not counted"):
            count_flops(traced)
    else:
        assert count_flops(traced) == 2 * 4**3  # one product of 4 x 4 matrices


@pytest.mark.parametrize("works", [False, True])
def test_a_call_in_a_branch_is_looked_into(works):
    """The branches of a loss scale call functions of their own."""

    @tf.function
    def inner(x):
        return x @ x if works else 2 * x

    def function(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: inner(x), lambda: x) @ x

    if works:
        with pytest.raises(ValueError, match="If is not counted"):
            count_flops(traced(function, [4, 4]))
    else:
        assert count_flops(traced(function, [4, 4])) == 2 * 4**3


def test_work_in_a_call_is_not_overlooked():
    inner = tf.function(lambda x: x @ x)
    with pytest.raises(ValueError, match="PartitionedCall is not counted"):
        count_flops(traced(lambda x: inner(x) @ x, [4, 4]))


def test_einsum_by_hand():
    # Each of the 2 x 4 x 3 x 5 outputs is a sum of 7 products.
    function = traced(
        lambda a, b: tf.einsum("ih,bhwf->biwf", a, b), [4, 7], [2, 7, 3, 5]
    )
    assert count_flops(function) == 2 * 2 * 4 * 3 * 5 * 7
