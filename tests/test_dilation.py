import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import dilation
from ss_gan_tf.backbones import resnet50_trunk
from ss_gan_tf.dilation import DilatedConv2D


def both(rate, **kwargs):
    """Keras' layer and ours with the same weights."""
    layers = [
        conv(4, 3, dilation_rate=rate, bias_initializer="ones", **kwargs)
        for conv in (keras.layers.Conv2D, DilatedConv2D)
    ]
    for layer in layers:
        layer.build([None, None, None, 3])
    layers[1].set_weights(layers[0].get_weights())
    return layers


def output_and_gradients(layer, image):
    with tf.GradientTape() as tape:
        tape.watch(image)
        out = layer(image)
        loss = tf.reduce_sum(tf.square(out))
    return [out, *tape.gradient(loss, [image, *layer.trainable_weights])]


# A rate beyond the map leaves the centre of the kernel alone.
@pytest.mark.parametrize(
    "rate, padding", [(2, "same"), (9, "same"), (40, "same"), (4, "valid")]
)
def test_equals_keras(rate, padding):
    image = tf.constant(
        np.random.default_rng(rate).normal(size=(2, 21, 30, 3)), tf.float32
    )
    theirs, ours = (
        output_and_gradients(layer, image) for layer in both(rate, padding=padding)
    )
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_by_hand():
    layer = DilatedConv2D(1, 3, dilation_rate=2, padding="same", use_bias=False)
    layer.build([None, None, None, 1])
    layer.set_weights([np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)])
    image = np.zeros((1, 5, 5, 1), np.float32)
    image[0, 2, 2] = 1
    out = layer(image)[0, ..., 0].numpy()
    # A point in the middle meets the kernel reversed, two cells apart.
    np.testing.assert_array_equal(out[::2, ::2], np.arange(9)[::-1].reshape(3, 3))
    assert not out[1::2].any() and not out[:, 1::2].any()


def test_what_is_asked_of_the_device_is_what_a_step_needs():
    @tf.function
    def gradients(image, kernel):
        with tf.GradientTape() as tape:
            tape.watch([image, kernel])
            out = tf.nn.conv2d(image, kernel, 1, "SAME", dilations=3)
        return tape.gradient(out, [image, kernel])

    try:
        gradients(tf.ones([2, 9, 9, 8]), tf.ones([3, 3, 8, 8]))
        works = True
    except tf.errors.OpError:
        works = False
    assert dilation._device_differentiates_dilation(tf.float32) == works


def test_gradients_in_a_compiled_graph_on_any_device():
    layer = DilatedConv2D(4, 3, dilation_rate=3, padding="same")
    image = tf.random.stateless_normal([1, 16, 16, 3], [1, 2])
    layer.build(image.shape)
    gradients = tf.function(output_and_gradients)(layer, image)
    assert all(tf.reduce_any(g != 0) for g in gradients[1:])


def test_the_trunk_rearranges_nothing():
    if not dilation._device_differentiates_dilation(tf.float32):
        pytest.skip("this device takes Keras' way")
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, resnet50_trunk(image, width=0.125))
    traced = tf.function(trunk).get_concrete_function(
        tf.TensorSpec([None, None, None, 3], tf.float32)
    )
    found = {op.type for op in traced.graph.get_operations()}
    assert "Conv2D" in found and "SpaceToBatchND" not in found


def test_where_the_device_cannot_keras_does(monkeypatch):
    image = tf.random.stateless_normal([1, 16, 16, 3], [1, 2])
    theirs, ours = both(3, padding="same")
    with_kernel = ours(image)
    monkeypatch.setattr(dilation, "_device_differentiates_dilation", lambda _: False)
    np.testing.assert_array_equal(theirs(image), ours(image))
    np.testing.assert_allclose(with_kernel, ours(image), rtol=1e-5, atol=1e-5)
    # Both ways share the layer's weights and their names.
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_differentiated_in_a_graph(dtype):
    image = tf.random.stateless_normal([1, 16, 16, 3], [1, 2], dtype=dtype)
    layer = DilatedConv2D(4, 3, dilation_rate=3, padding="same", dtype=dtype)
    layer.build(image.shape)
    gradients = tf.function(output_and_gradients)(layer, image)
    assert all(tf.reduce_any(g != 0) for g in gradients[1:])
