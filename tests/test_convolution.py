import itertools
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import convolution, dilation
from ss_gan_tf.adversary import build_adversary
from ss_gan_tf.backbones import resnet50_trunk
from ss_gan_tf.convolution import Conv2D, LeakyReLU
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.generator import build_generator


def bias_gradient(layer, image):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(image), tf.float32))
    return tape.gradient(loss, layer.bias.value).numpy()


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_bias_learns_from_every_cell(rate, activation):
    """Of 2 x 80 x 80 cells BiasAdd's own gradient counts 256 in bfloat16."""
    conv = Conv2D if rate == 1 else DilatedConv2D
    layer = conv(
        3,
        3,
        padding="same",
        activation=activation,
        bias_initializer="ones",
        dilation_rate=rate,
        dtype="mixed_bfloat16",
    )
    gradient = bias_gradient(layer, tf.zeros([2, 80, 80, 4], tf.bfloat16))
    np.testing.assert_array_equal(gradient, [12800] * 3)


@pytest.mark.parametrize(
    "size, strides, padding",
    [(1, 1, "same"), (3, 1, "same"), (3, 1, "valid"), (3, 2, "same"), (3, 2, "valid")],
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_kernels_learn_from_every_cell(monkeypatch, size, strides, padding, use_bias):
    """Positive numbers in 2 x 80 x 80 cells; TensorFlow's own gradient lost 68 %."""
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    rng = np.random.default_rng(0)
    image = tf.constant(rng.uniform(size=(2, 80, 80, 4)), tf.bfloat16)
    gradients = {}
    for policy in ("float32", "mixed_bfloat16"):
        settings = {"padding": padding, "use_bias": use_bias, "dtype": policy}
        layer = Conv2D(3, size, strides, kernel_initializer="ones", **settings)
        layer.build(image.shape)
        with tf.GradientTape() as tape:
            tape.watch(image)
            output = tf.cast(layer(image), tf.float32)
            loss = tf.reduce_sum(tf.reduce_mean(output, [1, 2]))
        gradients[policy] = tape.gradient(loss, [image, layer.kernel.value])
    for ours, exact in zip(*reversed(gradients.values()), strict=True):
        ours, exact = (tf.cast(x, tf.float32) for x in (ours, exact))
        # Each gradient is rounded to the 8 bits of bfloat16, as what it comes from was.
        np.testing.assert_allclose(ours, exact, rtol=0.01)


@pytest.mark.parametrize("rate", [1, 2, 8])
def test_gradients_are_rounded_once(monkeypatch, rate):
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: False)
    rng = np.random.default_rng(0)
    image, kernel, gradient = (
        tf.constant(rng.normal(size=shape), tf.bfloat16)
        for shape in ([2, 24, 24, 64], [3, 3, 64, 48], [2, 24, 24, 48])
    )
    conv = Conv2D if rate == 1 else DilatedConv2D
    layer = conv(48, 3, padding="same", dilation_rate=rate, dtype="bfloat16")

    def gradients(*given, gradient):
        with tf.GradientTape() as tape:
            tape.watch(given)
            output = layer.convolution_op(*given)
        return tape.gradient(output, given, gradient)

    ours = gradients(image, kernel, gradient=gradient)
    exact = gradients(
        *(tf.cast(x, tf.float32) for x in (image, kernel)),
        gradient=tf.cast(gradient, tf.float32),
    )
    for one, other in zip(ours, exact, strict=True):
        off = tf.norm(tf.cast(one, tf.float32) - other) / tf.norm(other)
        assert off < 0.0025  # rounding alone: 0.0017


def test_where_the_device_adds_right_its_own_kernel_is_called(monkeypatch):
    image, layer = tf.ones([1, 8, 8, 2], tf.bfloat16), Conv2D(3, 3, dtype="bfloat16")
    layer.build(image.shape)

    def kinds():
        def gradient(image):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(image))
            return tape.gradient(loss, layer.kernel.value)

        graph = tf.function(gradient).get_concrete_function(image).graph
        return {
            op.inputs[0].dtype
            for op in graph.get_operations()
            if op.type == "Conv2DBackpropFilter"
        }

    for adds in (True, False):
        monkeypatch.setattr(convolution, "device_adds_right", lambda it=adds: it)
        assert kinds() == {tf.bfloat16 if adds else tf.float32}
        with convolution.on_another_device():
            assert kinds() == {tf.bfloat16}


def test_the_device_is_asked_by_counting(monkeypatch):
    real = tf.raw_ops.Conv2DBackpropFilter

    def stuck(**arguments):
        return tf.minimum(real(**arguments), 256)

    def right(input, out_backprop, **arguments):  # noqa: A002, the operation's name
        exact = [tf.cast(x, tf.float32) for x in (input, out_backprop)]
        gradient = real(input=exact[0], out_backprop=exact[1], **arguments)
        return tf.cast(gradient, tf.bfloat16)

    for kernel, adds in ((stuck, False), (right, True)):
        monkeypatch.setattr(tf.raw_ops, "Conv2DBackpropFilter", kernel)
        assert convolution.device_adds_right.__wrapped__() == adds


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_device_may_be_asked_while_a_step_is_traced(jit_compile):
    layer = Conv2D(4, 1, dtype="mixed_bfloat16", kernel_initializer="ones")
    layer.build([2, 80, 80, 4])

    @tf.function(jit_compile=jit_compile)
    def gradient(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(image), tf.float32))
        return tape.gradient(loss, layer.kernel.value)

    convolution.device_adds_right.cache_clear()
    counted = gradient(tf.ones([2, 80, 80, 4], tf.bfloat16))
    np.testing.assert_array_equal(counted, np.full([1, 1, 4, 4], 12800))
    assert convolution.device_adds_right.cache_info().misses == 1


