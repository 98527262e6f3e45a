"""Files that mean harm, at every door through which files come.

Which test shows what stands in WORKSPACE.md under "Hostile input".
"""

import ast
import io
import json
import os
import pathlib
import pickle
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import archives, examples, matlab
from data_prep.archives import File, SourceError
from data_prep.folder.folder_dataset_builder import read_classes
from ss_gan_tf import (
    backbones,
    checkpoints,
    per_image,
    predict,
    results,
    states,
    strict_json,
    study,
)
from ss_gan_tf.config import Config

ROOT = pathlib.Path(__file__).parents[1]
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


# --- Every door ---------------------------------------------------------------


def source(path):
    return File(str(path), os.path.getsize(path), path.read_bytes)


def restore(path):
    """A checkpoint whose two files are the one that is given."""
    folder = path.parent / "states"
    folder.mkdir()
    for suffix in (".index", ".data-00000-of-00001"):
        os.symlink(path, folder / f"state-1{suffix}")
    states.States(str(folder), 1, value=tf.Variable(0.0)).restore()


# name of the file -> what opens it
DOORS = {
    "photo.png": lambda path: predict.read_image(str(path)),
    "image.jpg": lambda path: examples.read_image(source(path)),
    "label.png": lambda path: examples.read_label(source(path), 3),
    "classes.txt": lambda path: read_classes(source(path)),
    "mask.mat": lambda path: matlab.read_field(path.read_bytes(), "GTcls", "S"),
    "source.tar": archives.open_source,
    "source.tgz": archives.open_source,
    "source.zip": archives.open_source,
    "run.json": lambda path: checkpoints.read_run(str(path.parent)),
    "config.json": lambda path: Config.from_json(path.read_text("latin-1")),
    "classes.json": lambda path: strict_json.class_table(strict_json.read(path)),
    "study.json": lambda path: study.read_study(str(path.parent)),
    "guard.jsonl": lambda path: results.guard_outcome(str(path.parent)),
    "per_image.npz": lambda path: per_image.read_per_image(str(path)),
    "eval/val/metrics.json": lambda path: results.read_metrics(
        str(path.parents[2]), "val"
    ),
    "state": restore,
    "weights.h5": lambda path: backbones._open_application(
        "resnet50", str(path), False
    ),
}
REFUSALS = (ValueError, OSError)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def open_at(tmp_path):
    """Opens bytes at a door; they have to be refused in one line."""

    def open_at(name, content):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(REFUSALS) as error:
            DOORS[name](path)
        assert str(error.value) and str(error.value).isprintable()

    return open_at


@pytest.mark.parametrize("name", DOORS)
def test_pickles_are_never_loaded(open_at, tmp_path, name):
    trap = tmp_path / "sprung"
    array = io.BytesIO()
    np.save(array, np.array([Trap(trap)], object))
    packed = io.BytesIO()
    np.savez(packed, names=np.array([Trap(trap)], object))
    for content in (pickle.dumps(Trap(trap)), array.getvalue(), packed.getvalue()):
        if name == "source.zip" and content == packed.getvalue():
            continue  # an archive that holds one file, which nobody opens
        open_at(name, content)
        for rest in (tmp_path / "in").glob("states/*"):
            rest.unlink()
        if (tmp_path / "in" / "states").exists():
            (tmp_path / "in" / "states").rmdir()
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap))).close()  # the trap works
    assert trap.exists()


@pytest.mark.parametrize("name", sorted(DOORS.keys() - {"guard.jsonl"}))
def test_an_empty_file_is_refused(open_at, name):
    open_at(name, b"")


def test_no_code_of_ours_loads_pickles():
    """Neither by name nor through NumPy, whose default is to refuse them."""
    for package in ("ss_gan_tf", "data_prep", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                unsafe = {"pickle", "dill", "joblib", "shelve", "marshal"}
                assert not unsafe & {name.split(".")[0] for name in names}, path
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    assert node.value.value is False, path


def test_links_that_lead_in_a_circle(tmp_path):
    for name in ("photo.png", "run.json", "study.json", "per_image.npz", "weights.h5"):
        (tmp_path / name).symlink_to(tmp_path / name)
        with pytest.raises(REFUSALS) as error:
            DOORS[name](tmp_path / name)
        assert str(error.value).isprintable()


# --- Photographs and prepared images ------------------------------------------

# (mode, format) of images that Pillow can write
KINDS = [
    *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
]


@st.composite
def encoded_images(draw):
    """(bytes, (height, width), mode), maybe damaged, and whether they are."""
    mode, kind = draw(st.sampled_from(KINDS))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16))
    else:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    content, damaged = bytearray(file.getvalue()), draw(st.booleans())
    if damaged and draw(st.booleans()):
        del content[draw(st.integers(0, len(content) - 1)) :]
    elif damaged:
        for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            content[place] = draw(st.integers(0, 255))
    return bytes(content), (height, width), mode, damaged


@QUICK
@given(encoded_images())
def test_a_photograph_is_read_or_refused(made):
    content, size, _, damaged = made
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "photo.jpg")  # whatever it holds
        pathlib.Path(path).write_bytes(content)
        try:
            image = predict.read_image(path, max_pixels=10**6)
        except ValueError as error:
            assert damaged and str(error).isprintable()
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert damaged or image.shape[:2] == size
        assert os.listdir(folder) == ["photo.jpg"]


