"""Finished splits of a preparation that did not come to its end.

A split that is written and checked is kept as links in a folder of its own, so that the
next run with the same source goes on from there.  The folder's name is no version:
nothing takes it for a prepared data set.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.archives import SourceError
from ss_gan_tf import strict_json
from ss_gan_tf.messages import first_line

_SOURCE_NAME = "source.txt"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other preparations out of a folder, and clears up after killed ones.

    Args:
        folder: DATA/NAME; made if it is missing.

    Raises:
        SourceError: Another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(
                f"{folder}: another preparation is at work there; wait for its end."
            ) from error
        for leftover in folder.glob("incomplete.*"):  # as TFDS calls them
            shutil.rmtree(leftover)
        yield
    finally:
        os.close(handle)


def link(file: Path, to: Path) -> None:
    """A second name for a file; a copy on file systems that have no such thing."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


class Staging:
    """The finished splits of one source.

    Args:
        folder: Where they are kept; made when there is something to keep.
        source: Identifies the source; what is kept of another one is removed.
    """

    def __init__(self, folder: Path, source: str):
        self._folder, self._source = folder, source
        kept = folder / _SOURCE_NAME
        if folder.exists() and not (kept.exists() and kept.read_text() == source):
            self.remove()

    def keep(self, split: str, files: Sequence[Path], facts: dict[str, Any]) -> None:
        """Keeps a finished split.

        Args:
            split: Its name.
            files: Its files.
            facts: What `restore` shall return; JSON.
        """
        self._folder.mkdir(exist_ok=True)
        (self._folder / _SOURCE_NAME).write_text(self._source)
        for file in files:
            (self._folder / file.name).unlink(missing_ok=True)
            link(file, self._folder / file.name)
        # The list comes last and at once: without it there is no split.
        stored = {"files": [file.name for file in files], "facts": facts}
        draft = self._folder / f"{split}.draft"
        draft.write_text(json.dumps(stored))
        draft.replace(self._folder / f"{split}.json")

    def restore(self, split: str, folder: Path) -> dict[str, Any] | None:
        """Puts a split's files into `folder`; None if the split was not finished.

        Returns:
            The `facts` that were kept.

        Raises:
            SourceError: The list of what was kept is damaged.
        """
        path = self._folder / f"{split}.json"
        if not path.exists():
            return None
        try:
            stored = strict_json.read(path)
            names, facts = stored["files"], stored["facts"]
            if any(Path(name).name != name for name in names):
                raise ValueError("files must be names without a folder")
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path}: is not a list of kept files ({first_line(error)}); delete "
                f"{self._folder}."
            ) from error
        for name in names:
            link(self._folder / name, folder / name)
        return facts

    def remove(self) -> None:
        """Removes what is kept."""
        shutil.rmtree(self._folder, ignore_errors=True)
