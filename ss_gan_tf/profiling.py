"""A trace of a few training steps, for TensorBoard's profiler.

The trace goes to LOGDIR/plugins/profile.  Recording slows the steps that it covers and
keeps their events in memory, so a window should hold few, and none of the first, in
which graphs are traced.
"""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


class ProfileWindow:
    """Records the steps first..last of a run.

    Args:
        logdir: folder that gets the trace.
        window: (first, last), both recorded; empty records nothing.
    """

    def __init__(self, logdir: str, window: Sequence[int] = ()):
        self._logdir = logdir
        self._first, self._last = window or (1, 0)
        self._records = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Wraps one step; starts or ends the recording where its number says so.

        A run that is resumed inside the window records what is left of it.

        Args:
            number: of the step; numbers grow.
        """
        if not self._first <= number <= self._last:
            yield
            return
        if not self._records:
            tf.profiler.experimental.start(self._logdir)
            self._records = True
        try:
            with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
                yield
        except BaseException:
            self.close()
            raise
        if number == self._last:
            self.close()

    def close(self):
        """Writes the trace of a window that the run's end cut short."""
        if self._records:
            self._records = False
            tf.profiler.experimental.stop()
