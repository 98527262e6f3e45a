"""What a number was measured on and with: hardware, and the commit of this code."""

import os
import platform
import re
import subprocess
from typing import Any

import tensorflow as tf


def describe_machine() -> dict[str, Any]:
    """Processor, memory, accelerators, and the commit of this code where git knows."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "processor": _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)")
        or platform.processor()
        or platform.machine(),
        "cores": os.cpu_count(),
        "memory_kb": _first_match("/proc/meminfo", r"MemTotal:\s*(\d+)"),
        "system": platform.platform(terse=True),
        "gpus": gpus,
        "commit": _commit(),
    }


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