@QUICK
@given(encoded_images())
def test_an_image_of_a_source_is_kept_or_refused(made):
    content, size, mode, damaged = made
    file = File("source/image", len(content), lambda: content)
    try:
        encoded, found = examples.read_image(file)
    except SourceError as error:
        assert damaged or mode == "I;16"
        assert str(error).isprintable()
    else:
        decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        assert tuple(decoded.shape) == (*found, 3) and (damaged or found == size)


@QUICK
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 255))
def test_a_label_holds_its_ids_or_is_refused(ids, num_classes):
    file = io.BytesIO()
    Image.fromarray(np.uint8([ids])).save(file, "PNG")
    content = file.getvalue()
    source = File("source/label", len(content), lambda: content)
    if max({*ids} - {255}, default=0) < num_classes:
        np.testing.assert_array_equal(examples.read_label(source, num_classes), [ids])
    else:
        with pytest.raises(SourceError, match="ids must be in"):
            examples.read_label(source, num_classes)


# --- Archives and names --------------------------------------------------------

NAMES = st.lists(
    st.text("ab./\\\n\0é:C", min_size=1, max_size=12)
    | st.sampled_from(["../x", "/x", "a/../../x", "C:\\x", "..", "a\n.png"]),
    min_size=1,
    max_size=4,
    unique=True,
)


@QUICK
@given(NAMES, st.sampled_from([".tar", ".tgz", ".zip"]))
def test_nothing_climbs_out_of_an_archive(names, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"source{suffix}")
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in names:
                    archive.writestr(zipfile.ZipInfo(name), b"x")
        else:
            mode = "w" if suffix == ".tar" else "w:gz"
            with tarfile.open(path, mode) as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = 1
                    archive.addfile(member, io.BytesIO(b"x"))
        try:
            files = archives.open_source(path)
            pairs = examples.by_name(files, (".png", ""))
        except SourceError as error:
            assert str(error).isprintable()
        else:
            for name in files:
                assert not name.startswith("/") and ".." not in name.split("/")
            assert all(map(str.isprintable, pairs))
        assert os.listdir(folder) == [path.name]


# --- Checkpoints, settings, results --------------------------------------------


@QUICK
@given(
    st.sampled_from([".index", ".data-00000-of-00001"]),
    st.integers(0, 2**16),
    st.integers(1, 255),
    st.sampled_from(["change", "cut", "remove"]),
)
def test_a_state_is_the_saved_one_the_one_before_or_refused(suffix, at, bits, how):
    with tempfile.TemporaryDirectory() as folder:
        value = tf.Variable(np.zeros(64, np.float32))
        saved = states.States(folder, 2, value=value)
        for number in (1, 2):
            value.assign(np.full(64, number))
            saved.save(number)
        path = pathlib.Path(folder, f"state-2{suffix}")
        content = bytearray(path.read_bytes())
        if how == "change":
            content[at % len(content)] ^= bits
        path.write_bytes(content[: at % len(content)] if how == "cut" else content)
        if how == "remove":
            path.unlink()
        value.assign(np.full(64, -1))
        found = states.States(folder, 2, value=value).restore()
        np.testing.assert_array_equal(value, np.full(64, int(found[-1])))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=3,
)
FIELDS = {
    "eval/val/metrics.json": ("miou", "iou", "num_images"),
    "study.json": ("settings", "machine", "runs"),
    "run.json": ("config", "class_names", "class_colors", "data_dir", "provenance"),
    "config.json": ("arm", "crop_size", "aspp_rates", "seed", "guard", "width"),
    "guard.jsonl": ("step", "action", "why"),
}


@QUICK
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_any_json_is_read_or_refused_in_one_line(name, data):
    fields = st.dictionaries(st.sampled_from(FIELDS[name]), JSON)
    text = json.dumps(data.draw(fields | JSON))
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        try:
            DOORS[name](path)
        except ValueError as error:
            assert str(error) and str(error).isprintable()


@QUICK
@given(st.integers(0, 2**16), st.integers(1, 255))
def test_counts_of_images_are_read_or_refused(at, bits):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "per_image.npz")
        images = per_image.Collector()
        for name in ("a", "b"):
            images.add(name, {"confusion": np.eye(2, dtype=np.int64)})
        per_image.write_per_image(images.result(("sky", "car")), str(path))
        content = bytearray(path.read_bytes())
        content[at % len(content)] ^= bits
        path.write_bytes(content)
        try:
            found = per_image.read_per_image(str(path))
        except ValueError as error:
            assert str(error).isprintable()
        else:
            assert found.counts["confusion"].shape == (2, 2, 2)


def test_counts_that_unpack_to_more_than_memory_holds(tmp_path):
    """A kilobyte of zeros a megabyte; a header that claims a petabyte."""
    header = io.BytesIO()
    claimed = {"descr": "<i8", "fortran_order": False, "shape": (2**47,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    path = tmp_path / "per_image.npz"
    for content, message in (
        (header.getvalue(), "not a file of counts"),
        (bytes(2**21), "unpacks to 2097152 bytes, at most 1048576 are read"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("names.npy", content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(per_image, "MAX_BYTES", 2**20)
            with pytest.raises(ValueError, match=message) as error:
                per_image.read_per_image(str(path))
        assert str(error.value).isprintable()
