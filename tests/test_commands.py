"""evaluate, export and predict on a run's folder, as a user calls them."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep.prepare import prepare
from experiments import evaluate
from experiments.evaluate import evaluate_run
from experiments.export import export_run
from experiments.progress import Progress
from ss_gan_tf import checkpoints, measures, per_image
from ss_gan_tf.config import Config
from ss_gan_tf.input_pipeline import open_dataset

ROOT = Path(__file__).parents[1]


def command(module, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data"))
    prepare("synthetic", None, path, num_examples=20)
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    """A run as training leaves it: last is step 20 of phase 2, best step 5."""
    path = str(tmp_path_factory.mktemp("run"))
    data = open_dataset("synthetic", data_dir)
    run = checkpoints.Run(
        workdir=path,
        config=Config(arm="vgg16_g", width=0.05, backbone_weights="none"),
        data_dir=data_dir,
        class_names=data.class_names,
        class_colors=data.class_colors,
        ignore_label=data.ignore_label,
        provenance={},
    )
    checkpoints.write_run(run)
    for folder, step, favourite in (("checkpoints", 20, 0), ("best/phase2", 5, 3)):
        generator = checkpoints.build_run_generator(run.config, data.num_classes)
        # A bias that outweighs the rest: every pixel becomes the favourite class.
        bias = 1e6 * np.eye(data.num_classes, dtype=np.float32)[favourite]
        generator.get_layer("block3_pool_score").bias.assign(bias)
        position = checkpoints.Position()
        position.stage.assign("phase2")
        position.step.assign(step)
        checkpoint = tf.train.Checkpoint(generator=generator, position=position)
        manager = tf.train.CheckpointManager(
            checkpoint, os.path.join(path, folder), max_to_keep=1
        )
        manager.save()
    return path


def test_evaluate_prints_and_writes(workdir):
    done = command("evaluate", f"--workdir={workdir}", "--split=test")
    assert done.returncode == 0, done.stderr
    path = os.path.join(workdir, "eval", "test", "metrics.json")
    with open(path) as file:
        metrics = json.load(file)
    for name in ("traffic_light", "mIoU", "pixel accuracy", path):
        assert name in done.stdout
    assert "3 of 3 images" in done.stderr
    assert metrics["num_images"] == 3 and metrics["mode"] == "whole"
    counts = os.path.join(os.path.dirname(path), "per_image.npz")
    matrices = per_image.read_per_image(counts).counts["confusion"]
    assert matrices.sum(axis=0).tolist() == metrics["confusion_matrix"]
    assert (metrics["split"], metrics["phase"], metrics["step"]) == (
        "test",
        "phase2",
        20,
    )
    # Only road is ever predicted: one column of the matrix holds all pixels, and
    # road's IoU is its share, which is the pixel accuracy too.
    matrix = np.array(metrics["confusion_matrix"])
    assert matrix[:, 0].sum() == matrix.sum() == metrics["num_pixels"]
    assert metrics["iou"]["road"] == metrics["pixel_accuracy"] > 0


def test_best_and_parts_keep_their_own_files(workdir):
    last, last_path = evaluate_run(workdir, split="val")
    best, best_path = evaluate_run(workdir, split="val", checkpoint="best")
    first, first_path = evaluate_run(workdir, split="val", limit=1)
    assert [
        os.path.relpath(p, workdir) for p in (last_path, best_path, first_path)
    ] == [
        "eval/val/metrics.json",
        "eval/val-best/metrics.json",
        "eval/val-first1/metrics.json",
    ]
    assert (last["step"], best["step"]) == (20, 5)
    assert last["checkpoint"] == "checkpoints/ckpt-1"
    assert best["checkpoint"] == "best/phase2/ckpt-1"
    assert np.array(best["confusion_matrix"])[:, 3].sum() == best["num_pixels"]
    assert (last["num_images"], first["num_images"]) == (3, 1)


def test_figures_on_other_data_do_not_replace_the_runs_own(workdir, tmp_path):
    workdir = shutil.copytree(workdir, str(tmp_path / "run"))
    path = os.path.join(workdir, "run.json")
    with open(path) as file:
        told = json.load(file)
    places = []
    for digests in ({}, {"train": "0" * 32}, {"val": "1" * 32}, {"val": "2" * 32}):
        told["provenance"]["data_digests"] = digests
        with open(path, "w") as file:
            json.dump(told, file)
        _, metrics = evaluate_run(workdir, split="val", limit=1)
        places.append(os.path.basename(os.path.dirname(metrics)))
    # Not known, and not known of this split.
    assert places[:2] == ["val-first1"] * 2
    # Named after the data, not after the run's.
    assert re.fullmatch("val-first1-data[0-9a-f]{8}", places[2])
    assert places[3] == places[2]


def test_settings_override_the_runs_own(workdir):
    metrics, _ = evaluate_run(workdir, split="val", mode="sliding", overlap=0.5)
    assert (metrics["mode"], metrics["window"], metrics["overlap"]) == (
        "sliding",
        500,
        0.5,
    )


@pytest.mark.parametrize("overlap, mode", [(7.0, "sliding"), (0.5, None)])
def test_an_overlap_that_cannot_be_or_does_nothing_is_refused(workdir, overlap, mode):
    with pytest.raises(ValueError, match=f"eval_overlap={overlap}: "):
        evaluate_run(workdir, split="val", mode=mode, overlap=overlap)


def test_full_metrics_are_not_lost_to_basic_ones(workdir):
    full, path = evaluate_run(workdir, split="val", limit=1, metrics_kind="full")
    again, same_path = evaluate_run(workdir, split="val", limit=1)
    assert again == full and same_path == path
    basic, _ = evaluate_run(workdir, split="val", limit=1, metrics_kind="basic")
    assert "granulation" not in basic  # as told


def test_several_devices_change_no_figure(workdir):
    plain, path = evaluate_run(workdir, split="val", metrics_kind="full")
    again, same_path = evaluate_run(
        workdir, split="val", metrics_kind="full", distribute="mirrored"
    )
    assert again == plain and same_path == path


def test_scales_and_flip_keep_their_own_files(workdir, data_dir):
    plain, plain_path = evaluate_run(workdir, split="val")
    assert (plain["scales"], plain["flip"]) == ([1.0], False)
    flags = "--split=val", "--eval_scales=0.5,1", "--eval_flip", "--eval_metrics=full"
    done = command("evaluate", f"--workdir={workdir}", *flags)
    assert done.returncode == 0, done.stderr
    path = os.path.join(workdir, "eval", "val-x0.5-x1-flip", "metrics.json")
    assert path in done.stdout
    with open(path) as file:
        metrics = json.load(file)
    assert (metrics["scales"], metrics["flip"]) == ([0.5, 1.0], True)
    # Every pixel is road at every scale.
    assert metrics["confusion_matrix"] == plain["confusion_matrix"]
    assert os.path.exists(plain_path)
    # Full metrics in file, table and counts.  Nothing but road: no outline is met.
    assert metrics["granulation"]["per_class"]["component_ratio"]["sky"] == 0
    assert metrics["boundary"]["mean_iou"] == 0 and "surplus" in done.stdout
    images = per_image.read_per_image(path.replace("metrics.json", "per_image.npz"))
    figures = measures.summarize(images.total(), images.class_names)
    assert {name: metrics[name] for name in figures} == figures


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_scales_that_are_no_numbers_are_one_line(name, workdir, data_dir):
    flags = f"--workdir={workdir}", f"--data_dir={data_dir}", "--eval_scales=1,x"
    done = command(name, *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: eval_scales=1,x: must be numbers"


@pytest.fixture(scope="module")
def voc_workdir(tmp_path_factory):
    """A run on drawn images with VOC's classes and names; `test` has no labels."""
    root = tmp_path_factory.mktemp("voc")
    rng = np.random.default_rng(0)
    for split, ids in (("train", [0]), ("val", range(21)), ("test", [255])):
        for number in (6, 9):
            size = 33 + number, 40
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            label = rng.choice(np.uint8(ids), size)
            for kind, picture in (("images", pixels), ("labels", label)):
                path = root / "source" / kind / split / f"2008_{number:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    names = "\n".join(f"class{k}" for k in range(21))
    (root / "source" / "classes.txt").write_text(names + "\n")
    prepare("folder", str(root / "source"), str(root / "data"))
    shutil.move(root / "data" / "folder", root / "data" / "voc_sbd")
    data = open_dataset("voc_sbd", str(root / "data"))
    run = checkpoints.Run(
        workdir=str(root / "run"),
        config=Config(
            arm="vgg16", dataset="voc_sbd", width=0.05, backbone_weights="none"
        ),
        data_dir=str(root / "data"),
        class_names=data.class_names,
        class_colors=data.class_colors,
        ignore_label=data.ignore_label,
        provenance={},
    )
    os.makedirs(run.workdir)
    checkpoints.write_run(run)
    checkpoint = tf.train.Checkpoint(
        generator=checkpoints.build_run_generator(run.config, 21),
        position=checkpoints.Position(),
    )
    folder = os.path.join(run.workdir, "checkpoints")
    tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1).save()
    return run.workdir


