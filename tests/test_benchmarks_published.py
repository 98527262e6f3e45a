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
def test_it_was_measured_to_the_end_with_a_commit(path):
    found = json.loads(path.read_text())
    machine = found["machine"]
    assert found.get("finished", True)  # not always told
    assert re.fullmatch(r"[0-9a-f]{12}", machine["commit"])  # no "+": unchanged files


@files
def test_nothing_names_a_folder_of_a_machine(path):
    assert not re.search(r'["(\s=]/[a-z]+/', path.read_text())


# --- Against the targets -----------------------------------------------------

PRECISIONS = ("float32", "mixed_bfloat16")
# Column of the table -> end of its files' names, and what was measured there.
MACHINES = {
    "AVX-512": ("", PRECISIONS),
    "AVX2 alone (float32)": ("-avx2", ("float32",)),
}
machines = pytest.mark.parametrize("machine", MACHINES)


def target(machine, start, values, bounds, highest=True):
    """A machine's cell in the row that begins so; its verdict is checked.

    Args:
        machine: one of `MACHINES`.
        start: the row's name.
        values: what was measured.
        bounds: what each may be at most, or at least.
        highest: whether they are upper bounds.
    """
    table = PAGE.split("\n#### Against the targets\n")[1].split("\n#### ")[0]
    head, *lines = [line for line in table.splitlines() if line.startswith("| ")]
    (line,) = [line for line in lines if line.startswith(f"| {start} |")]
    columns = [name.strip() for name in head.strip("|").split("|")]
    cell = line.strip("| ").split(" | ")[columns.index(machine)]
    missed = any(
        value > bound if highest else value < bound
        for value, bound in zip(values, bounds, strict=True)
    )
    assert ("**missed**" in cell) == missed and (missed or "met" in cell), cell
    return cell


def by_phase(name, library, field, precisions):
    """precision -> that field of each phase of a library, in order."""
    found = {p: rows(name, library=library, precision=p) for p in precisions}
    return {
        precision: {row["phase"]: row[field] for row in of}
        for precision, of in found.items()
    }


def in_words(values):
    return ", ".join(f"{value:.2f}" for value in values)


def in_percent(values):
    return ", ".join(f"{value:.0%}" for value in values)


def memory_ratios(machine, arm, peer):
    """Our peak over the peer's, for each precision by phase."""
    end, precisions = MACHINES[machine]
    ours, theirs = (
        by_phase(f"step-{arm}{end}", library, "peak_memory", precisions)
        for library in ("ours, jit off", peer)
    )
    return [
        [
            ours[p][phase] / theirs[p]["phase1" if phase == "control" else phase]
            for phase in PHASES
        ]
        for p in precisions
    ]


def told(machine, arm, field):
    """A field of our rows, for each precision by phase."""
    end, precisions = MACHINES[machine]
    found = by_phase(f"step-{arm}{end}", "ours, jit off", field, precisions)
    return [[found[p][phase] for phase in PHASES] for p in precisions]


@machines
@pytest.mark.parametrize("arm", ["vgg16", "resnet50"])
def test_the_steps_against_their_targets(arm, machine):
    memory = f"`{arm}` memory to PyTorch"
    times = {"vgg16": [0.75, 0.75], "resnet50": [0.9, 1.0]}[arm]
    to_peer, to_fastest = (
        told(machine, arm, field) for field in ("to_peer", "to_fastest")
    )
    as_it_comes, with_kept = (
        memory_ratios(machine, arm, peer) for peer in ("torch", f"torch{KEEPS}")
    )
    for start, values, bounds in (
        (f"`{arm}` to PyTorch", to_peer, times),
        (f"`{arm}` to the faster of PyTorch's two", to_fastest, times),
        (f"{memory} as it comes", as_it_comes, [1.2] * 2),
        (f"{memory} with kept memory", with_kept, [1.2] * 2),
    ):
        limits = [bound for bound in bounds[: len(values)] for _ in PHASES]
        cell = target(machine, start, sum(values, []), limits)
        assert "; ".join(map(in_words, values)) in cell, values


