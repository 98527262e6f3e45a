"""What is said about the machine is true, and absent where it cannot be had."""

import os
import subprocess

import pytest

from ss_gan_tf import machine


def test_the_machine_is_this_one():
    facts = machine.describe_machine()
    assert facts["cores"] == os.cpu_count()
    assert facts["processor"] and isinstance(facts["gpus"], list)


@pytest.mark.parametrize(
    "said, units",
    [
        (
            "flags\t\t: fpu avx2 avx512f avx512_bf16 x",
            ["avx2", "avx512f", "avx512_bf16"],
        ),
        ("flags : fpu sse", []),
        ("Features\t: fp asimd bf16", ["asimd", "bf16"]),
        ("model name : one", None),
    ],
)
def test_the_units_that_multiply(said, units, monkeypatch, tmp_path):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"{said}\nbugs : none\n")
    real = machine._first_match
    monkeypatch.setattr(
        machine, "_first_match", lambda _, pattern: real(facts, pattern)
    )
    assert machine.describe_machine()["vector_units"] == units


def test_the_commit_is_the_checkouts(monkeypatch, tmp_path):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True
        )
        return done.stdout.strip()

    source = tmp_path / "machine.py"
    source.write_text("1")
    monkeypatch.setattr(machine, "__file__", str(source))
    assert machine.describe_machine()["commit"] is None  # git knows nothing of it
    git("init")
    assert machine.describe_machine()["commit"] is None  # not of this file
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert machine.describe_machine()["commit"] == commit
    source.write_text("2")
    assert machine.describe_machine()["commit"] == commit + "+"
