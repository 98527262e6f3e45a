"""A page of texts, tables and pictures, as one HTML file and as Markdown.

Both come from the same blocks, so they say the same. The HTML file refers to nothing
outside itself: pictures and styles are inside, and it has no script.
"""

import base64
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import ClassVar

import jinja2

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `strong` marks one that is not to be overlooked."""

    text: str
    strong: bool = False
    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of words, as many in each as the header has; `words` aligns them left."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    kind: ClassVar[str] = "table"

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.caption}: {len(row)} cells in {row}")


@dataclasses.dataclass(frozen=True)
class Picture:
    """The bytes of a picture file, and what they show."""

    name: str  # of a file, with its suffix
    caption: str
    data: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        mime = _MIME[os.path.splitext(self.name)[1]]
        return f"data:{mime};base64,{base64.b64encode(self.data).decode()}"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures beside each other, as many as the page has room for."""

    caption: str
    pictures: Sequence[Picture]
    large: bool = False
    kind: ClassVar[str] = "pictures"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: Sequence[Text | Table | Pictures]


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One HTML page."""
    return (
        _environment()
        .get_template("report.html")
        .render(title=title, sections=sections)
    )


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same as Markdown; pictures are files in the folder `pictures` beside it."""
    text = (
        _environment().get_template("report.md").render(title=title, sections=sections)
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_page(title: str, sections: Sequence[Section], folder: str):
    """Writes report.html, report.md and pictures/.

    Args:
        title: of the page.
        sections: in order.
        folder: is made where it is missing.
    """
    os.makedirs(os.path.join(folder, "pictures"), exist_ok=True)
    for section in sections:
        for block in section.blocks:
            for picture in block.pictures if isinstance(block, Pictures) else ():
                with open(os.path.join(folder, "pictures", picture.name), "wb") as file:
                    file.write(picture.data)
    pages = {"report.html": render_html, "report.md": render_markdown}
    for name, render in pages.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(render(title, sections))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ss_gan_tf"),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _escape_markdown
    environment.filters["rule"] = lambda cell: "---"
    return environment


def _escape_markdown(text: str) -> str:
    """Words of a run, which may hold anything, as words of one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