@pytest.mark.parametrize("rate", [1, 8])
def test_nothing_is_cast_before_the_gradient_is_there(monkeypatch, rate):
    """What is cast in the forward pass is kept for the backward one, twice as large."""
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: False)
    conv = Conv2D if rate == 1 else DilatedConv2D
    layer = conv(3, 3, padding="same", dilation_rate=rate, dtype="bfloat16")
    layer.build([1, 24, 24, 2])

    @tf.function
    def gradient(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(image))
        return tape.gradient(loss, layer.kernel.value)

    image = tf.ones([1, 24, 24, 2], tf.bfloat16)
    graph = gradient.get_concrete_function(image).graph
    casts = [
        op
        for op in graph.get_operations()
        if op.type == "Cast" and op.outputs[0].dtype == tf.float32
    ]
    awaited = [other for op in casts for other in op.control_inputs]
    assert awaited  # the gradient; its own cast needs no control input
    assert all(op.control_inputs or op.inputs[0].op in awaited for op in casts)


def test_second_derivatives_in_bfloat16(monkeypatch):
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    layer = Conv2D(1, 1, dtype="mixed_bfloat16", kernel_initializer="ones")
    image = tf.fill([1, 2, 2, 1], 3.0)
    with tf.GradientTape() as outer:
        outer.watch(image)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.cast(layer(image), tf.float32)))
        at_kernel = tape.gradient(loss, layer.kernel.value)  # sum of 2 k x^2
    np.testing.assert_allclose(at_kernel, np.full([1, 1, 1, 1], 72.0), rtol=0.01)
    at_image = outer.gradient(at_kernel, image)  # 4 k x
    np.testing.assert_allclose(at_image, np.full(image.shape, 12.0), rtol=0.01)


def test_without_an_activation():
    layer = Conv2D(2, 1, dtype="mixed_bfloat16", activation="relu")
    layer.activation = None  # as Keras allows
    layer.build([1, 3, 3, 2])
    layer.set_weights([-np.ones([1, 1, 2, 2]), np.zeros(2)])
    np.testing.assert_array_equal(
        layer(tf.ones([1, 3, 3, 2])), np.full([1, 3, 3, 2], -2)
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_equals_keras_but_for_the_bias_gradient(monkeypatch, policy):
    monkeypatch.setattr(convolution, "device_adds_right", lambda: True)
    settings = {"activation": "relu", "bias_initializer": "ones", "dtype": policy}
    ours, theirs = (kind(5, 3, **settings) for kind in (Conv2D, keras.layers.Conv2D))
    image = tf.constant(np.random.default_rng(0).normal(size=(2, 9, 11, 4)), tf.float32)
    for layer in (ours, theirs):
        layer.build(image.shape)
    ours.set_weights(theirs.get_weights())
    with tf.GradientTape(persistent=True) as tape:
        outputs = [layer(image) for layer in (ours, theirs)]
        losses = [tf.reduce_sum(tf.square(tf.cast(x, tf.float32))) for x in outputs]
    assert outputs[0].dtype == outputs[1].dtype == ours.compute_dtype
    np.testing.assert_array_equal(*outputs)
    kernels = [
        tape.gradient(loss, layer.kernel.value)
        for loss, layer in zip(losses, (ours, theirs), strict=True)
    ]
    np.testing.assert_array_equal(*kernels)
    copy = Conv2D.from_config(ours.get_config())
    assert copy.get_config() == ours.get_config()


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_generator("vgg16", 3, width=0.05),
        lambda: build_generator("resnet50", 3, width=0.05, head_norm="none"),
        lambda: build_adversary(3, None, width=0.05),
    ],
    ids=["vgg16", "resnet50", "adversary"],
)
def test_the_networks_are_made_of_it(monkeypatch, build):
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: False)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build()
    finally:
        keras.config.set_dtype_policy(policy)

    @tf.function(input_signature=[tf.TensorSpec([1, 64, 64, 3])])
    def gradients(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(image))
        return tape.gradient(loss, [w.value for w in network.trainable_weights])

    operations = gradients.get_concrete_function().graph.get_operations()
    kinds = {op.type for op in operations if tf.bfloat16 in _inputs(op)}
    assert "Conv2D" in kinds and "Sum" in kinds
    assert not kinds & {"BiasAddGrad", "Conv2DBackpropFilter"}


def _inputs(op):
    return [tensor.dtype for tensor in op.inputs]


# --- Large kernels -----------------------------------------------------------


def at_kernel_by_device(image, gradient, shape):
    """TensorFlow's own gradient at a kernel, stride 1, SAME."""
    return tf.raw_ops.Conv2DBackpropFilter(
        input=image,
        filter_sizes=shape,
        out_backprop=gradient,
        strides=[1] * 4,
        padding="SAME",
    )


