"""The paper's figures have one home, and README.md shows the same."""

import pathlib

from ss_gan_tf.config import ARMS
from ss_gan_tf.datasets import DATASETS
from ss_gan_tf.paper import TABLE3, TABLE4

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_arm_has_a_figure():
    for rows in (TABLE3, TABLE4):
        for figures in rows.values():
            assert list(figures) == list(ARMS)
            assert all(50 < figure < 100 for figure in figures.values())
    assert set(TABLE3) <= set(DATASETS)


def test_table_4_names_as_many_classes_as_the_data_sets_do():
    for name in ("cityscapes", "synthetic"):
        assert len(DATASETS[name].table4_classes) == len(TABLE4)


def test_the_gains_that_the_paper_claims():
    # "1.17 to 1.93 points": the smallest and the largest of the four.
    gains = [
        round(row[f"{backbone}_g"] - row[backbone], 2)
        for row in TABLE3.values()
        for backbone in ("vgg16", "resnet50")
    ]
    assert (min(gains), max(gains)) == (1.17, 1.93)


def test_the_readme_shows_the_same_figures():
    for row in TABLE3.values():
        cells = " | ".join(f"{figure:.2f}" for figure in row.values())
        assert f"| paper | {cells} |" in README
    for arm in ARMS:
        cells = " | ".join(f"{row[arm]:.2f}" for row in TABLE4.values())
        assert f"| `{arm}` | {cells} |" in README
