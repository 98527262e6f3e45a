"""JSON as this project writes it, and nothing that only looks like it.

Python's reader takes NaN, lets the last of two equal keys win and ends in a
RecursionError where brackets are nested a thousand deep.
"""

import collections
import json
import math
import os
from typing import Any

MAX_BYTES = 16 * 2**20  # larger files are refused before they are read


def loads(text: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: it is not JSON, holds NaN, Infinity or a number that is read as
            one, names a key twice in one object, or is nested too deeply; the message
            is one line.
    """
    try:
        return json.loads(
            text,
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a file that holds one JSON object, in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, not UTF-8, or `loads` refuses it, or it holds
            no object.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(
            f"it has {os.path.getsize(path)} bytes, at most {MAX_BYTES} are read"
        )
    with open(path, encoding="utf-8") as file:
        value = loads(file.read())
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def class_table(
    fields: dict[str, Any],
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The classes that a run or an export names, and their colours.

    Args:
        fields: with "class_names", C strings, and "class_colors", [C][3] in 0..255.

    Raises:
        KeyError: one of them is missing.
        ValueError: they are not what they should be.
    """
    names, colors = fields["class_names"], fields["class_colors"]
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError("class_names must be a list of strings")
    if not 1 <= len(names) == len(set(names)) <= 255:
        raise ValueError("class_names must be 1 to 255 different names")
    if not (
        isinstance(colors, list)
        and len(colors) == len(names)
        and all(_is_color(color) for color in colors)
    ):
        raise ValueError(
            "class_colors must be a list of r, g, b in 0..255, one a class"
        )
    return tuple(names), tuple(map(tuple, colors))


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in value)
    )


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]} is no finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {twice[:40]!r} occurs twice")
    return values
