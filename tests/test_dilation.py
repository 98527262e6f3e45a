import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import convolution, dilation
from ss_gan_tf.backbones import resnet50_trunk
from ss_gan_tf.dilation import DilatedConv2D


def both(rate, size=3, **kwargs):
    """Keras' layer and ours with the same weights."""
    layers = [
        conv(4, size, dilation_rate=rate, bias_initializer="ones", **kwargs)
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
    "rate, padding",
    [(2, "same"), (9, "same"), (40, "same"), (4, "valid"), (9, "valid")],
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
    assert dilation.device_differentiates_dilation(tf.float32) == works


def test_gradients_in_a_compiled_graph_on_any_device():
    layer = DilatedConv2D(4, 3, dilation_rate=3, padding="same")
    image = tf.random.stateless_normal([1, 16, 16, 3], [1, 2])
    layer.build(image.shape)
    gradients = tf.function(output_and_gradients)(layer, image)
    assert all(tf.reduce_any(g != 0) for g in gradients[1:])


@pytest.mark.parametrize("differentiates", [True, False])
def test_the_trunk_rearranges_nothing(differentiates, monkeypatch):
    monkeypatch.setattr(
        dilation, "device_differentiates_dilation", lambda _: differentiates
    )
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, resnet50_trunk(image, width=0.125))
    traced = tf.function(trunk).get_concrete_function(
        tf.TensorSpec([None, None, None, 3], tf.float32)
    )
    found = {op.type for op in traced.graph.get_operations()}
    assert "Conv2D" in found and "SpaceToBatchND" not in found


@pytest.fixture
def device_without_gradients(monkeypatch):
    """A device that takes the dilation forwards alone, as a CPU without oneDNN."""
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: False)


@pytest.fixture(params=["forwards alone", "in both directions"])
def either_device(request, monkeypatch):
    """A device that takes the dilation in one direction, or in both as here."""
    if request.param == "forwards alone":
        request.getfixturevalue("device_without_gradients")
    elif not dilation.device_differentiates_dilation(tf.float32):
        pytest.skip("this device takes the dilation forwards alone")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "size, rate, padding",
    [
        (3, 2, "same"),
        (3, 9, "same"),  # the middle of the kernel alone meets all of it
        (3, 15, "same"),  # columns: two parts, all cells but the outer with two taps
        (3, 24, "same"),  # rows: beyond the map
        (3, 40, "same"),  # beyond the map
        (5, (8, 9), "same"),  # five parts of each axis
        ((1, 5), (2, 9), "same"),
        ((2, 4), 9, "same"),
        (3, 4, "valid"),
        ((2, 4), 3, "same"),  # more padding after than before
        ((1, 5), (2, 3), "valid"),
    ],
)
def test_gradients_are_keras_on_either_device(
    size, rate, padding, compiled, either_device
):
    image = tf.constant(
        np.random.default_rng(0).normal(size=(2, 21, 30, 3)), tf.float32
    )
    theirs, ours = both(rate, size=size, padding=padding)
    run = tf.function(output_and_gradients) if compiled else output_and_gradients
    for a, b in zip(output_and_gradients(theirs, image), run(ours, image), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Both ways share the layer's weights and their names.
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]


def test_where_the_device_cannot_nothing_on_padding_is_multiplied(
    device_without_gradients,
):
    layer = DilatedConv2D(4, 3, dilation_rate=9, padding="same")
    traced = tf.function(lambda image: output_and_gradients(layer, image))
    graph = traced.get_concrete_function(tf.TensorSpec([2, 21, 14, 3])).graph
    convolutions = [op for op in graph.get_operations() if op.type == "Conv2D"]
    products = sum(
        np.prod(op.outputs[0].shape) * np.prod(op.inputs[1].shape[:3])
        for op in convolutions
    )
    # Cells that meet a tap on the map: all the middle one, 9 fewer the outer ones.
    met = (21 + 2 * 12) * (14 + 2 * 5)
    assert products == 2 * met * 3 * 4 * 2  # images, filters, there and back