@pytest.mark.parametrize("height, width", [(5, 4), (1, 9), (12, 7)])
@pytest.mark.parametrize("size", [(7, 7), (5, 9)])
def test_by_a_product_the_gradient_is_the_same(height, width, size):
    rng = np.random.default_rng(0)
    gradient = tf.constant(rng.normal(size=(2, height, width, 6)), tf.float32)
    kernel = tf.constant(rng.normal(size=(*size, 3, 6)), tf.float32)
    expected = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=[2, height, width, 3],
        filter=kernel,
        out_backprop=gradient,
        strides=[1] * 4,
        padding="SAME",
    )
    found = convolution.at_image_by_product(gradient, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    image = tf.constant(rng.normal(size=(2, height, width, 3)), tf.float32)
    expected = at_kernel_by_device(image, gradient, kernel.shape)
    found = convolution.at_kernel_by_product(image, gradient, kernel.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    found = convolution.convolve_by_product(image, kernel)
    expected = tf.nn.conv2d(image, kernel, 1, "SAME")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def product_of(layer, image, known=False):
    """Gradients, and the operations that a traced layer's take.

    Args:
        layer: a convolution with a bias.
        image: [B, H, W, F].
        known: whether sizes are, while the layer is traced.
    """

    def gradients(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = tf.reduce_sum(tf.cast(layer(image), tf.float32) ** 2)
        return tape.gradient(loss, [image, layer.kernel.value, layer.bias.value])

    shape = image.shape if known else [None, None, None, image.shape[-1]]
    traced = tf.function(gradients).get_concrete_function(
        tf.TensorSpec(shape, image.dtype)
    )
    return traced(image), traced.graph.get_operations()


def kinds_of(layer, image, known=False):
    return {op.type for op in product_of(layer, image, known)[1]}


@pytest.mark.parametrize(
    "policy, away",
    [("float32", 1e-5), ("mixed_bfloat16", 0.01), ("mixed_float16", 0.002)],
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("adds_right", [True, False])
def test_fc6_learns_by_products(monkeypatch, policy, away, adds_right, known):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "device_adds_right", lambda: adds_right)
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 7 * 7 * 8 * 16)
    rng = np.random.default_rng(0)
    image = tf.constant(rng.normal(size=(2, 4, 2, 8)), tf.float32)
    settings = {"padding": "same", "activation": "relu"}
    layer = Conv2D(16, 7, dtype=policy, **settings)
    plain = keras.layers.Conv2D(16, 7, **settings)
    for each in (layer, plain):
        each.build(image.shape)
    plain.set_weights(layer.get_weights())
    (found, operations), (expected, others) = (
        product_of(each, image, known) for each in (layer, plain)
    )
    kinds, others = ({op.type for op in each} for each in (operations, others))
    gradients = {"Conv2DBackpropInput", "Conv2DBackpropFilter"}
    assert "MatMul" not in others and gradients < others
    # That at the kernel where the patches are known to be few: 4 x 2 x 2 <= 16.
    assert kinds & gradients == (set() if known else {"Conv2DBackpropFilter"})
    assert ("Conv2D" in kinds) == (policy != "float32")
    assert ("StatelessIf" in kinds) == (policy == "float32" and not known)
    # In what each product is computed; one of float32 is the forward pass.
    halves = policy == "mixed_bfloat16" and adds_right
    products = [op for op in operations if op.type == "MatMul"]
    for op in products:
        assert op.get_attr("T") == (tf.bfloat16 if halves else tf.float32)
    # In float32 that at the kernel is one product for each of its rows.
    at_kernel = known * (1 if halves else 7)
    assert len(products) == 1 + at_kernel + (known and policy == "float32")
    for ours, theirs in zip(found, expected, strict=True):
        assert tf.norm(tf.cast(ours, tf.float32) - theirs) < away * tf.norm(theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 7, "padding": "valid"},
        {"kernel_size": 7, "padding": "same", "strides": 2},
        {"kernel_size": 6, "padding": "same"},
    ],
)
def test_other_kernels_are_left_to_the_device(monkeypatch, settings):
    small = settings["kernel_size"] == 3
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1 + 9 * 8 if small else 1)
    layer = Conv2D(4, **settings)
    layer.build([1, 9, 9, 2])
    found = kinds_of(layer, tf.ones([1, 9, 9, 2]), known=True)
    assert "Conv2D" in found and "MatMul" not in found
    assert {"Conv2DBackpropInput", "Conv2DBackpropFilter"} < found


def test_it_is_fc6_that_learns_by_a_product():
    for name, size, filters in (("fc6", 7, (512, 1024)), ("conv", 3, (512, 512))):
        layer = Conv2D(filters[1], size, padding="same", name=name)
        kernel = tf.TensorSpec([size, size, *filters])
        assert layer._is_like_a_product(kernel) == (name == "fc6")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("settings", [{"use_bias": False}, {"groups": 2}, {}])
def test_in_half_precision_it_is_keras(policy, settings):
    layer = Conv2D(4, 3, dtype=policy, **settings)
    plain = keras.layers.Conv2D(4, 3, **settings)
    image = np.random.default_rng(0).normal(size=(1, 9, 8, 2))
    for each in (layer, plain):
        each.build(image.shape)
    plain.set_weights([np.float32(w) for w in layer.get_weights()])
    found, expected = layer(image), plain(image)
    assert found.dtype == layer.compute_dtype
    off = tf.norm(tf.cast(found, tf.float32) - expected)
    assert off < 0.01 * tf.norm(expected)


def test_by_a_product_bfloat16_is_not_biased():
    """Of positive numbers alone, where cutting off would show."""
    rng = np.random.default_rng(0)
    values = [
        tf.constant(rng.uniform(size=shape), tf.bfloat16)
        for shape in ([2, 16, 16, 64], [7, 7, 16, 64], [2, 16, 16, 16])
    ]

    def gradients(dtype):
        gradient, kernel, image = (tf.cast(value, dtype) for value in values)
        found = (
            convolution.at_image_by_product(gradient, kernel),
            convolution.at_kernel_by_product(image, gradient, kernel.shape),
        )
        return [tf.cast(each, tf.float64) for each in found]

    # A device that adds wrong is given float32.
    right = convolution.device_adds_right()
    found = gradients(tf.bfloat16 if right else tf.float32)
    for ours, exact in zip(found, gradients(tf.float64), strict=True):
        ratio = tf.reduce_mean(ours) / tf.reduce_mean(exact)
        assert abs(float(ratio) - 1) < 5e-4


