"""What docs/results says follows from the confusion matrices that lie beside it."""

import functools
import pathlib
import re
import shutil
import subprocess

import pytest

from ss_gan_tf import study
from ss_gan_tf.bootstrap import seed_spread
from ss_gan_tf.comparison import Comparison, conclude, read_result
from ss_gan_tf.report import write_report
from ss_gan_tf.tables import Tables

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/results/*/study.json"))
SAID = ("a gain", "a loss", "no difference shown")
BEFORE_PANELS = "## Pictures"  # which need weights and the data set


def test_something_is_published():
    assert FOLDERS


def git(*arguments):
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    return found.stdout.decode().strip()


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_commits_that_the_pages_name_are_in_the_history():
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no checkout with its history")
    pages = ("README.md", "WORKSPACE.md", "CHANGELOG.md", "docs/measurements.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    # Seven decimal digits may be a figure, seven letters a word.
    names = set(re.findall(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7}\b", text))
    assert len(names) > 50
    assert not names - {commit[:7] for commit in git("rev-list", "HEAD").split()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_tables_and_sentences_can_be_made_again(folder, tmp_path):
    write_report(str(tmp_path), study_dir=str(folder), draw_panels=False)
    made, published = (
        (path / "report.md").read_text().split(BEFORE_PANELS)
        for path in (tmp_path, folder / "report")
    )
    assert len(made) == len(published) == 2
    assert made[0] == published[0]
    assert made[0].count("| ") > 100


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_pictures_are_there_and_nothing_names_a_machine(folder):
    report = folder / "report"
    names = re.findall(r"\(pictures/(.+?)\)", (report / "report.md").read_text())
    assert len(names) > 20
    for name in names:
        assert (report / "pictures" / name).stat().st_size > 200
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".html", ".jsonl"):
            assert not re.search(r'["(\s=]/[a-z]+/', path.read_text()), path


@functools.cache
def opened(folder):
    """The runs of a published study, to be compared."""
    runs = study.read_study(str(folder))["runs"]
    return Comparison(
        read_result(str(folder / name), variant=entry.get("variant"))
        for name, entry in runs.items()
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_table_of_the_readme_has_its_figures(folder):
    compared = opened(folder)
    readme = (ROOT / "README.md").read_text()
    (group,) = compared.groups
    gains = {gain.seed: gain for gain in compared.gains(group, "control", "test")}
    assert gains
    for seed, gain in gains.items():
        cells = [str(seed)]
        for role in ("phase1", "control", "adversarial"):
            cells.append(f"{100 * compared.get(group, seed, role).miou('test'):.2f}")
        lowest, highest = gain.interval
        cells += [f"{gain.points:+.2f}", f"{lowest:+.2f} to {highest:+.2f}"]
        assert f"| {' | '.join(cells)} |" in readme


# The rows of README's table of all studies, in its order.
AT_A_GLANCE = (
    ("camvid-vgg16-h100", "adversarial"),
    ("camvid-vgg16", "adversarial"),
    ("camvid-vgg16-sweep", "adversarial"),
    ("camvid-vgg16", "paper"),
    ("camvid-resnet50", "adversarial"),
    ("camvid-resnet50-paper", "adversarial"),
    ("camvid-resnet50-paper", "paper"),
    ("camvid-resnet50-256", "adversarial"),
)
NETWORKS = {"vgg16": "VGG16", "resnet50": "ResNet50"}
PRESETS = {"adversarial": "`recommended`", "paper": "`paper`"}


def test_all_studies_at_a_glance():
    expected = {}
    for folder in FOLDERS:
        compared = opened(folder)
        (group,) = compared.groups
        for role, preset in PRESETS.items():
            gains = compared.gains(group, "control", "test", of=role)
            if not gains:
                continue
            seeds = seed_spread([gain.points for gain in gains])
            said = conclude(gains, "the control").lower()
            settings = study.read_study(str(folder))["settings"]
            (network,) = settings["backbones"]
            expected[folder.name, role] = (
                f"{NETWORKS[network]}, {preset}",
                f"{settings['config']['phase1_steps']:,} + ",
                f"{seeds.mean:+.2f}",
                f"{seeds.low:+.2f} to {seeds.high:+.2f}",
                next(word for word in SAID if word in said),
            )
    assert set(AT_A_GLANCE) == set(expected)
    readme = (ROOT / "README.md").read_text()
    table = readme.split("| network, adversary |")[1].split("\n\n")[0].splitlines()[2:]
    steps = ""
    for row, key in zip(table, AT_A_GLANCE, strict=True):
        label, length, *figures = (cell.strip() for cell in row.strip("|").split("|"))
        steps = steps if length.startswith("the same") else length
        wanted = expected[key]
        assert label.startswith(wanted[0]) and steps.startswith(wanted[1]), row
        assert tuple(figures) == wanted[2:], row


# README's table of what `recommended` changes besides, in its order.
BESIDES = [name for name, role in AT_A_GLANCE if role == "adversarial"]
FIGURES = {
    "component surplus an image": "component surplus /image",
    "specks an image": "specks /image",
    "large areas missed, %": "large areas missed, %",
    "boundary F1, %": "boundary F1, %",
    "calibration error, %": "calibration error, %",
}


def test_what_it_changes_besides():
    assert sorted(BESIDES) == [folder.name for folder in FOLDERS]
    header = f"| network, steps | {' | '.join(FIGURES)} |"
    readme = (ROOT / "README.md").read_text()
    table = readme.split(header)[1].split("\n\n")[0].splitlines()[2:]
    for row, name in zip(table, BESIDES, strict=True):
        compared = opened(ROOT / "docs/results" / name)
        ((_, backbone),) = compared.groups
        differences = Tables(compared, "test").full_metrics()[1]
        arm = differences.header.index("adversarial")
        found = {cells[0]: cells[arm] for cells in differences.rows}
        label, *figures = (cell.strip() for cell in row.strip("|").split("|"))
        assert label.startswith(NETWORKS[backbone])
        assert figures == [found[title] for title in FIGURES.values()], row


# What stands behind the six columns that a study's table has, or in rows of its own.
BESIDE = {
    "camvid-resnet50": ("entropy", "frozen_adversary"),
    "camvid-resnet50-paper": ("paper",),
    "camvid-resnet50-256": ("entropy", "frozen_adversary"),
}
OWN_ROWS = {
    "camvid-vgg16": ("adversarial", "ratio0.3", "entropy", "frozen_adversary", "paper")
}


@pytest.mark.parametrize("name", [*BESIDE, *OWN_ROWS])
def test_placebos_and_other_settings_have_their_figures(name):
    compared = opened(ROOT / "docs/results" / name)
    readme = (ROOT / "README.md").read_text()
    (group,) = compared.groups
    roles = BESIDE.get(name, OWN_ROWS.get(name))
    found = [compared.gains(group, "control", "test", of=role) for role in roles]
    for of_seed in zip(*found, strict=True):
        cells = []
        for role, gain in zip(roles, of_seed, strict=True):
            cells.append(f"{gain.points:+.2f}")
            if role == "paper" and name in BESIDE:
                cells.append("{:+.2f} to {:+.2f}".format(*gain.interval))
        (seed,) = {gain.seed for gain in of_seed}
        before = ".*" if name in BESIDE else " "
        row = rf"^\| {seed} \|{before}{re.escape(' | '.join(cells))} \|$"
        assert re.search(row, readme, re.MULTILINE), row


def test_the_placebos_of_full_length():
    compared = opened(ROOT / "docs/results/camvid-vgg16-h100")
    (group,) = compared.groups
    entropy, random = (
        "{:+.2f} and {:+.2f}".format(
            *(g.points for g in compared.gains(group, "control", "test", of=role))
        )
        for role in ("entropy", "frozen_adversary")
    )
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"the entropy of the prediction in A's place {entropy}, a random " in readme
    assert f"random adversary that never learns {random}." in readme


# README's names of the sweep's settings, in its order.
SWEEP = {
    "as it is: ratio 0.5": "adversarial",
    "one verdict an image": "grid1",
    "saturating form": "saturating",
    "dense verdicts": "dense",
    "epsilon 1": "epsilon1",
    "ratio 0.3": "ratio0.3",
    "no warm-up of A": "cold",
    "fixed lambda of 0.1": "fixed0.1",
    "ratio 0.1": "ratio0.1",
    "fixed lambda of 0.01": "fixed0.01",
    "momentum for A": "momentum",
    "ratio 1 ": "ratio1",
}


def test_the_sweep_has_its_figures():
    compared = opened(ROOT / "docs/results/camvid-vgg16-sweep")
    (group,) = compared.groups
    assert {*SWEEP.values()} == {"adversarial", *compared.variants(group)}
    readme = (ROOT / "README.md").read_text()
    table = readme.split("| `recommended`, but |")[1].split("\n\n")[0].splitlines()[2:]
    for row, (title, role) in zip(table, SWEEP.items(), strict=True):
        expected = []
        for split in ("val", "test"):
            gains = compared.gains(group, "control", split, of=role)
            seeds = seed_spread([gain.points for gain in gains])
            expected.append(", ".join(f"{gain.points:+.2f}" for gain in gains))
            expected.append(f"{seeds.mean:+.2f}")
            expected.append(f"{seeds.low:+.2f} to {seeds.high:+.2f}")
        label, *figures = (cell.strip() for cell in row.strip("|").split("|"))
        assert f"{label} ".startswith(title) and figures == expected, row


RANGE = re.compile(r"([+-]?\d+\.\d+) to ([+-]?\d+\.\d+)")
NO_INTERVALS = {("12.1", "13.1")}  # specks of the random adversary's three seeds


def rounds_to(shown: str, exact: str) -> bool:
    """Whether two decimals are shown as they are, or with one."""
    return shown in (f"{float(exact):.2f}", f"{float(exact):+.2f}") or (
        len(shown.partition(".")[2]) == 1
        and abs(float(shown) - float(exact)) <= 0.05 + 0.005  # that were more
    )


def test_each_interval_of_the_readme_stands_on_the_page_that_it_names():
    readme = (ROOT / "README.md").read_text()
    results = readme.split("\n## Results\n")[1].split("\n## ")[0]
    behind_the_glance = results.split("Details and commands follow.")[1]
    behind_the_glance = behind_the_glance.split("\n\n**", 1)[1]  # its table is above
    checked = set()
    for part in behind_the_glance.split("```bash"):
        for name in re.findall(r"docs/results/([\w-]+)/report/report.md", part):
            page = (ROOT / "docs/results" / name / "report/report.md").read_text()
            there = RANGE.findall(page)
            found = {*RANGE.findall(part)} - NO_INTERVALS
            assert found
            for ends in found:
                assert any(all(map(rounds_to, ends, exact)) for exact in there), ends
            checked.add(name)
    assert checked == {folder.name for folder in FOLDERS}
