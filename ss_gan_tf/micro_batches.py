"""A batch computed in parts, one after the other, for the memory of one part.

`in_parts` is a loop inside the graph: the next part starts when the one before it is
done, so the activations of one part alone are alive.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def in_parts(
    function: Callable[..., tuple[Sequence[tf.Tensor], Any]],
    num_parts: int,
    batch: Sequence[tf.Tensor],
    *,
    keep: Sequence[tf.DType] = (),
    total: Any = (),
) -> tuple[list[tf.Tensor], Any]:
    """Calls a function on equal parts of a batch.

    Args:
        function: (a part of each tensor of `batch`) -> (kept, added): tensors with an
            entry per image, and a structure of tensors to be summed over the parts.
        num_parts: N; with 1 the function is called on the batch itself.
        batch: tensors [B, ...]; B is a multiple of N.
        keep: dtypes of `kept`.
        total: a structure like `added`, whose leaves have the shapes and dtypes of its
            sums (variables will do); a None in `added` counts as 0.

    Returns:
        `kept` of the whole batch, [B, ...] in the batch's order, and the sum of
        `added`. The mean over a batch is the sum of the parts' means divided by N.

    Raises:
        ValueError: B is known and no multiple of N.
    """
    if num_parts == 1:
        kept, added = function(*batch)
        return list(kept), added
    parts = [_split(tensor, num_parts) for tensor in batch]

    def run_part(index, arrays, sums):
        kept, added = function(*(part[index] for part in parts))
        arrays = [a.write(index, x) for a, x in zip(arrays, kept, strict=True)]
        sums = [
            s if x is None else s + x
            for s, x in zip(sums, tf.nest.flatten(added), strict=True)
        ]
        return index + 1, arrays, sums

    arrays = [tf.TensorArray(dtype, num_parts) for dtype in keep]
    # A zero that nobody can know beforehand: TensorFlow would keep plain zeros as
    # constants for good, and for gradients they are as large as the network.
    zero = tf.compat.v1.placeholder_with_default(0.0, [])
    sums = [tf.fill(x.shape, tf.cast(zero, x.dtype)) for x in tf.nest.flatten(total)]
    _, arrays, sums = tf.while_loop(
        lambda index, *_: index < num_parts,
        run_part,
        (0, arrays, sums),
        parallel_iterations=1,  # else independent parts would share the memory
        maximum_iterations=num_parts,  # XLA wants to know
    )
    return [a.concat() for a in arrays], tf.nest.pack_sequence_as(total, sums)


def _split(tensor, num_parts):
    """[B, ...] -> [N, B / N, ...]."""
    size = tensor.shape[0]
    if size is not None and size % num_parts:
        raise ValueError(f"a batch of {size} does not make {num_parts} equal parts")
    size = (tf.shape(tensor)[0] if size is None else size) // num_parts
    return tf.reshape(tensor, [num_parts, size, *tensor.shape[1:]])
