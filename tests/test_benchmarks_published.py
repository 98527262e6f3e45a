"""The tables of speed in WORKSPACE.md are those of docs/results/benchmarks."""

import json
import pathlib
import re

import pytest

from experiments import benchmark
from experiments.benchmarks.step_rows import KEEPS, PHASES

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "docs/results/benchmarks").glob("*.json"))
PAGE = (ROOT / "WORKSPACE.md").read_text(encoding="utf-8")
files = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def rows(name, **wanted):
    """Rows of a file that have these values."""
    found = json.loads((ROOT / f"docs/results/benchmarks/{name}.json").read_text())
    (result,) = found["results"].values()
    assert result["rows"]
    return [
        row
        for row in result["rows"]
        if all(row[field] == value for field, value in wanted.items())
    ]


@files
def test_its_tables_stand_in_the_page(path):
    _, *parts = re.split(r"\n\n--- \w+ ---\n", benchmark.show(str(path)))
    commit = json.loads(path.read_text())["machine"]["commit"][:7]
    assert parts
    for part in parts:
        assert PAGE.count(part) == 1
        label = PAGE.split(part)[0].rsplit("\n\n", 2)[-2]
        assert label.startswith(f"`{path.name}`, commit {commit}: `--what=")


def test_all_tables_have_their_files():
    labels = re.findall(r"^`([\w-]+\.json)`, commit ", PAGE, re.MULTILINE)
    assert sorted(labels) == [path.name for path in FILES]


@files
def test_it_was_measured_with_a_commit(path):
    machine = json.loads(path.read_text())["machine"]
    assert re.fullmatch(r"[0-9a-f]{12}", machine["commit"])  # no "+": unchanged files


@files
def test_nothing_names_a_folder_of_a_machine(path):
    assert not re.search(r'["(\s=]/[a-z]+/', path.read_text())


# --- Against the targets -----------------------------------------------------

PRECISIONS = ("float32", "mixed_bfloat16")


def target(start, values, bounds, highest=True):
    """The cell of this machine in the row that begins so; its verdict is checked.

    Args:
        start: the row's name.
        values: what was measured.
        bounds: what each may be at most, or at least.
        highest: whether they are upper bounds.
    """
    table = PAGE.split("\n#### Against the targets\n")[1].split("\n#### ")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    cell = line.strip("| ").split(" | ")[2]
    missed = any(
        value > bound if highest else value < bound
        for value, bound in zip(values, bounds, strict=True)
    )
    assert ("**missed**" in cell) == missed and (missed or "met" in cell), cell
    return cell


def by_phase(name, library, field):
    """precision -> that field of each phase of a library, in order."""
    found = {p: rows(name, library=library, precision=p) for p in PRECISIONS}
    return {
        precision: {row["phase"]: row[field] for row in of}
        for precision, of in found.items()
    }


def in_words(values):
    return ", ".join(f"{value:.2f}" for value in values)


def memory_ratios(name, peer):
    """Our peak over the peer's, for each precision by phase."""
    ours = by_phase(name, "ours, jit off", "peak_memory")
    theirs = by_phase(name, peer, "peak_memory")
    return [
        [
            ours[p][phase] / theirs[p]["phase1" if phase == "control" else phase]
            for phase in PHASES
        ]
        for p in PRECISIONS
    ]


def told(name, field):
    """A field of our rows, for each precision by phase."""
    found = by_phase(name, "ours, jit off", field)
    return [[found[p][phase] for phase in PHASES] for p in PRECISIONS]


@pytest.mark.parametrize("arm", ["vgg16", "resnet50"])
def test_the_steps_against_their_targets(arm):
    name, memory = f"step-{arm}", f"`{arm}` memory to PyTorch"
    times = {"vgg16": [0.75, 0.75], "resnet50": [0.9, 1.0]}[arm]
    for start, values, bounds in (
        (f"`{arm}` to PyTorch", told(name, "to_peer"), times),
        (f"`{arm}` to the faster of PyTorch's two", told(name, "to_fastest"), times),
        (f"{memory} as it comes", memory_ratios(name, "torch"), [1.2] * 2),
        (f"{memory} with kept memory", memory_ratios(name, f"torch{KEEPS}"), [1.2] * 2),
    ):
        cell = target(
            start, sum(values, []), [bound for bound in bounds for _ in PHASES]
        )
        assert "; ".join(map(in_words, values)) in cell, values


def test_phases_against_phase_1():
    ratios = {arm: told(f"step-{arm}", "to_phase1") for arm in ("vgg16", "resnet50")}
    for phase, number, bounds in (
        ("control", 1, [1.05] * 4),  # "noise"
        ("adversarial", 2, [1.4, 1.4, 1.25, 1.25]),
    ):
        values = [of[number] for arm in ratios.values() for of in arm]
        cell = target(f"{phase} / phase 1", values, bounds)
        for arm, of in ratios.items():
            assert f"`{arm}` {in_words(row[number] for row in of)}" in cell


def test_the_matrix_rate_against_its_target():
    shares = told("step-vgg16", "share")
    cell = target("60 % of the matrix rate, float32", shares[0], [0.6] * 3, False)
    for row in shares:
        assert ", ".join(f"{share:.0%}" for share in row) in cell


def test_inference_and_evaluation_against_their_targets():
    ratios, shares = {}, {}
    for arm in ("vgg16", "resnet50"):
        ratios[arm] = [r["to_peer"] for r in rows(f"inference-{arm}", library="ours")]
        shares[arm] = [row["busy"] for row in rows(f"evaluate-{arm}")]
    cell = target("inference to PyTorch", sum(ratios.values(), []), [1] * 4)
    for arm, values in ratios.items():
        assert f"`{arm}` {in_words(values)}" in cell
    busy = sum(shares.values(), [])
    cell = target("evaluation: device busy", busy, [0.9] * len(busy), False)
    for arm, values in shares.items():
        assert f"`{arm}` {', '.join(f'{share:.0%}' for share in values)}" in cell


def test_figures_of_the_other_files_in_the_targets():
    (alone,) = rows("step-vgg16-alone", phase="adversarial")
    assert f"; {alone['to_phase1']:.2f} in seven rounds" in PAGE
    name, bfloat16 = "step-vgg16-gives-back", "mixed_bfloat16"
    ours = rows(name, library="ours, jit off", precision=bfloat16)
    peaks = {row["phase"]: row["peak_memory"] for row in rows(name, library="torch")}
    memory = [
        row["peak_memory"] / peaks.get(row["phase"], peaks["phase1"]) for row in ours
    ]
    text = "bfloat16 has {:.2f}, {:.2f} and {:.2f}, in {:.2f}, {:.2f} and {:.2f} of"
    assert text.format(*memory, *(row["to_peer"] for row in ours)) in PAGE
