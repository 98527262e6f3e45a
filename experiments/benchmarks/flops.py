"""Arithmetic of a traced function, counted from its graph."""

import functools
import math

import tensorflow as tf

# Which input or output of an operation has the shape of the filter, and which that of
# what the convolution gives (or of its gradient). Both count the same products.
_CONVOLUTIONS = {
    "Conv2D": (("in", 1), ("out", 0)),
    "Conv2DBackpropInput": (("in", 1), ("in", 2)),
    "Conv2DBackpropFilter": (("out", 0), ("in", 2)),
}
_PRODUCTS = ("MatMul", "BatchMatMulV2")
_WORK = {*_CONVOLUTIONS, *_PRODUCTS, "Einsum"}


def count_flops(function) -> int:
    """Floating point operations of convolutions and matrix products, 2 a product.

    A convolution counts as if every output saw its whole kernel: taps that fall on
    padding are in, whatever a library may skip. Element by element work is left out,
    and what no output or effect depends on, which never runs.

    Args:
        function: a `tf.types.experimental.ConcreteFunction` of static shapes.

    Returns:
        Operations of one call.

    Raises:
        ValueError: a shape is not known, or an operation (a branch, a loop, a call)
            holds a function with work in it, which is not opened.
    """
    library = function.graph.as_graph_def().library.function
    bodies = {f.signature.name: f.node_def for f in library}

    @functools.cache
    def works(name):
        """Whether there is work in a function, or in one that it calls."""
        return any(
            node.op in _WORK or any(map(works, _held_by(node))) for node in bodies[name]
        )

    working = set(filter(works, bodies))
    return sum(_flops_of(op, working) for op in _needed(function.graph))


def _needed(graph):
    """Operations that outputs and effects depend on."""
    found = set()
    waiting = [*(tensor.op for tensor in graph.outputs), *graph.control_outputs]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return found


def _held_by(node):
    """Names of the functions that an operation may run."""
    for attribute in node.attr.values():
        for function in (attribute.func, *attribute.list.func):
            if function.name:
                yield function.name


def _flops_of(op: tf.Operation, working: set[str]) -> int:
    if op.type in _CONVOLUTIONS:
        kernel, out = (_shape(op, *place) for place in _CONVOLUTIONS[op.type])
        return 2 * math.prod(out) * math.prod(kernel[:3])
    if op.type in _PRODUCTS:
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        shared = _shape(op, "in", 0)[-2 if transposed else -1]
        return 2 * math.prod(_shape(op, "out", 0)) * shared
    if op.type == "Einsum":  # every combination of its indices is a product
        terms = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {}
        for index, term in enumerate(terms):
            sizes |= dict(zip(term, _shape(op, "in", index), strict=True))
        return 2 * math.prod(sizes.values()) if len(terms) > 1 else 0
    if working.intersection(_held_by(op.node_def)):
        raise ValueError(f"{op.name}: the work in {op.type} is not counted")
    return 0


def _shape(op, side, index):
    tensor = (op.inputs if side == "in" else op.outputs)[index]
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{op.name}: a shape is not known, {tensor.shape}")
    return tensor.shape.as_list()
