"""What cannot come to its end is refused before a network is built."""

import dataclasses
import json
import logging
import shutil
import types
from pathlib import Path

import pytest

from ss_gan_tf import lock, preflight, resources, stages
from ss_gan_tf.config import Config
from ss_gan_tf.input_pipeline import open_dataset
from ss_gan_tf.train import train

GIB = resources.GIB


@pytest.fixture
def nothing_is_built(monkeypatch):
    monkeypatch.setattr(
        stages, "create_networks", lambda *_, **__: pytest.fail("it was built")
    )


@pytest.fixture
def data(tiny_data):
    return open_dataset("synthetic", tiny_data)


@pytest.fixture
def room(monkeypatch):
    """Sets what is free, bytes."""

    def have(disk=10**15, memory=10**15):
        monkeypatch.setattr(resources, "free_disk", lambda _: disk)
        monkeypatch.setattr(resources, "free_memory", lambda: memory)
        monkeypatch.setattr(resources, "own_memory", lambda: 0)
        monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda _: [])

    return have


def test_what_is_needed_and_free_is_logged(data, tmp_path, room, caplog):
    room(disk=100 * GIB, memory=64 * GIB)
    with caplog.at_level(logging.INFO):
        preflight.check(Config(backbone_weights="none"), data, str(tmp_path))
    assert "about 7.07 GiB of disk are needed, 100.00 GiB are free" in caplog.text
    assert "GiB of memory are needed, 64.00 GiB are free" in caplog.text
    room(memory=None)
    with caplog.at_level(logging.INFO):
        preflight.check(Config(backbone_weights="none"), data, str(tmp_path))
    assert "how much is free is not known here" in caplog.text


@pytest.mark.parametrize(
    "have, text",
    [
        (
            {"disk": 5 * GIB},
            r"workdir=.*: about 7.07 GiB of disk .*, 5.00 GiB are free",
        ),
        (
            {"memory": GIB},
            "batch_size=2, crop_size=500: about .* of memory .* 1.00 GiB",
        ),
        ({"memory": -5}, "0.00 GiB are free"),
    ],
)
def test_what_cannot_fit_is_refused(
    data, tiny_data, tmp_path, room, nothing_is_built, have, text
):
    room(**have)
    with pytest.raises(ValueError, match=text) as error:
        train(Config(backbone_weights="none"), tiny_data, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "own, have, level",
    [(0, 10, "INFO"), (0, 9, "WARNING"), (0, 6.7, "WARNING"), (0, 6.6, None)]
    + [(4, 6, "INFO"), (4, 5, "WARNING"), (4, 3.9, None), (11, 0, "INFO")],
)
def test_memory_is_refused_by_far_only(
    data, tmp_path, room, monkeypatch, caplog, own, have, level
):
    """10 GiB are needed in all: refused where 1.5 times what is free is less."""
    room(memory=int(have * GIB))
    monkeypatch.setattr(resources, "memory_bytes", lambda *_, **__: 10 * GIB)
    monkeypatch.setattr(resources, "own_memory", lambda: own * GIB)
    config = Config(backbone_weights="none")
    if level is None:
        with pytest.raises(ValueError, match="GiB of memory are needed"):
            preflight.check(config, data, str(tmp_path))
        return
    with caplog.at_level(logging.INFO):
        preflight.check(config, data, str(tmp_path))
    (said,) = [r for r in caplog.records if "of memory are needed" in r.message]
    assert said.levelname == level


def test_memory_is_not_estimated_for_a_gpu(data, tmp_path, room, monkeypatch):
    room(memory=0)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda _: ["GPU:0"])
    preflight.check(Config(backbone_weights="none"), data, str(tmp_path))


@pytest.mark.parametrize("devices, said", [([], 1), (["GPU:0"], 0)])
def test_half_precision_without_a_gpu_is_said(
    data, tmp_path, room, monkeypatch, caplog, devices, said
):
    room()
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda _: devices)
    config = Config(backbone_weights="none", precision="mixed_float16")
    preflight.check(config, data, str(tmp_path))
    assert caplog.text.count("precision=mixed_float16: is for GPUs") == said


def test_one_phase_needs_less_disk(data, tmp_path, room):
    room(disk=int(6.9 * GIB))
    both = Config(backbone_weights="none", lambda_adv=0.0)
    preflight.check(dataclasses.replace(both, arm="vgg16"), data, str(tmp_path))
    with pytest.raises(ValueError, match="of disk are needed"):
        preflight.check(both, data, str(tmp_path))


@pytest.mark.parametrize(
    "changes, guarded, average",
    [
        ({}, False, False),
        ({"guard": True, "ema_decay": 0.99}, True, True),
        ({"guard": True, "placebo": "entropy"}, False, False),
        ({"guard": True, "lambda_adv": 0.0}, False, False),
        ({"guard": True, "arm": "vgg16"}, False, False),
    ],
)
def test_guard_and_average_are_counted(
    data, tmp_path, room, monkeypatch, changes, guarded, average
):
    room()
    asked = []
    monkeypatch.setattr(resources, "disk_bytes", lambda *_, **k: asked.append(k) or 1)
    preflight.check(Config(backbone_weights="none", **changes), data, str(tmp_path))
    (settings,) = asked
    assert (settings["guarded"], settings["average"]) == (guarded, average)


