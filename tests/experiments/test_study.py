"""The study's flags, and the real programs: stopped, continued, reported."""

import functools
import json
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from experiments import study

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def settings(monkeypatch, own_flags, tiny_data):
    """Parses an argument list into the study's settings, on flags of its own."""

    def settings(*arguments):
        values = own_flags(study.define_flags)
        monkeypatch.setattr("experiments.study.FLAGS", values)
        monkeypatch.setattr("experiments.flags.FLAGS", values)
        values(["study", f"--data_dir={tiny_data}", "--workdir=W", *arguments])
        return study.settings_from_flags()

    return settings


def test_flags_of_the_train_program_are_passed_on(settings):
    found = settings("--phase2_steps=300", "--noflip", "--eval_scales=0.5,1")
    assert set(found.flags) == {
        "--preset=recommended",
        "--phase2_steps=300",
        "--noflip",
        "--eval_scales=0.5,1",
    }
    assert found.config.phase2_steps == 300 and found.config.scale_max == 2
    assert found.splits == ("test", "val") and found.backbones == ("vgg16", "resnet50")
    assert "--jit_compile=off" in settings("--nojit_compile").flags
    assert settings("--preset=smoke", "--seeds=2").flags == ("--preset=smoke",)


def test_a_flag_that_one_backbone_reads_needs_this_backbone(settings):
    head, dropout = "--head_norm=none", "--dropout=0.2"
    assert head in settings("--arms=resnet50", head).flags
    assert {head, dropout} <= set(settings(head, dropout).flags)
    for backbone, flag, why in (
        ("resnet50", dropout, "resnet50_g has no fc6 and fc7"),
        ("vgg16", head, "vgg16_g has no ASPP head"),
    ):
        with pytest.raises(ValueError, match=f"does nothing here: arm={why}"):
            settings(f"--arms={backbone}", flag)
    with pytest.raises(ValueError, match="does nothing here: .*sets lambda; leave"):
        settings("--lambda_adv=0.01")
    for names in ("vgg19", ""):
        with pytest.raises(ValueError, match=f"arms={names}: "):
            settings(f"--arms={names}")


def test_what_the_study_chooses_itself_is_refused(settings):
    for flag in ("--arm=vgg16", "--seed=3", "--init_generator=X", "--placebo=entropy"):
        with pytest.raises(ValueError, match="the study chooses it itself"):
            settings(flag)
    with pytest.raises(ValueError, match="no split 'nowhere'"):
        settings("--eval_splits=nowhere")
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        settings("--dataset=camvid")


@pytest.mark.parametrize("given", [[], ["--keep_freed_memory=false"]])
def test_the_flag_of_memory_is_for_the_training_programs(settings, monkeypatch, given):
    """It is no setting of the study, which may go on without it."""
    commands = []

    def run_study(told, workdir, train, evaluate, report):
        commands.extend([train, evaluate])
        assert not any("memory" in flag for flag in told.flags)
        return {"runs": {}}

    settings("--workdir=W", *given)
    monkeypatch.setattr(study.study, "run_study", run_study)
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    study.main(["study"])
    train, evaluate = (command[3:] for command in commands)
    assert train == ["--nokeep_freed_memory"] * len(given) and not evaluate


def test_the_flag_of_memory_is_refused_for_programs(settings, monkeypatch):
    settings("--write_programs=P", "--nokeep_freed_memory")
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="^error: --nokeep_freed_memory: does nothing"):
        study.main(["study"])


def test_variants_are_read_from_their_flags(settings, tmp_path):
    file = tmp_path / "sweep.txt"
    file.write_text("--variant=eps: --epsilon=1.0\n--variant=dense: --grid_size=0\n")
    ratio = "--variant=ratio: --gradient_ratio=0.1 --noguard"
    first, *others = settings(ratio, f"--flagfile={file}").variants
    assert first.name == "ratio" and first.flags == (
        "--gradient_ratio=0.1",
        "--noguard",
    )
    assert first.changes == {"gradient_ratio": 0.1, "guard": False}
    assert [v.changes for v in others] == [{"epsilon": 1.0}, {"grid_size": 0}]
    assert settings().variants == ()


