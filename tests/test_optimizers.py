import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf.optimizers import Adam

START = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)


def after_steps(optimizer, jit_compile=False, steps=5):
    """Weights and the optimizer's whole state after a few steps on a quadratic."""
    weights = [keras.Variable(START), keras.Variable(START[0])]
    optimizer.build(weights)

    @tf.function(jit_compile=jit_compile)
    def step(scale):
        optimizer.apply([scale * w for w in weights], weights)

    for number in range(steps):
        step(tf.constant(1.0 + number))
    return [w.numpy() for w in (*weights, *optimizer.variables)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "global_clipnorm": 0.5, "epsilon": 1e-3},
        {"learning_rate": keras.optimizers.schedules.PolynomialDecay(0.1, 4, 0.01)},
        {"amsgrad": True},
    ],
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_equals_keras(settings, jit_compile):
    settings = {"learning_rate": 0.1, **settings}
    theirs = after_steps(keras.optimizers.Adam(**settings))
    ours = after_steps(Adam(**settings), jit_compile)
    assert not np.allclose(theirs[0], START, atol=0.05)
    # The kernel forms 1 - b2 in float32: 1e-5 of it is lost, half of that of a step.
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_first_step_by_hand():
    # m = .1 g, v = .001 g^2, and the factor sqrt(.001) / .1 undoes both: w moves by the
    # rate against the sign of g, whatever its size.
    weights, *_ = after_steps(Adam(0.25, epsilon=1e-12), steps=1)
    np.testing.assert_allclose(weights, START - 0.25 * np.sign(START), rtol=1e-5)


def test_one_operation_a_weight():
    weight, optimizer = keras.Variable(START), Adam(0.1)
    optimizer.build([weight])
    step = tf.function(lambda g: optimizer.apply([g], [weight]))
    graph = step.get_concrete_function(tf.TensorSpec(START.shape)).graph
    large = [
        op.type
        for op in graph.get_operations()
        if any(tuple(t.shape.as_list()) == START.shape for t in op.outputs)
    ]
    assert [op.type for op in graph.get_operations()].count("ResourceApplyAdam") == 1
    assert set(large) <= {"Placeholder", "Identity", "IdentityN", "ReadVariableOp"}


def test_state_is_that_of_keras():
    theirs, ours = keras.optimizers.Adam(0.1, name="a"), Adam(0.1, name="a")
    for optimizer in (theirs, ours):
        optimizer.build([keras.Variable(START, name="w")])
    assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]


def test_replicas_stay_equal():
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([devices[0].name])
    with strategy.scope():
        weight, optimizer = keras.Variable(START), Adam(0.1)
        optimizer.build([weight])

    @tf.function
    def step():
        strategy.run(lambda: optimizer.apply([2.0 * weight], [weight]))

    step()
    np.testing.assert_allclose(weight, START - 0.1 * np.sign(START), atol=1e-4)
