"""What a run will take of disk and memory, estimated before anything is built.

Parameters are scaled from the counts of the full networks: nearly all of them lie
between two layers whose widths both grow with `width`, so their number goes with its
square.

    disk     keep + 1 states, one G for each phase and one while it is replaced, and
             the export, which holds G twice
    memory   START + 4 COPIES x parameters + (SCORES + ACTIVATIONS x width) x pixels,
             bytes of a training step on the CPU
"""

import contextlib
import os
import shutil

GIB = 2**30
_FLOAT = 4  # bytes

# Parameters at width 1: G with 11 classes, A, and A's extractor.
GENERATOR = {"vgg16": 134_317_953, "resnet50": 39_125_643}
ADVERSARY = 1_707_649
EXTRACTOR = {"vgg16": 260_160, "resnet50": 9_728}

# Fitted to peaks of resident memory; see "Memory" in WORKSPACE.md.
START = 650 * 2**20  # TensorFlow and the traced steps
COPIES = 6.2  # weights, gradients, two slots, and what a step needs for a moment
SCORES = 500  # bytes a pixel: maps of as many channels as there are classes
ACTIVATIONS = {"vgg16": 700, "resnet50": 5400}  # bytes a pixel

_OWN_FOLDERS = ("checkpoints", "best", "export")


def count_parameters(
    backbone: str, width: float, uses_adversary: bool
) -> tuple[int, int]:
    """About how many parameters (G, A with its extractor) have.

    Args:
        backbone: `vgg16` or `resnet50`.
        width: factor on every filter count.
        uses_adversary: whether there is an A.
    """
    adversary = ADVERSARY + EXTRACTOR[backbone] if uses_adversary else 0
    return int(GENERATOR[backbone] * width**2), int(adversary * width**2)


def disk_bytes(generator: int, adversary: int, *, keep: int, phases: int) -> int:
    """What a run's folder takes at its fullest, curves left out.

    Args:
        generator: parameters of G; Adam keeps two more numbers for each.
        adversary: parameters of A with its extractor, counted like G's.
        keep: full states that stay on disk.
        phases: 1 or 2, each with its best G.
    """
    state = 3 * (generator + adversary)
    return _FLOAT * ((keep + 1) * state + (phases + 1) * generator + 2 * generator)


def free_disk(workdir: str) -> int:
    """Bytes that a run may fill: what is free, and what its own files take already."""
    own = 0
    for folder in _OWN_FOLDERS:
        for where, _, names in os.walk(os.path.join(workdir, folder)):
            for name in names:
                with contextlib.suppress(OSError):  # removed at this moment
                    own += os.lstat(os.path.join(where, name)).st_size
    return shutil.disk_usage(workdir).free + own


def memory_bytes(
    backbone: str, generator: int, *, width: float, batch_size: int, crop_size: int
) -> int:
    """About what a training step in float32 takes on the CPU, see the module.

    Args:
        backbone: `vgg16` or `resnet50`.
        generator: parameters of G.
        width: factor on every filter count.
        batch_size: images of a step.
        crop_size: side of each, pixels.
    """
    pixel = SCORES + ACTIVATIONS[backbone] * width
    step = COPIES * _FLOAT * generator + pixel * batch_size * crop_size**2
    return int(START + step)


def free_memory() -> int | None:
    """Bytes that can be had without swapping others out; None where nobody tells.

    The limit of a control group counts where it is lower than the machine's.
    """
    found = []
    with contextlib.suppress(OSError, LookupError, ValueError):
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        kib = (int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
        found.append(1024 * sum(kib))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit, used = (
            int(_read(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current")
        )
        found.append(limit - used)
    return min(found, default=None)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
