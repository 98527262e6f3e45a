"""Measured work in processes of its own: one framework, one peak of memory each."""

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# What a new process does: a whole interpreter, which knows nothing of this one but
# where modules lie. multiprocessing would load there what the program began with.
_BEGIN = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from experiments.benchmarks.workers import serve; serve(int(sys.argv[1]))"
)


class Worker:
    """A process that builds something once and then does named work on request.

    Args:
        builder: "module:function"; settings -> name -> callable. It runs in the new
            process, so that this one need not load what it imports.
        settings: its argument; plain values.
    """

    def __init__(self, builder: str, settings: Mapping[str, Any]):
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
            )
        try:
            self.names = self._ask((builder, dict(settings)))
        except BaseException:
            self.close()
            raise

    def call(self, name: str) -> Any:
        """Does the work called `name` and returns what it returns."""
        return self._ask(name)

    def peak_memory(self) -> int:
        """Largest resident size that the process has had, bytes."""
        return self.call("")

    def close(self):
        """Ends the process, whatever it is doing."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _ask(self, message):
        """What the process says to it.

        Raises:
            ValueError: with the error that it met there.
        """
        try:
            self._pipe.send(message)
            ok, value = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.wait()
            raise ValueError(
                f"a measured process ended with exit code {code}"
                + " (out of memory?)" * (code == -9)
            ) from None
        if not ok:
            raise ValueError(value)
        return value


def available_cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def serve(descriptor: int):
    """What a worker's process does until the other end of its pipe is closed."""
    # Ctrl-C reaches every process of a terminal; who asks for the work ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = multiprocessing.connection.Connection(descriptor)
    # Gone, the other side waits for no answer.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        builder, settings = pipe.recv()
        ok, work = _attempt(lambda: _build(builder, settings))
        pipe.send((ok, list(work) if ok else work))
        while ok:
            name = pipe.recv()
            ok, value = _attempt(work[name] if name else _peak_memory)
            pipe.send((ok, value))


def _build(builder, settings):
    module, _, function = builder.partition(":")
    return getattr(importlib.import_module(module), function)(settings)


def _attempt(function):
    """(True, what it returns) or (False, a line about its error)."""
    try:
        return True, function()
    except Exception as error:  # goes to the other side, whatever it is
        lines = str(error).strip().splitlines() or [""]
        return False, f"{type(error).__name__}: {lines[0]}"


def _peak_memory() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) * 1024
    except OSError:  # not Linux
        # There a new process also counts what its parent had when it began.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
