import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf.adversary import build_adversary
from ss_gan_tf.convolution import Conv2D
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.generator import build_generator


def bias_gradient(layer, image):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(image), tf.float32))
    return tape.gradient(loss, layer.bias.value).numpy()


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_bias_learns_from_every_cell(rate, activation):
    """Of 2 x 80 x 80 cells BiasAdd's own gradient counts 256 in bfloat16."""
    conv = Conv2D if rate == 1 else DilatedConv2D
    layer = conv(
        3,
        3,
        padding="same",
        activation=activation,
        bias_initializer="ones",
        dilation_rate=rate,
        dtype="mixed_bfloat16",
    )
    gradient = bias_gradient(layer, tf.zeros([2, 80, 80, 4], tf.bfloat16))
    np.testing.assert_array_equal(gradient, [12800] * 3)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_equals_keras_but_for_the_bias_gradient(policy):
    settings = {"activation": "relu", "bias_initializer": "ones", "dtype": policy}
    ours, theirs = (kind(5, 3, **settings) for kind in (Conv2D, keras.layers.Conv2D))
    image = tf.constant(np.random.default_rng(0).normal(size=(2, 9, 11, 4)), tf.float32)
    for layer in (ours, theirs):
        layer.build(image.shape)
    ours.set_weights(theirs.get_weights())
    with tf.GradientTape(persistent=True) as tape:
        outputs = [layer(image) for layer in (ours, theirs)]
        losses = [tf.reduce_sum(tf.square(tf.cast(x, tf.float32))) for x in outputs]
    assert outputs[0].dtype == outputs[1].dtype == ours.compute_dtype
    np.testing.assert_array_equal(*outputs)
    kernels = [
        tape.gradient(loss, layer.kernel.value)
        for loss, layer in zip(losses, (ours, theirs), strict=True)
    ]
    np.testing.assert_array_equal(*kernels)
    copy = Conv2D.from_config(ours.get_config())
    assert copy.get_config() == ours.get_config()


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_generator("vgg16", 3, width=0.05),
        lambda: build_generator("resnet50", 3, width=0.05, head_norm="none"),
        lambda: build_adversary(3, None, width=0.05),
    ],
    ids=["vgg16", "resnet50", "adversary"],
)
def test_the_networks_are_made_of_it(build):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build()
    finally:
        keras.config.set_dtype_policy(policy)

    @tf.function(input_signature=[tf.TensorSpec([1, 64, 64, 3])])
    def gradients(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(image))
        return tape.gradient(loss, [w.value for w in network.trainable_weights])

    operations = gradients.get_concrete_function().graph.get_operations()
    kinds = {op.type for op in operations if tf.bfloat16 in _inputs(op)}
    assert "Conv2D" in kinds and "Sum" in kinds and "BiasAddGrad" not in kinds


def _inputs(op):
    return [tensor.dtype for tensor in op.inputs]