@pytest.mark.parametrize("rate", [5, 8])
@pytest.mark.parametrize("sizes", [(None, None), (None, 12), (17, None)])
@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_may_be_unknown_on_either_device(batch, sizes, rate, either_device):
    theirs, ours = both(rate, padding="same")
    images = tf.TensorSpec([None, *sizes, 3], tf.float32)
    run = tf.function(lambda x: output_and_gradients(ours, x), input_signature=[images])
    # Smaller than the rate; as large; between it and twice as much; twice; larger.
    for height, width in ((3, 5), (8, 8), (9, 15), (16, 16), (30, 17)):
        shape = [batch, sizes[0] or height, sizes[1] or width, 3]
        image = tf.random.stateless_normal(shape, [1, 2])
        for a, b in zip(output_and_gradients(theirs, image), run(image), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adds_right, products_in", [(True, 14), (False, 1)])
def test_where_the_device_can_the_kernel_learns_by_products(
    adds_right, products_in, monkeypatch
):
    """Types of TensorFlow: 14 is bfloat16, 1 float32, in which sums are right."""
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: True)
    monkeypatch.setattr(dilation, "device_adds_right", lambda: adds_right)
    layer = DilatedConv2D(4, 3, dilation_rate=9, padding="same", dtype="bfloat16")
    layer.build([2, 21, 14, 3])
    traced = tf.function(lambda image: output_and_gradients(layer, image))
    spec = tf.TensorSpec([2, 21, 14, 3], tf.bfloat16)
    found = traced.get_concrete_function(spec).graph.get_operations()
    kinds = [op.type for op in found]
    assert "Conv2DBackpropFilter" not in kinds and "SpaceToBatchND" not in kinds
    assert kinds.count("Conv2DBackpropInput") == kinds.count("Conv2D") == 1
    products = [op for op in found if op.type == "MatMul"]
    assert [op.get_attr("T").as_datatype_enum for op in products] == 9 * [products_in]
    # Cells at which a tap meets the map: all for the middle, 9 fewer on either side.
    met = sum(op.inputs[0].shape[0] for op in products)
    assert met == 2 * (21 + 2 * 12) * (14 + 2 * 5)
    # Each product's parts are cut out when the one before it is there, not sooner.
    for before, after in itertools.pairwise(products):
        parts = [reshape.op.inputs[0].op for reshape in after.inputs]
        assert [part.type for part in parts] == 2 * ["StridedSlice"]
        assert all(before in behind(part) for part in parts)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("filters_in, filters", [(32, 4), (4, 32), (64, 32)])
def test_rows_that_share_lines_are_padded(
    filters_in, filters, known, device_without_gradients, monkeypatch
):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "SHARE_LINES", 32)
    image = tf.random.stateless_normal([2, 21, 14, filters_in], [1, 2])
    theirs, ours = (
        conv(filters, 3, dilation_rate=9, padding="same")
        for conv in (keras.layers.Conv2D, DilatedConv2D)
    )
    for layer in (theirs, ours):
        layer.build(image.shape)
    theirs.set_weights(ours.get_weights())
    spec = tf.TensorSpec(image.shape if known else [2, None, None, filters_in])
    traced = tf.function(
        lambda image: output_and_gradients(ours, image)
    ).get_concrete_function(spec)
    operations = traced.graph.get_operations()
    convolved = {op.outputs[0].shape[-1] for op in operations if op.type == "Conv2D"}
    assert convolved == {
        filters + 16 * (filters == 32),
        filters_in + 16 * (filters_in > 4),
    }
    products = [op for op in operations if op.type == "MatMul"]
    assert len(products) == 9
    # Nothing for gradients is padded or reversed before one is there, and so kept.
    out = traced.outputs[0].op.inputs[0].op  # behind it an Identity
    for kind, of_both in (("Pad", True), ("Transpose", False)):
        found = [op for op in operations if op.type == kind]
        forwards = [op for op in found if op in behind(out)]
        assert len(forwards) == (of_both and filters == 32)
        assert all(out in behind(op) for op in found if op not in forwards)
    for product in products:
        assert product.outputs[0].shape == [filters_in + 16 * (filters_in > 4), filters]
    expected = output_and_gradients(theirs, image)
    for a, b in zip(expected, traced(image), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture(params=[False, True])
def any_device(request, monkeypatch):
    """A CPU without oneDNN, and one with it."""
    monkeypatch.setattr(
        dilation, "device_differentiates_dilation", lambda _: request.param
    )


@pytest.fixture
def device_with_gradients(monkeypatch):
    """A device that takes the dilation in both directions, as a CPU with oneDNN."""
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: True)


