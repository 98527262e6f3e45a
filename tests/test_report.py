"""The page as a whole; its tables and pictures have tests of their own."""

import json
import pathlib
import re

import pytest

from ss_gan_tf.page import Pictures, Table, Text
from ss_gan_tf.report import write_report


@pytest.fixture
def runs(fake_run):
    return [
        fake_run("p0", [0.7, 0.6], arm="vgg16"),
        fake_run("c0", [0.8, 0.7], lambda_adv=0.0),
        fake_run(
            "a0",
            [0.9, 0.7],
            adversarial_weighting="gradient_ratio",
            gradient_ratio=0.25,
        ),
    ]


def section(sections, title):
    (found,) = (s for s in sections if title in s.title)
    return found.blocks


def test_a_report_of_runs(runs, tmp_path):
    out = tmp_path / "report"
    sections = write_report(str(out), runs=runs, draw_panels=False)
    page = (out / "report.html").read_text()
    assert "What the adversary adds: camvid" in page
    assert "a lead, not a result" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\(pictures/(.+?)\)", markdown):
        assert (out / "pictures" / name).stat().st_size > 100
    curves, by_step = section(sections, "Training")
    drawn = [picture.name for picture in curves.pictures]
    assert by_step.header == ["step", "seed 0", "mean"]
    assert drawn == ["camvid-vgg16-loss-loss-d.svg", "camvid-vgg16-val-miou.svg"]
    for found in sections:
        for block in found.blocks:
            if isinstance(block, Table) and "differ" not in block.caption:
                assert block.rows, block.caption


def test_curves_of_variants_stand_beside_the_arms(runs, fake_run, tmp_path):
    study = tmp_path / "study"
    entries = {}
    for name, path in zip(("phase1", "control", "adversarial"), runs, strict=True):
        entries[f"seed0/vgg16/{name}"] = (path, {})
    weak = fake_run("w0", [0.8, 0.7], gradient_ratio=0.1)
    entries["seed0/vgg16/weak"] = (weak, {"variant": "weak"})
    told = {"config": {}, "evaluate_flags": [], "last_validations": 3}
    told["variants"] = {"weak": ["--gradient_ratio=0.1"]}
    facts = {"settings": told, "machine": {}, "runs": {}}
    for name, (path, more) in entries.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).rename(study / name)
        entry = {"role": name.split("/")[-1], "status": "done", "trained": True}
        facts["runs"][name] = entry | {"metrics": {}} | more
    (study / "study.json").write_text(json.dumps(facts))
    sections = write_report(
        str(tmp_path / "r"), study_dir=str(study), draw_panels=False
    )
    titles = [block.caption for block in section(sections, "Training")]
    assert titles[1].startswith("camvid, vgg16: validation mIoU of the adversarial")
    assert titles[::2] == [
        "camvid, vgg16",
        "camvid, vgg16: variants, mean over the seeds of each",
    ]
    drawn = [p.name for p in section(sections, "Training")[2].pictures]
    assert drawn == [
        "camvid-vgg16-variants-loss-loss-d.svg",
        "camvid-vgg16-variants-val-miou.svg",
    ]
    markdown = (tmp_path / "r" / "report.md").read_text()
    assert all(f"(pictures/{name})" in markdown for name in drawn)


def test_settings_that_differ_are_those_that_were_read(runs, tmp_path):
    sections = write_report(str(tmp_path / "r"), runs=runs, draw_panels=False)
    differ, shared, versions, machine = section(sections, "Settings")
    assert list(map(list, differ.rows)) == [
        ["lambda_adv", "0.0: control; by gradient ratio: adversarial"],
    ]
    # Phase 1 read neither lambda nor ratio, the control not the ratio, and the paper's
    # fixed lambda none at all.
    assert ["gradient_ratio", "0.25", "-"] in shared.rows
    assert ["adversarial_weighting", "gradient_ratio", "fixed"] in shared.rows
    assert ["python", "3.11"] in versions.rows
    assert {row[1] for row in machine.rows} == {"-"}


def test_runs_of_several_commits_and_machines_are_told_apart(runs, tmp_path):
    for path, commits in zip(runs, (["old"], ["old", "new"], ["new"]), strict=True):
        fields = json.loads(pathlib.Path(path, "run.json").read_text())
        machines = [{"processor": "one", "commit": name} for name in commits]
        fields["provenance"]["machines"] = machines
        pathlib.Path(path, "run.json").write_text(json.dumps(fields))
    sections = write_report(str(tmp_path / "r"), runs=runs, draw_panels=False)
    rows = dict(section(sections, "Settings")[-1].rows)
    assert rows["processor"] == "one" and rows["gpus"] == "-"
    assert rows["commit"] == "old: phase1, control; new: control, adversarial"