@pytest.mark.parametrize("field", ["train_split", "val_split"])
def test_a_split_without_a_labelled_pixel_is_refused(data, tmp_path, room, field):
    room()
    folder = tmp_path / "data" / "synthetic" / "1.0.0"
    shutil.copytree(data.builder.data_dir, folder)
    told = json.loads((folder / "summary.json").read_text())
    split = {"train_split": "train", "val_split": "val"}[field]
    told["splits"][split]["class_pixels"] = [0] * data.num_classes
    (folder / "summary.json").write_text(json.dumps(told))
    empty = dataclasses.replace(data, builder=types.SimpleNamespace(data_dir=folder))
    config = Config(backbone_weights="none")
    with pytest.raises(ValueError, match=f"^{field}={split}: not one pixel"):
        preflight.check(config, empty, str(tmp_path))
    (folder / "summary.json").unlink()  # is not needed
    preflight.check(config, empty, str(tmp_path))


def test_a_run_does_not_go_into_the_datas_folder(data, tiny_data, tmp_path, room):
    room()
    config = Config(backbone_weights="none")
    version = Path(data.builder.data_dir)
    for folder in (tiny_data, version.parent, version):
        with pytest.raises(ValueError, match="is the data's folder"):
            preflight.check(config, data, str(folder))


def test_the_origin_is_looked_at_before_anything_is_built(
    tiny_run, tiny_data, tiny_config, tmp_path, nothing_is_built
):
    def start(message, kind=ValueError, **changes):
        config = dataclasses.replace(tiny_config, **changes)
        with pytest.raises(kind, match=message):
            train(config, tiny_data, str(tmp_path / "new"))

    start("its width is 0.03125", init_generator=tiny_run, width=0.125)
    start("neither a run's folder", FileNotFoundError, init_generator="nowhere")
    weights = {"width": 1.0, "backbone_weights": "nowhere.h5"}
    start("backbone_weights=nowhere.h5", FileNotFoundError, **weights)
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    fields = json.loads((other / "run.json").read_text())
    fields["class_names"][0] = "another"
    (other / "run.json").write_text(json.dumps(fields))
    start("its classes .* are not the data set's", init_generator=str(other))
    # Its batch normalisation was trained, and must not freeze without a word.
    fields["class_names"] = json.loads((Path(tiny_run) / "run.json").read_text())[
        "class_names"
    ]
    fields["config"] |= {"arm": "resnet50", "width": 1.0}
    (other / "run.json").write_text(json.dumps(fields))
    start(
        "its backbone_weights is 'none', this run's is 'imagenet'; .* none or neither",
        arm="resnet50_g",
        init_generator=str(other),
        width=1.0,
        backbone_weights="imagenet",
    )


@pytest.mark.parametrize(
    "changes", [{"init_generator": "gone"}, {"backbone_weights": "gone.h5"}]
)
def test_a_resumed_run_needs_its_origin_no_more(data, tmp_path, room, changes):
    room()
    config = Config(**{"backbone_weights": "none"} | changes)
    preflight.check(config, data, str(tmp_path), resumes=True)
    with pytest.raises(FileNotFoundError, match="gone"):
        preflight.check(config, data, str(tmp_path), resumes=False)


def test_train_says_whether_it_resumes(
    tiny_run, tiny_data, tiny_config, tmp_path, monkeypatch
):
    class Asked(Exception):
        pass

    def asked(*_, resumes):
        raise Asked(resumes)

    monkeypatch.setattr(preflight, "check", asked)
    for copied in (False, True):
        folder = str(tmp_path / f"run{copied}")
        if copied:
            shutil.copytree(tiny_run, folder)
        with pytest.raises(Asked, match=str(copied)):
            train(tiny_config, tiny_data, folder)


def test_a_second_run_in_the_folder_is_refused(
    tiny_data, tiny_config, tmp_path, nothing_is_built
):
    with lock.alone_in(str(tmp_path)):
        with pytest.raises(ValueError, match="another run is at work there"):
            train(tiny_config, tiny_data, str(tmp_path))


def test_crops_larger_than_every_image_are_said(data, tmp_path, room, caplog):
    room()
    config = Config(backbone_weights="none", crop_size=161)
    preflight.check(config, data, str(tmp_path))
    assert "crop_size=161: is larger than every training image" in caplog.text
    assert "the largest has 160 pixels" in caplog.text
    caplog.clear()
    config = dataclasses.replace(config, crop_size=160)
    preflight.check(config, data, str(tmp_path))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"splits": {"train": {}}}'])
def test_data_without_a_summary_will_do(tmp_path, room, text):
    room()
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    builder = types.SimpleNamespace(data_dir=str(tmp_path))
    data = types.SimpleNamespace(builder=builder, class_names=("a",))
    preflight.check(Config(backbone_weights="none"), data, str(tmp_path / "run"))
