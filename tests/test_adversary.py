"""Table 2 and Fig. 4 as built, and equations 1-2: what the adversary is shown."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf.adversary import fake_map, real_map, valid_cells, verdict_accuracy
from ss_gan_tf.resampling import AdaptiveAveragePooling, AveragePooling2D

VOID = 255
TINY = 1 / 32  # width; 8 filters, 16 in layer 5


def numpy_real_map(probs, label, epsilon):
    """Eq. 1 and 2 in float64, pixel by pixel; vbar = u where u[l] >= epsilon."""
    u = np.float64(probs)
    vbar = u.copy()
    for pixel in np.ndindex(label.shape):
        true = label[pixel]
        if true == VOID or u[pixel][true] >= epsilon:
            continue
        vbar[pixel] = u[pixel] * (1 - epsilon) / (1 - u[pixel][true])
        vbar[pixel][true] = epsilon
    return vbar


def random_probs(shape, seed=0, spread=4.0):
    logits = np.random.default_rng(seed).normal(0, spread, shape)
    return tf.nn.softmax(tf.constant(logits, tf.float32)).numpy()


def random_label(shape, num_classes, seed=0, void=0.2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape).astype(np.int32)
    label[rng.random(shape) < void] = VOID
    return label


# --- Eq. 1 and 2 -------------------------------------------------------------


def shown(probs, true, epsilon=0.9):
    """vbar of one pixel."""
    return real_map(
        np.float32(probs).reshape(1, 1, 1, -1), tf.constant([[[true]]]), epsilon, VOID
    ).numpy()[0, 0, 0]


def test_real_map_by_hand():
    # u = (0.5, 0.3, 0.2), epsilon = 0.9.
    # l = 0: vbar[0] = max(0.9, 0.5); the others times (1 - 0.9) / (1 - 0.5) = 0.2.
    np.testing.assert_allclose(shown([0.5, 0.3, 0.2], 0), [0.9, 0.06, 0.04], rtol=1e-5)
    # l = 2: the others times 0.1 / 0.8 = 0.125.
    np.testing.assert_allclose(
        shown([0.5, 0.3, 0.2], 2), [0.0625, 0.0375, 0.9], rtol=1e-5
    )
    # epsilon = 0.6, l = 0: the others times 0.4 / 0.5 = 0.8.
    np.testing.assert_allclose(
        shown([0.5, 0.3, 0.2], 0, 0.6), [0.6, 0.24, 0.16], rtol=1e-5
    )
    # u[l] = 0.95 >= epsilon: vbar = u.
    np.testing.assert_array_equal(
        shown([0.95, 0.03, 0.02], 0), np.float32([0.95, 0.03, 0.02])
    )
    # u[l] = 0: vbar[l] = 0.9, the others times 0.1.
    np.testing.assert_allclose(shown([0.0, 0.7, 0.3], 0), [0.9, 0.07, 0.03], rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 0.6, 0.9, 1.0])
def test_real_map_agrees_with_numpy(epsilon):
    probs = random_probs((2, 9, 7, 5))
    label = random_label((2, 9, 7), 5)
    vbar = real_map(probs, label, epsilon, VOID)
    assert vbar.dtype == tf.float32
    np.testing.assert_allclose(vbar, numpy_real_map(probs, label, epsilon), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.51, 0.9, 1.0])
def test_real_map_is_a_distribution_whose_best_class_is_the_truth(epsilon):
    probs = random_probs((2, 16, 16, 5), seed=1)
    label = random_label((2, 16, 16), 5, seed=1)
    vbar = real_map(probs, label, epsilon, VOID).numpy()
    np.testing.assert_allclose(vbar.sum(-1), 1, atol=1e-5)
    assert np.all(vbar >= 0)
    valid = label != VOID
    np.testing.assert_array_equal(vbar.argmax(-1)[valid], label[valid])
    true = np.take_along_axis(vbar, np.where(valid, label, 0)[..., None], -1)[..., 0]
    assert np.all(true[valid] >= np.float32(epsilon))


def test_real_map_is_the_prediction_where_that_is_sure_and_right():
    probs = random_probs((1, 16, 16, 3), seed=2)
    label = probs.argmax(-1).astype(np.int32)
    vbar = real_map(probs, label, 0.7, VOID).numpy()
    sure = probs.max(-1) >= 0.7
    assert 0.1 < sure.mean() < 0.99
    np.testing.assert_array_equal(vbar[sure], probs[sure])
    assert np.all(np.any(vbar[~sure] != probs[~sure], -1))


def test_epsilon_one_gives_the_one_hot_map():
    probs = random_probs((1, 16, 16, 4), seed=3)
    label = random_label((1, 16, 16), 4, seed=3, void=0)
    np.testing.assert_array_equal(real_map(probs, label, 1.0, VOID), np.eye(4)[label])


@pytest.mark.parametrize("epsilon", [0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_real_map_is_finite_at_the_limits(epsilon, dtype):
    # u[l] = 0, epsilon, 1, and 1 with rests that do not sum to 0 (as rounding does).
    probs = np.array(
        [[0, 0.25, 0.75], [epsilon, 1 - epsilon, 0], [1, 0, 0], [1, 1e-4, 1e-7]], dtype
    ).reshape(1, 2, 2, 3)
    vbar = real_map(probs, np.zeros((1, 2, 2), np.int32), epsilon, VOID).numpy()
    assert np.all(np.isfinite(vbar)) and vbar.dtype == np.float32
    np.testing.assert_allclose(
        vbar.sum(-1), 1, atol=2e-3 if dtype == np.float16 else 2e-4
    )
    assert np.all(vbar[..., 0] >= np.float32(epsilon) - 1e-3)


def test_real_map_is_finite_for_softmax_in_half_precision():
    probs = random_probs((2, 32, 32, 4), seed=4, spread=8).astype(np.float16)
    label = probs.argmax(-1).astype(np.int32)
    label[0] = random_label((32, 32), 4, void=0)
    assert np.any(probs == 1) and np.any(probs == 0)
    vbar = real_map(probs, label, 0.9, VOID).numpy()
    assert np.all(np.isfinite(vbar))
    np.testing.assert_allclose(vbar.sum(-1), 1, atol=3e-3)
    np.testing.assert_array_equal(vbar.argmax(-1), label)


def test_no_gradient_flows_through_the_real_map():
    logits = tf.constant(np.random.default_rng(5).normal(size=(1, 4, 4, 3)))
    label = random_label((1, 4, 4), 3, seed=5)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        vbar = real_map(tf.nn.softmax(logits), label, 0.9, VOID)
    assert tape.gradient(vbar, logits) is None


# --- Void --------------------------------------------------------------------


def test_both_maps_are_equal_at_void_and_padding_and_only_there():
    probs = random_probs((2, 12, 12, 3), seed=6, spread=1.0)
    label = random_label((2, 12, 12), 3, seed=6)
    label[:, 8:] = VOID  # padding of the crop
    real = real_map(probs, label, 0.99, VOID).numpy()
    fake = fake_map(probs, label, VOID).numpy()
    void = label == VOID
    np.testing.assert_array_equal(real[void], fake[void])
    np.testing.assert_array_equal(fake, probs)
    assert np.all(np.any(real[~void] != fake[~void], -1))


def test_fake_map_passes_gradient_at_labelled_pixels_alone():
    probs = tf.constant(random_probs((1, 6, 6, 3), seed=7))
    label = random_label((1, 6, 6), 3, seed=7)
    with tf.GradientTape() as tape:
        tape.watch(probs)
        total = tf.reduce_sum(fake_map(probs, label, VOID))
    expected = np.repeat((label != VOID)[..., None], 3, -1)
    np.testing.assert_array_equal(tape.gradient(total, probs), expected)


def test_ignore_label_may_be_another_id():
    probs = random_probs((1, 1, 2, 2), seed=8, spread=0.1)
    label = np.int32([[[0, 1]]])
    real = real_map(probs, label, 0.9, 0).numpy()
    np.testing.assert_array_equal(real[0, 0, 0], probs[0, 0, 0])
    assert real[0, 0, 1, 1] == np.float32(0.9)


# --- Table 2 -----------------------------------------------------------------


def table2(adversary):
    """The layers in order, as the rows of Table 2."""
    rows = []
    for layer in adversary.layers:
        if isinstance(layer, layers.Conv2D):
            rows.append(("conv", *layer.kernel_size, layer.filters))
            assert layer.padding == "same" and layer.strides == (1, 1)
            assert layer.dilation_rate == (1, 1) and layer.use_bias
            assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)
            assert layer.activation is keras.activations.linear
        elif isinstance(layer, layers.LeakyReLU):
            rows.append(("leaky", layer.negative_slope))
        elif isinstance(layer, AveragePooling2D):
            rows.append(("pool", *layer.pool_size, *layer.strides))
        elif isinstance(layer, AdaptiveAveragePooling):
            rows.append(("area", layer.size or layer.stride))
        elif isinstance(layer, layers.Concatenate):
            rows.append(("merge",))
    return rows


def test_layers_are_those_of_table_2():
    adversary = adversary_lib.build_adversary(21, 128)
    assert table2(adversary) == [
        ("conv", 3, 3, 64),  # 0
        ("leaky", 0.2),
        ("area", None),  # to the extractor's size
        ("merge",),
        ("conv", 3, 3, 128),  # 1
        ("leaky", 0.2),
        ("pool", 2, 2, 2, 2),  # 2
        ("conv", 3, 3, 256),  # 3
        ("leaky", 0.2),
        ("pool", 2, 2, 2, 2),  # 4
        ("conv", 3, 3, 512),  # 5
        ("leaky", 0.2),
        ("conv", 3, 3, 1),  # 6
        ("area", 4),  # the 4x4 grid
    ]
    # Merged behind layer 0: layer 1 reads 64 channels of the map and 128 of the image.
    assert adversary.get_layer("conv0").kernel.shape == (3, 3, 21, 64)
    assert adversary.get_layer("conv1").kernel.shape == (3, 3, 64 + 128, 128)
    # 3*3*in*out + out of each: 12,160 + 221,312 + 295,168 + 1,180,160 + 4,609.
    assert adversary.count_params() == 1_713_409


def test_map_alone_is_resampled_to_stride_4():
    adversary = adversary_lib.build_adversary(5, None, width=TINY)
    assert table2(adversary)[2] == ("area", 4)
    assert ("merge",) not in table2(adversary)
    assert len(adversary.inputs) == 1
    verdicts = adversary(tf.zeros([2, 64, 48, 5]))
    assert verdicts.shape == (2, 4, 4) and verdicts.dtype == tf.float32


@pytest.fixture(scope="module")
def networks():
    """(extractor, adversary) of each backbone, 3 classes, 4x4 grid."""
    pairs = {}
    for backbone in ("vgg16", "resnet50"):
        keras.utils.set_random_seed(0)
        extractor = adversary_lib.build_extractor(backbone, width=TINY)
        adversary = adversary_lib.build_adversary(
            3, extractor.output_shape[-1], width=TINY
        )
        pairs[backbone] = extractor, adversary
    return pairs


def random_image(*shape, seed=0):
    return tf.random.stateless_normal(shape, [seed, 1], stddev=60.0)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (71, 97), (52, 50), (32, 33)])
def test_verdicts_are_4x4_at_any_crop_size(networks, backbone, size):
    extractor, adversary = networks[backbone]
    features = extractor(random_image(2, *size, 3))
    verdicts = adversary([tf.constant(random_probs((2, *size, 3))), features])
    assert verdicts.shape == (2, 4, 4) and verdicts.dtype == tf.float32
    assert np.all(np.isfinite(verdicts))


def test_grid_of_one_is_one_verdict_and_grid_of_zero_is_dense(networks):
    _, adversary = networks["vgg16"]
    inputs = [
        tf.constant(random_probs((1, 128, 96, 3))),
        tf.random.stateless_normal([1, 32, 24, 8], [1, 1]),
    ]
    verdicts = {}
    for grid in (1, 0):
        other = adversary_lib.build_adversary(3, 8, grid_size=grid, width=TINY)
        other.set_weights(adversary.get_weights())
        verdicts[grid] = other(inputs).numpy()
    # Dense: a sixteenth of the crop's sides. Both grids average the dense verdicts.
    assert verdicts[0].shape == (1, 8, 6) and verdicts[1].shape == (1, 1, 1)
    np.testing.assert_allclose(
        verdicts[1][0, 0, 0], verdicts[0].mean(), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        adversary(inputs)[0, 0, 0],
        # Cell 0 of 4 covers rows 0-1 of 8 and columns 0, 1/2 of 1 of 6.
        (verdicts[0][0, :2, :2] * [1 / 1.5, 0.5 / 1.5]).sum(-1).mean(),
        rtol=1e-4,
    )


def test_a_bad_region_does_not_change_the_verdicts_far_from_it(networks):
    # A dense verdict sees 106 pixels (3, 6, 14, 18, 34, 42, 74, 106 behind conv 0,
    # area, conv 1, pool, conv 3, pool, conv 5, conv 6), 45 beyond its own 16. Cell 0
    # of 4 at 128 pixels so ends at pixel 31 + 45 = 76; the last 32 are out of sight.
    _, adversary = networks["vgg16"]
    features = tf.random.stateless_normal([1, 32, 32, 8], [1, 1])
    good = random_probs((1, 128, 128, 3))
    bad = good.copy()
    bad[:, 96:, 96:] = bad[:, 96:, 96:, ::-1]
    before, after = (adversary([tf.constant(m), features]).numpy() for m in (good, bad))
    np.testing.assert_allclose(before[0, 0], after[0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(before[0, :, 0], after[0, :, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(before[0, 3, 3] - after[0, 3, 3]) > 1e-4


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("size", [(64, 64), (67, 50)])
def test_gradient_reaches_every_pixel_of_the_label_map(networks, backbone, size):
    extractor, adversary = networks[backbone]
    label_map = tf.constant(random_probs((1, *size, 3)))
    features = extractor(random_image(1, *size, 3))
    with tf.GradientTape() as tape:
        tape.watch(label_map)
        total = tf.reduce_sum(adversary([label_map, features]))
    gradient = tape.gradient(total, label_map).numpy()
    assert np.all(np.abs(gradient).max(-1) > 0)


def test_verdicts_depend_on_map_and_image(networks):
    extractor, adversary = networks["vgg16"]
    label_map = tf.constant(random_probs((1, 64, 64, 3)))
    features = extractor(random_image(1, 64, 64, 3))
    verdicts = adversary([label_map, features]).numpy()
    other_map = adversary([label_map[..., ::-1], features]).numpy()
    other_image = extractor(random_image(1, 64, 64, 3, seed=9))
    other_features = adversary([label_map, other_image]).numpy()
    assert np.all(verdicts != other_map) and np.all(verdicts != other_features)


# --- Extractor ---------------------------------------------------------------


def test_extractor_ends_at_stride_4():
    vgg = adversary_lib.build_extractor("vgg16", normalize_features=False)
    assert vgg.layers[-1].name == "block2_pool"
    assert vgg.output_shape == (None, None, None, 128)
    resnet = adversary_lib.build_extractor("resnet50", normalize_features=False)
    assert resnet.layers[-1].name == "pool1_pool"
    assert resnet.output_shape == (None, None, None, 64)
    for model in (vgg, resnet):
        assert model(tf.zeros([1, 32, 64, 3])).shape[1:3] == (8, 16)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_extractor_sees_the_image_alone_and_is_frozen(networks, backbone):
    extractor, _ = networks[backbone]
    assert [tuple(i.shape) for i in extractor.inputs] == [(None, None, None, 3)]
    assert extractor.weights and not extractor.trainable_variables


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_trainable_extractor_keeps_its_batch_norm(backbone):
    extractor = adversary_lib.build_extractor(backbone, width=TINY, trainable=True)
    trained = {v.path.split("/")[-2] for v in extractor.trainable_variables}
    assert (
        trained
        == {
            "vgg16": {"block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"},
            "resnet50": {"conv1_conv"},
        }[backbone]
    )


def test_features_have_unit_rms_at_every_position():
    extractor = adversary_lib.build_extractor("vgg16", width=0.125)
    features = extractor(random_image(2, 32, 32, 3)).numpy()
    np.testing.assert_allclose(np.mean(features**2, -1), 1, rtol=1e-3)
    plain = adversary_lib.build_extractor(
        "vgg16", width=0.125, normalize_features=False
    )
    plain.set_weights(extractor.get_weights())
    raw = plain(random_image(2, 32, 32, 3)).numpy()
    assert np.sqrt(np.mean(raw**2)) > 10
    rms = np.sqrt(np.mean(raw**2, -1, keepdims=True))
    np.testing.assert_allclose(features, raw / rms, rtol=1e-3, atol=1e-6)


# --- Cells and accuracy ------------------------------------------------------


def cells_of(label, grid):
    verdicts = tf.zeros([len(label), grid, grid])
    return valid_cells(tf.constant(label), VOID, verdicts).numpy()


def test_valid_cells_by_hand():
    # 8x8 pixels, 4x4 cells of 2x2: pixel (2, 5) lies in cell (1, 2) and touches no
    # other, though row 2 begins where cell row 0 ends.
    label = np.full((2, 8, 8), VOID, np.int32)
    label[0, 2, 5] = 0
    label[1, :, :4] = 7
    expected = np.zeros((2, 4, 4), bool)
    expected[0, 1, 2] = True
    expected[1, :, :2] = True
    np.testing.assert_array_equal(cells_of(label, 4), expected)


def test_valid_cells_of_sizes_that_do_not_divide():
    # 5 pixels, 4 cells: edges at 0, 1.25, 2.5, 3.75, 5. Row 1 is cut by the first
    # edge: cells 0 and 1. Column 4 lies inside cell 3.
    label = np.full((1, 5, 5), VOID, np.int32)
    label[0, 1, 4] = 3
    expected = np.zeros((1, 4, 4), bool)
    expected[0, :2, 3] = True
    np.testing.assert_array_equal(cells_of(label, 4), expected)


def test_one_labelled_pixel_of_a_full_crop_makes_its_cell_valid():
    label = np.full((1, 500, 500), VOID, np.int32)
    label[0, 130, 499] = 0
    cells = cells_of(label, 4)
    assert cells[0, 1, 3] and cells.sum() == 1


def test_verdict_accuracy_by_hand():
    # Cells:            0     1    2   unlabelled
    # real > 0:        yes    no  yes   -          2/3
    # fake < 0:         no   yes   no   -          1/3
    # real > fake:     yes   yes  tie   -          2.5/3
    real = tf.constant([[[1.0, -1.0], [2.0, -9.0]]])
    fake = tf.constant([[[0.5, -2.0], [2.0, 9.0]]])
    cells = tf.constant([[[True, True], [True, False]]])
    accuracy = verdict_accuracy(real, fake, cells)
    assert accuracy["real"].numpy() == pytest.approx(2 / 3)
    assert accuracy["fake"].numpy() == pytest.approx(1 / 3)
    assert accuracy["paired"].numpy() == pytest.approx(2.5 / 3)


def test_verdict_accuracy_of_an_adversary_surely_right_and_surely_wrong():
    plus, minus = tf.fill([2, 4, 4], 5.0), tf.fill([2, 4, 4], -5.0)
    cells = tf.ones([2, 4, 4], tf.bool)
    for real, fake, share in ((plus, minus, 1), (minus, plus, 0)):
        accuracy = verdict_accuracy(real, fake, cells)
        assert {k: v.numpy() for k, v in accuracy.items()} == {
            "real": share,
            "fake": share,
            "paired": share,
        }


def test_verdict_accuracy_of_no_cell_is_zero():
    logits = tf.ones([1, 2, 2])
    accuracy = verdict_accuracy(logits, -logits, tf.zeros([1, 2, 2], tf.bool))
    assert all(v.numpy() == 0 for v in accuracy.values())
