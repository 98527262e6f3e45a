"""Two devices make the update of one: logical CPUs, processes, a resumed group."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import types

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import replicas
from tests.processes import cluster, fail, finish, start


def results(path, kind, number=0):
    with open(f"{path}-{kind}-{number}.json") as file:
        return json.load(file)


def assert_equal_within_rounding(one, several, variants):
    for name in variants:
        assert several[name]["replicas"] == 2
        assert several[name]["scalars"] == pytest.approx(
            one[name]["scalars"], rel=1e-4, abs=1e-7
        )
        pairs = zip(one[name]["weights"], several[name]["weights"], strict=True)
        for wanted, got in pairs:
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


# --- Steps -------------------------------------------------------------------


def test_two_devices_make_the_steps_of_one(tmp_path):
    path = str(tmp_path / "steps")
    finish(start("tests.replicas_program", path, "plain", "none", "mirrored"))
    one, two = results(path, "none"), results(path, "mirrored")
    assert_equal_within_rounding(one, two, ["plain"])
    # What was compared has moved: the step of A and the ratio of G's gradients.
    assert one["plain"]["scalars"]["2/gradient/ratio"] == pytest.approx(0.5, rel=1e-3)
    # Two equal images on two replicas, and dropout of a half: other units are kept.
    first, second = np.array(two["masks"])
    assert 0.3 < np.mean(first != second) < 0.7


@pytest.mark.slow
def test_clipping_loss_scale_and_parts_on_two_devices(tmp_path):
    path = str(tmp_path / "steps")
    variants = ["clip", "scale", "parts"]
    finish(start("tests.replicas_program", path, *variants, "none", "mirrored"))
    one, two = results(path, "none"), results(path, "mirrored")
    assert_equal_within_rounding(one, two, variants)
    # An image of the second replica overflows: no replica moves, one scale halves.
    assert two["overflow"] == {"scale": 4, "moved": 0}


@pytest.mark.parametrize(
    "variant", ["plain", pytest.param("parts", marks=pytest.mark.slow)]
)
def test_two_processes_make_the_steps_of_one(variant, tmp_path):
    path, module = str(tmp_path / "steps"), "tests.replicas_program"
    workers = [
        start(module, path, variant, "multi_worker", TF_CONFIG=text)
        for text in cluster(2)
    ]
    finish(*workers, start(module, path, variant, "none"))
    for number in range(2):
        several = results(path, "multi_worker", number)
        assert several["worker"] == [number, 2]
        assert_equal_within_rounding(results(path, "none"), several, [variant])


# --- Runs --------------------------------------------------------------------


@pytest.mark.slow
def test_first_weights_reach_every_device_and_the_average(tiny_run, tmp_path):
    path, module = str(tmp_path / "weights"), "tests.replicas_program"
    finish(start(module, path, f"from={tiny_run}", "none", "mirrored"))
    ((before,), (loaded,)) = results(path, "none")["from"]
    half = len(before) // 2
    for sums in (before, loaded):
        assert sums[:half] == sums[half:]  # G's and its average's
    assert before != loaded
    assert results(path, "mirrored")["from"] == [2 * [before], 2 * [loaded]]


def train_arguments(tiny_data, workdir, *more):
    return (
        "--preset=smoke --dataset=synthetic --width=0.03125 --crop_size=64 "
        "--batch_size=2 --dropout=0 --phase1_steps=4 --phase2_steps=4 --log_every=1 "
        "--adversary_warmup_steps=2 --eval_limit=1 --eval_every=4 --save_every=1 "
        f"--panels=0 --data_dir={tiny_data} --workdir={workdir}"
    ).split() + list(more)


def newest_state(workdir):
    path = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    return {
        name: reader.get_tensor(name)
        for name, shape in reader.get_variable_to_shape_map().items()
        if shape and reader.get_variable_to_dtype_map()[name] == tf.float32
    }


def test_the_guard_goes_back_on_two_devices_as_on_one(tiny_run, tiny_data, tmp_path):
    path, module = str(tmp_path / "run"), "tests.replicas_program"
    words = [f"from={tiny_run}", f"guarded={tiny_data}", "none", "mirrored"]
    finish(start(module, path, *words))
    alone, shared = (pathlib.Path(f"{path}-{kind}") for kind in words[2:])
    alarms = []
    for workdir in (alone, shared):
        lines = (workdir / "guard.jsonl").read_text().splitlines()
        alarms.append([json.loads(line) for line in lines])
    assert [alarm["action"] for alarm in alarms[0]][:2] == ["back", "back"]
    for one, other in zip(*alarms, strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert one["action"] == other["action"] and one["strength"] == other["strength"]
    ours, other = newest_state(alone), newest_state(shared)
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_worker_group_that_was_killed_resumes_and_ends_as_one_process(
    tiny_data, tmp_path
):
    alone, shared, copies = (tmp_path / n for n in ("alone", "shared", "copies"))
    copies.mkdir()
    finish(start("experiments.train", *train_arguments(tiny_data, alone)))
    arguments = train_arguments(tiny_data, shared, "--distribute=multi_worker")

    def start_group():
        return [
            start("experiments.train", *arguments, TF_CONFIG=text, TMPDIR=str(copies))
            for text in cluster(2)
        ]

    group = start_group()
    while not (shared / "checkpoints" / "state-3.index").exists():
        assert all(process.poll() is None for process in group)
        time.sleep(0.1)
    for process in group:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (shared / "export").exists()
    finish(*start_group())
    assert (shared / "export" / "saved_model.pb").is_file()
    assert not list(copies.glob("ss_gan_tf-*"))  # the second worker left nothing
    ours, other = newest_state(alone), newest_state(shared)
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-4)


OTHER_RATE = (
    "generator_lr=0.5: on worker 1, worker 0 has 0.0003; all workers of a run need the "
    "same flags, data and files"
)
ODD_BATCH = (
    "batch_size=3: must be a multiple of 2 devices x accumulate_steps=1; it counts the "
    "images of all devices together"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, of_first, of_second",
    [
        ("--generator_lr=0.5", OTHER_RATE, OTHER_RATE),  # they would go apart
        ("--batch_size=3", f"worker 1: {ODD_BATCH}", ODD_BATCH),
    ],
)
def test_workers_of_which_one_is_wrong_train_nothing(
    flag, of_first, of_second, tiny_data, tmp_path
):
    arguments = train_arguments(tiny_data, tmp_path / "r", "--distribute=multi_worker")
    first, second = cluster(2)
    where = {"TMPDIR": str(tmp_path)}
    group = [
        start("experiments.train", *arguments, TF_CONFIG=first, **where),
        start("experiments.train", *arguments, flag, TF_CONFIG=second, **where),
    ]
    outputs = fail(*group)
    said = [output.splitlines()[-1] for output in outputs]
    assert said == [f"error: {of_first}", f"error: {of_second}"]
    assert not (tmp_path / "r").exists()
    assert not list(tmp_path.glob("ss_gan_tf-*"))  # nor has the second a copy


@pytest.mark.slow
def test_weights_that_one_worker_cannot_read_are_told_by_both(tiny_data, tmp_path):
    good, bad = (str(tmp_path / f"{name}.weights.h5") for name in ("good", "bad"))
    keras.applications.VGG16(include_top=False, weights=None).save_weights(good)
    h5py.File(bad, "w").close()  # that it can hold weights is looked at before
    arguments = train_arguments(tiny_data, tmp_path / "r", "--distribute=multi_worker")
    arguments += ["--arm=vgg16_g", "--width=1", "--fc_filters=16"]
    group = [
        start(
            "experiments.train",
            *arguments,
            f"--backbone_weights={weights}",
            TF_CONFIG=text,
            TMPDIR=str(tmp_path),
        )
        for weights, text in zip((good, bad), cluster(2), strict=True)
    ]
    outputs = fail(*group)
    first, second = (output.splitlines()[-1] for output in outputs)
    assert second.startswith(f"error: backbone_weights={bad}: not a weights file of ")
    assert first == second.replace("error: ", "error: worker 1: ", 1)
    assert not (tmp_path / "r" / "run.json").exists()
    assert not list(tmp_path.glob("ss_gan_tf-*"))


@pytest.mark.slow
def test_that_a_worker_is_gone_is_said_in_one_line(tiny_data, tmp_path):
    arguments = train_arguments(tiny_data, tmp_path / "r", "--distribute=multi_worker")
    chief, other = (
        start("experiments.train", *arguments, TF_CONFIG=text, TMPDIR=str(tmp_path))
        for text in cluster(2)
    )
    while not (tmp_path / "r" / "checkpoints" / "state-1.index").exists():
        assert chief.poll() is None
        time.sleep(0.1)
    other.kill()
    other.communicate()
    output, _ = chief.communicate(timeout=600)
    assert chief.returncode == 1
    last = output.splitlines()[-1]
    assert last.startswith("error: another worker is gone or out of reach: ")
    assert last.endswith(": they go on from the last saved state")


@pytest.fixture
def second_worker(tmp_path, monkeypatch):
    """Folder of a run, and how worker 1 of 2 gets a folder of its own for it."""
    monkeypatch.setattr(replicas, "worker", lambda strategy: (1, 2))
    monkeypatch.setattr(replicas, "wait_for_all", lambda strategy: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "state-1.index").touch()
    (run / "lock").write_text("held by the chief")
    return run, lambda: replicas.own_folder(None, str(run))


def test_another_worker_writes_into_a_copy_that_goes(second_worker):
    run, own_folder = second_worker
    for left in ("old", "checkpoints"):  # of an earlier start that was killed
        with pytest.raises(KeyError), own_folder() as folder:
            pathlib.Path(folder, left).mkdir(exist_ok=True)
            pathlib.Path(folder, left, "state-9.index").touch()
            pathlib.Path(folder, "guard.jsonl").touch()
            raise KeyError
    with own_folder() as folder:
        copy = pathlib.Path(folder)
        assert copy.parent == run.parent and copy != run
        assert {path.name for path in copy.iterdir()} == {"checkpoints", "lock"}
        assert os.listdir(copy / "checkpoints") == ["state-1.index"]
        assert "held by the chief" not in (copy / "lock").read_text()
    assert not copy.exists() and len(os.listdir(run)) == 2


def test_a_group_that_is_started_twice_leaves_the_first_ones_folders(second_worker):
    _, own_folder = second_worker
    with own_folder() as folder:
        mine = pathlib.Path(folder, "checkpoints", "state-2.index")
        mine.touch()
        with pytest.raises(ValueError, match="another run is at work there"):
            with own_folder():
                pytest.fail("two at once")
        assert mine.exists()


def test_links_of_others_are_not_followed(second_worker, tmp_path):
    _, own_folder = second_worker
    foreign = tmp_path / "foreign"
    (foreign / "deep").mkdir(parents=True)
    (foreign / "deep" / "kept").touch()
    with pytest.raises(KeyError), own_folder() as folder:
        copy = pathlib.Path(folder)
        (copy / "link").symlink_to(foreign / "deep")
        raise KeyError
    with own_folder():  # takes the link away, and nothing behind it
        assert not (copy / "link").exists()
    copy.symlink_to(foreign)
    with pytest.raises(ValueError, match=f"^{re.escape(str(copy))}: is a link"):
        with own_folder():
            pytest.fail("through the link")
    assert os.listdir(foreign) == ["deep"] and (foreign / "deep" / "kept").exists()


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_where_they_are(tiny_data, tmp_path):
    """Nearly all of this run is validation of 12 images, shared by the two."""
    shared, copies = tmp_path / "shared", tmp_path / "copies"
    copies.mkdir()
    validating = "--val_split=train", "--eval_limit=0", "--eval_every=1"
    arguments = train_arguments(
        tiny_data,
        shared,
        *validating,
        "--phase1_steps=4000",
        "--distribute=multi_worker",
    )
    group = [
        start("experiments.train", *arguments, TF_CONFIG=text, TMPDIR=str(copies))
        for text in cluster(2)
    ]
    while not list(shared.glob("checkpoints/state-*.index")):
        assert all(process.poll() is None for process in group)
        time.sleep(0.1)
    group[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=600)[0] for process in group]
    assert [process.returncode for process in group] == [143, 143], outputs
    first, second = (output.splitlines()[-1] for output in outputs)
    assert first == second and first.startswith("stopped at phase1 step ")
    step = int(first.split("step ")[1].split()[0])
    assert (shared / "checkpoints" / f"state-{step}.index").exists()
    assert not list(copies.glob("ss_gan_tf-*"))


# --- What is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0.0}}',
        '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": [":1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:0"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["::1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["//a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:65536"]}, '
        '"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": {"0": "a:1"}}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_cluster_that_is_none_is_refused_in_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must be") as error:
        replicas.make_strategy("multi_worker")
    assert "\n" not in str(error.value)


def test_ctrl_c_ends_a_worker_that_waits():
    text = (  # whose own handler could not run before the wait is over
        "import logging, signal, sys; logging.basicConfig(level=20)\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(5))\n"
        "from ss_gan_tf import replicas\n"
        'replicas.make_strategy("multi_worker")'
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", text],
        env=os.environ | {"TF_CONFIG": cluster(2)[0]},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("Ctrl-C ends it" in line for line in waiting.stderr)
        time.sleep(3)  # it is with TensorFlow now
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=60) == -signal.SIGINT
    finally:
        waiting.kill()
        waiting.communicate()


@pytest.mark.parametrize("host", ["node-7.cluster:80", "10.0.0.7:65535", "[::1]:1"])
def test_addresses_that_can_be(monkeypatch, host):
    config = {"cluster": {"worker": [host]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: "made")
    assert replicas.make_strategy("multi_worker") == "made"


@pytest.mark.parametrize(
    "kind, number", [(k, n) for k in ("GPU", "CPU") for n in (1, 2)]
)
def test_mirroring_one_device_is_told(monkeypatch, caplog, kind, number):
    devices = [types.SimpleNamespace(name=f"/device:{kind}:{i}") for i in range(number)]
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda asked: devices if asked == kind else [],
    )
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", list)
    assert replicas.make_strategy("mirrored") == [device.name for device in devices]
    told = f"distribute=mirrored: TensorFlow has one device of the kind {kind} here"
    assert (told in caplog.text) == (number == 1)


def test_an_address_that_is_taken_is_named(monkeypatch, caplog):
    def no_server():
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", no_server)
    task = '"task": {"type": "worker", "index": 1}'
    monkeypatch.setenv(
        "TF_CONFIG", f'{{"cluster": {{"worker": ["a:1", "b:2"]}}, {task}}}'
    )
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match="^TF_CONFIG: worker 1 cannot begin at b:2: C"):
        replicas.make_strategy("multi_worker")
    assert "worker 1 is waiting for a:1" in caplog.text


def test_alone_an_error_is_what_it_is():
    with pytest.raises(tf.errors.UnavailableError):
        with replicas.naming_lost_workers(replicas.make_strategy("none")):
            raise tf.errors.UnavailableError(None, None, "no file server")


def test_a_batch_that_the_devices_cannot_share():
    replicas.check_batch(16, 2, 8)
    with pytest.raises(ValueError, match="batch_size=2: must be a multiple of 4 dev"):
        replicas.check_batch(2, 1, 4)
    with pytest.raises(ValueError, match="x accumulate_steps=2"):
        replicas.check_batch(4, 2, 4)


# --- One device --------------------------------------------------------------


def test_on_one_device_everything_is_the_identity(tmp_path):
    strategy = replicas.make_strategy("none")
    assert replicas.worker(strategy) == (0, 1) and replicas.count() == 1
    tensor = tf.constant([1.0, 2.0])
    assert replicas.total(tensor) is tensor and replicas.joined(tensor) is tensor
    with replicas.own_folder(strategy, str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    assert tmp_path.is_dir()
