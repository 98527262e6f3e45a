"""Table 1 as built: sizes, strides, parameters, and what each logit depends on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf.backbones import scaled
from ss_gan_tf.generator import build_generator

C = 3
TINY = 1 / 32
BACKBONES = ("vgg16", "resnet50")


@pytest.fixture(scope="module")
def generators():
    """Both arms' networks, very narrow, with random weights."""
    keras.utils.set_random_seed(0)
    return {name: build_generator(name, C, width=TINY) for name in BACKBONES}


@pytest.fixture
def zero_initialization(monkeypatch):
    """Full-size networks without the time that random numbers take."""
    monkeypatch.setattr(
        keras.initializers.VarianceScaling,
        "__call__",
        lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype),
    )


def random_image(*size, seed=0):
    return tf.random.stateless_normal([1, *size, 3], [seed, 0], stddev=60.0)


def part(generator, name):
    """The network up to a layer."""
    return keras.Model(generator.input, generator.get_layer(name).output)


LAST_SCORES = {"vgg16": "block3_pool_fuse", "resnet50": "score"}


# --- Sizes -------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (37, 45), (50, 64)])
def test_logits_are_float32_at_the_images_size(generators, backbone, size):
    logits = generators[backbone](random_image(*size))
    assert logits.shape == (1, *size, C) and logits.dtype == tf.float32
    assert np.all(np.isfinite(logits))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_scores_have_stride_8(generators, backbone):
    scores = part(generators[backbone], LAST_SCORES[backbone])
    assert scores(random_image(64, 96)).shape == (1, 8, 12, C)
    # 33x40 is padded to 64x64 (multiples of 32) and 40x40 (of 8).
    cells = {"vgg16": 8, "resnet50": 5}[backbone]
    assert scores(random_image(33, 40)).shape == (1, cells, cells, C)


def test_strides_inside_the_vgg16_generator(generators):
    for name, cells in (("fc7_score", 2), ("block4_pool_fuse", 4)):
        scores = part(generators["vgg16"], name)(random_image(64, 64))
        assert scores.shape == (1, cells, cells, C)


@pytest.mark.parametrize("backbone, multiple", [("vgg16", 32), ("resnet50", 8)])
def test_padding_with_the_mean_colour_changes_nothing(generators, backbone, multiple):
    # What a caller pads at the bottom and right, G would have padded itself.
    generator = generators[backbone]
    image = random_image(33, 45)
    bottom, right = -33 % multiple, -45 % multiple
    padded = tf.pad(image, [[0, 0], [0, bottom], [0, right], [0, 0]])
    np.testing.assert_allclose(
        generator(image), generator(padded)[:, :33, :45], rtol=1e-4, atol=1e-4
    )


# --- Parameters --------------------------------------------------------------


def conv(size, inputs, filters):
    return size * size * inputs * filters + filters


def vgg16_parameters(classes, fc=4096):
    """Table 1, `vgg16`: rows 0-7, then FCN-8s."""
    count, inputs = 0, 3
    for convs, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convs):
            count += conv(3, inputs, filters)
            inputs = filters
    assert count == 14_714_688  # as published
    count += conv(7, 512, fc) + conv(1, fc, fc) + conv(1, fc, classes)
    count += 2 * 4 * 4 * classes * classes  # transposed convolutions without bias
    return count + conv(1, 512, classes) + conv(1, 256, classes)  # pool4, pool3


def resnet50_parameters(classes):
    """Table 1, `resnet50`: rows 0-4 with batch norm (4 numbers a channel), ASPP."""
    count, inputs = conv(7, 3, 64) + 4 * 64, 64
    for blocks, filters in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            count += conv(1, inputs, filters) + conv(3, filters, filters)
            count += conv(1, filters, 4 * filters) + 4 * (2 * filters + 4 * filters)
            if block == 0:  # projected shortcut
                count += conv(1, inputs, 4 * filters) + 4 * 4 * filters
            inputs = 4 * filters
    assert count == 23_587_712  # as published
    # Convolutions without bias, group norm with two numbers a channel:
    # 1x1, three 3x3, image level; then row 6 on their concatenation, and row 7.
    aspp = 2048 * 256 + 3 * 9 * 2048 * 256 + 2048 * 256 + 5 * 2 * 256
    return count + aspp + (5 * 256 * 256 + 2 * 256) + conv(1, 256, classes)


