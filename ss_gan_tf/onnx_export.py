"""An exported SavedModel as ONNX, for runtimes other than TensorFlow.

OUTPUT_DIR/model.onnx    beside what `export` writes; images in, the same names out
"""

import importlib.util
import os

import numpy as np
import tensorflow as tf

ONNX_FILE = "model.onnx"
OPSET = 18
LARGE = 2**14  # elements; smaller constants stay where the converter folds them
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
        onnx.save(_convert(loaded.plain), partial)
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
    """The function as an ONNX model.

    The large weights are kept away from the converter: its passes copy all constants
    again and again, 4.5 GB for 62 MB of weights.
    """
    from tf2onnx import convert, tf_loader

    signature = [tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")]
    wrapped = tf.function(lambda images: function(images), signature)
    concrete = wrapped.get_concrete_function()
    inputs = [t.name for t in concrete.inputs if t.dtype != tf.resource]
    outputs = [t.name for t in concrete.outputs]
    names = convert.tensor_names_from_structed(concrete, inputs, outputs)
    frozen = tf_loader.convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    graph_def = frozen.graph.as_graph_def(add_shapes=True)
    weights = _take_out_weights(graph_def)
    model, _ = convert.from_graph_def(
        graph_def,
        input_names=[*inputs, *(f"{name}:0" for name in weights)],
        output_names=outputs,
        opset=OPSET,
        tensors_to_rename=names | {f"{name}:0": name for name in weights},
    )
    _put_back_weights(model.graph, weights)
    for node in model.graph.node:
        _write_padding_out(node)
    return model


def _take_out_weights(graph_def) -> dict[str, np.ndarray]:
    """Makes inputs of the large constants; name -> value."""
    weights = {}
    for node in graph_def.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor and tensor.dtype == tf.float32.as_datatype_enum:
            value = tf.make_ndarray(tensor)
            if value.size >= LARGE:
                weights[node.name] = value
                node.op = "Placeholder"
                node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
                del node.attr["value"]
    return weights


def _put_back_weights(graph, weights: dict[str, np.ndarray]):
    """Makes constants of those inputs again, in the order of axes that is used."""
    from onnx import helper, numpy_helper

    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            (perm,) = (helper.get_attribute_value(a) for a in node.attribute)
            value = np.ascontiguousarray(weights[node.input[0]].transpose(perm))
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in weights.items()
        if name in used
    )
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


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
