"""Counts of images add up to the split's figures, basic and full."""

import json

import numpy as np
import pytest

from ss_gan_tf import boundary, calibration, granulation, measures, metrics

NAMES = ("road", "sky", "tree")


def examples(number=5):
    rng = np.random.default_rng(0)
    for _ in range(number):
        label = rng.choice([0, 1, 255], (4, 5)).repeat(5, axis=0).repeat(5, axis=1)
        probs = rng.dirichlet([0.4] * 3, (4, 5)).repeat(5, axis=0).repeat(5, axis=1)
        probs = np.roll(probs, 2, axis=1)
        probs = probs.astype(np.float32)
        yield label, probs.argmax(-1).astype(np.uint8), probs.max(-1)


def total(counts):
    return {name: sum(part[name] for part in counts) for name in counts[0]}


def test_basic_counts_are_the_confusion_matrix_alone():
    label, pred, confidence = next(examples())
    counts = measures.count(label, pred, confidence, 3, 255)
    assert counts.keys() == {"confusion"}
    expected = metrics.confusion_matrix(label, pred, 3, 255)
    np.testing.assert_array_equal(counts["confusion"], expected)
    assert measures.summarize(counts, NAMES) == metrics.summarize(expected, NAMES)


def test_full_figures_come_from_the_sums_of_all_modules():
    counts = [measures.count(*e, 3, 255, full=True) for e in examples()]
    summed = total(counts)
    figures = measures.summarize(summed, NAMES)
    for module, of_image in (
        (boundary, lambda label, pred, _: boundary.count(label, pred, 3, 255)),
        (granulation, lambda label, pred, _: granulation.count(label, pred, 3, 255)),
        (calibration, lambda *example: calibration.count(*example, 3, 255)),
    ):
        direct = total([of_image(*example) for example in examples()])
        assert direct.keys() <= summed.keys()
        name = module.__name__.rsplit(".", 1)[1]
        assert figures[name] == module.summarize(direct, NAMES)
    assert figures["granulation"]["speck_share"] is not None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_no_two_modules_use_one_name():
    label, pred, confidence = next(examples())
    parts = (
        boundary.count(label, pred, 3, 255),
        granulation.count(label, pred, 3, 255),
        calibration.count(label, pred, confidence, 3, 255),
        {"confusion": 0},
    )
    full = measures.count(label, pred, confidence, 3, 255, full=True)
    assert sum(map(len, parts)) == len(full)


def test_the_wide_table_has_a_row_a_class_and_its_columns_are_fixed():
    counts = [measures.count(*e, 3, 255, full=True) for e in examples()]
    nothing = measures.count(
        np.full((4, 4), 255),
        np.zeros((4, 4), int),
        np.ones((4, 4)),
        3,
        255,
        full=True,
    )
    headings = set()
    for summed in (total(counts), nothing):
        figures = measures.summarize(summed, NAMES)
        basic, wide = measures.format_table(figures).split("\n\n")
        assert basic == metrics.format_table(figures)
        lines = wide.splitlines()
        assert len({len(line) for line in lines}) == 1
        headings.add(" ".join(lines[0].split()))
        rows = {
            line.split()[0]: line.split()[1:] for line in lines[3:] if "---" not in line
        }
        assert set(rows) == {*NAMES, "overall"}
        assert {len(cells) for cells in rows.values()} == {10}
    assert len(headings) == 1
    assert set(rows["overall"]) == {"-"}
    figures = measures.summarize(total(counts), NAMES)
    line = next(
        x for x in measures.format_table(figures).splitlines() if "overall" in x
    )
    cells = line.split()[1:]
    assert float(cells[0]) == pytest.approx(100 * figures["miou"], abs=0.006)
    assert float(cells[3]) == pytest.approx(
        figures["granulation"]["surplus"], abs=0.006
    )
    assert float(cells[-1]) == pytest.approx(
        100 * figures["calibration"]["ece"], abs=0.006
    )


def test_basic_figures_have_the_plain_table():
    counts = measures.count(*next(examples()), 3, 255)
    figures = measures.summarize(counts, NAMES)
    assert measures.format_table(figures) == metrics.format_table(figures)
