"""The command: an address, the page behind it, and a quiet end."""

import functools
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]


def start(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.demo", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, an interrupt may be ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_the_demo_says_where_it_is_and_ends_quietly(tiny_run):
    with start(f"--model={tiny_run}/export", "--port=0") as program:
        line = program.stdout.readline()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+) in a browser.*\n", line)
        assert found, line + program.stderr.read()
        with urllib.request.urlopen(found[1]) as answer:
            page = answer.read().decode()
        assert pathlib.Path(tiny_run).name in page and "traffic_light" in page
        program.send_signal(signal.SIGINT)
        rest, errors = program.communicate()
    # On AVX-512 machines TensorFlow logs its choice of kernels, at any level of logs.
    ours = [
        line
        for line in errors.splitlines()
        if not re.match(r"WARNING: All log messages before absl|I0000 .*oneDNN", line)
    ]
    assert (program.returncode, rest, ours) == (0, "", [])


def test_what_is_no_model_is_one_line(tmp_path):
    with start(f"--model={tmp_path}") as program:
        _, errors = program.communicate()
    assert program.returncode == 1
    assert errors.splitlines()[-1].startswith(f"error: no exported model in {tmp_path}")
