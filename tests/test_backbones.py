"""Trunks equal to keras.applications', and weights that load or say why not."""

import hashlib
import logging

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ss_gan_tf import backbones, generator
from ss_gan_tf.adversary import build_extractor
from ss_gan_tf.generator import build_generator

TINY = 1 / 32


def random_image(*size, seed=0):
    return tf.random.stateless_normal([1, *size, 3], [seed, 0], stddev=60.0)


def copy_by_name(source, target):
    names = {layer.name for layer in source.layers}
    copied = [x for x in target.layers if x.weights and x.name in names]
    for layer in copied:
        layer.set_weights(source.get_layer(layer.name).get_weights())
    assert len(copied) == len([x for x in target.layers if x.weights])


def assert_close(ours, theirs):
    """Equal to float32 rounding of the largest activation."""
    theirs = np.asarray(theirs)
    assert np.asarray(ours).shape == theirs.shape and np.any(theirs > 0)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def trunk_model(backbone, width=1.0):
    image = keras.Input((None, None, 3))
    if backbone == "vgg16":
        features = backbones.vgg16_trunk(image, width)["block5_pool"]
    else:
        features = backbones.resnet50_trunk(image, width)
    return keras.Model(image, features)


def outputs_of(model, names):
    return keras.Model(model.input, [model.get_layer(name).output for name in names])


# --- Against keras.applications ----------------------------------------------


def test_vgg16_features_equal_keras_applications():
    keras.utils.set_random_seed(0)
    theirs = keras.applications.VGG16(include_top=False, weights=None)
    for layer in theirs.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.random.uniform(-1, 1, bias.shape)])
    ours = trunk_model("vgg16")
    copy_by_name(theirs, ours)
    assert ours.count_params() == theirs.count_params()
    names = [f"block{i}_pool" for i in range(1, 6)]
    image = random_image(32, 64)
    for one, other in zip(
        outputs_of(ours, names)(image), outputs_of(theirs, names)(image), strict=True
    ):
        assert_close(one, other)


def test_resnet50_features_equal_keras_applications():
    # Up to conv3 directly. Behind it, the dilated network computes at every second
    # (conv4) and every fourth (conv5) cell what the strided one computes: rate 2 and
    # 4 step over exactly the cells that the strides leave out.
    keras.utils.set_random_seed(0)
    theirs = keras.applications.ResNet50(include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            gamma, variance = rng.uniform(0.5, 1.5, (2, *shape))
            beta, mean = rng.normal(0, 0.1, (2, *shape))
            layer.set_weights([gamma, beta, mean, variance])
    ours = trunk_model("resnet50")
    copy_by_name(theirs, ours)
    assert ours.count_params() == theirs.count_params()
    strides = {
        "pool1_pool": 1,
        "conv2_block3_out": 1,
        "conv3_block4_out": 1,
        "conv4_block6_out": 2,
        "conv5_block3_out": 4,
    }
    image = random_image(64, 96)
    results = zip(
        strides.values(),
        outputs_of(ours, strides)(image),
        outputs_of(theirs, strides)(image),
        strict=True,
    )
    for stride, one, other in results:
        assert_close(one[:, ::stride, ::stride], other)
    assert one.shape == (1, 8, 12, 2048)  # stride 8 to the end


def test_normalization_equals_keras_applications():
    image = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    for module in (keras.applications.vgg16, keras.applications.resnet50):
        expected = module.preprocess_input(image.copy())
        np.testing.assert_allclose(
            backbones.normalize(tf.constant(image)), expected, atol=1e-4
        )


def test_normalization_by_hand():
    # Red 200, green 150, blue 100 -> blue - 103.939, green - 116.779, red - 123.68.
    image = tf.constant([[[200.0, 150.0, 100.0], list(backbones.MEAN_RGB)]])
    np.testing.assert_allclose(
        backbones.normalize(image), [[[-3.939, 33.221, 76.32], [0, 0, 0]]], atol=1e-4
    )


@pytest.mark.parametrize(
    "filters, width, expected",
    [(64, 1.0, 64), (4096, 1.0, 4096), (64, 0.125, 8), (64, 0.01, 8), (256, 0.3, 80)],
)
def test_scaled_filters_are_multiples_of_8(filters, width, expected):
    assert backbones.scaled(filters, width) == expected  # 76.8 / 8 = 9.6 -> 10


# --- Frozen batch normalisation ----------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_of_the_backbone_stays_bit_identical_when_frozen(frozen):
    keras.utils.set_random_seed(0)
    model = build_generator(
        "resnet50", 3, width=TINY, head_norm="batch", freeze_backbone_norm=frozen
    )
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    backbone = [x for x in norms if x.name.startswith("conv")]
    head = [x for x in norms if x.name.startswith("aspp")]
    assert len(backbone) == 53 and len(head) == 6
    before = {x.name: x.get_weights() for x in norms}
    optimizer = keras.optimizers.SGD(1e-3)
    with tf.GradientTape() as tape:
        # Two images: a single one's image-level feature equals its batch mean.
        images = tf.concat([random_image(32, 32, seed=i) for i in range(2)], 0)
        loss = tf.reduce_sum(model(images, training=True) ** 2)
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(loss, variables), variables)
    for layer in norms:
        changed = [
            bool(np.any(old != new))
            for old, new in zip(before[layer.name], layer.get_weights(), strict=True)
        ]
        if layer in backbone and frozen:
            assert changed == [False] * 4, layer.name
        else:  # beta, mean and variance at the least
            assert changed[1:] == [True] * 3, layer.name