@machines
def test_phases_against_phase_1(machine):
    ratios = {arm: told(machine, arm, "to_phase1") for arm in ("vgg16", "resnet50")}
    for phase, number, bounds in (
        ("control", 1, {"vgg16": 1.05, "resnet50": 1.05}),  # "noise"
        ("adversarial", 2, {"vgg16": 1.4, "resnet50": 1.25}),
    ):
        values = [of[number] for arm in ratios for of in ratios[arm]]
        limits = [bounds[arm] for arm in ratios for _ in ratios[arm]]
        cell = target(machine, f"{phase} / phase 1", values, limits)
        for arm, of in ratios.items():
            assert f"`{arm}` {in_words(row[number] for row in of)}" in cell


@machines
def test_the_matrix_rate_against_its_target(machine):
    start, shares = "60 % of the matrix rate, float32", told(machine, "vgg16", "share")
    cell = target(machine, start, shares[0], [0.6] * 3, False)
    for row in shares:
        assert in_percent(row) in cell


@machines
def test_inference_against_its_target(machine):
    end, _ = MACHINES[machine]
    ratios = {
        arm: [row["to_peer"] for row in rows(f"inference-{arm}{end}", library="ours")]
        for arm in ("vgg16", "resnet50")
    }
    values = sum(ratios.values(), [])
    cell = target(machine, "inference to PyTorch", values, [1] * 4)
    for arm, values in ratios.items():
        assert f"`{arm}` {in_words(values)}" in cell


def test_evaluation_against_its_target():
    shares = {
        arm: [row["busy"] for row in rows(f"evaluate-{arm}")]
        for arm in ("vgg16", "resnet50")
    }
    busy = sum(shares.values(), [])
    bounds = [0.9] * len(busy)
    cell = target("AVX-512", "evaluation: device busy", busy, bounds, False)
    for arm, values in shares.items():
        assert f"`{arm}` {in_percent(values)}" in cell


def test_figures_of_the_other_files_in_the_targets():
    name, bfloat16 = "step-vgg16-gives-back", "mixed_bfloat16"
    ours = rows(name, library="ours, jit off", precision=bfloat16)
    peaks = {row["phase"]: row["peak_memory"] for row in rows(name, library="torch")}
    memory = [
        row["peak_memory"] / peaks.get(row["phase"], peaks["phase1"]) for row in ours
    ]
    text = "bfloat16 has {:.2f}, {:.2f} and {:.2f}, in {:.2f}, {:.2f} and {:.2f} of"
    assert text.format(*memory, *(row["to_peer"] for row in ours)) in PAGE


def test_rounds_and_peaks_near_the_bounds_on_avx2_alone():
    ours = {
        row["phase"]: row["seconds"]["rounds"]
        for row in rows("step-resnet50-avx2", library="ours, jit off")
    }
    (kept,) = rows("step-resnet50-avx2", library=f"torch{KEEPS}", phase="phase1")
    theirs = kept["seconds"]["rounds"]
    for mine, others, text in (
        (ours["phase1"], theirs, "{} of the time of PyTorch with kept memory in phase"),
        (ours["control"], theirs, "{} in the control, and"),
        (ours["adversarial"], ours["phase1"], "adversarial step {} of phase 1: within"),
    ):
        words = in_words(a / b for a, b in zip(mine, others, strict=True))
        assert text.format(" and ".join(words.rsplit(", ", 1))) in PAGE
    (control,) = rows("step-vgg16-avx2", library="ours, jit off", phase="control")
    (theirs,) = rows("step-vgg16-avx2", library=f"torch{KEEPS}", phase="phase1")
    peaks = (row["peak_memory"] / 1e9 for row in (control, theirs))
    assert "{:.2f} of {:.2f} GB".format(*peaks) in PAGE


# --- On paper ----------------------------------------------------------------

ARMS = ("vgg16", "vgg16_g", "resnet50", "resnet50_g")
STEPS = 100_000  # of each of eight runs: two data sets times four arms
BATCH = 2
NVLINK, PCIE = 450e9, 50e9  # bytes a second


def section(title):
    return re.split(r"\n#{2,4} ", PAGE.split(f" {title}\n")[1])[0]


