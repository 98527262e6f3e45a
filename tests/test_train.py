"""The loop: end to end, resumed, started from another run; the real command."""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ss_gan_tf import checkpoints, measures, stages
from ss_gan_tf import train as train_lib
from ss_gan_tf.config import Config
from ss_gan_tf.input_pipeline import open_dataset
from ss_gan_tf.machine import describe_machine
from ss_gan_tf.per_image import read_per_image
from ss_gan_tf.train import Stopped, train


def weights_of(workdir):
    generator, _ = checkpoints.load_generator(checkpoints.read_run(workdir))
    return [w.numpy() for w in generator.weights if "seed_generator" not in w.path]


def assert_same_weights(first, second):
    for ours, other in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_run_leaves_metrics_and_an_export(tiny_run):
    with open(os.path.join(tiny_run, "eval", "val", "metrics.json")) as file:
        metrics = json.load(file)
    assert 0 <= metrics["miou"] <= 1 and len(metrics["iou"]) == 7
    assert (metrics["phase"], metrics["step"]) == ("phase2", 4)
    assert metrics["partial"] is False
    # 12 training scenes bring the same share of the 60 validation scenes.
    assert metrics["num_images"] == round(60 * 12 / 400)
    # The counts of each image are beside them, of basic metrics these alone.
    images = read_per_image(os.path.join(tiny_run, "eval", "val", "per_image.npz"))
    assert images.counts.keys() == {"confusion"} and len(images.names) == 2
    total = images.counts["confusion"].sum(axis=0)
    assert total.tolist() == metrics["confusion_matrix"]
    exported = tf.saved_model.load(os.path.join(tiny_run, "export"))
    image = np.zeros([1, 40, 50, 3], np.uint8)
    outputs = exported.signatures["serving_default"](images=tf.constant(image))
    assert outputs["class_ids"].shape == (1, 40, 50)


