"""How far a command is: a bar on a terminal, plain lines anywhere else."""

import logging
import sys
import time

from absl import logging as absl_logging
from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between plain lines


def show_own_messages():
    """Shows what this library reports, without the file-by-file reports of others.

    Call it before the library is called.
    """
    logging.getLogger("ss_gan_tf").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.WARNING)


class Progress:
    """Called with how much is done and how much there is, as the library does.

    Args:
        what: the things counted, e.g. "images".
    """

    def __init__(self, what: str):
        self._what = what
        self._bar = None
        self._next_line = time.monotonic() + LINE_EVERY

    def __call__(self, done: int, total: int | None):
        """Shows that `done` of `total` are done; total is None where unknown."""
        if sys.stderr.isatty():
            self._bar = self._bar or tqdm(total=total, unit=f" {self._what}")
            self._bar.update(done - self._bar.n)
        elif done == total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            of_total = f" of {total}" if total else ""
            print(f"{done}{of_total} {self._what}", file=sys.stderr, flush=True)
        if done == total and self._bar:
            self._bar.close()


class StepProgress:
    """Training steps with the newest losses and the time that is left.

    A bar per stage on a terminal; elsewhere a line every `LINE_EVERY` seconds.
    """

    def __init__(self):
        self._stage = None
        self._bar = None

    def __call__(self, stage: str, step: int, total: int, scalars: dict[str, float]):
        """Shows that `step` of `total` steps of `stage` are done."""
        if stage != self._stage:
            self._stage, self._from, self._start = stage, step - 1, time.monotonic()
            self._next_line = self._start + LINE_EVERY
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=total, initial=step - 1, desc=stage, unit=" steps"
                )
        text = ", ".join(
            f"{name.split('/')[1]} {value:.3f}"
            for name, value in scalars.items()
            if name.startswith("loss/")
        )
        if self._bar:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            if step == total:
                self._bar.close()
        elif step == total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            seconds = (time.monotonic() - self._start) / (step - self._from)
            left = time.strftime("%H:%M:%S", time.gmtime(seconds * (total - step)))
            line = f"{stage} {step} of {total}, {seconds:.2f} s a step, {left} left"
            print(f"{line}  {text}".rstrip(), file=sys.stderr, flush=True)