# --- Loading -----------------------------------------------------------------


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    caplog.set_level("WARNING")
    return caplog


def test_no_weights_is_said_and_changes_nothing(warnings):
    model = trunk_model("vgg16", TINY)
    before = model.get_weights()
    result = backbones.load_imagenet(model, "vgg16", "none")
    assert result == {"weights": "none", "sha256": None, "classifier": "absent"}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "vgg16 starts from random weights: backbone_weights=none" in warnings.text
    fcn = build_generator("vgg16", 3, width=TINY)
    assert backbones.load_imagenet(fcn, "vgg16", "none")["classifier"] == "random"


def test_missing_file_is_named(tmp_path):
    path = str(tmp_path / "nowhere.h5")
    with pytest.raises(FileNotFoundError) as error:
        backbones.load_imagenet(trunk_model("vgg16", TINY), "vgg16", path)
    assert path in str(error.value) and "no such file" in str(error.value)


def write_text(path):
    path.write_text("not weights\n" * 100)


def write_empty(path):
    path.write_bytes(b"")


def write_other_backbone(path):
    # Narrow, so that the test is quick: layer names and count are the other's.
    trunk_model("resnet50" if "vgg16" in str(path) else "vgg16", TINY).save_weights(
        path
    )


def write_narrow(path):
    trunk_model("vgg16" if "vgg16" in str(path) else "resnet50", TINY).save_weights(
        path
    )


@pytest.mark.parametrize(
    "write, name",
    [
        (write_text, "x.h5"),
        (write_text, "x.weights.h5"),
        (write_empty, "x.h5"),
        (write_other_backbone, "x.h5"),
        (write_other_backbone, "x.weights.h5"),
        (write_narrow, "x.h5"),
    ],
)
def test_wrong_file_of_vgg16_is_one_clear_error(tmp_path, name, write):
    assert_refused(tmp_path, "vgg16", name, write)


def test_wrong_file_of_resnet50_is_one_clear_error(tmp_path):
    assert_refused(tmp_path, "resnet50", "x.weights.h5", write_other_backbone)


def assert_refused(folder, backbone, name, write):
    # In a folder of the backbone's name, which tells the writers what to write.
    path = folder / backbone / name
    path.parent.mkdir()
    if name == "x.h5" and write in (write_other_backbone, write_narrow):
        write(folder / backbone / "x.weights.h5")
        (folder / backbone / "x.weights.h5").rename(path)
    else:
        write(path)
    with pytest.raises(ValueError) as error:
        backbones.load_imagenet(trunk_model(backbone, TINY), backbone, str(path))
    message = str(error.value)
    assert message.startswith(f"backbone_weights={path}: not a weights file of")
    assert backbone in message and "\n" not in message


def real_file(shared_dir, backbone):
    name = {
        "vgg16": "vgg16_imagenet_notop.h5",
        "resnet50": "resnet50_imagenet_notop.weights.h5",
    }[backbone]
    path = shared_dir / "weights" / name
    if not path.is_file():
        pytest.skip(f"needs {name}, not there")
    return path


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_imagenet_weights_load(shared_dir, backbone, warnings):
    path = real_file(shared_dir, backbone)
    trunk = trunk_model(backbone)
    # A stand-in for the generator's fc6, which a file without classifier leaves.
    head = layers.Conv2D(2, 1, name="fc6")
    model = keras.Model(trunk.input, head(trunk.output))
    kernel = head.get_weights()[0]
    result = backbones.load_imagenet(model, backbone, str(path))
    assert result == {
        "weights": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "classifier": "random",
    }
    np.testing.assert_array_equal(head.get_weights()[0], kernel)
    assert f"{path} has no classifier: fc6 and fc7 start at random" in warnings.text
    if backbone == "vgg16":  # the first bias of the published weights, rounded
        bias = trunk.get_layer("block1_conv1").get_weights()[1]
        assert bias[0] == pytest.approx(0.7302, abs=0.01)
    for layer in trunk.layers:
        if isinstance(layer, layers.BatchNormalization):  # not 1, 0, 0, 1 any more
            assert all(w.std() > 0 for w in layer.get_weights()), layer.name
    absent = backbones.load_imagenet(trunk, backbone, str(path))
    assert absent["classifier"] == "absent"


