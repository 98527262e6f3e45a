"""A run's folder: written, read back, refused where it is not the same run."""

import contextlib
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import checkpoints
from ss_gan_tf.input_pipeline import open_dataset


def test_run_json_holds_config_classes_and_provenance(tiny_run, tiny_config):
    run = checkpoints.read_run(tiny_run)
    assert run.config == tiny_config
    assert len(run.class_names) == len(run.class_colors) == 7
    assert run.ignore_label == 255
    assert run.provenance["weights"]["generator"]["weights"] == "none"
    assert run.provenance["versions"]["tensorflow"]
    assert run.provenance["parameters"]["adversary"] > 0
    (machine,) = run.provenance["machines"]
    assert machine["cores"] == os.cpu_count() and "commit" in machine


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        checkpoints.read_run(str(tmp_path))


@pytest.mark.parametrize(
    "damage, rule",
    [
        (
            lambda fields: fields.update(ignore_label="255"),
            "ignore_label must be a int",
        ),
        (lambda fields: fields.update(data_dir=None), "data_dir must be a str"),
        (lambda fields: fields.update(class_names="abc"), "class_names must be"),
        (lambda fields: fields["class_colors"].pop(), "class_colors must be"),
        (lambda fields: fields["config"].update(crop_size="64"), "must be an integer"),
        (lambda fields: fields["config"].update(dropout=float("nan")), "NaN"),
        (lambda fields: fields["config"].update(val_split="../.."), "must be letters"),
        (lambda fields: fields["provenance"].update(machines=[1]), "machines must be"),
    ],
)
def test_wrong_fields_of_run_json_are_named(tiny_run, tmp_path, damage, rule):
    with open(os.path.join(tiny_run, "run.json")) as file:
        fields = json.load(file)
    damage(fields)
    (tmp_path / "run.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rule) as error:
        checkpoints.read_run(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/run.json: not a run's description")


@pytest.mark.parametrize("text", ["[" * 99_999, '{"config": 1, "config": 2}'])
def test_run_json_that_is_hardly_json(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json: not a run's description") as error:
        checkpoints.read_run(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', '{"config": {"x": 1}}'])
def test_damaged_run_json_is_one_clear_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json: not a run's description"):
        checkpoints.read_run(str(tmp_path))


def test_last_and_best_of_the_last_phase(tiny_run):
    run = checkpoints.read_run(tiny_run)
    generator, info = checkpoints.load_generator(run, "last")
    assert (info["phase"], info["step"]) == ("phase2", 4)
    assert generator.count_params() == run.provenance["parameters"]["generator"]
    _, info = checkpoints.load_generator(run, "best")
    assert info["phase"] == "phase2" and info["step"] in (0, 2, 4)
    assert os.path.join("best", "phase2") in info["checkpoint"]


def test_best_is_kept_for_each_phase(tiny_run):
    for phase in checkpoints.PHASES:
        files = os.listdir(os.path.join(tiny_run, "best", phase))
        assert sum(name.endswith(".index") for name in files) == 1


def test_no_checkpoint_yet(tiny_run, tmp_path):
    shutil.copy(os.path.join(tiny_run, "run.json"), tmp_path)
    run = checkpoints.read_run(str(tmp_path))
    assert not checkpoints.has_checkpoint(str(tmp_path))
    for which in ("last", "best"):
        with pytest.raises(FileNotFoundError, match=f"no {which} checkpoint"):
            checkpoints.load_generator(run, which)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"arm": "resnet50_g"}, "arm='vgg16_g' there, 'resnet50_g' now"),
        ({"dataset": "camvid"}, "dataset='synthetic' there, 'camvid' now"),
        ({"phase2_steps": 9}, "phase2_steps=4 there, 9 now"),
    ],
)
def test_another_run_is_refused(tiny_run, tiny_config, changes, text):
    names = checkpoints.read_run(tiny_run).class_names
    config = dataclasses.replace(tiny_config, **changes)
    with pytest.raises(ValueError, match="another --workdir") as error:
        checkpoints.check_same_run(tiny_run, config, names)
    assert text in str(error.value)


def test_other_classes_are_refused_bookkeeping_and_execution_are_not(
    tiny_run, tiny_config
):
    names = checkpoints.read_run(tiny_run).class_names
    checkpoints.check_same_run(
        tiny_run, dataclasses.replace(tiny_config, log_every=1), names
    )
    execution = {"accumulate_steps": 2, "distribute": "mirrored"}
    checkpoints.check_same_run(
        tiny_run, dataclasses.replace(tiny_config, **execution), names
    )
    with pytest.raises(ValueError, match="7 classes.*has 2"):
        checkpoints.check_same_run(tiny_run, tiny_config, ("a", "b"))


