"""An exported SavedModel as ONNX, for runtimes other than TensorFlow.

OUTPUT_DIR/model.onnx    beside what `export` writes; images in, the same names out
"""

import importlib.util
import os

import numpy as np
import tensorflow as tf

ONNX_FILE = "model.onnx"
OPSET = 18
CHECKED_SIZES = ((64, 64), (75, 110))  # one that needs no padding, one that does


def check_installed():
    """Lets pass where the extra `onnx` is installed.

    Raises:
        ValueError: it is not, or in parts.
    """
    missing = [
        name
        for name in ("onnx", "onnxruntime", "tf2onnx")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ValueError(
            f"format=onnx needs {', '.join(missing)}: pip install 'ss_gan_tf[onnx]'"
        )


def add_onnx(folder: str) -> dict[str, float]:
    """Converts the SavedModel in `folder` and compares the two on drawn scenes.

    The graph takes "images" uint8 [B, H, W, 3] RGB of any size and gives "class_ids"
    uint8 [B, H, W] and "probabilities" float32 [B, H, W, C].

    Args:
        folder: what `export.export` wrote.

    Returns:
        "same_class_ids", a share, and "probability_difference", the largest.

    Raises:
        ValueError: the extra is missing, or the results differ: ids in a thousandth of
            the pixels, or a probability by a thousandth. No file is left then.
    """
    check_installed()
    import onnx

    loaded = tf.saved_model.load(folder)
    path = os.path.join(folder, ONNX_FILE)
    partial = f"{path}.partial"
    try:
        onnx.save(_convert(loaded.pixels), partial)
        compared = _compare(loaded.pixels, partial)
        if compared["same_class_ids"] < 0.999 or (
            compared["probability_difference"] > 1e-3
        ):
            raise ValueError(f"{path}: differs from the SavedModel, {compared}")
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return compared


def _convert(function):
    import tf2onnx

    signature = [tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")]
    wrapped = tf.function(lambda images: function(images), signature)
    model, _ = tf2onnx.convert.from_function(wrapped, signature, opset=OPSET)
    for node in model.graph.node:
        _write_padding_out(node)
    return model


def _write_padding_out(node):
    """Writes a dilated convolution's "same" padding in numbers.

    ONNX Runtime refuses to work it out itself where there is dilation. At stride 1 and
    with odd kernels it is rate * (k - 1) / 2 on each side, whatever the size.
    """
    import onnx

    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    rates = found.get("dilations", [1])
    if node.op_type != "Conv" or max(rates) == 1 or "auto_pad" not in found:
        return
    if found["auto_pad"] != b"SAME_UPPER" or max(found["strides"]) > 1:
        raise ValueError(f"{node.name}: dilated with {found}, which nothing here needs")
    sides = [
        rate * (k - 1) // 2
        for rate, k in zip(rates, found["kernel_shape"], strict=True)
    ]
    kept = [a for a in node.attribute if a.name != "auto_pad"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", sides * 2)])


def _compare(function, path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    same, difference = [], 0.0
    for size in CHECKED_SIZES:
        images = _draw(size)
        expected = function(tf.constant(images))
        names = ["class_ids", "probabilities"]
        ids, probs = session.run(names, {"images": images})
        if ids.shape != expected["class_ids"].shape:
            raise ValueError(f"{path}: {ids.shape} for images of {size}")
        same.append(np.mean(ids == expected["class_ids"]))
        difference = max(difference, np.abs(probs - expected["probabilities"]).max())
    return {
        "same_class_ids": float(min(same)),
        "probability_difference": float(difference),
    }


def _draw(size) -> np.ndarray:
    """Two scenes of coloured rectangles with some noise, uint8 [2, H, W, 3]."""
    rng = np.random.default_rng(0)
    images = np.full((2, *size, 3), 120.0)
    for image in images:
        for _ in range(8):
            top, left = rng.integers(0, size)
            height, width = rng.integers(8, 40, 2)
            image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return np.clip(images + rng.normal(0, 8, images.shape), 0, 255).astype(np.uint8)
