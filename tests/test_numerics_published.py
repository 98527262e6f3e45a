"""The tables of losses in docs/measurements.md are those of docs/results/numerics."""

import json
import pathlib
import re

import pytest

from ss_gan_tf.numerics import NUDGES, REJOINED, ROUNDED, ROUNDINGS, TOLERANCES

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "docs/results/numerics").glob("*.json"))
PAGE = (ROOT / "docs/measurements.md").read_text(encoding="utf-8")
JUDGED = ("bfloat16", *REJOINED, "float32-xla", "torch-float32")
COLUMNS = (
    *("torch-bfloat16", "bfloat16", "bfloat16-rejoined"),
    *("float32-xla", "float32-xla-rejoined", "torch-float32"),
)


def in_words(row):
    """A row's differences, what is allowed beyond its own numbers, and a miss."""
    if row["largest"] < 5e-5:
        return "below 0.005 %"
    words = f"{100 * row['largest']:.3g} %, {100 * row['mean']:.2g} %"
    tolerance = TOLERANCES.get(row["variant"])
    if tolerance is None:
        return words
    steps, mean = row["allowed"]
    if steps > tolerance or mean > tolerance / 3:
        words += f" (of {100 * steps:.3g} %, {100 * mean:.2g} %)"
    if not row["within"]:
        step = row["outside_from"]
        words += ": **outside**" + (f" from step {step}" if step else " in the mean")
    return words


def drawn(yardsticks, found):
    """What was found of those that are drawn."""
    return [found[v] for v in yardsticks if v in found and "drawn" in v]


def range_of(rows):
    """The differences of some rows, smallest to largest, behind what stands before."""
    if not rows:
        return ""
    of = {k: sorted(100 * row[k] for row in rows) for k in ("largest", "mean")}
    return (
        f"; drawn {of['largest'][0]:.3g} to {of['largest'][-1]:.3g} %, "
        f"{of['mean'][0]:.2g} to {of['mean'][-1]:.2g} %"
    )


def row_of_losses(result, name):
    """What stands behind a row's name in the table."""
    rows = {row["variant"]: row for row in result["rows"] if row["loss"] == name}
    up, down = (in_words(rows[v]) for v in list(NUDGES)[:2])
    cells = [
        in_words(rows[ROUNDED]) + range_of(drawn(ROUNDINGS, rows)),
        f"{up} and {down}" + range_of(drawn(NUDGES, rows)),
    ]
    return cells + [in_words(rows[v]) if v in rows else "-" for v in COLUMNS]


def row_of_miou(result):
    """The row below: its name, and what stands behind it."""
    ends = {end["variant"]: end for end in result["miou"]}

    def told(variant):
        if variant not in ends:
            return "-"
        value = f"{100 * ends[variant]['value']:.2f}"
        within = ends[variant]["within"]
        return value + {True: ": within", False: ": **outside**", None: ""}[within]

    def range_told(yardsticks):
        values = [100 * end["value"] for end in drawn(yardsticks, ends)]
        return f"; drawn {min(values):.2f} to {max(values):.2f}" if values else ""

    nudged = " and ".join(map(told, list(NUDGES)[:2])) + range_told(NUDGES)
    seeds = ", ".join(f"{100 * value:.2f}" for value in result["of_seeds"])
    name = f"mIoU, %: float32 {seeds}, a spread of {100 * result['spread']:.2f}"
    rounded = told(ROUNDED) + range_told(ROUNDINGS)
    return [name, rounded, nudged, *map(told, COLUMNS)]


def block(result, run):
    """The table's lines of a run.

    Args:
        result: what `experiments.numerics` wrote.
        run: its name in the table.
    """
    lines = []
    for name in dict.fromkeys(row["loss"] for row in result["rows"]):
        label = f"{run}, {name.split()[1]}"
        lines.append([label, *row_of_losses(result, name)])
    lines.append(row_of_miou(result))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_something_is_published():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_rows_stand_in_the_page(path):
    assert not re.search(r'["(\s=]/[a-z]+/', path.read_text())
    assert f"`{path.stem}`" in PAGE
    arm, phase, seed, _ = path.stem.split("-")
    run = f"`{arm}` phase {phase[-1]}, `--seed={seed[-1]}`"
    assert PAGE.count(block(json.loads(path.read_text()), run)) == 1


def test_how_many_rows_are_outside():
    """The sentence that sums the tables up."""
    results = [json.loads(path.read_text()) for path in FILES]
    counts = {variant: [0, 0] for variant in JUDGED}
    for row in (row for result in results for row in result["rows"]):
        if row["variant"] in JUDGED:
            counts[row["variant"]][0] += 1
            counts[row["variant"]][1] += not row["within"]
    told = re.findall(r"`([\w-]+)` (\d+) of (\d+) outside", PAGE)
    assert {name: [int(n), int(out)] for name, out, n in told} == counts
