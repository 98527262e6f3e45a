"""Settings of every test, made before TensorFlow is imported, and shared fixtures."""

import os
import pathlib

# Tests start the commands as subprocesses, which inherit these.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["KERAS_BACKEND"] = "tensorflow"
# A subprocess finds room beside this process on the same GPU.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
# A variable of the shell must not decide whether the numbers agree.
os.environ.pop("TF_DETERMINISTIC_OPS", None)

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_dir():
    """The folder beside the checkout with real images and ImageNet weights."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (real images and ImageNet weights), not there")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """DATA_DIR with 12 training scenes of the synthetic set, and as many as follow."""
    from data_prep.prepare import prepare

    data_dir = str(tmp_path_factory.mktemp("data"))
    prepare("synthetic", None, data_dir, num_examples=12)
    return data_dir


@pytest.fixture(scope="session")
def tiny_config():
    """Seconds on two cores: both phases of a very narrow VGG16 arm."""
    from ss_gan_tf.config import PRESETS, Config

    return Config(
        **PRESETS["smoke"]
        | {
            "width": 0.03125,
            "crop_size": 64,
            "batch_size": 2,
            "phase1_steps": 4,
            "phase2_steps": 4,
            "adversary_warmup_steps": 2,
            "log_every": 2,
            "eval_every": 2,
            "save_every": 2,
            "eval_limit": 2,
            "panels": 1,
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_config, tmp_path_factory):
    """The folder of a finished run of `tiny_config`; tests only read it."""
    from ss_gan_tf.train import train

    workdir = str(tmp_path_factory.mktemp("run"))
    train(tiny_config, tiny_data, workdir)
    return workdir
