import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.folding import fold_batch_norm


def draw_weights(model):
    """Weights away from their start, where a normalisation does nothing."""
    draw = np.random.default_rng(0).uniform
    for layer in model.layers:
        layer.set_weights([draw(0.5, 1.5, w.shape) for w in layer.weights])


def count_norms(model):
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def assert_same(model, folded):
    x = np.random.default_rng(1).normal(size=(2, 9, 11, 3)).astype(np.float32)
    outputs = (model(x, training=False), folded(x, training=False))
    for mine, theirs in zip(*map(keras.tree.flatten, outputs), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-5)


def test_by_hand():
    image = keras.Input((1, 1, 1))
    conv = layers.Conv2D(1, 1, name="conv")
    norm = layers.BatchNormalization(epsilon=0.25)
    model = keras.Model(image, norm(conv(image)))
    conv.set_weights([np.full((1, 1, 1, 1), 3.0), np.array([5.0])])
    norm.set_weights([np.array([v]) for v in (4.0, 7.0, 2.0, 0.75)])  # gamma beta m v
    # 4 (3 x + 5 - 2) / sqrt(0.75 + 0.25) + 7 = 12 x + 19
    kernel, bias = fold_batch_norm(model).get_layer("conv").get_weights()
    assert kernel.ravel() == 12 and bias == 19


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("scale, center", [(True, True), (False, False)])
@pytest.mark.parametrize(
    "conv",
    [
        lambda **kwargs: layers.Conv2D(4, 3, padding="same", strides=2, **kwargs),
        lambda **kwargs: DilatedConv2D(4, 3, dilation_rate=2, **kwargs),
        lambda **kwargs: layers.Conv2D(6, 3, groups=3, **kwargs),
    ],
    ids=["strides", "dilated", "groups"],
)
def test_folds(conv, scale, center, use_bias):
    image = keras.Input((None, None, 3))
    norm = layers.BatchNormalization(scale=scale, center=center)
    model = keras.Model(image, layers.ReLU()(norm(conv(use_bias=use_bias)(image))))
    draw_weights(model)
    before = [weight.copy() for weight in model.get_weights()]
    folded = fold_batch_norm(model)
    assert count_norms(folded) == 0
    assert_same(model, folded)
    assert count_norms(model) == 1  # as it was
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def with_activation(image):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(image))


def with_two_readers(image):
    x = layers.Conv2D(4, 3)(image)
    return layers.Add()([layers.BatchNormalization()(x), x])


def with_another_output(image):
    x = layers.Conv2D(4, 3)(image)
    return [layers.BatchNormalization()(x), x]


def with_a_shared_convolution(image):
    conv = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(conv(conv(image)))


def with_a_shared_norm(image):
    norm = layers.BatchNormalization()
    first, second = (norm(layers.Conv2D(4, 3)(image)) for _ in range(2))
    return layers.Add()([first, second])


def along_another_axis(image):
    return layers.BatchNormalization(axis=2)(layers.Conv2D(4, 3)(image))


class Standardized(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel / tf.reduce_mean(kernel))


def with_a_convolution_of_its_own_kind(image):
    return layers.BatchNormalization()(Standardized(4, 3)(image))


def with_another_use_of_the_convolution(image):
    """The convolution has one reader, but is called twice: the second is an output."""
    conv = layers.Conv2D(3, 3, padding="same")
    return [layers.BatchNormalization()(conv(image)), conv(image)]


def behind_no_convolution(image):
    return layers.Conv2D(4, 3)(layers.BatchNormalization()(image))


@pytest.mark.parametrize(
    "build",
    [
        with_activation,
        with_two_readers,
        with_another_output,
        with_a_shared_convolution,
        with_a_shared_norm,
        along_another_axis,
        with_a_convolution_of_its_own_kind,
        with_another_use_of_the_convolution,
        behind_no_convolution,
    ],
)
def test_what_may_not_be_folded_stays(build):
    image = keras.Input((9, 11, 3))
    model = keras.Model(image, build(image))
    draw_weights(model)
    folded = fold_batch_norm(model)
    assert count_norms(folded) == 1
    assert_same(model, folded)


def test_channels_that_come_first_are_another_axis():
    """Built, not called: CPUs have no such convolution."""
    image = keras.Input((3, 9, 6))
    conv = layers.Conv2D(4, 3, data_format="channels_first")(image)
    assert conv.shape[-1] == conv.shape[1]  # so that the weights would fit
    model = keras.Model(image, layers.BatchNormalization()(conv))
    assert fold_batch_norm(model) is model


class Stubborn(layers.Layer):
    """Its settings do not tell how to build it."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_models_that_cannot_be_built_again_are_kept(caplog):
    image = keras.Input((9, 11, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    lambdas = keras.Model(image, layers.Lambda(lambda x: x + 1)(x))
    own = keras.Model(image, Stubborn(2.0)(x))
    for model in (lambdas, own):
        assert fold_batch_norm(model) is model
    assert caplog.text.count("batch normalisation stays in the model") == 2
    sequential = keras.Sequential(
        [keras.Input((9, 11, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    )
    assert fold_batch_norm(sequential) is sequential


def test_lora_is_left_alone():
    image = keras.Input((9, 11, 3))
    conv = layers.Conv2D(4, 3)
    model = keras.Model(image, layers.BatchNormalization()(conv(image)))
    conv.enable_lora(2)
    assert fold_batch_norm(model) is model


def test_one_of_two_is_folded_and_the_rest_is_kept():
    image = keras.Input((None, None, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3)(image))
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    inner = keras.Sequential([keras.Input((None, None, 4)), layers.Conv2D(2, 1)])
    model = keras.Model(image, inner(x))
    draw_weights(model)
    folded = fold_batch_norm(model)
    assert count_norms(folded) == 1
    before, after = ({x.name for x in m.layers[1:]} for m in (model, folded))
    assert before - after == {"norm"} and not after - before
    assert_same(model, folded)
