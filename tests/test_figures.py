"""Curves and pictures as files that stand alone."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from ss_gan_tf import figures
from ss_gan_tf.results import ROLES


def external(svg):
    """Addresses outside the file; names of XML's own vocabularies are none."""
    return re.findall(rb'(?:href|src)="(?!#)([^"]+)"', svg)


def test_every_role_has_a_style():
    assert set(figures.STYLES) == set(ROLES)
    assert len(set(figures.STYLES.values())) == len(ROLES)


def test_curves_stand_alone_and_repeat():
    curves = {"control": [[(0, 0.1), (5, 0.2)]], "adversarial": [[(0, 0.3)], []]}
    first = figures.draw_curves(curves, "mIoU", "fraction", (0.5, "chance"))
    assert first.startswith(b"<?xml") and b"</svg>" in first
    assert external(first) == []
    assert first == figures.draw_curves(curves, "mIoU", "fraction", (0.5, "chance"))
    assert first != figures.draw_curves(curves, "mIoU", "fraction")


def test_lines_that_are_no_roles_differ_and_keep_their_names():
    names = [f"my_variant{n}" for n in range(7)]
    curves = {name: [[(0, n), (5, n + 0.5)]] for n, name in enumerate(names)}
    drawn = figures.draw_curves(curves, "mIoU", "fraction").decode()
    lines = re.findall(r'style="fill: none; ([^"]*stroke: [^"]+)"', drawn)
    styles = {
        (color.group(), *re.findall(r"stroke-dasharray: [^;]+", line))
        for line in lines
        if (color := re.search(r"#\w+", line)) and color.group() in figures._COLORS
    }
    assert len(styles) == 7
    assert all(f"<!-- {name} -->" in drawn for name in names)


def test_the_legend_says_what_is_noted():
    curves = {"adversarial": [[(1, 2.0)]], "weak": [[(1, 3.0)]]}
    drawn = figures.draw_curves(curves, "t", "u", notes={"weak": " (one seed)"})
    assert b"weak (one seed)" in drawn and b"adversarial (" not in drawn
    assert figures.STYLES["adversarial"][0].encode() in drawn


def test_mean_of_curves_by_hand():
    curves = [[(0, 1.0), (5, 3.0), (9, 7.0)], [(5, 5.0), (0, 2.0)]]
    assert figures.mean_curve(curves) == [(0, 1.5), (5, 4.0)]
    assert figures.mean_curve([[(0, 1.0)], []]) == [(0, 1.0)]
    assert figures.mean_curve([[(0, 1.0)], [(1, 1.0)]]) == figures.mean_curve([]) == []


def test_nothing_to_draw():
    assert figures.draw_curves({"control": [[]], "adversarial": []}, "t", "u") is None


def test_long_curves_keep_their_end():
    thin = figures._thin([(step, 0.0) for step in range(1001)])
    assert len(thin) <= figures.MAX_POINTS
    assert thin[-1] == (1000, 0.0) and thin[0][0] < 3


def test_gains_stand_alone():
    rows = [("control, seed 0", 1.5, (0.5, 2.5)), ("control, seed 1", -1.0, None)]
    assert external(figures.draw_gains(rows, "gains")) == []


@pytest.mark.parametrize("suffix, kind", [(".png", "PNG"), (".jpg", "JPEG")])
def test_pictures_are_reduced_and_keep_their_colours(suffix, kind):
    picture = np.zeros([100, 960, 3], np.uint8)
    picture[..., 0] = 200
    with Image.open(io.BytesIO(figures.encode(picture, suffix))) as image:
        assert (image.format, image.size) == (kind, (480, 50))
        red, green, _ = image.convert("RGB").getpixel((10, 10))
    assert abs(red - 200) < 4 and green < 4


def test_maps_keep_their_classes():
    maps = np.random.default_rng(0).choice(np.uint8([0, 255]), [50, 700, 1])
    with Image.open(io.BytesIO(figures.encode(maps.repeat(3, 2), ".png"))) as image:
        assert set(np.unique(image)) == {0, 255}