@pytest.mark.parametrize(
    ("trained_on", "now", "same"),
    [
        ({"train": "a", "val": "b"}, {"train": "a", "val": "b"}, True),
        ({"train": "a", "val": "b"}, {"train": "a", "val": "c"}, False),
        ({"train": "a", "val": "b"}, {"train": "c", "val": "b"}, False),
        # Neither trained on nor validated on, or new.
        ({"train": "a", "test": "b"}, {"train": "a", "test": "c"}, True),
        ({"train": "a"}, {"train": "a", "val": "b", "test": "c"}, True),
        ({}, {"train": "a"}, True),  # they were not kept once
        ({"train": "a"}, {}, True),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    tiny_run, tiny_config, tmp_path, trained_on, now, same
):
    workdir = str(tmp_path / "run")
    shutil.copytree(tiny_run, workdir)
    run = checkpoints.read_run(workdir)
    told = run.provenance | {"data_digests": trained_on}
    checkpoints.write_run(dataclasses.replace(run, provenance=told))
    expected = contextlib.nullcontext()
    if not same:
        expected = pytest.raises(
            ValueError, match="were others than those prepared now"
        )
    with expected:
        checkpoints.check_same_run(workdir, tiny_config, run.class_names, digests=now)
    for name in ("eval", "export", "checkpoints"):  # `best` alone was left
        shutil.rmtree(os.path.join(workdir, name))
    with expected:
        checkpoints.make_way(workdir, tiny_config, run.class_names, now)
    assert os.path.isdir(os.path.join(workdir, "best")) == (not same)


def test_a_run_knows_the_examples_of_every_split(tiny_run, tiny_data):
    digests = checkpoints.read_run(tiny_run).data_digests
    assert digests == open_dataset("synthetic", tiny_data).digests
    assert list(digests) == ["train", "val", "test"]
    assert len(set(digests.values())) == 3


def test_what_neither_run_reads_may_differ(tiny_run, tiny_config):
    # Accepted once: windows of a run that is evaluated as whole images.
    names = checkpoints.read_run(tiny_run).class_names
    windows = dataclasses.replace(tiny_config, eval_window=400)
    checkpoints.check_same_run(tiny_run, windows, names)
    sliding = dataclasses.replace(windows, eval_mode="sliding")
    with pytest.raises(ValueError, match="eval_mode='whole' there.*eval_window=500"):
        checkpoints.check_same_run(tiny_run, sliding, names)


@pytest.mark.parametrize("digests", [5, ["a"], {"train": 5}])
def test_damaged_digests_are_one_line(tiny_run, tmp_path, digests):
    with open(os.path.join(tiny_run, "run.json")) as file:
        told = json.load(file)
    told["provenance"]["data_digests"] = digests
    (tmp_path / "run.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="run.json: .*data_digests must be"):
        checkpoints.read_run(str(tmp_path))


def test_start_from_a_run_or_from_one_of_its_checkpoints(tiny_run, tiny_config):
    run = checkpoints.read_run(tiny_run)
    trained, _ = checkpoints.load_generator(run, "last")
    last = checkpoints.find_checkpoint(tiny_run, "last")
    for path in (tiny_run, last, os.path.dirname(last)):
        config = dataclasses.replace(tiny_config, init_generator=path)
        generator = checkpoints.build_run_generator(config, 7)
        info = checkpoints.initialize_generator(generator, config, run.class_names)
        assert info["init_generator"]["phase"] == "phase2"
        for ours, other in zip(generator.weights, trained.weights, strict=True):
            if "seed_generator" not in ours.path:
                np.testing.assert_array_equal(ours, other)


def test_start_from_what_does_not_fit(tiny_run, tiny_config, tmp_path):
    names = checkpoints.read_run(tiny_run).class_names

    def start(path, class_names=names, **changes):
        config = dataclasses.replace(tiny_config, init_generator=path, **changes)
        generator = checkpoints.build_run_generator(config, len(class_names))
        checkpoints.initialize_generator(generator, config, class_names)

    with pytest.raises(FileNotFoundError, match="neither a run's folder nor"):
        start(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="neither a run's folder nor"):
        start(str(tmp_path))
    with pytest.raises(ValueError, match="are not the data set's"):
        start(tiny_run, class_names=("other", *names[1:]))
    checkpoint = checkpoints.find_checkpoint(tiny_run, "last")
    with pytest.raises(ValueError, match="are not the data set's"):
        start(checkpoint, class_names=names[:3])
    with pytest.raises(ValueError, match="backbone is 'vgg16', this run's is 'resn"):
        start(checkpoint, arm="resnet50_g")
    # Without the run around it, the weights themselves have to disagree.
    for file in os.listdir(os.path.dirname(checkpoint)):
        shutil.copy(os.path.join(os.path.dirname(checkpoint), file), tmp_path)
    alone = str(tmp_path / os.path.basename(checkpoint))
    with pytest.raises(ValueError, match="not a checkpoint of this generator"):
        start(alone, class_names=names[:3])


def test_weights_of_other_dilation_rates_are_refused_though_they_fit(
    tiny_config, tmp_path
):
    """3x3 kernels at rates 12, 24, 36 have the shapes of those at 1, 2, 3."""
    config = dataclasses.replace(tiny_config, arm="resnet50")
    trained = checkpoints.build_run_generator(config, 2)
    colors = ((0, 0, 0), (9, 9, 9))
    run = checkpoints.Run(str(tmp_path), config, "data", ("a", "b"), colors, 255, {})
    checkpoints.write_run(run)
    state = tf.train.Checkpoint(generator=trained, position=checkpoints.Position())
    tf.train.CheckpointManager(
        state, str(tmp_path / "best" / "phase1"), max_to_keep=1
    ).save()
    path = tf.train.latest_checkpoint(str(tmp_path / "best" / "phase1"))
    other = dataclasses.replace(
        config, arm="resnet50_g", init_generator=path, aspp_rates=(1, 2, 3)
    )
    with pytest.raises(ValueError, match=r"aspp_rates is \(12, 24, 36\), this run's"):
        checkpoints.initialize_generator(trained, other, ("a", "b"))


@pytest.mark.parametrize("damage", ["index", "data"])
def test_a_damaged_checkpoint_is_one_clear_error(tiny_run, tmp_path, damage):
    copy = str(tmp_path / "run")
    shutil.copytree(tiny_run, copy)
    path = checkpoints.find_checkpoint(copy, "last")
    if damage == "index":
        with open(path + ".index", "wb") as file:
            file.write(b"not a table")
    else:
        os.truncate(path + ".data-00000-of-00001", 500)
    with pytest.raises(ValueError, match="not a checkpoint of this generator"):
        checkpoints.load_generator(checkpoints.read_run(copy), "last")


def test_write_run_leaves_no_half_file(tiny_run, tmp_path):
    run = dataclasses.replace(checkpoints.read_run(tiny_run), workdir=str(tmp_path))
    checkpoints.write_run(run)
    assert os.listdir(tmp_path) == ["run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["ignore_label"] == 255


def test_a_folder_without_states_keeps_what_is_worth_keeping(tiny_run, tmp_path):
    run = checkpoints.read_run(tiny_run)
    folder = tmp_path / "run"
    (folder / "best" / "phase1").mkdir(parents=True)
    checkpoints.write_run(dataclasses.replace(run, workdir=str(folder)))
    other = dataclasses.replace(run.config, phase1_steps=run.config.phase1_steps + 1)
    with pytest.raises(ValueError, match="phase1_steps"):  # not this run's
        checkpoints.make_way(str(folder), other, run.class_names)
    assert (folder / "best").exists()
    checkpoints.make_way(str(folder), run.config, run.class_names)
    assert not (folder / "best").exists()
    (folder / "export").mkdir()
    with pytest.raises(ValueError, match=r"run: holds results \(export\)"):
        checkpoints.make_way(str(folder), run.config, run.class_names)
    assert (folder / "export").exists()


def test_best_is_last_when_both_are_of_one_step(tmp_path):
    def save(folder, stage, step):
        position = checkpoints.Position()
        position.stage.assign(stage)
        position.step.assign(step)
        path = str(tmp_path / folder / "state")
        tf.train.CheckpointManager(
            tf.train.Checkpoint(position=position), os.path.dirname(path), max_to_keep=1
        ).save()

    def same():
        return checkpoints.best_is_last(str(tmp_path))

    assert not same()  # neither
    save("checkpoints", "phase2", 4)
    assert not same()  # no best one
    save("best/phase1", "phase1", 4)
    assert not same()
    save("best/phase2", "phase2", 2)
    assert not same()
    save("best/phase2", "phase2", 4)
    assert same()
    (path,) = (tmp_path / "best" / "phase2").glob("*.index")
    path.write_bytes(b"not a table")
    assert not same()


def test_weights_of_other_fc_layers_are_refused_before_they_are_read(
    tiny_config, tiny_run
):
    names = checkpoints.read_run(tiny_run).class_names
    changes = {"arm": "vgg16_g", "init_generator": tiny_run}
    checkpoints.check_start(dataclasses.replace(tiny_config, **changes), names)
    other = dataclasses.replace(tiny_config, **changes, fc_filters=1024)
    with pytest.raises(ValueError, match="its fc_filters is 4096, this run's is 1024"):
        checkpoints.check_start(other, names)


def test_a_run_has_the_fc_layers_that_it_asks_for(tiny_config):
    config = dataclasses.replace(tiny_config, width=0.125, fc_filters=1024)
    generator = checkpoints.build_run_generator(config, 3)
    assert generator.get_layer("fc6").filters == 128
