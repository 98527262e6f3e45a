"""A measurement says where it was made."""

import json
import subprocess

import pytest
import tensorflow as tf

from experiments.benchmarks import machine
from ss_gan_tf import machine as hardware


def test_names_processor_versions_and_date():
    found = machine.describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert found["tensorflow"] == tf.__version__
    text = machine.format_machine(found)
    for key in ("processor", "tensorflow", "keras", "numpy", "date"):
        assert found[key] and found[key] in text
    units = ["avx2", "avx512f"]
    told = machine.format_machine(found | {"vector_units": units, "processor": "one"})
    assert told.startswith("one (avx2, avx512f), ")
    del found["vector_units"]
    assert found["processor"] + ", " in machine.format_machine(found)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=0"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one commit, in which machine.py lies."""
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "machine.py"))
    (tmp_path / "machine.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_and_whether_files_differ_from_it(checkout):
    commit = machine.describe_machine()["commit"]
    assert len(commit) == 12 and int(commit, 16) >= 0
    (checkout / "machine.py").write_text("2")
    assert machine.describe_machine()["commit"] == commit + "+"


def test_without_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = machine.describe_machine()
    assert found["commit"] is None
    assert "commit unknown" in machine.format_machine(found)
