"""Contact sheet and bar chart, by the pixels that they must show."""

import cv2
import numpy as np
import pytest

from data_prep import sheets

COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 250), (255, 255, 255)]


def flat(color, size=(40, 60)):
    return np.full((*size, 3), color, np.uint8)


def box(picture, color):
    """(left, top, right, bottom) of the pixels of one colour."""
    rows, columns = np.nonzero((picture == color).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def sheet_of(sizes, names=("first", "second"), title="as trained on"):
    """A sheet whose n-th picture, from the left and from the top, has colour n."""
    rows, number = [], 0
    for name, (before, after) in zip(names, sizes, strict=True):
        columns = []
        for size in (before, after):
            columns.append([flat((10 + number + k, 99, 7), size) for k in range(2)])
            number += 2
        rows.append((name, *columns))
    legend = flat((1, 2, 3), (50, 80))
    return sheets.contact_sheet(rows, ("as stored", title), legend), number


def test_the_sheets_pictures_keep_their_places_and_do_not_overlap():
    # Sizes differ, and each picture is TILE high with its own proportions.
    sizes = [((40, 60), (30, 30)), ((600, 300), (30, 30))]
    sheet, count = sheet_of(sizes)
    boxes = [box(sheet, (10 + k, 99, 7)) for k in range(count)]
    assert sheet.dtype == np.uint8
    for k, (height, width) in enumerate(s for row in sizes for s in row for _ in "12"):
        left, top, right, bottom = boxes[k]
        assert bottom - top == 300 and right - left == round(300 * width / height)
    for first in range(0, count, 4):
        row = boxes[first : first + 4]
        assert len({top for _, top, _, _ in row}) == 1
        assert all(a[2] < b[0] for a, b in zip(row, row[1:], strict=False))
    assert boxes[4][1] > boxes[0][3] + 15  # room for the second example's name
    assert boxes[2][0] == boxes[6][0]  # the second column is one column
    legend = box(sheet, (1, 2, 3))
    assert legend[0] > max(right for _, _, right, _ in boxes)
    assert (legend[2] - legend[0], legend[3] - legend[1]) == (80, 50)


def test_long_names_and_titles_are_shrunk_into_the_sheet():
    sheet, _ = sheet_of([((30, 30),) * 2], ["x" * 500], "very " * 100)
    margin = sheet[:, : sheets.GAP // 2], sheet[:50, -90:-82]
    assert all((part == 255).all() for part in margin)
    assert (sheet[:42] < 100).any()  # the titles are there


def test_a_tall_legend_fits():
    rows = [("only", [flat((9, 9, 9))], [flat((8, 8, 8))])]
    sheet = sheets.contact_sheet(rows, ("a", "b"), flat((1, 2, 3), (900, 30)))
    assert box(sheet, (1, 2, 3))[3] == 900 == len(sheet)


def test_bars_have_one_scale_and_their_class_colours():
    upper, lower = [0.5, 0.25, 0.25, 0.1], [0.2, 0.8, 0.0, 0.4]
    names = ["road", "sky", "car", "ignored, of all pixels"]
    chart = sheets.bar_chart(names, COLORS, (upper, lower), ("shares", "a", "b"))
    for k, color in enumerate(COLORS[:3]):
        rows = (chart == color).all(axis=-1).sum(axis=1)
        lengths = [int(n) for n in rows[rows > 0]]
        expected = [sheets.LONGEST * share / 0.8 for share in (upper[k], lower[k])]
        for seen, length in ((lengths[0], expected[0]), (lengths[-1], expected[1])):
            # The edge takes a pixel at each end; an empty bar is not drawn.
            if length:
                assert seen == pytest.approx(length - 1, abs=1)
    assert len(np.unique(np.nonzero((chart == COLORS[2]).all(axis=-1))[0])) < 17


def test_long_names_widen_the_chart_and_are_not_cut():
    name = "a very long name of a class that somebody gave to it"
    both = ([0.5, 0.5], [0.5, 0.5])
    chart = sheets.bar_chart([name, "ignored"], COLORS[:2], both, ("s", "a", "b"))
    text = cv2.getTextSize(name, sheets.FONT, 0.5, 1)[0][0]
    assert box(chart, COLORS[0])[0] > text
    assert (chart[84:, : sheets.GAP // 2] == 255).all()


def test_a_chart_of_nothing():
    both = ([0.0, 0.0], [0.0, 0.0])
    chart = sheets.bar_chart(["sky", "ignored"], COLORS[:2], both, ("s", "a", "b"))
    assert not (chart == COLORS[0]).all(axis=-1).any()
