import os

import pytest

from experiments.benchmarks.workers import Worker

HERE = os.getpid()


def build(settings):
    """What the tests' workers do."""
    return {
        "where": os.getpid,
        "settings": lambda: settings,
        "fail": lambda: 1 / 0,
        "leave": lambda: os._exit(3),
        "fill": lambda: len(bytearray(300_000_000)),
    }


@pytest.fixture
def worker(monkeypatch):
    folder = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", folder)  # spawned processes find this file
    monkeypatch.syspath_prepend(folder)
    with Worker("test_workers:build", {"a": 1}) as worker:
        yield worker


def test_works_in_a_process_of_its_own(worker):
    assert worker.call("settings") == {"a": 1}
    assert worker.call("where") == worker.call("where") != HERE
    assert "fill" in worker.names


def test_peak_memory_is_that_process_own(worker):
    before = worker.peak_memory()
    worker.call("fill")
    assert 250e6 < worker.peak_memory() - before < 400e6


def test_an_error_is_one_line_here(worker):
    with pytest.raises(ValueError, match="^ZeroDivisionError: division by zero$"):
        worker.call("fail")


def test_a_process_that_dies_is_an_error(worker):
    with pytest.raises(ValueError, match="ended with exit code 3"):
        worker.call("leave")


def test_a_builder_that_fails_is_an_error(worker):
    with pytest.raises(ValueError, match="has no attribute"):
        Worker("test_workers:missing", {})
