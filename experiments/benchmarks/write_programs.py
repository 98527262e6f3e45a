"""The training steps as programs that run without TensorFlow.

What XLA compiles of a step is a StableHLO program: networks, losses, gradients and
updates in one, for one shape of batch. `jax_programs` runs it on a machine that has
JAX.

    FOLDER/PRECISION/manifest.json   settings, versions, arithmetic, and for each step
                                     the variables that it takes, in its order
    FOLDER/PRECISION/PHASE.mlir.gz   the program
    FOLDER/PRECISION/variables.npz   first values of the variables that are not drawn
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks import machine
from experiments.benchmarks.flops import count_flops
from experiments.benchmarks.step_rows import drawn_batch
from ss_gan_tf import convolution

# A random weight with more elements is described by its spread: the speed of a step
# does not depend on its values, and fc6 of VGG16 alone would be 411 MB.
LARGEST_STORED = 2**16


def write_programs(
    folder: str,
    settings: dict[str, Any],
    steps: Mapping[str, Callable],
    variables: Sequence[keras.Variable],
    *,
    largest_stored: int = LARGEST_STORED,
) -> str:
    """Writes the steps of one precision.

    Args:
        folder: for all precisions; what it holds of this one is replaced.
        settings: as `step.make_steps` takes them; "precision" names the subfolder.
        steps: phase -> a `tf.function` of (image, label).
        variables: every Keras variable that a step may use.
        largest_stored: elements of the largest random weight whose values are kept.

    Returns:
        The subfolder.

    Raises:
        ValueError: a step uses a variable that is not among them.
    """
    place = os.path.join(folder, settings["precision"])
    os.makedirs(place, exist_ok=True)
    batch = tuple(map(tf.constant, drawn_batch(settings)))
    # Two optimizers may hold variables of one name.
    names = {
        id(plain(variable).handle): f"{number}:{variable.path}"
        for number, variable in enumerate(variables)
    }
    phases = {}
    for phase, step in steps.items():
        with convolution.on_another_device():
            traced = step.get_concrete_function(*batch)
            program = step.experimental_get_compiler_ir(*batch)(stage="stablehlo")
        program = portable(program)
        with gzip.open(os.path.join(place, f"{phase}.mlir.gz"), "wt") as file:
            file.write(program)
        phases[phase] = {
            "flops": count_flops(traced),
            "takes": [
                name_of(tensor, names, phase) for tensor in traced.captured_inputs
            ],
            "gives": sorted(traced.structured_outputs),
        }
    taken = {name for phase in phases.values() for name in phase["takes"]}
    described, stored = {}, {}
    for variable in variables:
        name = names[id(plain(variable).handle)]
        if name in taken:
            described[name] = _describe(variable, largest_stored)
            if "drawn" not in described[name]:
                stored[name] = np.asarray(variable)
    np.savez(os.path.join(place, "variables.npz"), **stored)
    manifest = {
        "settings": settings,
        "machine": machine.describe_machine(),
        "phases": phases,
        "variables": described,
    }
    with open(os.path.join(place, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
    return place


def portable(program: str) -> str:
    """Without the one operation of TensorFlow's that is not StableHLO: a plain copy.

    JAX on a GPU takes programs of StableHLO alone.
    """
    return re.sub(
        r"mhlo\.copy (%[\w#]+) : (tensor<[^>]*>)",
        r"stablehlo.reshape \1 : (\2) -> \2",
        program,
    )


def plain(variable):
    """The `tf.Variable` behind a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def name_of(captured, names, phase) -> str:
    """The name of a variable that a step captured.

    Raises:
        ValueError: it is not among the names, which are by the `id` of its handle.
    """
    if id(captured) not in names:
        raise ValueError(f"{phase} uses a variable that was not given: {captured}")
    return names[id(captured)]


def _describe(variable, largest_stored):
    """Shape and dtype; for a large random one the spread that it is drawn with."""
    value = np.asarray(variable)
    description = {"shape": list(value.shape), "dtype": value.dtype.name}
    if value.size > largest_stored:
        description["drawn"] = [float(value.mean()), float(value.std())]
    return description
