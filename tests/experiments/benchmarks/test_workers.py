import os
import pathlib
import signal
import subprocess
import sys
import time

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
        "modules": lambda: set(sys.modules),
        "wait": lambda: time.sleep(60),
        "read": _end_of_file,
    }


def _end_of_file():
    raise EOFError("half a file")


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
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


def test_it_does_not_load_what_the_program_began_with(tmp_path):
    """Or each peer's memory would hold TensorFlow."""
    (tmp_path / "heavy.py").write_text("")
    (tmp_path / "program.py").write_text(
        "import heavy\n"
        "from experiments.benchmarks.workers import Worker\n"
        "if __name__ == '__main__':\n"
        "    with Worker('test_workers:build', {}) as worker:\n"
        "        print('heavy' in worker.call('modules'))\n"
    )
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join(map(str, (tmp_path, here, here.parents[2])))
    done = subprocess.run(
        [sys.executable, "-m", "program"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


def test_an_error_is_one_line_here(worker):
    with pytest.raises(ValueError, match="^ZeroDivisionError: division by zero$"):
        worker.call("fail")

    with pytest.raises(ValueError, match="ended with exit code 0"):
        worker.call("settings")


def test_an_end_of_file_there_is_not_taken_for_the_end(worker):
    with pytest.raises(ValueError, match="^EOFError: half a file$"):
        worker.call("read")


def test_one_at_work_is_ended_in_silence(worker, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    process = worker.call("where")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            worker.call("wait")
    finally:
        signal.signal(signal.SIGALRM, before)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_is_an_error(worker):
    with pytest.raises(ValueError, match="ended with exit code 3"):
        worker.call("leave")


def test_a_builder_that_fails_is_an_error(worker):
    with pytest.raises(ValueError, match="has no attribute"):
        Worker("test_workers:missing", {})
