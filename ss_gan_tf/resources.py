"""What a run will take of disk and memory, estimated before anything is built.

Parameters are scaled from the counts of the full networks: nearly all of them lie
between two layers whose widths both grow with `width`, so their number goes with its
square.

    disk     keep + 1 states, one G for each phase and one while it is replaced, and
             the export, which holds G twice; with the guard the best of phase 2 is a
             state, and there is the G that phase 2 began with
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

# Fitted to peaks of resident memory; see "Hardware and times" in WORKSPACE.md.
START = 650 * 2**20  # TensorFlow and the traced steps
COPIES = 6.2  # weights, gradients, two slots, and what a step needs for a moment
SCORES = 500  # bytes a pixel: maps of as many channels as there are classes
ACTIVATIONS = {"vgg16": 2500, "resnet50": 5400}  # bytes a pixel

# Files of a control group, versions 2 and 1: limit, use, what the use consists of, and
# the parts of it that can be dropped.
_GROUPS = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        ("inactive_file", "active_file", "slab_reclaimable"),
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)

_OWN_FOLDERS = ("checkpoints", "best", "guard", "export")


def count_parameters(
    backbone: str, width: float, uses_adversary: bool, fc_filters: int = 4096
) -> tuple[int, int]:
    """About how many parameters (G, A with its extractor) have.

    Args:
        backbone: `vgg16` or `resnet50`.
        width: factor on every filter count.
        uses_adversary: whether there is an A.
        fc_filters: of fc6 and fc7 of `vgg16`.
    """
    generator = GENERATOR[backbone]
    if backbone == "vgg16":
        generator -= _fc_parameters(4096) - _fc_parameters(fc_filters)
    adversary = ADVERSARY + EXTRACTOR[backbone] if uses_adversary else 0
    return int(generator * width**2), int(adversary * width**2)


def _fc_parameters(filters: int) -> int:
    """Kernels of fc6 (7x7 on 512 channels) and fc7."""
    return 7 * 7 * 512 * filters + filters**2


def disk_bytes(
    generator: int,
    adversary: int,
    *,
    keep: int,
    phases: int,
    guarded: bool = False,
    average: bool = False,
) -> int:
    """What a run's folder takes at its fullest, curves left out.

    Args:
        generator: parameters of G; Adam keeps two more numbers for each.
        adversary: parameters of A with its extractor, counted like G's.
        keep: full states that stay on disk.
        phases: 1 or 2, each with its best G.
        guarded: whether the guard can go back, see `run_state.py`.
        average: whether a running average of G is saved beside G.
    """
    trained = generator * (1 + average)
    state = 3 * (generator + adversary) + trained - generator
    best = (phases + 1) * generator
    if guarded:
        # A full state in the place of phase 2's best G. It is never replaced at the
        # same moment as one of the others, so only one of them stands there twice.
        best += state - generator + trained
    return _FLOAT * ((keep + 1) * state + best + 2 * generator)


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
    """About what a process that trains in float32 on the CPU takes, see the module.

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

    The limit of a control group counts where it is lower than the machine's. What the
    group holds of files can be dropped, so it counts as free.
    """
    found = []
    with contextlib.suppress(OSError, LookupError, ValueError):
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        kib = (int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
        found.append(1024 * sum(kib))
    for limit, used, stat, droppable in _GROUPS:
        with contextlib.suppress(OSError, LookupError, ValueError):  # "max"
            free = int(_read(limit)) - int(_read(used))
            held = dict(line.split() for line in _read(stat).splitlines())
            found.append(free + sum(int(held[name]) for name in droppable))
    return min(found, default=None)


def own_memory() -> int:
    """Bytes that this process holds already; 0 where nobody tells."""
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = _read("/proc/self/status").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return 1024 * int(fields["VmRSS"].split()[0])
    return 0


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
