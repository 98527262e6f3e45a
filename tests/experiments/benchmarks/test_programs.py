"""Written steps: what is in the folder, and that JAX gets TensorFlow's numbers."""

import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from experiments import benchmark_programs
from experiments.benchmarks import step, step_rows
from experiments.benchmarks.jax_programs import read_manifest
from experiments.benchmarks.write_programs import LARGEST_STORED, write_programs

SETTINGS = {
    "arm": "vgg16_g",
    "crop_size": 64,
    "batch_size": 1,
    "num_classes": 3,
    "width": 0.03125,
    "precision": "float32",
    "library": "ours, jit on",
    "phases": ["phase1", "adversarial"],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, steps, networks); the steps have not run yet."""
    steps, networks = step.make_steps(SETTINGS)
    folder = str(tmp_path_factory.mktemp("programs"))
    place = write_programs(folder, SETTINGS, steps, networks.variables)
    return place, steps, networks


def test_a_manifest_says_what_a_program_takes(written):
    place, steps, networks = written
    manifest = read_manifest(place)
    assert manifest["settings"] == SETTINGS and manifest["machine"]["keras"]
    phase1, adversarial = (
        manifest["phases"]["phase1"],
        manifest["phases"]["adversarial"],
    )
    assert {"loss/mce", "learning_rate/generator"} <= set(phase1["gives"])
    assert "loss/loss_d" in adversarial["gives"]
    assert 0 < phase1["flops"] < adversarial["flops"]
    # Phase 1 needs nothing of A; both need G, its slots, clock and dropout.
    assert set(phase1["takes"]) < set(adversarial["takes"])
    trained = len(networks.generator.trainable_variables)
    slots = [name for name in phase1["takes"] if "generator_adam/" in name]
    assert len(slots) >= 2 * trained
    with gzip.open(f"{place}/phase1.mlir.gz", "rt") as file:
        program = file.read()
    assert "stablehlo.convolution" in program
    # JAX on a GPU takes no other operations; module attributes are ignored.
    assert not re.search(r"= mhlo\.\w+ %|^ *\"?mhlo\.", program, re.MULTILINE)
    head = program[program.index("@main(") :]
    arguments = head[: head.index("->")].count("%arg")
    assert arguments == 2 + len(phase1["takes"])  # image and label first


def test_large_random_weights_are_drawn_again_and_small_ones_kept(written):
    place, _, networks = written
    described = read_manifest(place)["variables"]
    sizes = {name: np.prod(d["shape"]) for name, d in described.items()}
    with np.load(f"{place}/variables.npz") as stored:
        assert {n for n, s in sizes.items() if s <= LARGEST_STORED} == set(stored)
    drawn = next(n for n in described if n.endswith("fc6/kernel"))
    weight = networks.generator.get_layer("fc6").kernel.numpy()
    assert described[drawn]["drawn"] == pytest.approx([weight.mean(), weight.std()])


def test_a_variable_that_was_not_given_is_refused(written, tmp_path):
    _, steps, networks = written
    with pytest.raises(ValueError, match="phase1 uses a variable that was not given"):
        write_programs(
            str(tmp_path), SETTINGS, steps, networks.generator.trainable_variables
        )


def test_dilation_is_left_to_the_device_of_the_program(tmp_path):
    settings = {**SETTINGS, "arm": "resnet50", "phases": ["phase1"]}
    steps, networks = step.make_steps(settings)
    place = write_programs(str(tmp_path), settings, steps, networks.variables)
    with gzip.open(f"{place}/phase1.mlir.gz", "rt") as file:
        program = file.read()
    assert "rhs_dilate = [36, 36]" in program  # of ASPP's third branch


def test_the_other_side_works_without_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None;"
        "from experiments import benchmark_programs;"
        "from experiments.benchmarks import jax_programs, step_rows, workers;"
        "import importlib.util as u;"
        "u.find_spec('torch') and __import__('experiments.benchmarks.torch_step')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_programs_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no written steps"):
        benchmark_programs._folders(str(tmp_path))


def test_share_of_the_data_sheet():
    row = {"precision": "mixed_bfloat16", "rate": 98.9e12}
    share = benchmark_programs._share_of_data_sheet("NVIDIA H100 80GB HBM3", row)
    assert share == pytest.approx(0.1)
    assert benchmark_programs._share_of_data_sheet("cpu", row) is None


def test_jax_gets_tensorflows_numbers(tmp_path):
    if sys.version_info < (3, 11):
        pytest.skip("the test extra has no JAX for Python 3.10")
    # XLA draws other masks of dropout. Every weight is stored: equal starts.
    settings = {**SETTINGS, "dropout": 0.0}
    steps, networks = step.make_steps(settings)
    place = write_programs(
        str(tmp_path), settings, steps, networks.variables, largest_stored=2**30
    )
    calls = [phase for phase in settings["phases"] for _ in range(2)]
    # In a process of its own: JAX does not like this one's to be forked.
    code = (
        "import json, sys; from experiments.benchmarks.jax_programs import Steps;"
        "place, *calls = sys.argv[1:]; steps = Steps(place, sorted(set(calls)));"
        "print(json.dumps([steps.call(phase) for phase in calls]))"
    )
    command = [sys.executable, "-c", code, place, *calls]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    image, label = map(tf.constant, step_rows.drawn_batch(SETTINGS))
    for phase, ours in zip(calls, json.loads(done.stdout), strict=True):
        expected = {k: float(v) for k, v in steps[phase](image, label).items()}
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)
