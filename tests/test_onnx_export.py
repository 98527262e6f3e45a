import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import backbones, onnx_export
from ss_gan_tf.export import export
from ss_gan_tf.generator import build_generator

NAMES = ("road", "sky", "tree")


def export_to(folder, generator):
    export(
        generator,
        str(folder),
        class_names=NAMES,
        class_colors=((128, 64, 128), (0, 130, 180), (107, 142, 35)),
        ignore_label=255,
        normalize=backbones.normalize,
        metadata={},
    )
    return str(folder)


def tiny(tmp_path):
    image = keras.Input((None, None, 3))
    scores = keras.layers.Conv2D(3, 3, padding="same")(image)
    return export_to(tmp_path / "model", keras.Model(image, scores))


def test_without_the_extra_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tf2onnx: pip install 'ss_gan_tf\[onnx\]'$"):
        onnx_export.add_onnx(str(tmp_path))


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_equals_the_saved_model_at_other_sizes(tmp_path, backbone, monkeypatch):
    """With nearly all weights kept away from the converter, as the large ones are."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx`")
    onnx = pytest.importorskip("onnx", reason="the extra `onnx`")
    pytest.importorskip("tf2onnx", reason="the extra `onnx`")
    monkeypatch.setattr(onnx_export, "LARGE", 32)
    keras.utils.set_random_seed(0)
    generator = build_generator(backbone, 3, width=0.03125)
    folder = export_to(tmp_path / "model", generator)
    compared = onnx_export.add_onnx(folder)
    assert compared["same_class_ids"] > 0.999
    graph = onnx.load(f"{folder}/model.onnx").graph
    assert [value.name for value in graph.input] == ["images"]
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert node.op_type != "Transpose" or node.input[0] not in constants
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    saved = tf.saved_model.load(folder).signatures["serving_default"]
    rng = np.random.default_rng(1)
    for shape in ((1, 97, 33), (3, 32, 70), (1, 20, 41)):
        images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        ids, probs = session.run(["class_ids", "probabilities"], {"images": images})
        expected = saved(images=tf.constant(images))
        assert ids.shape == shape and ids.dtype == np.uint8
        np.testing.assert_allclose(probs, expected["probabilities"], atol=1e-4)


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx", reason="the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="the extra `onnx`")
    folder = tiny(tmp_path)
    convert = onnx_export._convert

    def another_network(_):
        image = keras.Input((None, None, 3))
        other = keras.Model(image, keras.layers.Conv2D(3, 3, padding="same")(image))
        folder = export_to(tmp_path / "other", other)
        loaded = tf.saved_model.load(folder)
        return convert(loaded.pixels)

    monkeypatch.setattr(onnx_export, "_convert", another_network)
    with pytest.raises(ValueError, match="differs from the SavedModel"):
        onnx_export.add_onnx(folder)
    assert not [*(tmp_path / "model").glob("*.onnx*")]
