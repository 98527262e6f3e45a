"""Measured work in processes of its own: one framework, one peak of memory each."""

import importlib
import multiprocessing
import re
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any


class Worker:
    """A process that builds something once and then does named work on request.

    Args:
        builder: "module:function"; settings -> name -> callable. It runs in the new
            process, so that this one need not load what it imports.
        settings: its argument; plain values.
    """

    def __init__(self, builder: str, settings: Mapping[str, Any]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, builder, dict(settings)), daemon=True
        )
        self._process.start()
        theirs.close()
        self.names = self._answer()

    def call(self, name: str) -> Any:
        """Does the work called `name` and returns what it returns."""
        self._pipe.send(name)
        return self._answer()

    def peak_memory(self) -> int:
        """Largest resident size that the process has had, bytes."""
        return self.call("")

    def close(self):
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _answer(self):
        """What the process says.

        Raises:
            ValueError: with the error that it met there.
        """
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise ValueError(
                f"a measured process ended with exit code {code}"
                + " (out of memory?)" * (code == -9)
            ) from None
        if not ok:
            raise ValueError(value)
        return value


def _serve(pipe, builder, settings):
    # Ctrl-C reaches every process of a terminal; who asks for the work ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, _, function = builder.partition(":")
    try:
        work = getattr(importlib.import_module(module), function)(settings)
        pipe.send((True, list(work)))
        while True:
            name = pipe.recv()
            pipe.send((True, work[name]() if name else _peak_memory()))
    except EOFError:  # the other side has closed
        return
    except Exception as error:  # goes to the other side, whatever it is
        lines = str(error).strip().splitlines() or [""]
        pipe.send((False, f"{type(error).__name__}: {lines[0]}"))


def _peak_memory() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) * 1024
    except OSError:  # not Linux
        # There a new process also counts what its parent had when it began.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