def test_submission_of_a_split_without_labels(voc_workdir, tmp_path):
    flags = "--split=test", f"--submission={tmp_path}"
    done = command("evaluate", f"--workdir={voc_workdir}", *flags)
    assert done.returncode == 0, done.stderr
    assert "test has no labels: nothing to score" in done.stdout
    assert f"submission: {tmp_path}" in done.stdout
    with open(os.path.join(voc_workdir, "eval", "test", "metrics.json")) as file:
        metrics = json.load(file)
    assert metrics["miou"] is None and metrics["num_images"] == 2
    assert len(metrics["absent_classes"]) == 21
    folder = tmp_path / "results/VOC2012/Segmentation/comp6_test_cls"
    sizes = {path.name: Image.open(path).size for path in folder.iterdir()}
    assert sizes == {"2008_000006.png": (40, 39), "2008_000009.png": (40, 42)}


def test_a_submission_holds_what_was_scored(voc_workdir, tmp_path):
    plain, _ = evaluate_run(voc_workdir, split="val")
    metrics, _ = evaluate_run(voc_workdir, split="val", submission_dir=str(tmp_path))
    assert metrics == plain and metrics["miou"] is not None
    source = Path(voc_workdir).parent / "source" / "labels" / "val"
    matrix = np.zeros((21, 21), int)
    for path in tmp_path.rglob("*.png"):
        pred, label = np.asarray(Image.open(path)), Image.open(source / path.name)
        np.add.at(matrix, (np.asarray(label), pred), 1)
    assert matrix.tolist() == metrics["confusion_matrix"]


