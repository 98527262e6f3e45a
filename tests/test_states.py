"""Checkpoints on disk: whole or not there, the newest that can be read."""

import logging
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import states


@pytest.fixture
def make(tmp_path):
    """(variable, States) of the folder, as a new process would make them."""

    def make(keep=2):
        value = tf.Variable(np.zeros(1000, np.float32))
        return value, states.States(str(tmp_path / "s"), keep, value=value)

    return make


def test_the_newest_stay_and_come_back(make):
    value, saved = make()
    assert saved.restore() is None
    for number in (3, 10, 20):
        value.assign_add(np.ones(1000))
        path = saved.save(number)
    assert states.numbers(saved.folder) == [10, 20]
    assert tf.train.latest_checkpoint(saved.folder) == path
    value, saved = make()
    assert saved.restore() == path
    assert value.numpy()[0] == 3


def damage(path, how):
    data = path + ".data-00000-of-00001"
    if how == "bit":
        with open(data, "r+b") as file:
            file.seek(2000)
            byte = file.read(1)[0]
            file.seek(2000)
            file.write(bytes([byte ^ 1]))
    elif how == "short":
        os.truncate(data, 100)
    elif how == "missing":
        os.remove(data)
    else:
        os.truncate(path + ".index", 5)


@pytest.mark.parametrize("how", ["bit", "short", "missing", "index"])
def test_behind_a_damaged_one_the_one_before_is_taken_aloud(make, how, caplog):
    value, saved = make()
    for number in (1, 2):
        value.assign_add(np.ones(1000))
        saved.save(number)
    damage(saved._path(2), how)
    value, saved = make()
    with caplog.at_level(logging.WARNING):
        assert saved.restore() == saved._path(1)
    assert f"{saved._path(2)}: damaged" in caplog.text
    np.testing.assert_array_equal(value, np.ones(1000))
    saved.save(2)
    assert states.numbers(saved.folder) == [1, 2]


def test_none_that_can_be_read_is_an_error_and_not_a_new_run(make):
    value, saved = make()
    saved.save(1)
    damage(saved._path(1), "bit")
    with pytest.raises(ValueError, match="none of its checkpoints .*state-1"):
        make()[1].restore()


def test_the_file_called_checkpoint_does_not_decide(make):
    _, saved = make()
    saved.save(1)
    shutil.copy(os.path.join(saved.folder, "checkpoint"), saved.folder + ".old")
    path = saved.save(2)
    shutil.move(saved.folder + ".old", os.path.join(saved.folder, "checkpoint"))
    assert make()[1].restore() == path


def test_a_folder_that_was_moved_still_names_its_newest(make, tmp_path):
    _, saved = make()
    saved.save(1)
    shutil.move(saved.folder, tmp_path / "moved")
    assert tf.train.latest_checkpoint(str(tmp_path / "moved")).endswith("moved/state-1")


@pytest.mark.parametrize("keep", [1, 2])
def test_what_cannot_be_written_whole_leaves_the_older_ones(make, keep, monkeypatch):
    value, saved = make(keep)
    value.assign(np.ones(1000))
    saved.save(1)
    real = saved._checkpoint.write

    def cut_short(path):
        real(path)
        os.truncate(path + ".data-00000-of-00001", 1000)

    monkeypatch.setattr(saved._checkpoint, "write", cut_short)
    with pytest.raises(OSError, match=r"state-2: could not be written \(.*make room"):
        saved.save(2)
    assert {name.split(".")[0] for name in os.listdir(saved.folder)} == {
        "checkpoint",
        "state-1",
    }
    value, saved = make(keep)
    assert saved.restore() == saved._path(1) and value.numpy()[0] == 1


def test_what_a_kill_left_halfway_goes_with_the_next_save(make):
    _, saved = make()
    saved.save(1)
    halfway = os.path.join(saved.folder, "state-2_temp")
    os.makedirs(halfway)
    saved.save(3)
    assert not os.path.exists(halfway)
    assert states.numbers(saved.folder) == [1, 3]


def test_memory_keeps_floats_bit_for_bit(tmp_path):
    memory = states.Memory()
    values = {"a": 0.1 + 0.2, "b": [None, "x", {"c": 1e-300}]}
    memory.write(values)
    saved = states.States(str(tmp_path), 1, memory=memory)
    saved.save(1)
    memory.write({})
    saved.restore()
    assert memory.read() == values
