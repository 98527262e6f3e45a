"""Parts of a batch: joined in order, summed, one at a time."""

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf.micro_batches import in_parts


def doubled_and_sums(seen):
    def function(x, y):
        seen.append(x.shape[0])
        return [2 * x, y > 2], {"x": tf.reduce_sum(x), "nothing": None}

    return function


@pytest.mark.parametrize("num_parts, size", [(1, 6), (2, 3), (3, 2), (6, 1)])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_parts_by_hand(num_parts, size, jit_compile):
    seen = []
    x, y = tf.reshape(tf.range(12.0), [6, 2]), tf.range(6)

    @tf.function(jit_compile=jit_compile)
    def run(x, y):
        kept, added = in_parts(
            doubled_and_sums(seen),
            num_parts,
            (x, y),
            keep=(tf.float32, tf.bool),
            total={"x": tf.constant(0.0), "nothing": tf.zeros([3])},
        )
        return kept, added["x"], added["nothing"]

    kept, total, nothing = run(x, y)
    np.testing.assert_array_equal(kept[0], 2 * x)
    np.testing.assert_array_equal(kept[1], [0, 0, 0, 1, 1, 1])
    assert total == 66  # 0 + ... + 11
    assert seen == [size]  # one trace, however many parts
    assert nothing is None if num_parts == 1 else not np.any(nothing)


def test_no_part_begins_before_the_one_before_it_has_ended():
    order = []

    def function(x):
        def note(value):
            order.append(float(value[0]))
            return value

        x = tf.ensure_shape(tf.numpy_function(note, [x], tf.float32), [1])
        x = x + tf.reduce_sum(tf.random.normal([300, 300]) @ tf.ones([300, 300])) * 0
        x = tf.numpy_function(note, [x + 0.5], tf.float32)
        return [tf.ensure_shape(x, [1])], ()

    run = tf.function(lambda x: in_parts(function, 4, (x,), keep=[tf.float32])[0])
    run(tf.range(4.0))
    assert order == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="batch of 5 does not make 2 equal parts"):
        in_parts(lambda x: ([x], ()), 2, (tf.range(5),), keep=[tf.int32])


def test_batch_size_that_is_not_known_in_advance():
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def run(x):
        return in_parts(lambda x: ([x + 1], ()), 2, (x,), keep=[tf.float32])[0][0]

    np.testing.assert_array_equal(run(tf.zeros([4, 3])), np.ones([4, 3]))
