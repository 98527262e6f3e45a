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


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_table_of_the_readme_has_its_figures(folder):
    runs = study.read_study(str(folder))["runs"]
    compared = Comparison(
        read_result(str(folder / name), variant=entry.get("variant"))
        for name, entry in runs.items()
    )
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
    for role in ("adversarial", "paper"):
        gains = compared.gains(group, "control", "test", of=role)
        if not gains:
            continue
        seeds = seed_spread([gain.points for gain in gains])
        said = conclude(gains, "the control")
        cells = [
            f"{seeds.mean:+.2f}",
            f"{seeds.low:+.2f} to {seeds.high:+.2f}",
            next((word for word in SAID if word in said.lower()), "?"),
        ]
        assert f"| {' | '.join(cells)} |" in readme
