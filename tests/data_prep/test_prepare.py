"""The command: what it writes, what it says, and how it ends."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from data_prep.archives import SourceError, sizes_alone
from data_prep.prepare import describe, prepare
from ss_gan_tf import input_pipeline

ROOT = pathlib.Path(__file__).parents[2]


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.prepare", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_prepares_says_so_and_does_it_once(tmp_path):
    flags = ["--dataset=synthetic", f"--data_dir={tmp_path}", "--num_examples=4"]
    first, second = run(*flags), run(*flags, "--verify")
    assert first.returncode == second.returncode == 0, first.stderr
    assert f"Prepared: synthetic in {tmp_path}/synthetic/1.0.0" in first.stdout
    assert "train: 4 examples (of 400)" in first.stdout
    assert "7 classes: road, building" in first.stdout
    assert "Already prepared: synthetic" in second.stdout
    assert "Verified: 6 examples of 3 splits" in second.stdout
    assert "val: 1 of 1 examples, 00:00:00 left" in first.stderr
    prepared = input_pipeline.open_dataset("synthetic", str(tmp_path))
    assert prepared.split_sizes == {"train": 4, "val": 1, "test": 1}
    # No folder of downloads, nothing unfinished.
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]
    assert [path.name for path in (tmp_path / "synthetic").iterdir()] == ["1.0.0"]
    # Data of an earlier version, in a folder that takes no file.
    summary = tmp_path / "synthetic" / "1.0.0" / "summary.json"
    stored = json.loads(summary.read_text())
    del stored["splits"]["val"]["digest"]
    summary.write_text(json.dumps(stored))
    summary.with_name("summary.json.partial").mkdir()
    third = run(*flags, "--verify")
    assert third.returncode == 0 and "Verified: 6 examples" in third.stdout
    assert "Digests that the summary lacks were not added: " in third.stdout


def test_command_ends_in_one_line(draw_folder, tmp_path):
    source = draw_folder(tmp_path / "source")
    mask = source / "labels" / "val" / "y.png"
    Image.new("RGB", (7, 9)).save(mask)
    data = tmp_path / "data"
    done = run("--dataset=folder", f"--source_dir={source}", f"--data_dir={data}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"prepare: {mask}: label is saved as colours (mode RGB)" in last
    # `train` was fine and written before `val`: it must not be left behind.
    assert not [path for path in data.rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        input_pipeline.open_dataset("folder", str(data))


def test_preparing_again_needs_no_source(draw_folder, tmp_path):
    source, data = draw_folder(tmp_path / "source"), str(tmp_path / "data")
    first = prepare("folder", str(source), data)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert describe(prepare("folder", None, data)) == describe(first)
    assert describe(prepare("folder", str(source), data)) == describe(first)
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_how_a_source_is_packed_makes_no_other_data(draw_folder, tmp_path):
    source = draw_folder(tmp_path / "source")
    packed = shutil.make_archive(str(tmp_path / "packed" / "mine"), "tar", source)
    digests = []
    for number, place in enumerate((source, packed, source)):
        data = str(tmp_path / f"data{number}")
        prepare("folder", str(place), data)
        digests.append(input_pipeline.open_dataset("folder", data).digests)
        (source / "notes.md").write_text("of no example")
    assert digests[0] == digests[1] == digests[2]
    Image.new("RGB", (7, 9)).save(source / "images" / "val" / "y.png")
    prepare("folder", str(source), str(tmp_path / "other"))
    other = input_pipeline.open_dataset("folder", str(tmp_path / "other")).digests
    assert other["train"] == digests[0]["train"] and other["val"] != digests[0]["val"]


def test_another_source_is_not_taken_for_the_first(draw_folder, tmp_path):
    source, data = draw_folder(tmp_path / "source"), str(tmp_path / "data")
    prepare("folder", str(source), data)
    other = draw_folder(tmp_path / "other", splits=("train",))
    with pytest.raises(SourceError, match="was prepared from another source"):
        prepare("folder", str(other), data)
    with pytest.raises(SourceError, match="was prepared from another source"):
        prepare("synthetic", None, data, num_examples=2)
        prepare("synthetic", None, data, num_examples=3)


def test_corrected_class_names_are_another_source(draw_folder, tmp_path):
    source, data = draw_folder(tmp_path / "source"), str(tmp_path / "data")
    prepare("folder", str(source), data)
    text = (source / "classes.txt").read_text()
    (source / "classes.txt").write_text(text.replace("car", "bus"))
    with pytest.raises(SourceError, match="was prepared from another source"):
        prepare("folder", str(source), data)


def test_data_may_lie_in_the_source(draw_folder, tmp_path, monkeypatch):
    source = draw_folder(tmp_path / "source")
    monkeypatch.chdir(source)
    first = prepare("folder", ".", "data")
    prepare("synthetic", None, "data", num_examples=2)
    for same in (".", str(source)):
        assert describe(prepare("folder", same, "data")) == describe(first)
    with pytest.raises(SourceError, match="--data_dir=.*/source: is --source_dir too"):
        prepare("folder", ".", str(source))


def test_what_was_prepared_when_texts_did_not_count_is_accepted(draw_folder, tmp_path):
    source, data = draw_folder(tmp_path / "source"), str(tmp_path / "data")
    done = prepare("folder", str(source), data)
    path = pathlib.Path(done.data_dir) / "metadata.json"
    stored = json.loads(path.read_text())
    stored["origin"] = sizes_alone(stored["origin"])
    path.write_text(json.dumps(stored))
    assert describe(prepare("folder", str(source), data)) == describe(done)
    (source / "classes.txt").write_text("other\n")
    with pytest.raises(SourceError, match="was prepared from another source"):
        prepare("folder", str(source), data)


@pytest.mark.parametrize("dataset", ["camvid", "folder"])
def test_source_is_needed(tmp_path, dataset):
    with pytest.raises(SourceError, match="--source_dir is missing"):
        prepare(dataset, None, str(tmp_path))
    with pytest.raises(SourceError, match="/nowhere: there is no such folder"):
        prepare(dataset, "/nowhere", str(tmp_path))


def test_faulty_camvid(draw_camvid, tmp_path):
    source = draw_camvid(tmp_path / "source", counts={"train": 1, "val": 1})
    with pytest.raises(SourceError, match="source/test: folder is missing or empty"):
        prepare("camvid", str(source), str(tmp_path / "data"))


def test_options_of_other_data_sets(tmp_path):
    with pytest.raises(SourceError, match="num_examples is for synthetic"):
        prepare("camvid", str(tmp_path), str(tmp_path), num_examples=3)
    with pytest.raises(
        SourceError, match="'cam' is not one of synthetic, voc_sbd, city"
    ):
        prepare("cam", None, str(tmp_path))
