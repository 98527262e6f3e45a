"""JSON that this project could have written, and what only looks like it."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ss_gan_tf import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def holds_no_number(value):
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(map(holds_no_number, inner))
    return isinstance(value, float) and not math.isfinite(value)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(VALUES)
def test_what_json_writes_is_read_or_refused_for_a_number_that_is_none(value):
    text = json.dumps(value)
    if holds_no_number(value):
        with pytest.raises(ValueError, match="is no finite number"):
            strict_json.loads(text)
    else:
        assert strict_json.loads(text) == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("NaN", "NaN is no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("", "Expecting value"),
        ('{"a": 1} more', "Extra data"),
        ("9" * 5000, "4300 digits"),
    ],
)
def test_what_only_looks_like_json(text, message):
    with pytest.raises(ValueError, match=message) as error:
        strict_json.loads(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[1]", "holds a list, not an object"),
        (b'{"a": "\xff"}', "decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_files_hold_an_object_in_utf_8(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        strict_json.read(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    with pytest.raises(ValueError, match="has 1099511627776 bytes, at most 16777216"):
        strict_json.read(path)


def table(names, colors):
    return strict_json.class_table({"class_names": names, "class_colors": colors})


def test_classes():
    assert table(["a", "b"], [[0, 1, 2], [255, 0, 9]]) == (
        ("a", "b"),
        ((0, 1, 2), (255, 0, 9)),
    )


@pytest.mark.parametrize(
    "names, colors, message",
    [
        ("ab", [[0, 0, 0]] * 2, "class_names must be a list"),
        ([1], [[0, 0, 0]], "class_names must be a list of strings"),
        ([], [], "1 to 255 different names"),
        (["a", "a"], [[0, 0, 0]] * 2, "1 to 255 different names"),
        (["a"], [[0, 0, 0]] * 2, "class_colors must be"),
        (["a"], [[0, 0]], "class_colors must be"),
        (["a"], [[0, 0, 256]], "class_colors must be"),
        (["a"], [[0, 0, 0.5]], "class_colors must be"),
        (["a"], [[0, 0, True]], "class_colors must be"),
        (["a"], None, "class_colors must be"),
    ],
)
def test_other_classes_are_refused(names, colors, message):
    with pytest.raises(ValueError, match=message):
        table(names, colors)