def test_parameters_of_the_full_size_resnet50(zero_initialization):
    generator = build_generator("resnet50", 21)
    # 23,587,712 + 15,204,352 + 2,560 + 328,192 + 5,397.
    assert resnet50_parameters(21) == 39_128_213
    assert generator.count_params() == 39_128_213
    norms = [x for x in generator.layers if isinstance(x, layers.GroupNormalization)]
    assert [norm.groups for norm in norms] == 6 * [32]


def test_parameters_of_the_full_size_vgg16(zero_initialization):
    generator = build_generator("vgg16", 21)
    # Rows 0-4 14,714,688; row 5 102,764,544; row 6 16,781,312; row 7 86,037;
    # transposed convolutions 14,112; skips 10,773 and 5,397.
    assert vgg16_parameters(21) == 134_376_863
    assert generator.count_params() == 134_376_863


def test_parameters_with_narrow_fc_layers(zero_initialization):
    generator = build_generator("vgg16", 21, fc_filters=1024)
    # Row 5 25,691,136, row 6 1,049,600, row 7 21,525 in place of the above.
    assert vgg16_parameters(21, fc=1024) == 41_507_231
    assert generator.count_params() == 41_507_231
    tiny = build_generator("vgg16", C, width=TINY, fc_filters=1024)
    assert tiny.get_layer("fc7").filters == scaled(1024, TINY)


# --- The VGG16 arm -----------------------------------------------------------


def test_fc_layers_are_convolutions_with_same_padding(generators):
    for name, size in (("fc6", 7), ("fc7", 1)):
        layer = generators["vgg16"].get_layer(name)
        assert layer.kernel_size == (size, size) and layer.padding == "same"
        assert layer.activation is keras.activations.relu


def test_every_class_depends_on_pool4_and_pool3():
    keras.utils.set_random_seed(0)
    generator = build_generator("vgg16", C, width=TINY)
    image = random_image(64, 64)
    before = generator(image).numpy()
    for name in ("block4_pool_score", "block3_pool_score"):
        layer = generator.get_layer(name)
        kernel, bias = layer.get_weights()
        # Skips start at zero and leave the coarse scores as they are ...
        assert not kernel.any() and not bias.any()
        for c in range(C):
            # ... and one class's skip moves that class alone at first: the learned
            # transposed convolution of pool4's fusion starts without mixing classes.
            changed = kernel.copy()
            changed[..., c] = 0.1
            layer.set_weights([changed, bias])
            moved = np.abs(generator(image).numpy() - before).max((0, 1, 2))
            assert moved[c] > 1e-3
            assert not np.any(np.delete(moved, c) > 1e-6)
        layer.set_weights([kernel, bias])


def test_skips_and_transposed_convolutions_learn():
    keras.utils.set_random_seed(0)
    generator = build_generator("vgg16", C, width=TINY)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(generator(random_image(64, 64)) ** 2)
    gradients = tape.gradient(total, generator.trainable_variables)
    for variable, gradient in zip(
        generator.trainable_variables, gradients, strict=True
    ):
        assert np.any(gradient.numpy() != 0), variable.path
    assert len(gradients) == 2 * 13 + 2 * 3 + 2 + 2 * 2


def test_dropout_is_active_in_training_alone():
    keras.utils.set_random_seed(0)
    image = random_image(32, 32)
    generator = build_generator("vgg16", C, width=TINY, dropout=0.5)
    plain, again = generator(image, training=False), generator(image, training=False)
    np.testing.assert_array_equal(plain, again)
    first, second = generator(image, training=True), generator(image, training=True)
    assert np.any(first != second)
    rates = [x.rate for x in generator.layers if isinstance(x, layers.Dropout)]
    assert rates == [0.5, 0.5]
    without = build_generator("vgg16", C, width=TINY, dropout=0.0)
    without.set_weights(generator.get_weights())
    np.testing.assert_allclose(without(image, training=True), plain, atol=1e-5)


# --- The ResNet50 arm --------------------------------------------------------


