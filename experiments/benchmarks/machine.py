"""On what a measurement was made: without it a number says nothing."""

import datetime
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ss_gan_tf


def describe_machine() -> dict[str, Any]:
    """Processor, devices, versions, commit, date and what else the machine does.

    Returns:
        JSON-ready; None where something cannot be had. "load" is the number of
        processes that wanted a core in the last minute.
    """
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "processor": _processor(),
        "cores": _cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpus": gpus,
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "ss_gan_tf": ss_gan_tf.__version__,
        "commit": _commit(),
    }


def format_machine(machine: dict[str, Any]) -> str:
    """`describe_machine` in a few lines."""
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    versions = ("python", "tensorflow", "keras", "numpy", "ss_gan_tf")
    return "\n".join(
        [
            f"{machine['processor']}, {machine['cores']} cores{gpus}{load}",
            ", ".join(f"{name} {machine[name]}" for name in versions),
            f"commit {machine['commit'] or 'unknown'}, {machine['date']}",
        ]
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _commit() -> str | None:
    """The checkout's commit, with a + if files differ from it."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