def test_tensorboard_gets_every_curve_and_picture(tiny_run):
    events = EventAccumulator(tiny_run, size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {
        "loss/mce",
        "loss/adversarial",
        "loss/loss_g",
        "loss/loss_d",
        "learning_rate/generator",
        "learning_rate/adversary",
        "adversary/accuracy_real",
        "adversary/accuracy_fake",
        "adversary/accuracy_paired",
        "gradient/segmentation",
        "gradient/adversarial",
        "gradient/ratio",
        "gradient/lambda",
        "steps_per_second",
        "warmup/loss/loss_d",
        "val/miou",
        "val_iou/road",
        "confusion",
        "_hparams_/session_start_info",
        "panel/0",
        "verdicts/0",
        "config",
    } <= tags
    # Phase 2 goes on where phase 1 ended; the warm-up counts for itself.
    assert [e.step for e in events.Tensors("loss/mce")] == [2, 4, 6, 8]
    assert [e.step for e in events.Tensors("loss/loss_d")] == [6, 8]
    assert [e.step for e in events.Tensors("val/miou")] == [2, 4, 6, 8]


class Kill(BaseException):
    """Ends a run at once."""


def killed_at(stage, step, config, data_dir, workdir):
    """A run that ends when a step has written its points, and then a second start."""

    def kill(name, done, total, scalars):
        if (name, done) == (stage, step):
            raise Kill

    with pytest.raises(Kill):
        train(config, data_dir, workdir, kill)
    return train(config, data_dir, workdir)


@contextlib.contextmanager
def eagerly():
    """Without tracing and export: many starts of a run in little time."""
    tf.config.run_functions_eagerly(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_lib, "export", lambda *args, **kwargs: None)
            yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def averaging_config(tiny_config):
    """With a running average of G's weights, which has to survive too."""
    return dataclasses.replace(tiny_config, ema_decay=0.5)


@pytest.fixture(scope="module")
def eager_run(tiny_data, averaging_config, tmp_path_factory):
    """A finished run of `averaging_config` without tracing."""
    workdir = str(tmp_path_factory.mktemp("eager"))
    with eagerly():
        train(averaging_config, tiny_data, workdir)
    return workdir


def test_a_killed_run_ends_where_one_never_stopped_does(
    tiny_run, tiny_config, tiny_data, tmp_path, assert_same_run
):
    """Killed after writing points of curves that no state has: they come again."""
    killed_at("phase2", 4, tiny_config, tiny_data, str(tmp_path))
    assert_same_run(str(tmp_path), tiny_run)
    assert_same_weights(str(tmp_path), tiny_run)


@pytest.mark.parametrize("stage, step", [("phase1", 2), ("warmup", 2)])
def test_killed_before_the_first_state_or_while_g_stands_still(
    eager_run, averaging_config, tiny_data, tmp_path, stage, step, assert_same_run
):
    with eagerly():
        killed_at(stage, step, averaging_config, tiny_data, str(tmp_path))
    assert_same_run(str(tmp_path), eager_run)


def test_a_run_names_every_machine_and_commit_that_it_was_made_on(
    averaging_config, tiny_data, tmp_path, monkeypatch
):
    here, seen = describe_machine(), []
    stops = iter([True, False])
    for commit in ("first", "second", "finished"):
        monkeypatch.setattr(
            train_lib, "describe_machine", lambda c=commit: here | {"commit": c}
        )
        with eagerly(), contextlib.suppress(Stopped):
            train(
                averaging_config,
                tiny_data,
                str(tmp_path),
                lambda *args: seen.append(args),
                lambda: next(stops, False),
            )
    machines = checkpoints.read_run(str(tmp_path)).provenance["machines"]
    assert machines == [here | {"commit": "first"}, here | {"commit": "second"}]
    assert len({step[:2] for step in seen}) == len(seen)  # none was done twice


def test_the_finished_run_again_changes_nothing(
    tiny_run, tiny_config, tiny_data, tmp_path
):
    steps = []
    before = weights_of(tiny_run)
    train(tiny_config, tiny_data, tiny_run, lambda *args: steps.append(args))
    assert not steps
    for ours, other in zip(weights_of(tiny_run), before, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_stop_saves_at_the_next_step_even_while_validating(
    eager_run, averaging_config, tiny_data, tmp_path, assert_same_run
):
    """Stopped at its 1st, 4th and 7th chance, wherever in the run those are."""
    workdir, stops = str(tmp_path), []
    for chances in (1, 4, 7, 10**6):
        asked = iter([False] * (chances - 1))
        try:
            with eagerly():
                train(
                    averaging_config,
                    tiny_data,
                    workdir,
                    stop=lambda asked=asked: next(asked, True),
                )
        except Stopped as stopped:
            stops.append(str(stopped))
    assert [text.split(",")[0] for text in stops] == [
        "stopped at phase1 step 1 of 4",
        "stopped at phase1 step 3 of 4",
        "stopped at phase2 step 2 of 4",
    ]
    assert_same_run(workdir, eager_run)


def test_a_guarded_run_without_alarm_is_the_unguarded_one(
    eager_run, averaging_config, tiny_data, tmp_path
):
    config = dataclasses.replace(averaging_config, guard=True, guard_miou_drop=1.0)
    with eagerly():
        metrics = train(config, tiny_data, str(tmp_path))
    assert metrics["guard"] == {"tries": 0, "ended": False}
    assert not os.path.exists(tmp_path / "guard.jsonl")
    assert_same_weights(str(tmp_path), eager_run)


def test_the_guard_goes_back_and_ends_with_phase_1_also_when_killed_in_between(
    eager_run, averaging_config, tiny_data, tmp_path, monkeypatch, assert_same_run,
    caplog,
):  # fmt: skip
    """Every G but phase 1's validates at 10 % here: one try, then the end."""
    start = weights_of(eager_run)
    real = train_lib.Validation.metrics

    def metrics(self, *args, **kwargs):
        weights = self.networks.evaluated.weights
        ours = [w.numpy() for w in weights if "seed_generator" not in w.path]
        is_start = all(map(np.array_equal, ours, start))
        return real(self, *args, **kwargs) | {"miou": 0.6 if is_start else 0.1}

    monkeypatch.setattr(train_lib.Validation, "metrics", metrics)
    changes = {"init_generator": eager_run, "guard": True, "guard_retries": 1}
    changes |= {"phase2_steps": 6, "save_every": 3, "adversary_warmup_steps": 0}
    config = dataclasses.replace(averaging_config, **changes)
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    with eagerly():
        result = train(config, tiny_data, whole)
        # Behind the way back, ahead of the end.
        killed_at("phase2", 4, config, tiny_data, broken)
    assert result["guard"] == {"tries": 1, "ended": True}
    assert (result["miou"], result["step"]) == (0.6, 6)
    for ours, other in zip(weights_of(whole), start, strict=True):
        np.testing.assert_array_equal(ours, other)
    with open(os.path.join(whole, "guard.jsonl")) as file:
        alarms = [json.loads(line) for line in file]
    assert [(a["step"], a["action"], a["strength"]) for a in alarms] == [
        (2, "back", 0.1),
        (4, "end", 0.1),
    ]
    assert "--gradient_ratio" in alarms[0]["remedy"]
    assert caplog.text.count(f"Remedy: {alarms[0]['remedy']}") == 4  # of both runs
    events = EventAccumulator(whole, size_guidance={"tensors": 0}).Reload()
    assert [event.step for event in events.Tensors("guard")] == [2, 4]
    assert {"guard/strength", "guard/adversary_rate"} <= set(events.Tags()["tensors"])

    assert_same_run(broken, whole)
    with open(os.path.join(broken, "guard.jsonl")) as file:
        assert [json.loads(line) for line in file] == alarms


def test_control_and_adversarial_run_start_from_one_phase_1_and_see_the_same_data(
    tiny_run, tiny_config, tiny_data, tmp_path, monkeypatch
):
    best = os.path.join(tiny_run, "best", "phase1")
    start = tf.train.latest_checkpoint(best)
    seen = {}
    real_batches = train_lib.train_batches

    def recorded(*args, **kwargs):
        key = (kwargs["seed"], kwargs["first_example"])
        seen[name].append(key)
        return real_batches(*args, **kwargs)

    monkeypatch.setattr(train_lib, "train_batches", recorded)
    for name, lambda_adv in (("control", 0.0), ("adversarial", 0.01)):
        seen[name] = []
        config = dataclasses.replace(
            tiny_config, lambda_adv=lambda_adv, init_generator=start
        )
        train(config, tiny_data, str(tmp_path / name))
    # The warm-up has a stream of its own; phase 2's is the control's.
    assert seen["adversarial"][-1] == seen["control"][-1]
    assert seen["control"] == [(stages.stage_seed(0, "phase2"), 0)]
    run = checkpoints.read_run(str(tmp_path / "control"))
    assert "adversary" not in run.provenance["parameters"]
    with pytest.raises(AssertionError):
        assert_same_weights(str(tmp_path / "control"), str(tmp_path / "adversarial"))


def test_losses_that_are_not_finite_stop_the_run_and_are_not_saved(
    tiny_config, tiny_data, tmp_path
):
    config = dataclasses.replace(
        tiny_config, arm="vgg16", phase1_lr=1.0, phase1_lr_end=1.0, phase1_steps=50
    )
    config = dataclasses.replace(config, log_every=50, save_every=1, eval_every=50)
    with pytest.raises(FloatingPointError, match="phase1 step .*finite|older"):
        train(config, tiny_data, str(tmp_path))
    path = checkpoints.find_checkpoint(str(tmp_path), "last")
    reader = tf.train.load_checkpoint(path)
    for name, shape in reader.get_variable_to_shape_map().items():
        value = reader.get_tensor(name)
        if shape and value.dtype == np.float32:
            assert np.isfinite(value).all(), name


def test_full_metrics_and_a_trace_are_bookkeeping(tiny_config, tiny_data, tmp_path):
    workdir = str(tmp_path)
    fields = {"phase1_steps": 3, "eval_every": 3, "save_every": 3, "arm": "vgg16"}
    config = dataclasses.replace(tiny_config, **fields)
    full = dataclasses.replace(config, eval_metrics="full", profile_steps=(2, 5))
    metrics = train(full, tiny_data, workdir)
    images = read_per_image(os.path.join(workdir, "eval", "val", "per_image.npz"))
    figures = measures.summarize(images.total(), images.class_names)
    assert figures["granulation"] == metrics["granulation"]
    assert metrics["boundary"]["mean_iou"] is not None
    assert len(glob.glob(workdir + "/plugins/profile/*/*.xplane.pb")) == 1
    tags = EventAccumulator(workdir).Reload().Tags()["tensors"]
    assert {"val_granulation/surplus", "val_boundary/mean_f1"} <= set(tags)
    # The finished run goes on without them, and its figures are the same.
    plain = train(config, tiny_data, workdir)
    assert "granulation" not in plain
    assert metrics["confusion_matrix"] == plain["confusion_matrix"]


def test_a_folder_without_a_state_is_started_anew(
    tiny_config, tiny_data, tiny_run, tmp_path
):
    """Killed before the first checkpoint: other settings may take the folder."""
    shutil.copy(os.path.join(tiny_run, "run.json"), tmp_path)
    config = dataclasses.replace(tiny_config, arm="vgg16", batch_size=1, phase1_steps=1)
    train(config, tiny_data, str(tmp_path))
    assert checkpoints.read_run(str(tmp_path)).config == config


def test_errors_come_before_anything_is_written(tiny_config, tiny_data, tmp_path):
    workdir = str(tmp_path / "run")
    with pytest.raises(ValueError, match="nosuch"):
        train(dataclasses.replace(tiny_config, val_split="nosuch"), tiny_data, workdir)
    with pytest.raises(FileNotFoundError, match="data_prep.prepare"):
        train(tiny_config, str(tmp_path), workdir)
    unlabelled = dataclasses.replace(
        open_dataset("synthetic", tiny_data), unlabelled_splits=("val",)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib, "open_dataset", lambda *args: unlabelled)
        with pytest.raises(ValueError, match="val_split=val: synthetic's has no label"):
            train(tiny_config, tiny_data, workdir)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: is a file"):
        train(tiny_config, tiny_data, str(tmp_path / "file"))
    weights = dataclasses.replace(
        tiny_config, width=1.0, backbone_weights=str(tmp_path / "none.h5"), arm="vgg16"
    )
    with pytest.raises(FileNotFoundError, match="none.h5: no such file"):
        train(weights, tiny_data, workdir)
    with h5py.File(tmp_path / "cut.h5", "w") as file:
        file["kernel"] = np.zeros(10000)
    os.truncate(tmp_path / "cut.h5", 20000)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "create_networks", lambda *_: pytest.fail("built"))
        for name in ("cut.h5", "text.h5"):
            path = str(tmp_path / name)
            other = dataclasses.replace(weights, backbone_weights=path)
            with pytest.raises(ValueError, match=f"{name}: not a weights file of vgg"):
                train(other, tiny_data, workdir)
    assert os.listdir(workdir) == ["lock"]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.parametrize(
    "arm", ["vgg16_g", pytest.param("resnet50_g", marks=pytest.mark.slow)]
)
def test_the_command_in_a_new_folder(tiny_data, tmp_path, arm):
    workdir = tmp_path / "new" / "run"
    arguments = (
        f"--preset=smoke --arm={arm} --dataset=synthetic --width=0.03125 "
        "--crop_size=64 --batch_size=2 --phase1_steps=2 --phase2_steps=2 "
        "--adversary_warmup_steps=1 --eval_limit=1 --eval_every=2 --panels=0 "
        f"--data_dir={tiny_data} --workdir={workdir}"
    ).split()
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert "mIoU" in result.stdout and str(workdir / "export") in result.stdout
    assert (workdir / "export" / "saved_model.pb").is_file()

    refused = command(*arguments, "--gradient_ratio=0.5")
    assert refused.returncode == 1
    assert "gradient_ratio=0.3 there, 0.5 now" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_signal_saves_and_exits_with_its_own_code(tiny_data, tmp_path):
    """SIGTERM at the first sign of a step; the next start goes on from there."""
    arguments = (
        "--preset=smoke --arm=vgg16 --dataset=synthetic --width=0.03125 "
        "--crop_size=32 --batch_size=2 --phase1_steps=1000000 --log_every=1 "
        f"--panels=0 --data_dir={tiny_data} --workdir={tmp_path}/run"
    ).split()
    command = [sys.executable, "-m", "experiments.train", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not has_curves(tmp_path / "run"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 143, errors
    said = errors.splitlines()[-1]
    step = int(said.split(" step ")[1].split()[0])
    path = checkpoints.find_checkpoint(str(tmp_path / "run"), "last")
    assert path.endswith(f"state-{step}")


def has_curves(workdir):
    """Whether a step has been logged."""
    files = workdir.glob("events.out*") if workdir.is_dir() else ()
    return any(path.stat().st_size > 5000 for path in files)


@pytest.mark.slow
def test_deterministic_runs_are_equal_with_any_number_of_threads(
    tiny_data, tmp_path, assert_same_run
):
    """Threads of TensorFlow's pool, which the input pipeline runs on."""
    for threads in ("1", "4"):
        arguments = (
            "--preset=smoke --dataset=synthetic --width=0.03125 --crop_size=64 "
            "--batch_size=4 --phase1_steps=6 --phase2_steps=6 --deterministic "
            "--adversary_warmup_steps=3 --eval_limit=2 --log_every=1 --panels=1 "
            f"--data_dir={tiny_data} --workdir={tmp_path}/{threads}"
        ).split()
        done = subprocess.run(
            [sys.executable, "-m", "experiments.train", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"TF_NUM_INTEROP_THREADS": threads},
        )
        assert done.returncode == 0, done.stderr
    assert_same_run(str(tmp_path / "1"), str(tmp_path / "4"))


@pytest.mark.parametrize(
    "weighting, ratio, limit",
    [("gradient_ratio", 0.3, 1.0), ("gradient_ratio", 0.9, 1.8), ("fixed", 50.0, 1.0)],
)
def test_the_guards_limit_follows_a_ratio_that_is_read(weighting, ratio, limit):
    config = Config(adversarial_weighting=weighting, gradient_ratio=ratio)
    assert train_lib._ratio_limit(config) == limit