def test_many_patches_are_left_to_the_device(monkeypatch):
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    layer = Conv2D(16, 7, padding="same")
    layer.build([2, None, None, 8])
    for width, few in ((4, True), (5, False)):  # 2 x 2 x 4 cells are 16, as filters
        kinds = kinds_of(layer, tf.ones([2, 2, width, 8]), known=True)
        assert not few == ("Conv2D" in kinds) == ("Conv2DBackpropFilter" in kinds)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("size", [1, 7])
def test_how_many_patches_there_are_may_be_unknown(monkeypatch, size, jit_compile):
    """The graph of an export: it takes whatever way suits the images it gets."""
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    layer = Conv2D(16, size, padding="same", activation="relu")
    plain = keras.layers.Conv2D(16, size, padding="same", activation="relu")
    for each in (layer, plain):
        each.build([None, None, None, 8])
    plain.set_weights(layer.get_weights())
    spec = tf.TensorSpec([None, None, None, 8])
    run = tf.function(layer, input_signature=[spec], jit_compile=jit_compile)
    found = run.get_concrete_function().graph.as_graph_def()
    branches = {
        kind: [f for f in found.library.function if kind in [n.op for n in f.node_def]]
        for kind in ("Conv2D", "MatMul")
    }
    assert len(branches["Conv2D"]) == len(branches["MatMul"]) == 1
    assert branches["Conv2D"] != branches["MatMul"]
    for shape in ([1, 4, 4], [1, 4, 5], [3, 2, 3], [2, 1, 8]):
        image = tf.random.stateless_normal([*shape, 8], [1, 2])
        np.testing.assert_allclose(run(image), plain(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
def test_fc7_is_a_product_without_onednn(monkeypatch, onednn):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 8 * 16)
    layer = Conv2D(16, 1, padding="same")
    layer.build([2, 2, 4, 8])
    kinds = kinds_of(layer, tf.ones([2, 2, 4, 8]), known=True)
    assert ("Conv2D" in kinds) == ("Conv2DBackpropInput" in kinds) == onednn
    # oneDNN's convolution also stays where the size of the map is unknown.
    unknown = kinds_of(layer, tf.ones([2, 2, 4, 8]))
    assert ("Conv2D" in unknown) == ("StatelessIf" not in unknown) == onednn


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize("rows", [1, 16, 17, 48, 64])
def test_rows_of_a_transposed_product_lie_an_odd_number_of_lines_apart(
    monkeypatch, rows, transpose_b, onednn
):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape) for shape in ([rows, 8], [8, 64]))
    given = np.float32(right.T if transpose_b else right)
    product = tf.function(lambda left: convolution._product(left, given, transpose_b))
    traced = product.get_concrete_function(tf.TensorSpec([rows, 8]))
    (matmul,) = (op for op in traced.graph.get_operations() if op.type == "MatMul")
    first, second = matmul.outputs[0].shape
    if onednn:
        assert (first, second) == (rows, 64)
    else:
        assert first == 64 and second >= rows and second % 32 == 16
    np.testing.assert_allclose(
        traced(np.float32(left)), left @ right, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("filters", [16, 32, 64, 100])
def test_rows_of_a_gradient_at_a_kernel_lie_an_odd_number_of_lines_apart(
    monkeypatch, filters
):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    image = tf.random.stateless_normal([2, 3, 4, 5], [1, 2])
    gradient = tf.random.stateless_normal([2, 3, 4, filters], [3, 4])
    shape = [3, 5, 5, filters]
    run = tf.function(lambda *given: convolution.at_kernel_by_product(*given, shape))
    traced = run.get_concrete_function(image, gradient)
    products = [op for op in traced.graph.get_operations() if op.type == "MatMul"]
    assert len(products) == 3
    for op in products:
        rows, columns = op.outputs[0].shape
        assert rows == 5 * 5 and columns >= filters and columns % 32 == 16
    expected = at_kernel_by_device(image, gradient, shape)
    np.testing.assert_allclose(traced(image, gradient), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_patches_for_the_kernel_wait_for_both_gradients(monkeypatch, policy, onednn):
    """Else they are made with the forward pass, and kept through all of the step.

    The gradient at the image is that from which on the kernel's copy is not needed.
    """
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    monkeypatch.setattr(convolution, "device_adds_right", lambda: True)
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    layer = Conv2D(16, 7, padding="same", activation="relu", dtype=policy)
    layer.build([2, 2, 4, 8])
    operations = product_of(layer, tf.ones([2, 2, 4, 8]), known=True)[1]
    in_rows = policy == "float32" and not onednn
    height = 1 if in_rows else 7  # of the part of the kernel that a product finds
    at_kernel = [
        op
        for op in operations
        if op.type == "MatMul" and op.outputs[0].shape == [7 * 8 * height, 16]
        if op.get_attr("transpose_a") and not op.get_attr("transpose_b")
    ]
    assert len(at_kernel) == (7 if in_rows else 1)
    (gradient,) = (op for op in operations if op.type == "ReluGrad")
    (behind,) = (
        op
        for op in operations
        if op.type == "Identity" and op.inputs[0].op is gradient and op.control_inputs
    )
    (at_image,) = behind.control_inputs
    assert at_image.outputs[0].shape == [2, 2, 4, 8]
    while at_image.type != "AddN":  # of the taps' parts
        at_image = at_image.inputs[0].op
    for op in at_kernel:
        laid_out = op.inputs[0].op.inputs[1].op if in_rows else op.inputs[0].op
        assert (op.inputs[0].op.type == "Split") == in_rows
        cut = laid_out.inputs[0].op
        assert cut.type == "ConcatV2"
        padded = cut.inputs[0].op.inputs[0].op
        # The cells to pad with are made where the padding is, and wait for it.
        made = [padded, *(tensor.op for tensor in padded.inputs)]
        assert padded.type == "Pad"
        assert any(behind in op.control_inputs for op in made)


@pytest.mark.parametrize("onednn", [True, False])
def test_compiled_it_learns_by_products(monkeypatch, onednn):
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    image = tf.random.stateless_normal([2, 4, 2, 8], [1, 2])
    layer = Conv2D(16, 7, padding="same")
    plain = keras.layers.Conv2D(16, 7, padding="same")
    for each in (layer, plain):
        each.build(image.shape)
    plain.set_weights(layer.get_weights())
    results = []
    for each in (layer, plain):

        @tf.function(jit_compile=each is layer)
        def gradients(image, each=each):
            with tf.GradientTape() as tape:
                tape.watch(image)
                loss = tf.reduce_sum(each(image) ** 2)
            return loss, *tape.gradient(loss, [image, each.kernel.value])

        results.append(gradients(image))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


# --- Rows that share lines of the cache --------------------------------------


@pytest.fixture
def short_rows_share_lines(monkeypatch):
    """A CPU without oneDNN, of which rows of 32, 64, ... numbers share lines."""
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(convolution, "SHARE_LINES", 32)
    monkeypatch.setattr(convolution, "PAD_FROM", 8 * 32)


@pytest.mark.usefixtures("short_rows_share_lines")
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("rows, columns", [(32, 8), (8, 32), (32, 64), (33, 16)])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_product_is_padded_where_rows_share_lines(
    rows, columns, transpose_a, transpose_b, unknown
):
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=size) for size in ([rows, 6], [6, columns]))
    given = [np.float32(left.T if transpose_a else left)]
    given += [np.float32(right.T if transpose_b else right)]
    specs = [tf.TensorSpec(matrix.shape) for matrix in given]
    if unknown:  # the number of cells: where both are known, they are the weights
        specs[0] = tf.TensorSpec([None, rows] if transpose_a else [None, 6])
    product = tf.function(
        lambda *two: convolution._padded_matmul(*two, transpose_a, transpose_b)
    ).get_concrete_function(*specs)
    (matmul,) = (x for x in product.graph.get_operations() if x.type == "MatMul")
    high, wide = matmul.outputs[0].shape
    assert wide == columns + 16 * (columns % 32 == 0)
    if transpose_a or not unknown:
        assert high == rows + 16 * (rows % 32 == 0 and transpose_a)
    np.testing.assert_allclose(product(*given), left @ right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, size, onednn, longer",
    [
        ("float32", 32, False, 16),
        ("float32", 48, False, 0),
        ("float32", 32, True, 0),
        ("bfloat16", 32, False, 0),
        ("float64", 32, False, 0),
    ],
)
def test_rows_are_padded_where_they_are_slow(
    short_rows_share_lines, monkeypatch, dtype, size, onednn, longer
):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    found = convolution.pad_where_lines_are_shared(tf.ones([3, size, 2], dtype), 1)
    assert found.shape == [3, size + longer, 2]
    assert tf.reduce_sum(found) == 3 * size * 2 and tf.reduce_all(found[:, :size] == 1)


