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


def begin(folder, *lines):
    """A program that measures, begun as `python -m` in a process group of its own."""
    (folder / "program.py").write_text(
        "import contextlib, signal, time\n"
        "with contextlib.suppress(ImportError):\n"
        "    import heavy\n"
        "from experiments.benchmarks.workers import Worker\n"
        "if __name__ == '__main__':\n"
        # A process in the background of a shell is deaf to it.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    with Worker('test_workers:build', {}) as worker:\n"
        + "".join(f"        {line}\n" for line in lines)
    )
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join(map(str, (folder, here, here.parents[2])))
    return subprocess.Popen(
        [sys.executable, "-m", "program"],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_does_not_load_what_the_program_began_with(tmp_path):
    """Or each peer's memory would hold TensorFlow."""
    (tmp_path / "heavy.py").write_text("")
    process = begin(tmp_path, "print('heavy' in worker.call('modules'))")
    assert process.communicate() == ("False\n", "")


def test_one_at_work_is_interrupted_in_silence(tmp_path):
    process = begin(
        tmp_path,
        "try:",
        "    print(worker.call('where'), flush=True)",
        "    worker.call('wait')",
        "except KeyboardInterrupt:",
        "    time.sleep(1)  # one that heard it too would have said so by now",
        "    print('interrupted')",
    )
    measured = int(process.stdout.readline())
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate() == ("interrupted\n", "")
    with pytest.raises(ProcessLookupError):
        os.kill(measured, 0)


def test_an_error_is_one_line_here(worker):
    with pytest.raises(ValueError, match="^ZeroDivisionError: division by zero$"):
        worker.call("fail")

    with pytest.raises(ValueError, match="ended with exit code 0"):
        worker.call("settings")


def test_an_end_of_file_there_is_not_taken_for_the_end(worker):
    with pytest.raises(ValueError, match="^EOFError: half a file$"):
        worker.call("read")


def test_a_process_that_dies_is_an_error(worker):
    with pytest.raises(ValueError, match="ended with exit code 3"):
        worker.call("leave")


def test_a_builder_that_fails_is_an_error(worker):
    with pytest.raises(ValueError, match="has no attribute"):
        Worker("test_workers:missing", {})
