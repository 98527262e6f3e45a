"""Two runs in one folder: the second is told who is there."""

import fcntl
import logging
import os
import socket
import subprocess
import sys

import pytest

from ss_gan_tf import lock

HOLD = """
import sys
from ss_gan_tf import lock
with lock.alone_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(ValueError, match="another run is at work there") as error:
        with lock.alone_in(str(tmp_path)):
            pytest.fail("two at once")
    assert f"process {holder.pid} on {socket.gethostname()}" in str(error.value)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock.alone_in(str(tmp_path)):
        text = (tmp_path / lock.FILE).read_text()
    assert text == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_one_after_the_other_also_after_an_error(tmp_path):
    folder = str(tmp_path / "new" / "run")
    with pytest.raises(KeyError):
        with lock.alone_in(folder):
            raise KeyError
    with lock.alone_in(folder):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="workdir=.*file: is a file"):
        with lock.alone_in(str(tmp_path / "file")):
            pass


def test_where_nothing_can_be_locked_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), lock.alone_in(str(tmp_path)):
        pass
    assert "cannot be locked" in caplog.text
