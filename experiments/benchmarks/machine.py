"""On what a measurement was made: without it a number says nothing."""

import datetime
import os
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ss_gan_tf
from experiments.benchmarks import workers
from ss_gan_tf.machine import describe_machine as describe_hardware


def describe_machine() -> dict[str, Any]:
    """Processor, devices, versions, commit, date and what else the machine does.

    Returns:
        JSON-ready; None where something cannot be had. "load" is the number of
        processes that wanted a core in the last minute.
    """
    return describe_hardware() | {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "cores": workers.available_cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "ss_gan_tf": ss_gan_tf.__version__,
    }


def format_machine(machine: dict[str, Any]) -> str:
    """`describe_machine` in a few lines, with versions of "peers" where there are.

    Files written before "vector_units" was told are described without.
    """
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    versions = ("python", "tensorflow", "keras", "numpy", "ss_gan_tf")
    peers = machine.get("peers")
    units = machine.get("vector_units")
    units = f" ({', '.join(units)})" if units else ""
    return "\n".join(
        [
            f"{machine['processor']}{units}, {machine['cores']} cores{gpus}{load}",
            ", ".join(f"{name} {machine[name]}" for name in versions),
            *([", ".join(f"{k} {v}" for k, v in peers.items())] if peers else []),
            f"commit {machine['commit'] or 'unknown'}, {machine['date']}",
        ]
    )