# Of a study whose runs have other names.
NOT_BEGUN = "phase1", "control", "adversarial", "weak"


def test_a_study_shows_its_machine_and_what_is_missing(runs, tmp_path):
    study = {
        "settings": {
            "config": {},
            "evaluate_flags": [],
            "last_validations": 3,
            "seeds": 1,
            "backbones": ["vgg16"],
            "variants": {"weak": []},
        },
        "machine": {"processor": "a processor", "cores": 2, "gpus": []},
        "runs": {
            "p0": {
                "role": "phase1",
                "status": "done",
                "trained": True,
                "metrics": {},
            },
            "c0": {
                "role": "control",
                "status": "done",
                "trained": True,
                "train_seconds": 7200.0,
                "metrics": {},
            },
            "a0": {"role": "adversarial", "status": "failed: exit code 1"},
        },
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    sections = write_report(
        str(tmp_path / "r"), study_dir=str(tmp_path), draw_panels=False
    )
    page = (tmp_path / "r" / "report.html").read_text()
    assert "a processor" in page and "none" in page
    assert "Against the control: not measured." in page
    told = "".join(f"; seed0/vgg16/{role} (not begun)" for role in NOT_BEGUN)
    assert f"Not finished: a0 (failed: exit code 1){told}." in page
    table = section(sections, "Every run")[0]
    assert ["vgg16 control, seed 0", "2.00"] in [[r[0], r[-1]] for r in table.rows]


def test_val_stands_in_where_test_is_not_there(fake_run, tmp_path):
    path = fake_run("a0", [0.9], kinds=("val",))
    sections = write_report(str(tmp_path / "r"), runs=[path], draw_panels=False)
    assert "on val" in section(sections, "Table 3")[0].caption


def test_without_data_the_page_says_so(runs, tmp_path):
    sections = write_report(str(tmp_path / "r"), runs=runs)
    texts = [block.text for block in section(sections, "Fig. 6")]
    assert "camvid, vgg16: no pictures, data set 'camvid' is not prepared" in texts[1]


def test_pictures_are_those_of_the_rule(runs, tmp_path, monkeypatch):
    import numpy as np

    asked = []

    def draw_panels(shown, split, names, data_dir):
        asked.append((list(shown), split, names, data_dir))
        tile = np.zeros([8, 8, 3], np.uint8)
        return {name: [("image", tile), ("truth", tile)] for name in names}

    monkeypatch.setattr("ss_gan_tf.panels.draw_panels", draw_panels)
    sections = write_report(str(tmp_path / "r"), runs=runs, data_dir="DATA")
    # image0 gains (0.9 against 0.8), image1 is the same: median and loss of two.
    roles = ["phase1", "control", "adversarial"]
    assert asked == [(roles, "test", ["image0", "image1"], "DATA")]
    blocks = [b for b in section(sections, "Fig. 6") if isinstance(b, Pictures)]
    legend, *blocks = blocks
    assert legend.caption == "camvid, vgg16: colours of the classes"
    texts = [b.text for b in section(sections, "Fig. 6") if isinstance(b, Text)]
    assert any("CC BY-NC 4.0" in text for text in texts)
    assert [b.caption.split(", ")[3] for b in blocks] == [
        "largest gain: image0",
        "median: image1",
        "largest loss: image1",
    ]
    assert [p.name[-6:] for p in blocks[0].pictures] == ["-0.jpg", "-1.png"]


def test_a_file_in_place_of_the_folder_is_refused_first(tmp_path):
    (tmp_path / "REPORT").write_text("notes")
    with pytest.raises(NotADirectoryError, match="output_dir is a file: .*REPORT"):
        write_report(str(tmp_path / "REPORT"), study_dir=str(tmp_path / "missing"))
    assert (tmp_path / "REPORT").read_text() == "notes"


def test_what_cannot_be_reported_is_one_line(runs, tmp_path):
    out = str(tmp_path / "r")
    with pytest.raises(FileNotFoundError, match="no run here"):
        write_report(out, runs=[str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="no study here"):
        write_report(out, study_dir=str(tmp_path))
    for empty in ('{"settings": {}, "machine": {}, "runs": {}}', "[]"):
        (tmp_path / "study.json").write_text(empty)
        with pytest.raises(ValueError, match="study.json: "):
            write_report(out, runs=runs, study_dir=str(tmp_path))
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(out)
    pathlib.Path(runs[0], "run.json").write_text("x")
    with pytest.raises(ValueError, match="not a run's description"):
        write_report(out, runs=runs)
    assert not pathlib.Path(out).exists()
