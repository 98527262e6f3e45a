import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from ss_gan_tf import backbones, dilation, inference
from ss_gan_tf.export import export, is_export
from ss_gan_tf.generator import build_generator

NAMES = ("road", "sky", "tree")
COLORS = ((128, 64, 128), (0, 130, 180), (107, 142, 35))


def tiny_generator(num_classes=3):
    image = keras.Input((None, None, 3))
    return keras.Model(
        image, keras.layers.Conv2D(num_classes, 3, padding="same")(image)
    )


def export_to(folder, generator, **changes):
    settings = dict(
        class_names=NAMES,
        class_colors=COLORS,
        ignore_label=255,
        normalize=backbones.normalize,
        metadata={"step": 7},
    )
    export(generator, str(folder), **(settings | changes))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small VGG16 arm, its export's folder, and the loaded SavedModel."""
    keras.utils.set_random_seed(0)
    generator = build_generator("vgg16", 3, width=0.05)
    folder = tmp_path_factory.mktemp("export") / "model"
    export_to(folder, generator)
    return generator, folder, tf.saved_model.load(str(folder))


def random_image(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image, kind="PNG", **kwargs):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


# No package, no Keras, another folder: what a server has.
LOADER = """
import sys
sys.modules["keras"] = sys.modules["ss_gan_tf"] = None  # importing either fails
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
out = model.signatures["serving_default"](images=tf.constant(images))
np.savez(sys.argv[3], **{name: value.numpy() for name, value in out.items()})
print(sum(int(np.prod(weight.shape)) for weight in model.weights))
"""


