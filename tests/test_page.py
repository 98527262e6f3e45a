"""Both renderings say the same, hold all pictures and refer to nothing outside."""

import base64
import html.parser
import re

import pytest

from ss_gan_tf.page import (
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    render_html,
    render_markdown,
    write_page,
)

PNG = b"\x89PNG not really"
SECTIONS = [
    Section("One & only", [Text("a <b>bold</b> claim", strong=True)]),
    Section("Figures", [Table("IoU in %", ["", "a|b"], [["x", "1.00"], ["y", "-"]])]),
    Section("Seen", [Pictures("Row", [Picture("p.png", "a tile", PNG)])]),
]


class Reader(html.parser.HTMLParser):
    """Tags that are open, cells, and every address."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_html_is_well_formed_and_holds_everything():
    page = render_html("Title", SECTIONS)
    reader = Reader(page)
    assert reader.open == []
    assert reader.cells == ["a|b", "x", "1.00", "y", "-"]
    assert "a &lt;b&gt;bold&lt;/b&gt; claim" in page and "One &amp; only" in page
    picture = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert picture in reader.addresses


def test_the_html_refers_to_nothing_outside():
    page = render_html("Title", SECTIONS)
    reader = Reader(page)
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "script" not in reader.tags
    assert not re.search(r"https?:|@import|url\(", page)
    assert 'name="viewport"' in page and "@media print" in page


def test_markdown_says_the_same():
    text = render_markdown("Title", SECTIONS)
    assert text.startswith("# Title\n\n## One & only\n\na \\<b\\>bold")
    assert "|  | a\\|b |\n| --- | --- |\n| x | 1.00 |\n| y | - |\n" in text
    assert "![a tile](pictures/p.png)" in text


def test_the_page_is_written_with_its_pictures(tmp_path):
    write_page("Title", SECTIONS, str(tmp_path / "new"))
    names = {path.name for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert names == {"report.html", "report.md", "p.png"}
    assert (tmp_path / "new/pictures/p.png").read_bytes() == PNG


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", ["one"], [["a", "b"]])
