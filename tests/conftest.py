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
