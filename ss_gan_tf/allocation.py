"""Memory that one step frees and the next one needs stays with the process.

glibc gives every large block back to the system at once and asks for it anew, page
by page, each of them cleared: 1.4 GB in a step of VGG16 at 256 pixels. TensorFlow
has a pool of its own for GPUs and, on a CPU, for tensors where it computes through
oneDNN, not for what oneDNN itself takes.
"""

import ctypes
import os
import sys

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # of _TRIM_THRESHOLD, mallopt(3); a number would be 2 GiB at the most


def keep_freed_memory() -> bool:
    """Tells glibc to hand large blocks out again; call it before TensorFlow works.

    The process then keeps all that it ever took from the system, room between blocks
    included, until it ends: the next step needs it again. Numbers do not change.

    Returns:
        Whether glibc took the settings: False where the C library is another one. They
        do nothing for an allocator that was loaded in its place (LD_PRELOAD).
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    settings = {
        # Blocks above a threshold come from the system and go back to it: no block may.
        # (The threshold itself cannot be set above 32 MB in every glibc, and an
        # attempt that fails leaves it at 128 kB.)
        _MMAP_MAX: 0,
        _TRIM_THRESHOLD: _NEVER,
        _TOP_PAD: 64 * 2**20,
        # A further arena is at most 64 MB large and sends the rest to the system.
        _ARENA_MAX: 1,
    }
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def give_freed_memory_back():
    """Leaves glibc as it is, and tensors to it; call it before one is made.

    Where TensorFlow computes through oneDNN, tensors on the CPU lie in a pool of its
    own, which grows and never shrinks. A step then takes longer and less at its peak.
    A setting of the environment's own stays.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")


def give_back_now():
    """Hands the pages that are free at this moment to the system, kept memory too.

    For between two runs in one process: what is left free among what stays would grow
    with each of them. Without glibc it does nothing.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def can_keep_freed_memory() -> bool:
    """Whether this C library knows the settings of `keep_freed_memory`."""
    return _of_glibc("mallopt") is not None


def _of_glibc(name):
    """A function of the C library; None where it has none of that name."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
