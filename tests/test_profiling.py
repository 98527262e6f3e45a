"""A window of steps leaves one trace, and nothing else does."""

import glob

import pytest
import tensorflow as tf

from ss_gan_tf.profiling import ProfileWindow


@pytest.fixture
def recorded(monkeypatch):
    """What the profiler is told, in order."""
    calls = []
    profiler = tf.profiler.experimental
    monkeypatch.setattr(profiler, "start", lambda logdir: calls.append("start"))
    monkeypatch.setattr(profiler, "stop", lambda: calls.append("stop"))
    return calls


def run(window, steps, calls, logdir="unused"):
    profile = ProfileWindow(logdir, window)
    for number in steps:
        with profile.step(number):
            calls.append(number)
    profile.close()


@pytest.mark.parametrize(
    "window, steps, expected",
    [
        ((2, 3), range(1, 5), [1, "start", 2, 3, "stop", 4]),
        ((1, 1), range(1, 3), ["start", 1, "stop", 2]),
        ((2, 9), [3, 4], ["start", 3, 4, "stop"]),  # resumed inside, ended early
        ((2, 3), [4, 5], [4, 5]),
        ((), [0, 1, 2], [0, 1, 2]),
        ((1, 2), [0, 0, 1, 2], [0, 0, "start", 1, 2, "stop"]),
    ],
)
def test_the_recording_covers_the_window_alone(recorded, window, steps, expected):
    run(window, steps, recorded)
    assert recorded == expected


def test_a_step_that_fails_ends_the_recording(recorded):
    profile = ProfileWindow("unused", (1, 5))
    with pytest.raises(KeyError), profile.step(1):
        raise KeyError
    profile.close()
    assert recorded == ["start", "stop"]


def test_the_trace_is_written(tmp_path):
    run((1, 2), range(1, 4), [], str(tmp_path))
    assert len(glob.glob(str(tmp_path / "plugins/profile/*/*.xplane.pb"))) == 1
