"""How far the preparation is: a bar on a terminal, plain lines anywhere else."""

import sys
import time

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between plain lines


class SplitProgress:
    """Called with a split, the examples that are done, and how many there are."""

    def __init__(self):
        self._split = None
        self._bar = None

    def __call__(self, split: str, done: int, total: int) -> None:
        """Shows the split's progress and the time that is left."""
        if split != self._split:
            self._split, self._start = split, time.monotonic()
            self._next_line = self._start + LINE_EVERY
            if sys.stderr.isatty():
                self._bar = tqdm(total=total, desc=split, unit=" examples")
        if self._bar:
            self._bar.update(done - self._bar.n)
            if done == total:
                self._bar.close()
        elif done == total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            seconds = (time.monotonic() - self._start) / done * (total - done)
            left = time.strftime("%H:%M:%S", time.gmtime(seconds))
            line = f"{split}: {done} of {total} examples, {left} left"
            print(line, file=sys.stderr, flush=True)
