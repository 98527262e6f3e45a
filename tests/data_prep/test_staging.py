"""Finished splits: kept, given back, and forgotten when the source is another."""

import json

import pytest

from data_prep import staging
from data_prep.staging import Staging


@pytest.fixture
def written(tmp_path):
    """Two files of a split, in a folder as TFDS writes to."""
    folder = tmp_path / "incomplete.ABC_1.0.0"
    folder.mkdir()
    files = [folder / f"x-train-{i}" for i in range(2)]
    for file in files:
        file.write_text(file.name)
    return files


def test_kept_and_given_back(tmp_path, written):
    Staging(tmp_path / "kept", "a").keep("train", written, {"n": 3})
    for file in written:
        file.unlink()
    again = Staging(tmp_path / "kept", "a")
    assert again.restore("val", written[0].parent) is None
    assert again.restore("train", written[0].parent) == {"n": 3}
    assert [file.read_text() for file in written] == [file.name for file in written]
    again.remove()
    assert not (tmp_path / "kept").exists()


def test_of_another_source_nothing_is_kept(tmp_path, written):
    Staging(tmp_path / "kept", "a").keep("train", written, {})
    assert Staging(tmp_path / "kept", "b").restore("train", tmp_path) is None
    assert not (tmp_path / "kept").exists()


def test_a_split_without_its_list_was_not_finished(tmp_path, written, monkeypatch):
    def stop(facts):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        Staging(tmp_path / "kept", "a").keep("train", written, {})
    monkeypatch.undo()
    assert Staging(tmp_path / "kept", "a").restore("train", tmp_path) is None
    # What lies there does not stand in the way.
    Staging(tmp_path / "kept", "a").keep("train", written, {})


def test_the_folder_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), staging.alone_in(tmp_path / "x"):
            raise KeyError
