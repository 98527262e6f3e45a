import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf import backbones
from ss_gan_tf.convolution import Conv2D
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.generator import build_generator
from ss_gan_tf.normalization import BatchNormalization, convolve_and_normalize

CONVOLUTIONS = {
    "plain": lambda **kwargs: Conv2D(4, 3, **kwargs),
    "strides": lambda **kwargs: Conv2D(4, 3, strides=2, padding="same", **kwargs),
    "no bias": lambda **kwargs: Conv2D(4, 3, use_bias=False, **kwargs),
    "dilated": lambda **kwargs: DilatedConv2D(4, 3, dilation_rate=2, **kwargs),
}


def ours_and_keras(convolve, dtype="float32", **kwargs):
    """The two layers and Keras' own behind the same convolution, of equal weights."""
    rng = np.random.default_rng(0)
    image = keras.Input((None, None, 3))
    conv, norm = convolve(dtype=dtype), BatchNormalization(dtype=dtype, **kwargs)
    ours = keras.Model(image, convolve_and_normalize(image, conv, norm))
    plain = convolve(dtype=dtype)
    theirs = layers.BatchNormalization(dtype=dtype, **kwargs)
    other = keras.Model(image, theirs(plain(image)))
    ours.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in ours.weights])
    other.set_weights(ours.get_weights())
    norm.trainable = theirs.trainable = False
    return ours, other


def output_and_gradients(model, image, training=True):
    with tf.GradientTape() as tape:
        tape.watch(image)
        output = model(image, training=training)
        loss = tf.reduce_sum(tf.cast(output, tf.float32) ** 2)
    sources = [image, *(w.value for w in model.trainable_weights)]
    return [output, *tape.gradient(loss, sources)]


def image(dtype=tf.float32):
    drawn = np.random.default_rng(1).normal(size=(2, 9, 11, 3))
    return tf.constant(drawn, dtype)


@pytest.mark.parametrize("scale, center", [(True, True), (False, False)])
@pytest.mark.parametrize("convolve", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_frozen_it_is_keras_up_to_rounding(convolve, scale, center):
    pair = ours_and_keras(convolve, scale=scale, center=center)
    found, expected = (output_and_gradients(model, image()) for model in pair)
    # Of the convolution alone: kernel and maybe bias.
    assert len(found) == len(expected) in (3, 4)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-4)


def test_by_hand():
    x = keras.Input((1, 1, 1))
    conv, norm = Conv2D(1, 1), BatchNormalization(epsilon=0.25)
    model = keras.Model(x, convolve_and_normalize(x, conv, norm))
    conv.set_weights([np.full((1, 1, 1, 1), 3.0), np.array([5.0])])
    norm.set_weights([np.array([v]) for v in (4.0, 7.0, 2.0, 0.75)])  # gamma beta m v
    norm.trainable = False
    # 4 (3 x + 5 - 2) / sqrt(0.75 + 0.25) + 7 = 12 x + 19
    assert model(np.full((1, 1, 1, 1), 2.0)).numpy().item() == 43


def test_trained_it_is_keras_statistics_too():
    ours, theirs = ours_and_keras(CONVOLUTIONS["plain"])
    ours.layers[-1].trainable = theirs.layers[-1].trainable = True
    for training in (True, False):
        found, expected = (
            output_and_gradients(model, image(), training) for model in (ours, theirs)
        )
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-4)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_it_may_be_frozen_and_released():
    model, _ = ours_and_keras(CONVOLUTIONS["plain"])
    norm = model.layers[-1]
    outputs = []
    for trainable in (False, True, False):
        norm.trainable = trainable
        outputs.append(model(image(), training=False).numpy())
    np.testing.assert_array_equal(outputs[0], outputs[2])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    norm.trainable = True
    assert np.abs(model(image(), training=True) - outputs[0]).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_in_half_precision_it_is_as_near_to_float32_as_keras_is(policy):
    exact = output_and_gradients(ours_and_keras(CONVOLUTIONS["plain"])[1], image())
    off = [
        [
            float(tf.norm(tf.cast(found, tf.float32) - expected) / tf.norm(expected))
            for found, expected in zip(
                output_and_gradients(model, image()), exact, strict=True
            )
        ]
        for model in ours_and_keras(CONVOLUTIONS["plain"], policy)
    ]
    for ours, theirs in zip(*off, strict=True):
        assert 0 < ours < 1.5 * theirs < 0.03