def cells_of(text, start):
    """Of the row that begins so, what stands behind it."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def gpu_times(arithmetic):
    """Seconds of a step on the card, by arm, from the table of measured steps."""
    table = section("On a GPU")
    found = []
    for backbone in ("vgg16", "resnet50"):
        for phase in ("phase 1", "adversarial"):
            cells = cells_of(table, f"`{backbone}` {phase} | {arithmetic}")
            found.append(float(cells[1].split()[0]) / 1000)
    return found


def in_ms(seconds):
    return [1000 * value for value in seconds]


def test_what_is_computed_follows_from_what_was_measured():
    computed = section("On paper: the paper's runs on many GPUs")
    days = cells_of(computed, "two CPU cores, all eight runs")[1:]
    for precision, words, told_days in zip(
        PRECISIONS, ("float32", "bfloat16"), days, strict=True
    ):
        seconds = [
            rows(f"step-{backbone}", library="ours, jit off", precision=precision)
            for backbone in ("vgg16", "resnet50")
        ]
        seconds = [
            row["seconds"]["median"]
            for of in seconds
            for row in of
            if row["phase"] in ("phase1", "adversarial")
        ]
        cells = cells_of(computed, f"t, two CPU cores, {words}")[:4]
        assert cells == [f"{s:#.3g} s" for s in seconds]
        assert told_days == f"{2 * STEPS * sum(seconds) / 86_400:.0f} days"

    tf32, bfloat16 = gpu_times("TF32"), gpu_times("bfloat16")
    faster = [min(pair) for pair in zip(tf32, bfloat16, strict=True)]
    gradients = [
        1e6 * float(cell.split()[0])
        for cell in cells_of(computed, "gradients of a step")[:4]
    ]
    (voc, cityscapes) = (
        row["examples_per_second"]["pipeline"]["median"] / 2 for row in rows("input")
    )
    rates = cells_of(computed, "crops a second and core")[0]
    assert rates == f"VOC {voc:.0f}, Cityscapes {cityscapes:.1f}"
    assert f"{voc / cityscapes:.0f} times the cores of VOC's JPEGs" in computed

    columns = list(zip((tf32, faster), (0, 1), strict=True))
    for times, column in columns:
        one = cells_of(computed, "1 GPU")[1:][column]
        assert one == f"{2 * STEPS * sum(times) / 3600:.1f} hours"
        chains = times[0] + times[1], times[2] + times[3]
        of_eight = cells_of(computed, "8 GPUs, one run each")[1:][column]
        longest = max(range(2), key=chains.__getitem__)
        hours = f"{STEPS * chains[longest] / 3600:.1f} hours"
        assert of_eight.startswith(f"{hours} (`{ARMS[2 * longest]}`)")
        on_pairs = [t / 2 + g / NVLINK for t, g in zip(times, gradients, strict=True)]
        pairs = cells_of(computed, "64 GPUs, a run on two, NVLink")[1:][column]
        chain = max(on_pairs[0] + on_pairs[1], on_pairs[2] + on_pairs[3])
        assert f"{STEPS * chain / 3600:.1f} hours" in pairs
        for t in on_pairs:
            assert f"{1000 * t:.2g}" in pairs
        for start, of in (
            ("input, 8 runs at once on one host", times),
            ("the same on pairs of GPUs, NVLink", on_pairs),
        ):
            crops = sum(BATCH / t for t in of)
            said = cells_of(computed, start)[1:][column]
            assert said.startswith(f"{crops:.0f}: {crops / voc:.1f} ")
            assert f" {crops / cityscapes:.0f} " in f"{said} ", said
    through = cells_of(computed, "the same through PCIe")[1:]
    pcie = [t / 2 + g / PCIE for t, g in zip(tf32, gradients, strict=True)]
    assert ", ".join(f"{1000 * t:.0f}" for t in pcie[:3]) in through[0]
    assert f"{STEPS * (pcie[0] + pcie[1]) / 3600:.1f} hours" in through[0]
    pcie = [t / 2 + g / PCIE for t, g in zip(faster, gradients, strict=True)]
    vgg16, resnet50 = through[1].split("; ")
    assert vgg16.startswith("`vgg16` {:.0f} and {:.0f} ms".format(*in_ms(pcie[:2])))
    assert all(t > one for t, one in zip(pcie[:2], faster, strict=False))  # slower
    assert "`resnet50` {:.0f} and {:.0f} ms".format(*in_ms(pcie[2:])) in resnet50
    assert f"{STEPS * sum(pcie[2:]) / 3600:.1f} hours" in resnet50
