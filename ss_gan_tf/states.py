"""Checkpoints that survive: written, read back, found again after any end.

FOLDER/NAME-N.index, FOLDER/NAME-N.data-*   one checkpoint
FOLDER/checkpoint                           names the newest, for TensorFlow's readers

A checkpoint counts once every byte of it has been read back, and only then do older
ones go. Which one is the newest is decided by what can be read, not by the file
`checkpoint`, so neither a half-written nor a damaged one is continued from.
"""

import glob
import json
import logging
import os
import re
import shutil

import tensorflow as tf

_LOG = logging.getLogger(__name__)

# What TensorFlow raises for a checkpoint that is damaged or of another network.
UNREADABLE = (ValueError, AssertionError, IndexError, tf.errors.OpError)


class Memory(tf.Module):
    """A dict of JSON values that a checkpoint saves with the weights."""

    def __init__(self):
        super().__init__()
        self.text = tf.Variable("{}", trainable=False, name="memory")

    def read(self) -> dict:
        """What was written last; floats come back bit for bit."""
        return json.loads(self.text.numpy())

    def write(self, values: dict):
        """Replaces the content; arrays become lists."""
        self.text.assign(json.dumps(values, default=lambda array: array.tolist()))


class States:
    """The newest checkpoints of some variables in a folder.

    Args:
        folder: made where it is missing.
        keep: how many stay on disk.
        name: first part of the files' names.
        parts: what is saved, by name, as for `tf.train.Checkpoint`.
    """

    def __init__(self, folder: str, keep: int, name: str = "state", **parts):
        self.folder, self.keep, self.name = folder, keep, name
        self._checkpoint = tf.train.Checkpoint(**parts)

    def save(self, number: int) -> str:
        """Writes a checkpoint, reads it back, then removes the older ones.

        Args:
            number: N of its name; the checkpoints of greater N go, too.

        Returns:
            Its path prefix.

        Raises:
            OSError: it could not be written whole; the older ones are untouched.
        """
        path = self._path(number)
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._checkpoint.write(path)
            verify(path)
            older = [n for n in numbers(self.folder, self.name) if n < number]
            kept = [*older[len(older) - self.keep + 1 :], number]
            self._name_newest(kept)
        except (*UNREADABLE, OSError) as error:
            self._remove(lambda n: n == number)
            raise OSError(
                f"{path}: could not be written ({one_line(error)}); make room or mend "
                "the disk, then give the same command again: it goes on from the "
                "checkpoint before"
            ) from error
        self._remove(lambda n: n not in kept)
        return path

    def restore(self) -> str | None:
        """Loads the newest checkpoint that can be read.

        Returns:
            Its path prefix; None where the folder holds none.

        Raises:
            ValueError: none of those that are there can be read.
        """
        found = numbers(self.folder, self.name)[::-1]
        for number in found:
            path = self._path(number)
            try:
                verify(path)
                self._checkpoint.read(path).assert_consumed()
            except UNREADABLE as error:
                _LOG.warning(
                    "%s: damaged, or of another version (%s); trying the one before",
                    path,
                    one_line(error),
                )
            else:
                return path
        if found:
            raise ValueError(
                f"{self.folder}: none of its checkpoints can be read "
                f"({', '.join(f'{self.name}-{n}' for n in found)}); remove the folder "
                "to start the run anew"
            )
        return None

    def has(self, number: int) -> bool:
        """Whether the newest checkpoint is this one."""
        return numbers(self.folder, self.name)[-1:] == [number]

    def _path(self, number):
        return os.path.join(self.folder, f"{self.name}-{number}")

    def _name_newest(self, kept):
        """Writes `checkpoint` as TensorFlow does, with names that a copy keeps."""
        names = [f'"{self.name}-{n}"' for n in kept]
        lines = [f"model_checkpoint_path: {names[-1]}"]
        lines += [f"all_model_checkpoint_paths: {name}" for name in names]
        partial = os.path.join(self.folder, "checkpoint.partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(partial, os.path.join(self.folder, "checkpoint"))

    def _remove(self, condition):
        """Removes checkpoints by their number, and what writing one left halfway."""
        for path in glob.glob(os.path.join(glob.escape(self.folder), "*")):
            match = re.match(rf"{re.escape(self.name)}-(\d+)\D", os.path.basename(path))
            if match and (condition(int(match[1])) or "_temp" in path):
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.remove(path)


def numbers(folder: str, name: str = "state") -> list[int]:
    """The N of every checkpoint in a folder, smallest first, readable or not."""
    pattern = re.compile(rf"{re.escape(name)}-(\d+)\.index")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def verify(path: str):
    """Reads every tensor of a checkpoint and its checksum, one after the other.

    Args:
        path: its prefix.

    Raises:
        ValueError, tf.errors.OpError: it is not whole.
    """
    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def one_line(error: BaseException) -> str:
    """The first line of an error's text, without TensorFlow's name of the operation."""
    text = re.sub(r"^\{\{.*?\}\} ", "", str(error).strip())
    return (text.splitlines() or [type(error).__name__])[0][:300]
