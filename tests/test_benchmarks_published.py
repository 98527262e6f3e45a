"""The tables of speed in WORKSPACE.md are those of docs/results/benchmarks."""

import json
import pathlib
import re

import pytest

from experiments import benchmark

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
    machine, *parts = re.split(r"\n\n--- \w+ ---\n", benchmark.show(str(path)))
    assert parts
    for part in parts:
        assert PAGE.count(part) == 1
        assert f"`{path.stem}.json`" in PAGE.split(part)[0].rsplit("\n\n", 2)[-2]
    commit = json.loads(path.read_text())["machine"]["commit"]
    assert commit in machine and commit[:7] in PAGE


@files
def test_it_was_measured_with_a_commit(path):
    machine = json.loads(path.read_text())["machine"]
    assert re.fullmatch(r"[0-9a-f]{12}", machine["commit"])  # no "+": unchanged files


@files
def test_nothing_names_a_folder_of_a_machine(path):
    assert not re.search(r'["(\s=]/[a-z]+/', path.read_text())


# --- Against the targets -----------------------------------------------------

PHASES = ("phase1", "control", "adversarial")
PRECISIONS = ("float32", "mixed_bfloat16")
KEEPS = "torch, keeps memory"


def target(start):
    """The row of the table of targets that begins so: its cell of this machine."""
    table = PAGE.split("\n#### Against the targets\n")[1].split("\n#### ")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return line.strip("| ").split(" | ")[2]


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
    """One text for each precision: our peak over the peer's, by phase."""
    ours = by_phase(name, "ours, jit off", "peak_memory")
    theirs = by_phase(name, peer, "peak_memory")
    return "; ".join(
        in_words(
            ours[p][phase] / theirs[p]["phase1" if phase == "control" else phase]
            for phase in PHASES
        )
        for p in PRECISIONS
    )


@pytest.mark.parametrize("arm", ["vgg16", "resnet50"])
def test_the_steps_against_their_targets(arm):
    name = f"step-{arm}"
    told = {
        field: by_phase(name, "ours, jit off", field)
        for field in ("to_peer", "to_fastest", "to_phase1", "share")
    }
    for start, field in (
        ("to PyTorch", "to_peer"),
        ("to the faster of PyTorch's two", "to_fastest"),
    ):
        texts = [
            in_words(told[field][p][phase] for phase in PHASES) for p in PRECISIONS
        ]
        assert "; ".join(texts) in target(f"`{arm}` {start}"), texts
    for phase in ("control", "adversarial"):
        texts = in_words(told["to_phase1"][p][phase] for p in PRECISIONS)
        assert f"`{arm}` {texts}" in target(f"{phase} / phase 1"), texts
    for peer, start in (("torch", "as it comes"), (KEEPS, "with kept memory")):
        text = memory_ratios(name, peer)
        assert text in target(f"`{arm}` memory to PyTorch {start}"), text
    if arm == "vgg16":
        shares = [told["share"]["float32"][phase] for phase in PHASES]
        text = ", ".join(f"{share:.0%}" for share in shares)
        assert text in target("60 % of the matrix rate, float32"), text


def test_inference_and_evaluation_against_their_targets():
    for arm in ("vgg16", "resnet50"):
        found = rows(f"inference-{arm}", library="ours")
        text = f"`{arm}` {in_words(row['to_peer'] for row in found)}"
        assert text in target("inference to PyTorch"), text
        busy = [row["busy"] for row in rows(f"evaluate-{arm}")]
        text = f"`{arm}` {', '.join(f'{share:.0%}' for share in busy)}"
        assert text in target("evaluation: device busy"), text