# --- Classifier --------------------------------------------------------------


def small_classifier():
    """VGG16's end on a 7x7 map of 6 channels: flatten, fc1, fc2."""
    image = keras.Input((7, 7, 6))
    x = layers.Flatten()(image)
    x = layers.Dense(10, activation="relu", name="fc1")(x)
    return keras.Model(image, layers.Dense(8, activation="relu", name="fc2")(x))


def small_fully_convolutional(filters=10):
    """The same as the generator's rows 5 and 6."""
    image = keras.Input((None, None, 6))
    x = generator._fc(image, filters, 7, "fc6")
    return keras.Model(image, generator._fc(x, 8, 1, "fc7"))


def test_grafted_classifier_equals_the_dense_layers_on_a_7x7_map(tmp_path, monkeypatch):
    # The centre of a "same" 7x7 convolution sees the whole 7x7 map.
    keras.utils.set_random_seed(0)
    source, ours = small_classifier(), small_fully_convolutional()
    for layer in source.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.random.uniform(-0.5, 0.5, bias.shape)])
    path = tmp_path / "with_classifier.h5"
    with h5py.File(path, "w") as file:  # what tells that a file has a classifier
        file.create_dataset("predictions/kernel", (4096, 1000), chunks=True)

    def application(include_top, weights):
        assert include_top and weights == str(path)
        return source

    monkeypatch.setitem(backbones._APPLICATIONS, "vgg16", application)
    result = backbones.load_imagenet(ours, "vgg16", str(path))
    assert result["classifier"] == "grafted"
    image = np.random.default_rng(0).normal(size=(3, 7, 7, 6)).astype(np.float32)
    dense = source(image).numpy()
    assert 0.2 < np.mean(dense > 0) < 0.9
    np.testing.assert_allclose(ours(image)[:, 3, 3], dense, rtol=1e-5, atol=1e-6)


def test_narrower_fc_layers_start_at_random(tmp_path, monkeypatch, caplog):
    ours = small_fully_convolutional(filters=6)
    before = ours.get_weights()
    path = tmp_path / "with_classifier.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("predictions/kernel", (4096, 1000), chunks=True)
    asked = []

    def application(include_top, weights):
        asked.append((include_top, weights))
        return small_classifier()

    monkeypatch.setitem(backbones._APPLICATIONS, "vgg16", application)
    for weights in (str(path), "imagenet"):
        monkeypatch.setattr(backbones, "_sha256", lambda path: "0")
        result = backbones.load_imagenet(ours, "vgg16", weights)
        assert result["classifier"] == "random"
    # What cannot be used is not downloaded.
    assert asked == [(True, str(path)), (False, "imagenet")]
    assert caplog.text.count("fc6 and fc7 start at random: they have 6 filters") == 2
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_grafted_classifier_equals_vgg16s_at_full_size(tmp_path):
    keras.utils.set_random_seed(0)
    theirs = keras.applications.VGG16(weights=None)
    path = str(tmp_path / "vgg16.weights.h5")
    theirs.save_weights(path)
    ours = build_generator("vgg16", 3)
    result = backbones.load_imagenet(ours, "vgg16", path)
    assert result["classifier"] == "grafted"
    image = random_image(224, 224)
    expected = outputs_of(theirs, ["fc1", "fc2"])(image)
    found = outputs_of(ours, ["fc6", "fc7"])(image)
    for one, other in zip(found, expected, strict=True):
        assert_close(one[:, 3, 3], other)


# --- Bilinear kernel ---------------------------------------------------------


def test_bilinear_kernel_by_hand():
    # Size 4, factor 2: distances 1.5, 0.5, 0.5, 1.5 of 2 -> 1/4, 3/4, 3/4, 1/4.
    kernel = np.asarray(backbones.bilinear_kernel((4, 4, 2, 2)))
    tent = np.array([0.25, 0.75, 0.75, 0.25])
    for c in range(2):
        np.testing.assert_allclose(kernel[:, :, c, c], np.outer(tent, tent))
        assert not kernel[:, :, c, 1 - c].any()


def test_transposed_convolution_interpolates_linearly():
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype(np.float32)
    layer = layers.Conv2DTranspose(
        2,
        4,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer=backbones.bilinear_kernel,
    )
    enlarged = layer(x).numpy()
    expected = tf.image.resize(x, (10, 12)).numpy()
    assert enlarged.shape == expected.shape
    # At the rim the convolution sees zeros beyond the map, the resize its edge.
    inside = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_allclose(enlarged[inside], expected[inside], atol=1e-6)


def test_an_unknown_backbone_is_refused():
    for build in (
        lambda: build_generator("VGG16", 3),
        lambda: build_extractor("resnet101"),
    ):
        with pytest.raises(ValueError, match="must be one of .*vgg16.*resnet50"):
            build()
