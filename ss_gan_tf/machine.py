"""What a number was measured on and with: hardware, and the commit of this code."""

import os
import platform
import re
import subprocess
from typing import Any

import tensorflow as tf

# Of a processor's instructions, those that decide how fast matrices are multiplied.
VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, accelerators, and the commit of this code where git knows.

    Returns:
        JSON-ready; None where something cannot be had. "vector_units" has those of
        `VECTOR_UNITS` that the processor says it has, as Linux names them.
    """
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "processor": _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)")
        or platform.processor()
        or platform.machine(),
        "vector_units": _vector_units(),
        "cores": os.cpu_count(),
        "memory_kb": _first_match("/proc/meminfo", r"MemTotal:\s*(\d+)"),
        "system": platform.platform(terse=True),
        "gpus": gpus,
        "commit": _commit(),
    }


def _vector_units() -> list[str] | None:
    said = _first_match("/proc/cpuinfo", r"(?:flags|Features)\s*:\s*(.+)")
    return said and [unit for unit in VECTOR_UNITS if unit in said.split()]


def _first_match(path, pattern) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read())
    except OSError:
        return None
    return found.group(1).strip() if found else None


def _commit() -> str | None:
    """Commit of the checkout that this file belongs to, "+" behind it where changed."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        ask = {"capture_output": True, "text": True, "check": True}
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], **ask)
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **ask).stdout
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], **ask).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")