@pytest.mark.parametrize(
    "variant, message",
    [
        ("x", "changes nothing"),
        ("x: --gradient_ratio=0.5 --guard", "changes nothing"),
        ("x: --undefok=nonsense", "Unknown command line flag 'undefok'"),
        ("x: --epsilon=1 --flagfile=F", "Unknown command line flag 'flagfile'"),
        ("x: --epsilon=1 -flagfile F", "Unknown command line flag 'flagfile'"),
        ("x: --nonsense=1", "Unknown command line flag 'nonsense'"),
        ("x: --gradient_ratio=much", "gradient_ratio"),
        ("x: --gradient_ratio=-1", "gradient_ratio=-1.0: must be in"),
        ("x: gradient_ratio=1", "unexpected argument 'gradient_ratio=1'"),
        ("x: --crop_size=64", "may change the adversary alone"),
        ("x: --lambda_adv=0.1", "adversarial_weighting=gradient_ratio sets lambda"),
        ("x: --adversary_lr='1", "No closing quotation"),
    ],
)
def test_a_variant_that_is_none_is_one_line(settings, variant, message):
    with pytest.raises(ValueError, match=message) as error:
        settings(f"--variant={variant}")
    assert str(error.value).startswith(f"--variant={variant!r}: ")


@pytest.mark.slow
def test_a_study_is_stopped_continued_and_reported(tiny_data, tmp_path):
    workdir, page = tmp_path / "study", tmp_path / "report" / "report.html"
    program = [sys.executable, "-m", "experiments.study", f"--data_dir={tiny_data}"]
    program += [f"--workdir={workdir}", "--dataset=synthetic", "--preset=smoke"]
    program += ["--seeds=1", "--arms=vgg16", "--width=0.03125", "--crop_size=64"]
    program += ["--batch_size=2", "--phase1_steps=4", "--phase2_steps=4"]
    program += ["--adversary_warmup_steps=2", "--eval_every=2", "--log_every=2"]
    program += ["--panels=0", "--eval_splits=val"]
    program += ["--variant=fixed: --adversarial_weighting=fixed --lambda_adv=0.1"]
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)

    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as one:
        for line in one.stdout:
            if line.startswith("2 of 4") and "starts" in line:
                one.send_signal(signal.SIGTERM)
    assert one.returncode == 1
    trained = json.loads((workdir / "study.json").read_text())["runs"]
    assert trained["seed0/vgg16/phase1"]["status"] == "done"
    # The program that was running has been ended with the study.
    running = run(["ps", "-eo", "args"]).stdout
    assert f"--workdir={workdir}" not in running

    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 4" not in done.stdout
    runs = json.loads((workdir / "study.json").read_text())["runs"]
    assert {entry["status"] for entry in runs.values()} == {"done"}
    assert runs["seed0/vgg16/phase1"] == trained["seed0/vgg16/phase1"]
    assert runs["seed0/vgg16/control"]["validations"]["steps"] == [2, 4]
    fixed = json.loads((workdir / "seed0/vgg16/fixed/run.json").read_text())["config"]
    assert fixed["adversarial_weighting"] == "fixed" and fixed["lambda_adv"] == 0.1
    assert "boundary" in runs["seed0/vgg16/control"]["metrics"]["val"]

    report = [sys.executable, "-m", "experiments.report", f"--study={workdir}"]
    done = run([*report, f"--output_dir={page.parent}"])
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert re.search("a lead, not a result|one seed, whose interval over images", text)
    cell = re.search(r"<td class=\"flags\">(--adversarial_.+?)</td>", text, re.DOTALL)
    flags_shown = re.sub(r"<[^>]*>", " ", cell[1]).split()
    assert flags_shown == ["--adversarial_weighting=fixed", "--lambda_adv=0.1"]
    assert "Chosen on val: " in text
    pictures = re.findall(r"<img src=\"data:image/(\w+)", text)
    # Gains, four curves, and the same four of the variant; at most three images of
    # image, truth, three predictions and three errors each; the classes' colours.
    assert pictures.count("svg") == 1 + 2 * 4 and pictures.count("jpeg") in (1, 2, 3)
    assert pictures.count("png") == 7 * pictures.count("jpeg") + 1


def test_a_report_of_nothing_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", "--output_dir=R"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: name runs (--runs=")
