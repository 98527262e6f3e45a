"""One line for people, whatever a file is called or an error says."""


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


def first_line(error: BaseException, length: int = 500) -> str:
    """The beginning of an error's text: other libraries write whole paragraphs."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__)[:length]
