"""The real program killed at random, on a full disk, for thousands of steps: slow."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

KILLS = 30


def arguments(data_dir, workdir, **changes):
    """The command of a tiny run of all three stages."""
    settings = {
        "preset": "smoke",
        "dataset": "synthetic",
        "width": 0.03125,
        "crop_size": 32,
        "grid_size": 2,
        "batch_size": 2,
        "phase1_steps": 30,
        "adversary_warmup_steps": 20,
        "phase2_steps": 30,
        "ema_decay": 0.9,
        "log_every": 5,
        "eval_every": 10,
        "save_every": 5,
        "eval_limit": 1,
        "panels": 1,
        "data_dir": data_dir,
        "workdir": workdir,
    } | changes
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "experiments.train", *flags]


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def newest_write(folder):
    """When anything below a folder was written last."""
    times = [
        os.path.getmtime(os.path.join(parent, name))
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.exists(os.path.join(parent, name))
    ]
    return max(times, default=0)


def test_killed_at_random_it_ends_as_if_it_had_not_been(
    tiny_data, tmp_path, assert_same_run
):
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    finish(arguments(tiny_data, whole))
    luck = random.Random(0)
    kills = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    where = set()
    for _ in range(20 * KILLS):
        if kills[signal.SIGKILL] >= KILLS:
            break
        how = signal.SIGKILL if luck.random() < 0.85 else signal.SIGTERM
        process = subprocess.Popen(
            arguments(tiny_data, broken), stderr=subprocess.PIPE, text=True
        )
        started, saved = time.time(), os.path.join(broken, "checkpoints")
        if luck.random() < 0.8:  # the others may be killed while they start
            while newest_write(saved) < started and process.poll() is None:
                time.sleep(0.02)
        time.sleep(luck.random() ** 2 * 3)
        process.send_signal(how)
        errors = process.communicate(timeout=600)[1]
        if process.returncode == 0:
            shutil.rmtree(broken)  # it was done: the next kills meet a new run
            continue
        assert process.returncode in (-how, 143 if how == signal.SIGTERM else -9), (
            errors[-2000:]
        )
        kills[how] += 1
        where |= set(re.findall(r"continuing from .*, (\w+ step \d+)", errors))
    print("kills:", kills, "continued at:", sorted(where))
    finish(arguments(tiny_data, broken))
    assert_same_run(broken, whole)
    assert {word.split()[0] for word in where} >= {"phase1", "warmup", "phase2"}


@pytest.mark.parametrize("room", [0, 200_000])
def test_a_full_disk_costs_nothing_once_there_is_room(
    tiny_data, tmp_path, small_disk, room, assert_same_run
):
    """Without room the summaries fail first, with a little room a checkpoint does."""
    disk = small_disk(12 * 1024)
    whole, full = str(tmp_path / "whole"), os.path.join(disk, "run")
    changes = {"phase1_steps": 30, "phase2_steps": 20, "adversary_warmup_steps": 10}
    finish(arguments(tiny_data, whole, **changes))
    stopped = arguments(tiny_data, full, **changes)
    process = subprocess.Popen(stopped, stderr=subprocess.PIPE, text=True)
    while not os.path.exists(os.path.join(full, "checkpoints", "checkpoint")):
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.01)
    filler = os.path.join(disk, "filler")
    free = shutil.disk_usage(disk).free
    with open(filler, "wb") as file:
        file.write(bytes(max(0, free - room)))
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 1 and "Traceback" not in errors, errors[-2000:]
    assert errors.splitlines()[-1].startswith("error: "), errors[-2000:]
    print(errors.splitlines()[-1])
    os.remove(filler)
    finish(stopped)
    assert_same_run(full, whole)


def test_memory_and_open_files_stay_flat(tiny_data, tmp_path):
    """5,000 steps with 200 validations, 250 checkpoints, 500 points of each curve."""
    steps = {"phase1_steps": 2500, "phase2_steps": 2500, "log_every": 10}
    rhythm = {"eval_every": 25, "save_every": 20, "panels": 1}
    process = subprocess.Popen(
        arguments(tiny_data, str(tmp_path / "run"), **steps, **rhythm),
        stderr=subprocess.DEVNULL,
    )
    measured = []
    while process.poll() is None:
        time.sleep(2)
        try:
            with open(f"/proc/{process.pid}/statm") as file:
                pages = int(file.read().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
        except (OSError, IndexError):
            break
        measured.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files))
    assert process.wait() == 0
    third = len(measured) // 3
    middle, end = measured[third : 2 * third], measured[2 * third :]
    largest = [max(row[0] for row in part) for part in (middle, end)]
    files = [max(row[1] for row in part) for part in (middle, end)]
    used = sum(
        os.path.getsize(os.path.join(parent, name))
        for parent, _, names in os.walk(tmp_path / "run")
        for name in names
    )
    print(f"MB resident: {largest}; open files: {files}; MB on disk: {used / 2**20}")
    assert largest[1] < 1.05 * largest[0] + 20
    assert files[1] <= files[0] + 2
