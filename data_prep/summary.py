"""What a prepared data set holds: counted while it is written, kept beside it.

SUMMARY.json is for programs, SUMMARY.txt the same for people.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.archives import SourceError
from data_prep.examples import Example
from ss_gan_tf import strict_json
from ss_gan_tf.datasets import DATASETS, IGNORE_LABEL
from ss_gan_tf.messages import first_line

JSON_NAME, TEXT_NAME = "summary.json", "summary.txt"


@dataclasses.dataclass
class SplitCount:
    """Running totals of one split.

    Attributes:
        examples: How many there are.
        height: Lowest and highest H, pixels.
        width: Lowest and highest W, pixels.
        pixels: [256] int64; pixels of each id.
        images: [256] int64; images in which an id occurs.
        digest: Sum of the examples' digests, and the sum of each times its place,
            counted from 1, both modulo 2^128: the same for the same examples in the
            same order, however their source was packed. None: not known.
    """

    examples: int = 0
    height: tuple[int, int] = (0, 0)
    width: tuple[int, int] = (0, 0)
    pixels: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, np.int64)
    )
    images: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, np.int64)
    )
    digest: tuple[int, int] | None = (0, 0)

    def add(self, example: Example) -> None:
        """Counts one more example."""
        one = SplitCount(
            examples=1,
            height=(example.height, example.height),
            width=(example.width, example.width),
            pixels=example.histogram,
            images=(example.histogram > 0).astype(np.int64),
            digest=(example.digest, example.digest),
        )
        self.__dict__.update((self + one).__dict__)

    def __add__(self, other: "SplitCount") -> "SplitCount":
        if not (self.examples and other.examples):
            return dataclasses.replace(self if self.examples else other)
        return SplitCount(
            examples=self.examples + other.examples,
            height=_span(self.height, other.height),
            width=_span(self.width, other.width),
            pixels=self.pixels + other.pixels,
            images=self.images + other.images,
            digest=_joined(self.digest, self.examples, other.digest),
        )

    def to_dict(self, num_classes: int) -> dict[str, Any]:
        """The totals as plain numbers; `from_dict` reads them."""
        total = int(self.pixels.sum())
        return {
            "examples": self.examples,
            "height": list(self.height),
            "width": list(self.width),
            "class_pixels": self.pixels[:num_classes].tolist(),
            "class_images": self.images[:num_classes].tolist(),
            "ignored_pixels": int(self.pixels[IGNORE_LABEL]),
            "ignored_share": int(self.pixels[IGNORE_LABEL]) / total if total else 0.0,
        } | ({"digest": "{:032x}{:032x}".format(*self.digest)} if self.digest else {})

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "SplitCount":
        """The inverse of `to_dict`, as far as it goes: all of it with 256 classes."""
        count = cls(stored["examples"], tuple(stored["height"]), tuple(stored["width"]))
        num_classes = len(stored["class_pixels"])
        count.pixels[:num_classes] = stored["class_pixels"]
        count.images[:num_classes] = stored["class_images"]
        count.pixels[IGNORE_LABEL] = stored["ignored_pixels"]
        digest = stored.get("digest")  # there was none once
        count.digest = digest and (int(digest[:32], 16), int(digest[32:], 16))
        return count


def _joined(first, num_first, second):
    """The digest of examples and those behind them."""
    if first is None or second is None:
        return None
    placed = first[1] + second[1] + num_first * second[0]
    return (first[0] + second[0]) % 2**128, placed % 2**128


def summarize(
    dataset: str,
    class_names: Sequence[str],
    splits: dict[str, SplitCount],
    *,
    partial: bool,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Puts the totals of all splits together and holds them against known figures.

    Args:
        dataset: Its name.
        class_names: Names of ids 0, 1, ...
        splits: Totals by split.
        partial: Whether images of the complete data set are missing.
        notes: What the builder found besides, a line each.

    Returns:
        What SUMMARY.json holds.
    """
    facts = DATASETS.get(dataset)
    expected = facts.counts if facts else {}
    summary = {
        "dataset": dataset,
        "partial": partial,
        "class_names": list(class_names),
        "splits": {
            split: {
                "expected": expected.get(split),
                **count.to_dict(len(class_names)),
            }
            for split, count in splits.items()
        },
        "notes": list(notes),
    }
    for split, count in splits.items():
        summary["notes"] += _oddities(split, count, class_names, facts)
    return summary


def write(summary: dict[str, Any], folder: Path) -> None:
    """Writes both files."""
    write_json(summary, folder)
    _replace(folder / TEXT_NAME, to_text(summary))


def write_json(summary: dict[str, Any], folder: Path) -> None:
    """Writes SUMMARY.json whole or not at all.

    Raises:
        OSError: It cannot be written; the one that was there stays.
    """
    _replace(folder / JSON_NAME, json.dumps(summary, indent=2))


def _replace(path: Path, text: str):
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text + "\n")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read(folder: Path) -> dict[str, Any] | None:
    """Reads SUMMARY.json; None if the folder has none.

    Raises:
        SourceError: It is damaged.
    """
    path = folder / JSON_NAME
    if not path.exists():
        return None
    try:
        stored = strict_json.read(path)
        for count in stored["splits"].values():
            SplitCount.from_dict(count)
        to_text(stored)
    except Exception as error:  # fields that are missing or of another kind
        raise SourceError(
            f"{path}: is not a summary ({first_line(error)}); delete it or prepare "
            "the data set again."
        ) from error
    return stored


def to_text(summary: dict[str, Any]) -> str:
    """The summary as a table of splits, a table of classes, and notes."""
    lines = []
    for split, count in summary["splits"].items():
        of = count["expected"]
        note = "" if of in (None, count["examples"]) else f" (of {of})"
        size = f"{_range(count['width'])} x {_range(count['height'])}"
        lines.append(
            f"{split}: {count['examples']} examples{note}, {size} pixels, "
            f"{count['ignored_share']:.2%} ignored"
        )
    if summary["partial"]:
        lines.append("PARTIAL: images of the complete data set are missing")
    names = summary["class_names"]
    lines.append(f"{len(names)} classes: {', '.join(names)}")
    width = max(map(len, names))
    lines.append(f"{'share of labelled pixels':{width}}" + _heads(summary["splits"]))
    for class_id, name in enumerate(names):
        shares = "".join(
            f"{_share(count['class_pixels'], class_id):>14.3%}"
            for count in summary["splits"].values()
        )
        lines.append(f"{name:{max(width, 24)}}{shares}")
    return "\n".join(lines + [f"note: {note}" for note in summary["notes"]])


def _oddities(split: str, count: SplitCount, class_names: Sequence[str], facts):
    absent = [name for i, name in enumerate(class_names) if not count.pixels[i]]
    if len(absent) == len(class_names) and count.examples:
        yield f"{split}: no pixel has a class"
    elif absent:
        yield f"{split}: no pixel of {', '.join(absent)}"
    if facts and facts.image_size and count.examples:
        height, width = facts.image_size
        if (count.height, count.width) != ((height, height), (width, width)):
            yield f"{split}: images are known to be {width} x {height} pixels"


def _heads(splits: dict[str, Any]) -> str:
    return "".join(f"{split:>14}" for split in splits)


def _share(pixels: Sequence[int], class_id: int) -> float:
    return pixels[class_id] / max(sum(pixels), 1)


def _range(span: Sequence[int]) -> str:
    low, high = span
    return str(low) if low == high else f"{low} to {high}"


def _span(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return min(one[0], other[0]), max(one[1], other[1])