@pytest.mark.parametrize(
    "size, rate",
    [(3, 9), (3, 15), (3, 24), (3, 40), (5, (8, 9)), ((1, 5), (2, 9)), ((5, 3), 8)],
)
def test_one_image_alone_is_made_of_products(size, rate, any_device):
    theirs, ours = both(rate, size=size, padding="same")
    image = tf.random.stateless_normal([1, 21, 30, 3], [1, 2])
    traced = tf.function(lambda image: ours(image)).get_concrete_function(image)
    kinds = [op.type for op in traced.graph.get_operations()]
    assert "Conv2D" not in kinds
    assert kinds.count("MatMul") == np.prod(ours.kernel.shape[:2])
    assert traced.output_shapes == [1, 21, 30, 4]
    np.testing.assert_allclose(traced(image), theirs(image), rtol=1e-4, atol=1e-4)


def test_its_products_leave_out_padding_and_copy_one_part_at_a_time(
    any_device,
):
    layer = DilatedConv2D(4, 3, dilation_rate=9, padding="same")
    layer.build([1, 21, 14, 3])
    traced = tf.function(lambda image: layer(image))
    graph = traced.get_concrete_function(tf.TensorSpec([1, 21, 14, 3])).graph
    products = [op for op in graph.get_operations() if op.type == "MatMul"]
    # Cells at which a tap meets the map: all for the middle, 9 fewer on either side.
    met = sum(op.inputs[0].shape[0] for op in products)
    assert met == (21 + 2 * 12) * (14 + 2 * 5)
    # Columns of the map are copied when the products of those before are there.
    for n, product in enumerate(products):
        before = set(products[: n - n % 3])
        rows = product.inputs[0].op.inputs[0].op
        columns = rows.inputs[0].op
        assert [op.type for op in (rows, columns)] == 2 * ["StridedSlice"]
        assert before <= behind(columns)


@pytest.mark.parametrize(
    "batch, width, rate, dtype",
    [
        (2, 14, 9, "float32"),
        (1, 14, 4, "float32"),
        (1, 14, 9, "bfloat16"),
        (1, 15, 9, "float32"),
    ],
)
def test_others_are_convolved_by_the_device(
    batch, width, rate, dtype, device_with_gradients, monkeypatch
):
    monkeypatch.setattr(dilation, "ALONE_UP_TO", 21 * 14)
    layer = DilatedConv2D(4, 3, dilation_rate=rate, padding="same", dtype=dtype)
    layer.build([None, None, None, 3])
    image = tf.TensorSpec([batch, 21, width, 3], dtype)
    traced = tf.function(lambda image: layer(image)).get_concrete_function(image)
    kinds = [op.type for op in traced.graph.get_operations()]
    assert kinds.count("Conv2D") == 1 and "MatMul" not in kinds


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sizes", [(None, None, None), (1, None, None), (None, 21, 30)])
def test_whether_it_is_alone_may_be_unknown(
    sizes, jit_compile, any_device, monkeypatch
):
    """The graph of an export: it takes whatever way suits the images it gets."""
    theirs, ours = both(9, padding="same")
    spec = tf.TensorSpec([*sizes, 3], tf.float32)
    monkeypatch.setattr(dilation, "ALONE_UP_TO", 21 * 30)
    run = tf.function(
        lambda image: ours(image), input_signature=[spec], jit_compile=jit_compile
    )
    found = run.get_concrete_function().graph.as_graph_def()
    branches = {
        kind: [f for f in found.library.function if kind in [n.op for n in f.node_def]]
        for kind in ("Conv2D", "MatMul")
    }
    assert len(branches["Conv2D"]) == len(branches["MatMul"]) == 1
    assert branches["Conv2D"] != branches["MatMul"]
    for shape in ([1, 21, 30], [3, 21, 30], [1, 21, 31], [1, 40, 33]):
        if all(known in (None, size) for known, size in zip(sizes, shape, strict=True)):
            image = tf.random.stateless_normal([*shape, 3], [1, 2])
            np.testing.assert_allclose(run(image), theirs(image), rtol=1e-4, atol=1e-4)