def test_a_scaled_kernel_is_rounded_once():
    """1.003 and 1.003^2 = 1.006 lie below and above the middle of 1 and 1.0078."""
    x = keras.Input((1, 1, 1))
    settings = {"dtype": "mixed_bfloat16"}
    conv, norm = Conv2D(1, 1, **settings), BatchNormalization(epsilon=0, **settings)
    model = keras.Model(x, convolve_and_normalize(x, conv, norm))
    conv.set_weights([np.full((1, 1, 1, 1), 1.003), np.zeros(1)])
    norm.set_weights([np.array([v]) for v in (1.003, 0.0, 0.0, 1.0)])
    norm.trainable = False
    assert model(np.ones((1, 1, 1, 1))).numpy().item() == 1.0078125


def test_a_traced_function_keeps_to_what_was_frozen_then():
    model, _ = ours_and_keras(CONVOLUTIONS["plain"])
    norm, x = model.layers[-1], image()
    traced = tf.function(lambda x: model(x, training=False), jit_compile=True)
    expected = traced(x)
    norm.trainable = True
    np.testing.assert_array_equal(traced(x), expected)
    # Weights are read anew.
    norm.set_weights([0 * norm.get_weights()[0], *norm.get_weights()[1:]])
    beta = np.broadcast_to(norm.get_weights()[1], expected.shape)
    np.testing.assert_allclose(traced(x), beta, rtol=1e-5)


def test_no_map_is_gone_over_for_it():
    """Frozen, nothing but the convolution, its bias and ReLUs touches a map."""
    for frozen in (True, False):
        model = build_generator("resnet50", 3, width=0.125, freeze_backbone_norm=frozen)
        trunk = keras.Model(model.input, model.get_layer("conv2_block1_out").output)
        traced = tf.function(lambda x, trunk=trunk: trunk(x, training=True))
        graph = traced.get_concrete_function(tf.TensorSpec([1, 64, 64, 3])).graph
        # At the stem's end and in the first block; kernels are of rank 4 too.
        of_maps = {
            op.type
            for op in graph.get_operations()
            if op.outputs and op.outputs[0].shape.rank == 4
            if op.outputs[0].shape[0] == 1 and op.outputs[0].shape[1] == 16
        }
        needed = {"Conv2D", "BiasAdd", "Relu", "MaxPool", "AddV2", "Identity"}
        assert (of_maps <= needed) == frozen
        assert of_maps >= needed - {"Identity"}


def test_weights_have_their_names_and_order():
    model = build_generator("resnet50", 3, width=0.125)
    names = [w.path for w in model.get_layer("conv2_block1_1_conv").weights]
    assert names == [f"conv2_block1_1_conv/{name}" for name in ("kernel", "bias")]
    norm = model.get_layer("conv2_block1_1_bn")
    assert [w.name for w in norm.weights] == [
        *("gamma", "beta", "moving_mean", "moving_variance")
    ]


def test_a_copy_computes_the_same():
    keras.utils.set_random_seed(0)  # some weights hardly see the image
    model = build_generator("resnet50", 3, width=0.125)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    backbones.freeze_batch_norm(model)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert copy.get_layer("conv1_bn").by_convolution is False
    x = tf.random.stateless_normal([1, 64, 64, 3], [0, 1])
    ours, theirs = (m(x, training=False).numpy() for m in (model, copy))
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * theirs.std())
    # And it is the images that the outputs depend on.
    assert np.abs(model(2 * x, training=False) - ours).max() > 0.1 * theirs.std()


@pytest.mark.parametrize(
    "conv, norm, why",
    [
        ({"activation": "relu"}, {}, "an activation stands before"),
        ({"data_format": "channels_first"}, {}, "channels must come last"),
        ({}, {"axis": 1}, "channels must come last"),
    ],
)
def test_what_cannot_be_joined_is_refused(conv, norm, why):
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match=why):
        convolve_and_normalize(x, Conv2D(4, 1, **conv), BatchNormalization(**norm))


class Standardized(Conv2D):
    def call(self, inputs):
        return super().call(inputs) * 2


@pytest.mark.parametrize(
    "conv, norm",
    [
        (layers.Conv2D, BatchNormalization),
        (Standardized, BatchNormalization),
        (Conv2D, layers.BatchNormalization),
    ],
)
def test_layers_that_would_not_do_it_are_refused(conv, norm):
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="must be layers of ss_gan_tf"):
        convolve_and_normalize(x, conv(4, 1), norm())


def test_layers_in_use_are_refused():
    x = keras.Input((8, 8, 3))
    conv, norm = Conv2D(4, 1), BatchNormalization()
    convolve_and_normalize(x, conv, norm)
    for pair in ((conv, BatchNormalization()), (Conv2D(4, 1), norm)):
        with pytest.raises(ValueError, match="must be new"):
            convolve_and_normalize(x, *pair)