def test_loads_with_tensorflow_alone(exported, tmp_path):
    generator, folder, _ = exported
    images = np.stack([random_image(41, 67, seed=k) for k in range(2)])
    np.save(tmp_path / "images.npy", images)
    files = [str(folder), str(tmp_path / "images.npy"), str(tmp_path / "out.npz")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOADER, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Nothing that training added is in it: exactly the generator's parameters.
    assert int(result.stdout) == generator.count_params()
    out = np.load(tmp_path / "out.npz")
    probs = inference.make_predictor(
        generator, num_classes=3, normalize=backbones.normalize
    ).probabilities(images)
    assert set(out) == {"class_ids", "probabilities"}
    assert out["probabilities"].dtype == np.float32
    np.testing.assert_allclose(out["probabilities"], probs, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        out["class_ids"], out["probabilities"].argmax(axis=-1)
    )


@pytest.mark.slow
def test_batch_normalisation_is_folded_and_nothing_else_changes(tmp_path):
    keras.utils.set_random_seed(0)
    generator = build_generator("resnet50", 3, width=0.05)
    norms = [
        layer
        for layer in generator.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    draw = np.random.default_rng(0).uniform
    for norm in norms:  # their start, all ones and zeros, would hide mistakes
        norm.set_weights([draw(0.5, 1.5, weight.shape) for weight in norm.weights])
    export_to(tmp_path / "model", generator)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    saved = sum(np.prod(weight.shape) for weight in loaded.weights)
    assert len(norms) == 53
    folded = sum(norm.count_params() for norm in norms)
    assert generator.count_params() - saved == folded
    used = loaded.signatures["serving_default"].variables
    assert len(used) == len(generator.weights) - 4 * len(norms)
    pixels = random_image(41, 67)[None]
    expected = inference.make_network(generator, backbones.normalize)(pixels)
    for function in (loaded.signatures["serving_default"], loaded.plain):
        out = function(images=tf.constant(pixels))
        np.testing.assert_allclose(out["probabilities"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rate", [5, 12])
@pytest.mark.parametrize("differentiates", [False, True])
def test_dilations_are_said_and_plain_to_converters(
    differentiates, rate, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        dilation, "device_differentiates_dilation", lambda _: differentiates
    )
    image = keras.Input((None, None, 3))
    layer = dilation.DilatedConv2D(3, 3, dilation_rate=rate, padding="same")
    generator = keras.Model(image, layer(image))
    export_to(tmp_path / "model", generator)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    pixels = random_image(40, 33)[None]
    out = loaded.signatures["serving_default"](tf.constant(pixels))
    here = tf.nn.softmax(generator(backbones.normalize(tf.cast(pixels, tf.float32))))
    plain = loaded.plain(tf.constant(pixels))
    for probs in (out["probabilities"], plain["probabilities"]):
        np.testing.assert_allclose(probs, here, rtol=1e-4, atol=1e-6)
    (graph,) = (f.graph for f in loaded.plain.concrete_functions)
    assert sum(node.op == "Conv2D" for node in _nodes(graph.as_graph_def())) == 1
    saved = saved_model_pb2.SavedModel.FromString(
        (tmp_path / "model" / "saved_model.pb").read_bytes()
    )
    nodes = _nodes(saved.meta_graphs[0].graph_def)
    dilations = {tuple(n.attr["dilations"].list.i) for n in nodes if n.op == "Conv2D"}
    assert dilations == {(1, rate, rate, 1)}
    assert "BatchToSpaceND" not in {node.op for node in nodes}


def _nodes(graph_def):
    """The graph's operations, those of its functions included."""
    functions = graph_def.library.function
    return [*graph_def.node, *(n for f in functions for n in f.node_def)]


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (32, 32), (61, 35)])
def test_any_size(exported, size):
    _, _, loaded = exported
    out = loaded.signatures["serving_default"](tf.constant(random_image(*size)[None]))
    assert out["class_ids"].shape == (1, *size)
    assert out["class_ids"].dtype == tf.uint8
    assert out["probabilities"].shape == (1, *size, 3)
    np.testing.assert_allclose(
        tf.reduce_sum(out["probabilities"], axis=-1), np.ones((1, *size)), rtol=1e-5
    )


def kinds_of_image():
    """name -> (encoded, the RGB pixels that must come out)."""
    rgb, grey = random_image(33, 40), random_image(33, 40, 0)
    rgba = random_image(33, 40, 4)
    palette = Image.fromarray(rgb).quantize(16)
    deep = (grey.astype(np.uint16) << 8) | 77
    jpeg = encode(rgb, "JPEG", quality=95)
    return {
        "png": (encode(rgb), rgb),
        "grey": (encode(grey), np.dstack([grey] * 3)),
        "rgba": (encode(rgba), rgba[..., :3]),
        "palette": (encode(palette), np.array(palette.convert("RGB"))),
        "16 bit": (encode(Image.fromarray(deep)), np.dstack([grey] * 3)),
        "jpeg": (jpeg, np.array(tf.io.decode_jpeg(jpeg))),
    }


@pytest.mark.parametrize("kind", kinds_of_image())
def test_encoded_images_equal_their_pixels(exported, kind):
    _, _, loaded = exported
    encoded, rgb = kinds_of_image()[kind]
    door = loaded.signatures["image_bytes"]
    from_bytes = door(image_bytes=tf.constant([encoded, encoded]))
    pixels = loaded.signatures["serving_default"](tf.constant(np.stack([rgb, rgb])))
    for name in ("class_ids", "probabilities"):
        np.testing.assert_array_equal(from_bytes[name], pixels[name])


def test_bad_calls_say_what_is_wrong(exported):
    door = exported[2].signatures["image_bytes"]
    two_sizes = [encode(random_image(33, 40)), encode(random_image(40, 33))]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have the same size"):
        door(image_bytes=tf.constant(two_sizes))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one image"):
        door(image_bytes=tf.constant([], tf.string))
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?i)unknown image"):
        door(image_bytes=tf.constant([b"no image"]))


def test_classes_and_weights_stand_beside_it(exported):
    generator, folder, _ = exported
    classes = json.loads((folder / "classes.json").read_text())
    assert classes == {
        "class_names": list(NAMES),
        "class_colors": [list(color) for color in COLORS],
        "ignore_label": 255,
        "metadata": {"step": 7},
    }
    keras.utils.set_random_seed(1)
    other = build_generator("vgg16", 3, width=0.05)
    other.load_weights(str(folder / "generator.weights.h5"))
    for mine, theirs in zip(generator.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_earlier_export_is_replaced_and_nothing_else_stays(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()  # empty: welcome
    export_to(folder, tiny_generator())
    export_to(folder, tiny_generator(), metadata={"step": 8})
    assert json.loads((folder / "classes.json").read_text())["metadata"] == {"step": 8}
    assert is_export(str(folder)) and os.listdir(tmp_path) == ["model"]


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty and holds no export"):
        export_to(tmp_path / "photos", tiny_generator())
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]
    with pytest.raises(FileExistsError, match="is a file"):
        export_to(tmp_path / "photos" / "a.jpg", tiny_generator())


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    export_to(tmp_path / "old", tiny_generator())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save_weights", interrupt)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            export_to(tmp_path / name, tiny_generator(), metadata={"step": 9})
    assert os.listdir(tmp_path) == ["old"]
    classes = json.loads((tmp_path / "old" / "classes.json").read_text())
    assert classes["metadata"] == {"step": 7}


def test_names_colours_and_network_must_fit(tmp_path):
    with pytest.raises(ValueError, match="4 classes, but there are 3 names"):
        export_to(tmp_path / "model", tiny_generator(num_classes=4))
    with pytest.raises(ValueError, match="2 colours"):
        export_to(tmp_path / "model", tiny_generator(), class_colors=COLORS[:2])
    assert not os.listdir(tmp_path)