def behind(op):
    """Operations that have to be done before one."""
    found, asked = set(), [op]
    while asked:
        last = asked.pop()
        needed = {*last.control_inputs, *(tensor.op for tensor in last.inputs)}
        asked += needed - found
        found |= needed
    return found


def kernel_gradient(dtype, image, gradient, rate):
    """At a kernel of 3x3, of positive numbers: where cutting off would show."""
    layer = DilatedConv2D(
        4, 3, dilation_rate=rate, padding="same", use_bias=False, dtype=dtype
    )
    layer.build(image.shape)
    with tf.GradientTape() as tape:
        out = layer(tf.cast(image, dtype))
    return tape.gradient(out, layer.kernel, tf.cast(gradient, dtype))


@pytest.mark.parametrize("rate", [4, 12, 36])
@pytest.mark.parametrize("dtype, bias", [("bfloat16", 1e-3), ("float64", 1e-12)])
def test_the_kernels_gradient_is_not_biased(dtype, bias, rate, either_device):
    rng = np.random.default_rng(0)
    image, gradient = (
        tf.constant(rng.uniform(size=[2, 63, 63, filters]), tf.bfloat16)
        for filters in (32, 4)
    )
    found = kernel_gradient(dtype, image, gradient, rate)
    x, y = (tf.cast(values, tf.float64).numpy() for values in (image, gradient))
    exact = np.zeros([3, 3, 32, 4])
    for row in range(3):
        for column in range(3):
            (h, there_h), (w, there_w) = (
                (
                    slice(max(0, shift), 63 + min(0, shift)),
                    slice(max(0, -shift), 63 - max(0, shift)),
                )
                for shift in (rate * (row - 1), rate * (column - 1))
            )
            exact[row, column] = np.einsum(
                "bhwf,bhwg->fg", x[:, h, w], y[:, there_h, there_w]
            )
    ratios = tf.cast(found, tf.float64).numpy() / exact
    assert abs(ratios.mean() - 1) < bias
    assert np.abs(ratios - 1).max() < max(bias, 0.01)


def test_for_a_gpu_its_own_kernels_are_called(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    layer = DilatedConv2D(4, 3, dilation_rate=9, padding="same")
    layer.build([2, 21, 14, 3])
    traced = tf.function(lambda image: output_and_gradients(layer, image))
    found = traced.get_concrete_function(tf.TensorSpec([2, 21, 14, 3]))
    kinds = {op.type for op in found.graph.get_operations()}
    assert "Conv2DBackpropFilter" in kinds and "MatMul" not in kinds


def test_where_the_device_cannot_groups_are_left_to_keras(device_without_gradients):
    layer = DilatedConv2D(4, 3, dilation_rate=3, groups=2, padding="same")
    theirs = keras.layers.Conv2D(4, 3, dilation_rate=3, groups=2, padding="same")
    image = tf.random.stateless_normal([1, 16, 16, 6], [1, 2])
    for one in (layer, theirs):
        one.build(image.shape)
    theirs.set_weights(layer.get_weights())
    results = (output_and_gradients(one, image) for one in (theirs, layer))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [3, 9])
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.04), ("float16", 0.005)])
def test_half_precision_is_differentiated_in_a_graph(dtype, tolerance, rate):
    image = tf.random.stateless_normal([1, 16, 16, 3], [1, 2])
    exact, half = (
        DilatedConv2D(4, 3, dilation_rate=rate, padding="same", dtype=kind)
        for kind in ("float32", dtype)
    )
    exact.build(image.shape)
    half.build(image.shape)
    half.set_weights(exact.get_weights())
    results = (
        tf.function(output_and_gradients)(layer, tf.cast(image, layer.dtype))
        for layer in (exact, half)
    )
    # Output, and gradients of image and kernel; that of the bias is a sum of Keras'.
    for a, b in list(zip(*results, strict=True))[:3]:
        assert b.dtype == dtype
        error = tf.reduce_max(tf.abs(a - tf.cast(b, tf.float32)))
        assert error < tolerance * tf.reduce_max(tf.abs(a))
