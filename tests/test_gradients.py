"""From the logits to the variables: shares, scales, norms, rates."""

import dataclasses
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf import gradients
from ss_gan_tf.train import train


@pytest.fixture
def linear():
    """Logits = w x with w = 3, and a regularisation of 0.5 w^2."""
    image = keras.Input((None, None, 1))
    out = layers.Conv2D(
        1,
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(3.0),
        kernel_regularizer=keras.regularizers.L2(0.5),
    )(image)
    return keras.Model(image, out)


def images():
    return tf.reshape(tf.constant([1.0, 2.0, 4.0, 8.0]), [4, 1, 1, 1])


def sgd(**kwargs):
    return keras.optimizers.SGD(0.1, **kwargs)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 16.0])
def test_a_gradient_through_g_by_hand(linear, num_parts, scale):
    optimizer = sgd()
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
    optimizer.build(linear.trainable_variables)

    @tf.function
    def run(image):
        logits, send_back = gradients.run_generator(linear, optimizer, image, num_parts)
        return logits, send_back(tf.ones_like(logits))

    logits, (gradient,) = run(images())
    np.testing.assert_array_equal(logits, 3 * images())
    # Sum of the images, 15, and 2 * 0.5 * w = 3 once, however many parts.
    assert float(tf.squeeze(gradient)) == 18 * (scale or 1)
    gradients.apply("generator", optimizer, [gradient], linear.trainable_variables)
    # The scale does not arrive: 3 - 0.1 * 18.
    assert float(np.squeeze(linear.weights[0])) == pytest.approx(1.2)


def test_parts_share_a_batch():
    assert gradients.share_of_batch(1) == 1 and gradients.share_of_batch(4) == 0.25


def test_norm_shows_an_overflow_only_where_nothing_handles_it():
    scaled = keras.optimizers.LossScaleOptimizer(sgd())
    for optimizer in (sgd(), scaled):
        assert float(gradients.norm(tf.constant([3.0, 4.0]), optimizer)) == 5
    overflow = tf.constant([float("inf"), 1.0])
    assert np.isinf(gradients.norm(overflow, sgd()))
    assert float(gradients.norm(overflow, scaled)) == 0


def test_loss_scale_is_reported_where_there_is_one():
    scaled = keras.optimizers.LossScaleOptimizer(sgd(), 4.0)
    scaled.build([keras.Variable(1.0)])
    assert gradients.loss_scale("x", sgd()) == {}
    assert float(gradients.loss_scale("x", scaled)["loss_scale/x"]) == 4


@pytest.mark.parametrize("wrap", [lambda x: x, keras.optimizers.LossScaleOptimizer])
def test_a_rate_is_written_and_returned(wrap):
    optimizer = wrap(sgd())
    assert float(gradients.set_rate(optimizer, None, 0)) == pytest.approx(0.1)
    rate = gradients.set_rate(optimizer, lambda step: 0.5 / step, tf.constant(2.0))
    assert float(rate) == float(optimizer.learning_rate) == 0.25


def test_what_was_trained_goes_and_what_was_there_before_can_still_learn():
    """TensorFlow keeps what a gradient that it traced refers to, here x."""

    @tf.custom_gradient
    def square(x):
        return x * x, lambda gradient: 2.0 * x * gradient

    def learn():
        variable = tf.Variable(3.0)
        product = tf.function(lambda: square(variable))
        with tf.GradientTape() as tape:
            result = product()
        assert tape.gradient(result, variable) == 6
        return weakref.ref(product.get_concrete_function().graph)

    before = tf.function(square).get_concrete_function(tf.constant(1.0))
    with gradients.released():
        seen = learn()
    gc.collect()
    assert seen() is None
    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = before(x)
    assert tape.gradient(result, x) == 2


def step_graphs():
    """How many of them are alive."""
    gc.collect()
    graphs = (o for o in gc.get_objects() if type(o).__name__ == "FuncGraph")
    return sum(graph.name == "segmentation_step" for graph in graphs)


def test_of_a_run_nothing_stays(tiny_config, tiny_data, tmp_path):
    config = dataclasses.replace(tiny_config, arm="resnet50")
    before, seen = step_graphs(), []
    train(config, tiny_data, str(tmp_path), lambda *_: seen.append(step_graphs()))
    assert max(seen) == before + 1 and step_graphs() == before
