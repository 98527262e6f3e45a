"""Runs the steps of `write_programs` with JAX; TensorFlow is not needed."""

import gzip
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.step_rows import PRODUCT_SIZE, drawn_batch


class Steps:
    """Written steps and the variables that they share, on JAX's first device.

    Args:
        folder: of one precision.
        phases: those that are loaded; each is compiled here.
    """

    def __init__(self, folder: str, phases: list[str]):
        import jax

        jax.config.update("jax_enable_x64", True)  # the clocks of optimizers are int64
        self._device = jax.devices()[0]
        self._put = lambda value: jax.device_put(value, self._device)
        self.manifest = read_manifest(folder)
        self._variables = self._first_values(folder, phases)
        self._programs = {
            phase: Program(
                os.path.join(folder, f"{phase}.mlir.gz"),
                self._device,
                self.manifest["phases"][phase]["takes"],
            )
            for phase in phases
        }
        self._batch = [self._put(x) for x in drawn_batch(self.manifest["settings"])]

    def call(self, phase: str) -> dict[str, float]:
        """One step on the drawn batch: its scalars, once they are there."""
        results = self._programs[phase](self._batch, self._variables)
        gives = self.manifest["phases"][phase]["gives"]
        scalars = results[: len(gives)]
        return {name: float(x) for name, x in zip(gives, scalars, strict=True)}

    def value(self, name: str) -> np.ndarray:
        """A variable as it is now."""
        return np.asarray(self._variables[name])

    def _first_values(self, folder, phases):
        random, values = np.random.default_rng(0), {}
        taken = {x for p in phases for x in self.manifest["phases"][p]["takes"]}
        with np.load(os.path.join(folder, "variables.npz")) as stored:
            for name, described in self.manifest["variables"].items():
                if name not in taken:
                    continue
                if "drawn" in described:
                    mean, spread = described["drawn"]
                    value = random.standard_normal(described["shape"], np.float32)
                    value = (mean + spread * value).astype(described["dtype"])
                else:
                    value = stored[name]
                values[name] = self._put(value)
        return values


class Program:
    """A written program, compiled for a device of JAX's.

    Args:
        path: of the StableHLO text, compressed.
        device: of JAX's.
        takes: names of the variables behind its arguments, in its order.
    """

    def __init__(self, path: str, device, takes: list[str]):
        # Not JAX's public interface; seen working with 0.10 and 0.11.
        from jax._src.lib import xla_client
        from jax.extend import backend

        with gzip.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
        self._compiled = backend.get_backend().compile_and_load(
            text, xla_client.DeviceList((device,)), xla_client.CompileOptions()
        )
        self._takes, self._updates = takes, _updates(text)

    def __call__(self, arguments: list, variables: dict[str, Any]) -> list:
        """Its results, as arrays; `variables` gets the new values."""
        given = [*arguments, *(variables[name] for name in self._takes)]
        results = self._compiled.execute_sharded(given)
        results = [
            shards[0] for shards in results.disassemble_into_single_device_arrays()
        ]
        for argument, result in self._updates:
            variables[self._takes[argument - len(arguments)]] = results[result]
        return results


def read_manifest(folder: str) -> dict[str, Any]:
    """What `write_programs` says of one precision."""
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        return json.load(file)


def _updates(program: str) -> list[tuple[int, int]]:
    """(argument, result): the results that are an argument's new value."""
    pairs = re.findall(
        r"parameter_number = (\d+)[^<>]*output_index = array<i64: (\d+)>", program
    )
    return [(int(argument), int(result)) for argument, result in pairs]


def build_programs(settings: dict[str, Any]) -> dict[str, Callable]:
    """The steps by phase, "product", "flops", "machine"; in a worker.

    Args:
        settings: "programs" is the folder of one precision, "phases" what is loaded,
            "product_size" the side of the matrices whose product is timed.
    """
    # Another framework wants memory on the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp

    steps = Steps(settings["programs"], settings["phases"])
    bfloat16 = settings["precision"] == "mixed_bfloat16"
    size = settings.get("product_size", PRODUCT_SIZE)
    matrix = jnp.ones([size, size], jnp.bfloat16 if bfloat16 else jnp.float32)
    product = jax.jit(lambda matrix: (matrix @ matrix)[0, 0])
    device = jax.devices()[0]
    work = {
        **{
            phase: lambda phase=phase: steps.call(phase) for phase in settings["phases"]
        },
        "product": lambda: float(product(matrix)),
        "flops": lambda: {
            phase: described["flops"]
            for phase, described in steps.manifest["phases"].items()
        },
        "machine": lambda: {
            "device": device.device_kind,
            "platform": device.platform,
            "jax": jax.__version__,
        },
    }
    if device.memory_stats():  # a GPU's; a CPU has none
        work["peak_memory"] = lambda: device.memory_stats()["peak_bytes_in_use"]
    return work
