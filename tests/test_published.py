"""What docs/results says follows from the confusion matrices that lie beside it."""

import pathlib
import re

import pytest

from ss_gan_tf import study
from ss_gan_tf.bootstrap import seed_spread
from ss_gan_tf.comparison import Comparison, conclude, read_result
from ss_gan_tf.report import write_report

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/results/*/study.json"))
SAID = ("a gain", "a loss", "no difference shown")
BEFORE_PANELS = "## Pictures"  # which need weights and the data set


def test_something_is_published():
    assert FOLDERS


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