def dilations(generator, start):
    return {
        layer.name: layer.dilation_rate
        for layer in generator.layers
        if isinstance(layer, layers.Conv2D)
        and layer.name.startswith(start)
        and layer.kernel_size == (3, 3)
    }


def test_aspp_has_the_rates_it_is_given(generators):
    assert dilations(generators["resnet50"], "aspp") == {
        f"aspp_rate{rate}_conv": (rate, rate) for rate in (12, 24, 36)
    }
    other = build_generator("resnet50", C, width=TINY, aspp_rates=(2, 5))
    assert dilations(other, "aspp") == {
        "aspp_rate2_conv": (2, 2),
        "aspp_rate5_conv": (5, 5),
    }
    # 1x1, two 3x3, image level: 4 branches of 8 filters.
    assert other.get_layer("aspp_concat").output.shape[-1] == 4 * 8


def test_rows_3_and_4_are_dilated_instead_of_strided(generators):
    resnet = generators["resnet50"]
    for start, blocks, rate in (("conv3", 4, 1), ("conv4", 6, 2), ("conv5", 3, 4)):
        rates = dilations(resnet, start)
        assert len(rates) == blocks and set(rates.values()) == {(rate, rate)}
    strided = {x.name for x in resnet.layers if getattr(x, "strides", (1,))[0] > 1}
    assert strided == {"conv1_conv", "pool1_pool"} | {
        f"conv3_block1_{i}_conv" for i in (0, 1)
    }


@pytest.mark.parametrize("width", [TINY, 0.125])
def test_image_level_branch_tells_images_apart_at_every_width(width):
    # One channel a group would be 0 after the normalisation of a single position.
    keras.utils.set_random_seed(0)
    generator = build_generator("resnet50", C, width=width)
    branch = part(generator, "aspp_image_relu")
    one, other = (branch(random_image(64, 64, seed=s)).numpy() for s in (1, 2))
    assert one.shape[1:3] == (1, 1)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "head_norm, kind",
    [
        ("group", layers.GroupNormalization),
        ("batch", layers.BatchNormalization),
        ("none", None),
    ],
)
def test_norm_of_the_head(head_norm, kind):
    generator = build_generator("resnet50", C, width=TINY, head_norm=head_norm)
    head = [x for x in generator.layers if x.name.startswith("aspp")]
    norms = [x for x in head if x.name.endswith("_norm")]
    # Three 3x3, 1x1, image level, row 6; trained, unlike the backbone's.
    assert len(norms) == (6 if kind else 0)
    assert all(isinstance(norm, kind) and norm.trainable for norm in norms)
    convs = [x for x in head if isinstance(x, layers.Conv2D)]
    assert len(convs) == 6 and all(x.use_bias == (kind is None) for x in convs)
    assert generator(random_image(32, 32)).shape == (1, 32, 32, C)


# --- Saving ------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_saved_model_is_loaded_again(tmp_path, generators, backbone):
    path, image = str(tmp_path / "generator.keras"), random_image(40, 40)
    generators[backbone].save(path)
    again = keras.models.load_model(path)
    ours, theirs = generators[backbone](image), again(image)
    if backbone == "vgg16":
        np.testing.assert_array_equal(theirs, ours)
    # A frozen normalisation is a layer of its own again: other rounding.
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


# --- Precision ---------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_float32_under_mixed_bfloat16(generators, backbone):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        generator = build_generator(backbone, C, width=TINY)
    finally:
        keras.config.set_dtype_policy(policy)
    generator.set_weights(generators[backbone].get_weights())
    convs = {x.name: x for x in generator.layers if isinstance(x, layers.Conv2D)}
    scores = {x.compute_dtype for n, x in convs.items() if n.endswith("score")}
    others = {x.compute_dtype for n, x in convs.items() if not n.endswith("score")}
    assert scores == {"float32"} and others == {"bfloat16"}
    assert part(generator, LAST_SCORES[backbone]).output.dtype == "float32"
    logits = generator(random_image(40, 40))
    assert logits.dtype == tf.float32 and logits.shape == (1, 40, 40, C)
    assert all(w.dtype == "float32" for w in generator.trainable_weights)
    expected = generators[backbone](random_image(40, 40)).numpy()
    np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())
