"""A study written as programs, gone through with JAX, read: TensorFlow's numbers."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from experiments.programs import data, device, read, run, write
from ss_gan_tf import comparison, panels, stages, study, summaries, train
from ss_gan_tf.checkpoints import read_run
from ss_gan_tf.config import Config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings(tiny_config, tiny_data):
    config = dataclasses.replace(
        tiny_config,
        arm="vgg16_g",
        dropout=0.3,
        phase1_steps=8,
        phase2_steps=20,
        adversary_warmup_steps=4,
        generator_lr=0.05,  # too high: the guard goes back
        log_every=4,
        eval_every=4,
        eval_limit=0,
        panels=0,
        guard=True,
        guard_miou_drop=0.0,
        guard_retries=1,
        jit_compile="on",  # XLA's masks of dropout are the same everywhere
    )
    paper = study.Variant(
        "paper",
        ("--adversary_optimizer=momentum",),
        {"adversary_optimizer": "momentum", "adversary_warmup_steps": 0},
    )
    return study.Settings(
        config,
        flags=(),
        data_dir=tiny_data,
        seeds=1,
        backbones=("vgg16",),
        variants=(paper,),
        splits=("val",),
        last_validations=1,
        evaluate_flags=("--eval_metrics=full",),
    )


@pytest.fixture(scope="module")
def programs(settings, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("programs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "LARGEST_STORED", 2**30)  # equal starts
        write.write_study(settings, folder)
    return folder


def go(programs, output, *arguments):
    """Runs the command where importing TensorFlow fails."""
    if sys.version_info < (3, 11):
        pytest.skip("the test extra has no JAX for Python 3.10")
    blocked = pathlib.Path(programs, "blocked")
    blocked.mkdir(exist_ok=True)
    for name in ("tensorflow", "keras"):
        (blocked / f"{name}.py").write_text("raise ImportError('must not be needed')")
    command = [sys.executable, "-m", "experiments.study_programs"]
    return subprocess.run(
        [*command, f"--programs={programs}", f"--output={output}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(blocked), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def output(programs, tmp_path_factory):
    """What the runs left."""
    out = str(tmp_path_factory.mktemp("output"))
    done = go(programs, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed0/vgg16/adversarial, warmup: " in done.stdout
    return out


@pytest.fixture(scope="module")
def made(settings, output, tmp_path_factory):
    """STUDY, read."""
    workdir = str(tmp_path_factory.mktemp("study"))
    read.read_study(settings, output, workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """Two of the runs by `train`: role -> RUN."""
    root = tmp_path_factory.mktemp("trained")
    folders = {}
    for planned in study.plan(settings, str(root)):
        if planned.name.endswith(("/phase1", "/adversarial")):
            folders[planned.role] = str(root / planned.name)
            train.train(planned.config, settings.data_dir, folders[planned.role])
    return folders


# --- What is written ---------------------------------------------------------


def test_a_plan_says_what_train_would_do(settings, programs):
    plan = run.read_plan(programs)
    found = {entry["name"].split("/")[-1]: entry for entry in plan["runs"]}
    assert list(found) == ["phase1", "control", "adversarial", "paper"]
    assert [s["stage"] for s in found["phase1"]["stages"]] == ["phase1"]
    assert [s["stage"] for s in found["control"]["stages"]] == ["phase2"]
    assert [s["stage"] for s in found["adversarial"]["stages"]] == ["warmup", "phase2"]
    assert found["control"]["needs"] == "seed0/vgg16/phase1"
    for entry in plan["runs"]:
        assert Config.from_json(json.dumps(entry["config"])).seed == 0
        for stage in entry["stages"]:
            assert stage["seed"] == stages.stage_seed(0, stage["stage"])
            assert stage["steps"] % stage["steps_a_call"] == 0
    manifest = json.loads((pathlib.Path(programs) / "vgg16/manifest.json").read_text())
    for entry in plan["runs"]:
        for stage in entry["stages"]:
            (image, _), (label, _) = manifest["programs"][stage["program"]]["arguments"]
            assert image == [stage["steps_a_call"], 2, 64, 64, 3]
            assert label == image[:-1]


def test_first_values_are_shared_or_a_seeds_own(programs):
    manifest = json.loads((pathlib.Path(programs) / "vgg16/manifest.json").read_text())
    with np.load(f"{programs}/vgg16/shared.npz") as shared:
        with np.load(f"{programs}/vgg16/seed0.npz") as own:
            assert not set(shared.files) & set(own.files)
            stored = set(shared.files) | set(own.files)
    for name, described in manifest["variables"].items():
        assert ("constant" in described) != (name in stored), name
    # The slots and clocks of optimizers begin at one number.
    assert not [name for name in stored if "_optimizer" in name]
    assert len(manifest["dropout_states"]) == 2  # behind fc6 and fc7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval_scales": (0.5,)}, r"eval_scales=\(0.5,\): a study as programs has"),
        ({"extractor": "none"}, "extractor=none: a study as programs has frozen"),
        ({"ema_decay": 0.9}, "ema_decay=0.9: a study as programs has 0.0"),
        ({"precision": "mixed_float16"}, "precision=mixed_float16: "),
    ],
)
def test_what_programs_cannot_do_is_refused(settings, changes, message, tmp_path):
    config = dataclasses.replace(settings.config, **changes)
    with pytest.raises(ValueError, match=message):
        write.write_study(dataclasses.replace(settings, config=config), str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uniform", "normal", "truncated"])
def test_a_large_weight_is_drawn_from_its_distribution(kind):
    random = np.random.default_rng(0)
    drawn = device.draw_weights(random, (100, 1000), kind, 0.5, 0.02)
    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(0.5, abs=3e-4)
    assert drawn.std() == pytest.approx(0.02, rel=0.01)
    found = write.distribution(drawn)
    assert found[0] == kind and found[1:] == pytest.approx([0.5, 0.02], abs=3e-4)
    reach = np.abs(drawn - 0.5).max() / 0.02
    assert {"uniform": reach < 1.74, "normal": reach > 3.5}.get(kind, 2.2 < reach < 2.3)


def test_runs_that_every_comparison_needs_come_first(programs):
    plan = run.read_plan(programs)
    second = json.loads(json.dumps(plan).replace("seed0", "seed1"))
    for entry in second["runs"]:
        entry["config"]["seed"] = 1
    plan["runs"] += second["runs"]
    names = [entry["name"] for _, entry in run.in_order([plan])]
    roles = ("phase1", "control", "adversarial")
    assert names == [
        *(f"seed{seed}/vgg16/{role}" for seed in (0, 1) for role in roles),
        *(f"seed{seed}/vgg16/paper" for seed in (0, 1)),
    ]


# --- What comes out ----------------------------------------------------------


@pytest.mark.parametrize("role", ["phase1", "adversarial"])
def test_curves_are_those_of_train(made, trained, role):
    ours = f"{made}/seed0/vgg16/{role}"
    names = ["loss/mce", "learning_rate/generator", "val/miou", "warmup/loss/loss_d"]
    names += ["loss/loss_d", "gradient/lambda", "learning_rate/adversary"]
    expected = summaries.read_scalars(trained[role], names)
    found = summaries.read_scalars(ours, names)
    assert expected["loss/mce"] and expected["val/miou"]
    for name in names:
        steps, values = (
            zip(*expected[name], strict=True) if expected[name] else ((), ())
        )
        assert [step for step, _ in found[name]] == list(steps), name
        np.testing.assert_allclose(
            [value for _, value in found[name]], values, rtol=0.01, err_msg=name
        )
    alarms = summaries.read_alarms(trained[role])
    assert bool(alarms) == (role == "adversarial")
    for mine, its in zip(summaries.read_alarms(ours), alarms, strict=True):
        same = ("phase", "step", "action", "alarm", "strength", "adversary_rate")
        assert [mine[key] for key in same] == [its[key] for key in same]


def test_a_study_that_was_read_is_compared_and_shown(made, settings, trained):
    found = study.read_study(made)
    assert {entry["status"] for entry in found["runs"].values()} == {"done"}
    runs = [
        comparison.read_result(f"{made}/{name}", variant=entry.get("variant"))
        for name, entry in found["runs"].items()
    ]
    compared = comparison.Comparison(runs)
    (group,) = compared.groups
    (gain,) = compared.gains(group, "control", "val")
    assert gain.seed == 0
    theirs = comparison.read_result(trained["adversarial"]).miou("val")
    ours = compared.get(group, 0, "adversarial").miou("val")
    assert ours == pytest.approx(theirs, abs=0.01)
    figures = compared.get(group, 0, "adversarial").metrics["val"]
    assert {"boundary", "granulation", "calibration"} <= set(figures)
    # Without weights, pictures come from the class ids that were kept.
    result = compared.get(group, 0, "adversarial")
    here = read_run(trained["adversarial"]).data_digests
    assert result.run.data_digests == here and len(here) == 3
    name = result.counts["val"].names[0]
    tiles = panels.draw_panels({"ours": result.run}, "val", [name])[name]
    assert [caption for caption, _ in tiles][:3] == ["image", "truth", "ours"]


def test_another_studys_output_is_refused(settings, output, tmp_path):
    config = dataclasses.replace(settings.config, epsilon=0.8)
    other = dataclasses.replace(settings, config=config)
    with pytest.raises(ValueError, match="epsilon=0.9 there, 0.8 here"):
        read.read_study(other, output, str(tmp_path / "study"))
    with pytest.raises(FileNotFoundError, match="machine.json"):
        read.read_study(settings, str(tmp_path), str(tmp_path / "study"))


def test_a_file_that_does_not_come_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="val.npz: is missing"):
        data.wait_for(str(tmp_path / "val.npz"), seconds=0.0)
    (tmp_path / "val.npz").touch()
    data.wait_for(str(tmp_path / "val.npz"), seconds=0.0)


def test_an_error_among_the_batches_is_met_where_they_are_waited_for(programs):
    plan = run.read_plan(programs)
    config = Config.from_json(json.dumps(plan["runs"][0]["config"]))
    (stage,) = plan["runs"][0]["stages"]
    label = np.zeros((80, 80), np.uint8)
    image = np.zeros((80, 80, 3), np.uint8)
    made = data.batches([image], [label], config, stage, np.zeros(99, int), plan)
    shown = [parts[0].shape for parts in made]
    count = stage["steps_a_call"]
    assert count == 2 and shown == 4 * [(2, 2, 64, 64, 3)]
    made = data.batches([image], [label], config, stage, np.arange(99), plan)
    with pytest.raises(IndexError):
        next(made)
    # A thread that outlived its reader would abort the process at its end.
    threads = threading.active_count()
    made = data.batches([image], [label], config, stage, np.zeros(99, int), plan)
    next(made)
    assert threading.active_count() == threads + 1
    made.close()
    assert threading.active_count() == threads


def test_what_is_not_finished_in_time_is_left_out(programs, tmp_path):
    done = go(programs, tmp_path, "--minutes=1e-9")
    assert done.stdout.splitlines()[-1].endswith("seed0/vgg16/phase1: out of time")
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 4 not finished: seed0/")


def test_damaged_and_unfit_folders_are_one_line(programs, tmp_path):
    with pytest.raises(FileNotFoundError, match="plan.json: is missing"):
        run.read_plan(str(tmp_path))
    (tmp_path / "plan.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match="plan.json: lacks splits, machine"):
        run.read_plan(str(tmp_path))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan.json: not JSON"):
        run.read_plan(str(tmp_path))
    plan = run.read_plan(programs)
    with pytest.raises(ValueError, match="programs=B: seed0/vgg16/phase1 is in A too"):
        run._check_plans(["A", "B"], [plan, plan])
    other = plan | {"runs": [], "ignore_label": 0}
    with pytest.raises(
        ValueError, match="programs=B: ignore_label is 0, in A it is 255"
    ):
        run._check_plans(["A", "B"], [plan, other])


def test_weights_are_never_overwritten(settings, output, trained, tmp_path):
    """A folder that a real run has trained in stays as it is."""
    workdir = tmp_path / "study"
    shutil.copytree(trained["phase1"], workdir / "seed0/vgg16/phase1")
    with pytest.raises(ValueError, match="phase1: holds a trained run; choose another"):
        read.read_study(settings, output, str(workdir))
    assert (workdir / "seed0/vgg16/phase1/checkpoints").is_dir()


def test_programs_that_were_written_on_other_data(settings, output, tmp_path):
    settings = dataclasses.replace(settings, digests={"train": "x", "val": "v"})
    shutil.copytree(output, tmp_path / "out")
    path = tmp_path / "out/machine.json"
    machine = json.loads(path.read_text())
    machine["written"]["data_digests"] = {"train": "x", "val": "w"}
    path.write_text(json.dumps(machine))
    with pytest.raises(ValueError, match="out: its programs .* examples of val of "):
        read.read_study(settings, str(tmp_path / "out"), str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_programs_of_a_version_that_could_not_go_back_rightly_are_refused():
    manifest = {"programs": {"phase2": {"takes": [run.CLOCK]}}}
    one = types.SimpleNamespace(
        run={"stages": [{"stage": "phase2", "program": "phase2"}]},
        programs=types.SimpleNamespace(manifest=manifest),
    )
    run._Run._check_goes_back(one)
    manifest["programs"]["phase2"]["takes"] = ["generator/0"]
    with pytest.raises(ValueError, match="phase2: .*write the programs again"):
        run._Run._check_goes_back(one)
