"""Written programs and their variables, on JAX's first device."""

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.jax_programs import Program


class Programs:
    """The programs of one backbone on JAX's first device, compiled at their first call.

    Args:
        folder: of the backbone.
        report: called with a line.
    """

    def __init__(self, folder: str, report: Callable[[str], None] = lambda line: None):
        import jax

        jax.config.update("jax_enable_x64", True)  # the clocks of optimizers are int64
        self._jax, self._folder, self._report = jax, folder, report
        self._device = jax.devices()[0]
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)
        self._compiled: dict[str, Program] = {}
        self._first_values: dict[int, dict] = {}

    def put(self, value):
        """An array on the device."""
        return self._jax.device_put(value, self._device)

    def copy(self, variables: dict) -> dict:
        """The same values in arrays that no program can take over."""
        return {name: self._jax.numpy.array(v) for name, v in variables.items()}

    def is_finite(self, value) -> bool:
        """Whether a variable holds numbers alone."""
        if not self._jax.numpy.issubdtype(value.dtype, np.floating):
            return True
        return bool(self._jax.numpy.isfinite(value).all())

    def first_values(self, seed: int) -> dict[str, Any]:
        """Every variable as a run of the seed begins with it."""
        if seed not in self._first_values:
            self._first_values[seed] = self._make_first_values(seed)
        return {name: self.put(v) for name, v in self._first_values[seed].items()}

    def _make_first_values(self, seed):
        values = {}
        with (
            np.load(os.path.join(self._folder, "shared.npz")) as shared,
            np.load(os.path.join(self._folder, f"seed{seed}.npz")) as own,
        ):
            for name, described in self.manifest["variables"].items():
                shape, dtype = described["shape"], described["dtype"]
                if "constant" in described:
                    value = np.full(shape, described["constant"], dtype)
                elif "drawn" in described:
                    # By its name, so that other weights do not change it.
                    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
                    value = draw_weights(random, shape, *described["drawn"])
                else:
                    value = (own if name in own else shared)[name]
                values[name] = np.asarray(value, dtype)
        return values

    def call(self, name: str, variables: dict, *arguments) -> list:
        """Runs a program; `variables` gets the new values."""
        described = self.manifest["programs"][name]
        # Here and not in a thread: two of them end the process on a GPU (JAX 0.11).
        if name not in self._compiled:
            begin = time.monotonic()
            path = os.path.join(self._folder, f"{name}.mlir.gz")
            self._compiled[name] = Program(path, self._device, described["takes"])
            self._report(f"{name}: compiled in {time.monotonic() - begin:.1f} s")
        given = [self.put(argument) for argument in arguments]
        return self._compiled[name](given, variables)


def draw_weights(random, shape, kind, mean, deviation) -> np.ndarray:
    """A random weight of `write.distribution`'s kind."""
    if kind == "uniform":
        reach = math.sqrt(3) * deviation
        drawn = random.random(shape, np.float32)
        return (mean - reach + 2 * reach * drawn).astype(np.float32)
    drawn = random.standard_normal(shape, np.float32)
    if kind == "truncated":
        while (far := np.abs(drawn) > 2).any():
            drawn[far] = random.standard_normal(int(far.sum()), np.float32)
        deviation /= 0.87962566  # of a normal distribution that ends at 2
    return mean + np.float32(deviation) * drawn
