"""The paper's data sets, drawn, through the commands that take the real ones."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(module, *flags):
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset, train_split, num_classes",
    [("voc_sbd", "trainaug", 21), ("cityscapes", "train", 19)],
)
def test_prepared_trained_and_evaluated(
    draw_voc, draw_cityscapes, tmp_path, dataset, train_split, num_classes
):
    data, workdir = f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"
    if dataset == "voc_sbd":
        source = draw_voc(tmp_path / "source", packed=True, size=(48, 64))
    else:
        source = draw_cityscapes(tmp_path / "source", packed=True, size=(64, 128))
    prepare = ("data_prep.prepare", f"--dataset={dataset}", f"--source_dir={source}")
    said = run(*prepare, data, "--allow_partial", "--verify")
    assert "PARTIAL" in said and "Verified" in said
    smallest = {
        "arm": "vgg16_g",
        "dataset": dataset,
        "train_split": train_split,
        "preset": "smoke",
        "width": 0.05,
        "crop_size": 64,
        "batch_size": 2,
        "phase1_steps": 2,
        "phase2_steps": 2,
        "adversary_warmup_steps": 0,
    }
    flags = [f"--{name}={value}" for name, value in smallest.items()]
    run("experiments.train", *flags, data, workdir)
    for mode in ("whole", "sliding"):
        said = run(
            "experiments.evaluate", workdir, "--split=val", f"--eval_mode={mode}"
        )
        assert f"{dataset} was prepared from a partial source" in said
        metrics = json.loads(pathlib.Path(said.split()[-1]).read_text())
        assert metrics["partial"] is True
        assert metrics["mode"] == mode and len(metrics["iou"]) == num_classes
        assert metrics["num_images"] == (2 if dataset == "voc_sbd" else 1)
        assert 0 <= metrics["miou"] <= 1
