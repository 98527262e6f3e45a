"""One printable line, whatever a name holds."""

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ss_gan_tf.messages import first_line, one_line


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a b/ä.png: wrong", "a b/ä.png: wrong"),
        ("two\nlines", r"two\nlines"),
        ("clear\x1b[2Jscreen", r"clear\x1b[2Jscreen"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\udce9"),
        ("right\u202eleft", r"right\u202eleft"),
        ("", "str"),
    ],
)
def test_by_hand(text, expected):
    assert one_line(text) == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=50))
def test_any_text_is_one_printable_line(text):
    line = one_line(ValueError(text))
    assert line and line.isprintable()
    line.encode()  # no lone surrogate is left


def test_an_error_without_text_has_a_name():
    assert one_line(MemoryError()) == first_line(MemoryError()) == "MemoryError"


def test_first_line_is_short():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert len(first_line(ValueError("x" * 9000), 80)) == 80


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "Graph execution error:\n\n"
            "Detected at node zeros defined at (most recent call last):\n"
            '  File "/x.py", line 10, in <module>\n\n  File "/x.py", line 9, in g\n\n'
            "OOM when allocating tensor\n\t [[{{node zeros}}]]",
            "OOM when allocating tensor",
        ),
        (
            "{{function_node __inference_f_1}} Collective ops is aborted\nmore",
            "Collective ops is aborted",
        ),
        (
            "2 root error(s) found.\n  (0) RESOURCE_EXHAUSTED: OOM\n",
            "(0) RESOURCE_EXHAUSTED: OOM",
        ),
        ("Graph execution error:\n\n", "Graph execution error:"),
    ],
)
def test_of_tensorflows_errors_the_cause_comes_first(text, expected):
    assert first_line(ValueError(text)) == expected


def test_a_graph_without_room_says_so():
    with pytest.raises(tf.errors.ResourceExhaustedError) as error:
        tf.function(lambda n: tf.zeros([n, n]) + 1)(tf.constant(2**24))
    assert first_line(error.value).startswith("OOM when allocating tensor")
