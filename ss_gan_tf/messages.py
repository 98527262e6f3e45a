"""One line for people, whatever a file is called or an error says."""

import re


def one_line(message: object) -> str:
    r"""Text that fits on one line of a terminal and changes nothing else there.

    Line breaks, control codes and the bytes of names that are not UTF-8 are written
    as Python writes them in a string: "\n", "\x1b", "\udc80".

    Args:
        message: an error, or anything else with a text.

    Returns:
        The text, which UTF-8 can encode; the error's type where it has no text.
    """
    text = str(message).strip() or type(message).__name__
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


# What TensorFlow says of an operation in a graph before it says what went wrong.
_WHERE = re.compile(
    r'Graph execution error:|Detected at node .*|  File ".*|<stack traces unavailable>'
    r"|\d+ root error\(s\) found\.|\s*"
)


def first_line(error: BaseException, length: int = 500) -> str:
    """The beginning of an error's text: other libraries write whole paragraphs."""
    lines = str(error).strip().splitlines() or [""]
    says = [line for line in lines if not _WHERE.fullmatch(line)]
    first = re.sub(r"^\{\{function_node [^}]*\}\} ", "", (says or lines)[0].strip())
    return one_line(first or type(error).__name__)[:length]