@pytest.mark.usefixtures("short_rows_share_lines")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("filters_in, filters", [(32, 8), (8, 32), (64, 32)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("policy, away", [("float32", 1e-5), ("mixed_bfloat16", 0.01)])
def test_a_kernel_of_one_cell_is_a_product(
    policy, away, padding, filters_in, filters, known
):
    settings = {"padding": padding, "activation": "relu"}
    image = tf.random.stateless_normal([2, 3, 5, filters_in], [1, 2])
    layer, plain = (
        conv(filters, 1, dtype=kind, **settings)
        for conv, kind in ((Conv2D, policy), (keras.layers.Conv2D, "float32"))
    )
    for each in (layer, plain):
        each.build(image.shape)
    plain.set_weights(layer.get_weights())
    (found, operations), (expected, _) = (
        product_of(each, image, known) for each in (layer, plain)
    )
    kinds = [op.type for op in operations]
    forwards = policy == "float32" and filters % 32 == 0
    assert kinds.count("MatMul") == 2 + forwards
    assert kinds.count("Conv2D") == 1 - forwards
    assert not {"Conv2DBackpropInput", "Conv2DBackpropFilter"} & set(kinds)
    for op in operations:
        if op.type == "MatMul":
            assert op.get_attr("T") == tf.float32
            assert op.outputs[0].shape[1] % 32  # no row of a product shares lines
    for ours, theirs in zip(found, expected, strict=True):
        assert tf.norm(tf.cast(ours, tf.float32) - theirs) < away * tf.norm(theirs)
    spec = tf.TensorSpec([None, None, None, filters_in])
    traced = tf.function(layer).get_concrete_function(image if known else spec)
    assert traced.output_shapes == [
        *(image.shape[:3] if known else 3 * [None]),
        filters,
    ]


@pytest.mark.usefixtures("short_rows_share_lines")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("filters_in, filters", [(32, 8), (8, 32), (32, 64)])
def test_for_gradients_nothing_is_padded_before_one_is_there(
    filters_in, filters, policy
):
    """Else copies are made with the forward pass, and kept until then."""
    layer = Conv2D(filters, 1, activation="relu", dtype=policy)
    layer.build([2, 3, 5, filters_in])
    image = tf.ones([2, 3, 5, filters_in])
    operations = product_of(layer, image, known=True)[1]
    (gradient,) = (op for op in operations if op.type == "ReluGrad")
    products = [op for op in operations if op.type == "MatMul"]
    padded = {
        tensor.op
        for product in products
        if product.get_attr("transpose_a") or product.get_attr("transpose_b")
        for tensor in product.inputs
        if tensor.op.type == "Pad"
    }
    shared = sum(size % 32 == 0 for size in (filters_in, filters))
    # At the map its filters, in the kernel; at the kernel those of both maps.
    assert len(padded) == (filters_in % 32 == 0) + shared
    casts = [op for op in gradient.outputs[0].consumers() if op.type == "Cast"]
    for pad in padded:
        # What is padded is there before; with what, is made where the padding is.
        made = [pad, *(tensor.op for tensor in pad.inputs)]
        assert any(x in op.control_inputs for x in [gradient, *casts] for op in made)


@pytest.mark.parametrize(
    "settings, policy",
    [
        ({}, "float32"),
        ({"strides": 2}, "float32"),
        ({"kernel_size": 3}, "float32"),
        ({"filters": 48}, "float32"),
        ({}, "mixed_float16"),
        ({}, "mixed_bfloat16"),  # where the device adds right
    ],
)
@pytest.mark.parametrize("device", ["cpu", "onednn", "gpu", "another"])
def test_others_are_no_products(
    short_rows_share_lines, monkeypatch, settings, policy, device
):
    monkeypatch.setattr(convolution, "device_adds_right", lambda: True)
    settings = {"filters": 32, "kernel_size": 1, "padding": "same", **settings}
    layer = Conv2D(**settings, dtype=policy)
    layer.build([2, 4, 6, 8])
    monkeypatch.setattr(
        convolution, "device_differentiates_dilation", lambda _: device == "onednn"
    )
    if device == "gpu":
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    elsewhere = convolution.on_another_device if device == "another" else nullcontext
    with elsewhere():
        kinds = kinds_of(layer, tf.ones([2, 4, 6, 8]), known=True)
    plain = {"filters": 32, "kernel_size": 1, "padding": "same"}
    is_product = device == "cpu" and policy == "float32" and settings == plain
    assert ("MatMul" in kinds) == is_product


def test_small_kernels_are_no_products(short_rows_share_lines, monkeypatch):
    layer = Conv2D(32, 1, activation="relu")
    layer.build([2, 4, 6, 8])
    for least, is_product in ((8 * 32, True), (8 * 32 + 1, False)):
        monkeypatch.setattr(convolution, "PAD_FROM", least)
        kinds = kinds_of(layer, tf.ones([2, 4, 6, 8]), known=True)
        assert ("MatMul" in kinds) == is_product


@pytest.mark.usefixtures("short_rows_share_lines")
@pytest.mark.parametrize("filters_in, filters", [(32, 8), (8, 32)])
def test_compiled_products_have_the_same_gradients(filters_in, filters):
    layer = Conv2D(filters, 1, activation="relu")
    layer.build([2, 3, 5, filters_in])

    def gradients(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = tf.reduce_sum(layer(image) ** 2)
        return tape.gradient(loss, [image, layer.kernel.value])

    compiled = tf.function(gradients, jit_compile=True)
    image = tf.random.stateless_normal([2, 3, 5, filters_in], [1, 2])
    for ours, theirs in zip(compiled(image), gradients(image), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # Of no image nothing is learnt. (A convolution that is not compiled gives it the
    # wrong number of channels where TensorFlow 2.21 goes through oneDNN.)
    of_none, of_kernel = compiled(image[:0])
    assert of_none.shape == (0, 3, 5, filters_in)
    np.testing.assert_array_equal(of_kernel, np.zeros_like(layer.kernel))


@pytest.mark.usefixtures("short_rows_share_lines")
def test_what_is_known_of_a_products_sizes_stays_known():
    layer = Conv2D(32, 1)
    layer.build([None, None, None, 8])
    for shape in ([2, None, None], [None, 3, 5], [2, None, 5]):
        spec = tf.TensorSpec([*shape, 8])
        traced = tf.function(layer).get_concrete_function(spec)
        assert traced.output_shapes == [*shape, 32]
        assert traced(tf.ones([2, 3, 5, 8])).shape == [2, 3, 5, 32]


def test_in_resnet50_the_widest_maps_are_products(monkeypatch):
    """Four convolutions of one cell with 2,048 filters, and two that read as many."""
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(dilation, "device_differentiates_dilation", lambda _: False)
    image = keras.Input((64, 64, 3))
    trunk = keras.Model(image, resnet50_trunk(image))
    kernels = [w.value for w in trunk.trainable_weights if w.path.endswith("kernel")]

    def gradient(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(trunk(image))
        return tape.gradient(loss, kernels)

    traced = tf.function(gradient).get_concrete_function(tf.TensorSpec([1, 64, 64, 3]))
    products = [
        op
        for op in traced.graph.get_operations()
        if op.type == "MatMul" and 2048 + 16 in [*op.outputs[0].shape]
    ]
    at_kernels = [op for op in products if op.get_attr("transpose_a")]
    at_maps = [op for op in products if op.get_attr("transpose_b")]
    assert (len(products), len(at_kernels), len(at_maps)) == (12, 6, 2)


# --- Large maps --------------------------------------------------------------


@pytest.mark.parametrize("height, strips", [(5, 1), (5, 2), (5, 5), (2, 2), (13, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (7, 5)])
def test_strips_have_the_gradient_of_the_whole_map(height, strips, size):
    image = tf.random.stateless_normal([2, height, 6, 3], [1, 2])
    gradient = tf.random.stateless_normal([2, height, 6, 4], [3, 4])
    shape = [*size, 3, 4]
    expected = at_kernel_by_device(image, gradient, shape)
    run = tf.function(
        lambda *given: convolution.at_kernel_by_strips(*given, shape, strips)
    )
    found = run(image, gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == shape


@pytest.mark.parametrize("height, strips", [(5, 1), (5, 2), (5, 5), (2, 2), (13, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (7, 5)])
@pytest.mark.parametrize("batch", [2, None])
def test_strips_have_the_map_of_the_whole_and_its_gradient(height, strips, size, batch):
    image = tf.random.stateless_normal([2, height, 6, 3], [1, 2])
    gradient = tf.random.stateless_normal([2, height, 6, 4], [3, 4])
    kernel = tf.random.stateless_normal([*size, 3, 4], [5, 6])
    specs = [tf.TensorSpec([batch, *x.shape[1:]]) for x in (image, gradient)]

    @tf.function(input_signature=specs)
    def found(image, gradient):
        return (
            convolution.convolve_by_strips(image, kernel, strips),
            convolution.at_image_by_strips(gradient, kernel, image, strips),
        )

    expected = (
        tf.nn.conv2d(image, kernel, 1, "SAME"),
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=image.shape,
            filter=kernel,
            out_backprop=gradient,
            strides=[1] * 4,
            padding="SAME",
        ),
    )
    for ours, theirs in zip(found(image, gradient), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # One strip after the other: each waits for the last, or for what was cut for it.
    for kind in ("Conv2D", "Conv2DBackpropInput"):
        graph = found.get_concrete_function().graph
        parts = [op for op in graph.get_operations() if op.type == kind]
        assert len(parts) == strips
        for last, part in itertools.pairwise(parts):
            cut = part.inputs[2 if kind == "Conv2DBackpropInput" else 0].op
            made = [cut, *(tensor.op for tensor in cut.inputs)]
            assert cut.type == "StridedSlice"
            assert any(last in op.control_inputs for op in made)


def in_two_precisions(policy):
    """A convolution, the same in float32, and an image of 8 x 6 cells for both."""
    layers = [
        Conv2D(4, 3, padding="same", activation="relu", dtype=kind)
        for kind in (policy, "float32")
    ]
    image = tf.random.stateless_normal([2, 8, 6, 3], [1, 2])
    for layer in layers:
        layer.build(image.shape)
    layers[1].set_weights(layers[0].get_weights())
    return *layers, image


@pytest.mark.parametrize(
    "policy, away",
    [("float32", 1e-5), ("mixed_bfloat16", 0.01), ("mixed_float16", 0.002)],
)
def test_the_largest_maps_are_all_in_strips(monkeypatch, policy, away):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(convolution, "STRIP_FROM", 648)  # half of an image's
    layer, plain, image = in_two_precisions(policy)
    kinds = "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"

    def count(operations):
        found = [op.type for op in operations]
        return [found.count(kind) for kind in kinds]

    monkeypatch.setattr(convolution, "STRIP_ALL_FROM", 1297)
    expected, operations = product_of(plain, image, known=True)
    assert count(operations) == [1, 1, 2]
    monkeypatch.setattr(convolution, "STRIP_ALL_FROM", 1296)
    found, operations = product_of(layer, image, known=True)
    assert count(operations) == [2, 2, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert tf.norm(tf.cast(ours, tf.float32) - theirs) < away * tf.norm(theirs)
    # What is a product stays one.
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "PRODUCT_FROM", 1)
        assert count(product_of(plain, image, known=True)[1])[:2] == [1, 0]
    # Of a map whose size is not known nothing is cut.
    assert count(product_of(layer, image)[1]) == [1, 1, 1]
    with convolution.on_another_device():
        assert count(product_of(layer, image, known=True)[1]) == [1, 1, 1]


def strips_of(layer, image, known=True):
    """Results, and what finds the gradient at a kernel; each waits for the last."""
    results, operations = product_of(layer, image, known)
    found = [op for op in operations if op.type == "Conv2DBackpropFilter"]
    if len(found) > 1:
        gradient = next(op for op in operations if op.type == "ReluGrad")
        # Or its copy in float32.
        casts = [op for op in gradient.outputs[0].consumers() if op.type == "Cast"]
        waits_for, total = [gradient, *casts], None
        for op in found:
            for cut in (op.inputs[0].op, op.inputs[2].op):
                # The rows to cut at are made where the cut is, and wait for it.
                made = [cut, *(tensor.op for tensor in cut.inputs)]
                assert cut.type == "StridedSlice"
                assert any(x in op.control_inputs for x in waits_for for op in made)
            if total is None:
                total = op
            else:
                (added,) = op.outputs[0].consumers()
                assert added.type == "AddV2" and total in [x.op for x in added.inputs]
                total = added
            waits_for = [total]
    return results, found


@pytest.mark.parametrize(
    "policy, away",
    [("float32", 1e-5), ("mixed_bfloat16", 0.01), ("mixed_float16", 0.002)],
)
def test_large_maps_are_gone_through_in_strips(monkeypatch, policy, away):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "device_adds_right", lambda: False)
    monkeypatch.setattr(convolution, "STRIP_FROM", 10**6)
    layer, plain, image = in_two_precisions(policy)
    expected, whole = strips_of(plain, image)
    assert len(whole) == 1
    # Those of an image are 8 x 6 x 9 x 3 numbers.
    for allowed, strips in ((1296, 1), (1295, 2), (324, 4), (1, 8)):
        monkeypatch.setattr(convolution, "STRIP_FROM", allowed)
        found, parts = strips_of(layer, image)
        assert len(parts) == strips
        in_float32 = policy != "mixed_float16" or strips > 1
        for op in parts:
            assert op.get_attr("T") == (tf.float32 if in_float32 else tf.float16)
        for ours, theirs in zip(found, expected, strict=True):
            assert tf.norm(tf.cast(ours, tf.float32) - theirs) < away * tf.norm(theirs)


@pytest.mark.parametrize(
    "settings, shape, onednn",
    [
        ({"padding": "same"}, [2, None, 6, 3], False),
        ({"padding": "same"}, [2, 8, None, 3], False),
        ({"padding": "same"}, [2, 8, 6, 3], True),
        ({"padding": "valid"}, [2, 8, 6, 3], False),
        ({"padding": "same", "strides": 2}, [2, 8, 6, 3], False),
        ({"padding": "same", "kernel_size": 2}, [2, 8, 6, 3], False),
        # Of the 8 x 6 cells' patches, 9 x 3 numbers each, 7 strips of 8 are saved.
        ({"padding": "same", "filters": 7 * 6}, [2, 8, 6, 3], False),
    ],
)
def test_other_maps_are_not_cut(monkeypatch, settings, shape, onednn):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: onednn)
    monkeypatch.setattr(convolution, "STRIP_FROM", 1)
    layer = Conv2D(**{"filters": 4, "kernel_size": 3, **settings})
    layer.build([2, 8, 6, 3])
    assert layer._num_strips(tf.TensorSpec(shape), layer.kernel) == 1
    if None not in shape:
        assert len(strips_of(layer, tf.ones(shape))[1]) == 1


@pytest.mark.parametrize(
    "settings, of_its_own",
    [({}, True), ({"groups": 3}, False), ({"dilation_rate": 2}, False)],
)
def test_groups_and_dilation_are_not_cut(monkeypatch, settings, of_its_own):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    monkeypatch.setattr(convolution, "STRIP_FROM", 1)
    layer = Conv2D(6, 3, padding="same", **settings)
    layer.build([2, 8, 6, 3])
    traced = tf.function(layer).get_concrete_function(tf.TensorSpec([2, 8, 6, 3]))
    kinds = [op.type for op in traced.graph.get_operations()]
    assert ("IdentityN" in kinds) == of_its_own


def test_of_a_large_map_little_is_laid_out(monkeypatch):
    """VGG16's convolutions of three blocks at the paper's size and a tenth of it."""
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    first = ((500, 64, 5, True), (250, 128, 3, False), (125, 256, 2, False))
    for size, filters, strips, all_of_it in first:
        layer = Conv2D(filters, 3, padding="same")
        layer.build([2, size, size, filters])
        for batch, divided, expected in ((2, 1, strips), (None, 1, strips), (2, 10, 1)):
            shape = [batch, size // divided, size // divided, filters]
            assert layer._num_strips(tf.TensorSpec(shape), layer.kernel) == expected
        traced = tf.function(layer).get_concrete_function(
            tf.TensorSpec([2, size, size, filters])
        )
        found = [op.type for op in traced.graph.get_operations()].count("Conv2D")
        assert found == (strips if all_of_it else 1)


def test_compiled_strips_have_the_same_gradient(monkeypatch):
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    layer = Conv2D(4, 3, padding="same", activation="relu")
    image = tf.random.stateless_normal([2, 8, 6, 3], [1, 2])
    layer.build(image.shape)

    def gradient(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = tf.reduce_sum(layer(image) ** 2)
        return tape.gradient(loss, [image, layer.kernel.value])

    expected = tf.function(gradient)(image)
    monkeypatch.setattr(convolution, "STRIP_FROM", 400)
    for all_from in (2**27, 1):
        monkeypatch.setattr(convolution, "STRIP_ALL_FROM", all_from)
        kinds = [op.type for op in product_of(layer, image, known=True)[1]]
        for kind in ("Conv2D", "Conv2DBackpropInput"):
            assert kinds.count(kind) == (4 if all_from == 1 else 1)
        assert len(strips_of(layer, image)[1]) == 4
        found = tf.function(gradient, jit_compile=True)(image)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_for_a_gpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    monkeypatch.setattr(convolution, "STRIP_FROM", 1)
    monkeypatch.setattr(convolution, "device_differentiates_dilation", lambda _: False)
    layer = Conv2D(4, 7, padding="same", activation="relu")
    layer.build([1, 9, 9, 2])
    image = tf.ones([1, 9, 9, 2])
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 10**6)
    assert len(strips_of(layer, image)[1]) == 9
    monkeypatch.setattr(convolution, "PRODUCT_FROM", 1)
    assert "MatMul" in kinds_of(layer, image, known=True)
    with convolution.on_another_device():
        assert "MatMul" not in kinds_of(layer, image, known=True)
        assert len(strips_of(layer, image)[1]) == 1
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert "MatMul" not in kinds_of(layer, image, known=True)
    assert len(strips_of(layer, image)[1]) == 1


# --- LeakyReLU ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_leaky_relu_is_keras(dtype):
    x = tf.constant([-3.0, -1e-30, -0.0, 0.0, 1e-30, 2.0, np.inf, -np.inf, np.nan])
    found = []
    for layer in (
        LeakyReLU(0.2, dtype=dtype),
        keras.layers.LeakyReLU(0.2, dtype=dtype),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        found.append((y, tape.gradient(y, x)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(*(tf.cast(v, tf.float32) for v in (ours, theirs)))


def test_what_its_gradient_reads_is_the_output():
    """Reading the input, TensorFlow's fusion fails and leaves the whole graph as is."""
    adversary = build_adversary(3, None, width=0.125)

    def gradient(label_map):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(adversary(label_map, training=True))
        return tape.gradient(loss, [w.value for w in adversary.trainable_weights])

    spec = tf.TensorSpec([1, 64, 64, 3])
    operations = tf.function(gradient).get_concrete_function(spec).graph
    read = [
        op.inputs[1].op.type
        for op in operations.get_operations()
        if op.type == "LeakyReluGrad"
    ]
    assert read == ["LeakyRelu"] * 4