def test_a_submission_that_cannot_be_is_one_line(workdir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no evaluation server takes synthetic; .*voc"):
        evaluate_run(workdir, submission_dir=str(tmp_path))
    one = tf.distribute.get_strategy()
    monkeypatch.setattr(evaluate.replicas, "make_strategy", lambda distribute: one)
    with pytest.raises(ValueError, match="submission=.*: is written by one process"):
        evaluate_run(workdir, submission_dir="S", distribute="multi_worker")


def test_a_second_worker_evaluates_its_share_and_writes_nothing(workdir, monkeypatch):
    joined, shown, told = [], [], {}

    class Second:
        number, count = 1, 2

        def __init__(self, strategy):
            pass

        def agree(self, prepare):
            result, facts = prepare()
            told.update(facts)
            return result

        def join(self, parts):
            for part in parts:
                joined.extend(part.names)
                yield part

    alone, path = evaluate_run(workdir, split="val", limit=3)
    os.remove(path)
    counts = os.path.join(os.path.dirname(path), "per_image.npz")
    names = per_image.read_per_image(counts).names
    monkeypatch.setattr(evaluate, "Workers", Second)
    metrics, same_path = evaluate_run(
        workdir, split="val", limit=3, progress=lambda *at: shown.append(at)
    )
    assert joined == list(names[1:2]) and metrics["num_images"] == 1
    assert shown == [(1, 3)] and alone["num_images"] == 3
    # What the others have to have alike.
    assert told["result"] == "val-first3" and told["examples of val"] == 3
    assert told["checkpoint"] == alone["checkpoint"] and told["batch_size"] == 1
    assert told["eval_metrics"] == "basic" and told["eval_mode"] == "whole"
    assert {"version", "digest of val", "digest of the weights"} <= set(told)
    assert None not in (told["digest of val"], told["digest of the weights"])
    assert same_path == path and not os.path.exists(path)


def test_what_does_not_fit_is_one_clear_error(workdir, data_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no split 'nowhere'.*train, val, test"):
        evaluate_run(workdir, split="nowhere")
    with pytest.raises(FileNotFoundError, match="is not prepared in"):
        evaluate_run(workdir, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no run here"):
        evaluate_run(str(tmp_path))
    run = checkpoints.read_run(workdir)
    other = dataclasses.replace(run, class_names=run.class_names[::-1])
    monkeypatch.setattr(checkpoints, "read_run", lambda _: other)
    with pytest.raises(ValueError, match="the run has the classes traffic_light, "):
        evaluate_run(workdir)


def test_export_then_predict(workdir, tmp_path):
    export_run(workdir, str(tmp_path / "export"), "best")
    classes = json.loads((tmp_path / "export" / "classes.json").read_text())
    assert classes["metadata"]["step"] == 5
    assert classes["metadata"]["config"]["arm"] == "vgg16_g"
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (40, 35)).save(photos / "a.png")
    (photos / "broken\n.jpg").write_text("not a photograph")
    arguments = [
        f"--model={tmp_path}/export",
        f"--input={photos}",
        f"--output_dir={out}",
    ]
    done = command("predict", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2:] == [
        "1 without a result:",
        f"  {str(photos / 'broken') + chr(10) + '.jpg'!r}: not a JPEG or PNG image",
    ]
    with Image.open(out / "a_ids.png") as ids:
        assert ids.size == (40, 35) and set(ids.getdata()) == {3}


def test_an_onnx_export_tells_how_close_it_is(monkeypatch, capsys):
    program = importlib.import_module("experiments.export")
    given = {"workdir": "RUN", "output_dir": "OUT", "checkpoint": "last"}
    given = types.SimpleNamespace(format="onnx", **given)
    monkeypatch.setattr(program, "FLAGS", given)
    for name in ("check_installed", "show_own_messages", "export_run"):
        monkeypatch.setattr(program, name, lambda *_: None)
    compared = {"same_class_ids": 0.99987, "probability_difference": 2.34e-6}
    monkeypatch.setattr(program, "add_onnx", lambda folder: compared)
    program.main([""])
    assert capsys.readouterr().out.splitlines() == [
        "model.onnx beside the SavedModel on drawn images: the same class in 99.987% "
        "of the pixels, largest difference of a probability 2.3e-06",
        "exported to OUT",
    ]


def test_a_users_mistake_is_one_line(tmp_path):
    flags = f"--workdir={tmp_path}", f"--output_dir={tmp_path}/export"
    done = command("export", *flags)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "no run here" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module, call, values",
    [
        ("report", "write_report", {"runs": ["R"], "study": None, "panels": False}),
        ("collapse_study", "run_study", {"provocations": [], "seeds": []}),
        ("export", "export_run", {"format": "saved_model", "checkpoint": "last"}),
        (
            "study",
            "settings_from_flags",
            {
                "write_programs": None,
                "read_programs": None,
                "keep_freed_memory": True,
            },
        ),
    ],
)
def test_what_tensorflow_raises_is_one_line_too(monkeypatch, module, call, values):
    def fail(*_, **__):
        raise tf.errors.DataLossError(None, None, "corrupted record\nand a paragraph")

    common = {"workdir": "W", "data_dir": "D", "output_dir": "O", "split": None}
    module = importlib.import_module(f"experiments.{module}")
    monkeypatch.setattr(module, "FLAGS", types.SimpleNamespace(**common | values))
    monkeypatch.setattr(module, call, fail)
    monkeypatch.setattr(module, "show_own_messages", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        module.main(["program"])
    assert ended.value.code == "error: corrupted record"


def test_triton_is_loaded_before_tensorflow(tmp_path):
    """Here a stand-in that says so: the real one would end the process."""
    told = "import sys; print('tensorflow' in sys.modules, 'ss_gan_tf' in sys.modules)"
    (tmp_path / "triton.py").write_text(told)
    done = subprocess.run(
        [sys.executable, "-c", "import experiments.numerics"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "False False\n")


def test_progress_in_plain_lines(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("images")
    for done, seconds in ((1, 1), (2, 11), (3, 12), (4, 13)):
        now[0] = seconds
        progress(done, 4)
    assert capsys.readouterr().err == "2 of 4 images\n4 of 4 images\n"
