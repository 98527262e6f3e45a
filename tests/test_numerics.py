"""What is compared with what, and that an equal run is equal."""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments import numerics as program
from ss_gan_tf import numerics
from ss_gan_tf.config import Config

VARIANTS = ["float32-rounded", "bfloat16"]
UP_AND_DOWN = [(numerics._nudged, np.inf), (numerics._nudged, -np.inf)]


def run(*losses, miou):
    return {"losses": {"phase1 mce": list(losses)}, "miou": miou}


def test_differences_by_hand():
    runs = {
        ("float32", 0): run(3.0, 1.0, miou=0.50),
        ("float32", 1): run(9.0, 9.0, miou=0.53),
        ("bfloat16", 0): run(3.0, 1.2, miou=0.52),
        ("float32-xla", 0): run(3.01, 1.0, miou=0.46),
    }
    result = numerics.compare(runs, 0)
    bfloat16, xla = result["rows"]
    # 0.2 of a mean of 2, in one of two steps.
    assert bfloat16["largest"] == pytest.approx(0.1) and not bfloat16["within"]
    assert bfloat16["mean"] == pytest.approx(0.05) and bfloat16["float32"] == 2
    assert (bfloat16["largest_at"], xla["largest_at"]) == (2, 1)
    assert xla["largest"] == pytest.approx(0.005) and xla["within"]
    assert result["spread"] == pytest.approx(0.03)  # of float32's seeds alone
    # 2 points against 3, and 4 against 3.
    assert [end["within"] for end in result["miou"]] == [True, False]
    text = numerics.format_table(result)
    assert (
        "| bfloat16 | phase1 mce | 2.0000 | 10.00% | 5.00% | 6.0%, 2.0% | **outside**"
        in (text)
    )
    assert "float32-xla: 46.00, -4.00 points, **outside**" in text


def test_a_mean_above_a_third_is_outside():
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.5),
        ("bfloat16", 0): run(1.03, 1.03, miou=0.5),
    }
    (row,) = numerics.compare(runs, 0)["rows"]
    assert row["largest"] < row["allowed"][0] and not row["within"]


@pytest.mark.parametrize("variant", ["bfloat16", "bfloat16-xla"])
@pytest.mark.parametrize("yardstick", [*numerics.ROUNDINGS, *numerics.NUDGES])
@pytest.mark.parametrize(
    "moved, allowed, within",
    [
        (0.04, [0.06, 0.03], False),
        (0.08, [0.12, 0.06], False),
        (0.10, [0.15, 0.075], True),
    ],
)
def test_bfloat16_may_be_off_as_far_as_a_float32_run_moves_at_all(
    variant, yardstick, moved, allowed, within
):
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.5),
        # At once, where a change of the first weights takes its time.
        (variant, 0): run(1.14, 1.0, miou=0.5),
        (yardstick, 0): run(1.0, 1.0 - moved, miou=0.9),
        ("float32-xla", 0): run(1.01, 1.0, miou=0.5),
    }
    result = numerics.compare(runs, 0)
    bfloat16, moves, xla = result["rows"]
    assert bfloat16["allowed"] == pytest.approx(allowed)
    assert bfloat16["within"] is within and xla["within"] is True
    assert moves["largest"] == pytest.approx(moved)
    assert moves["allowed"] is moves["within"] is None
    # The mIoU is held to the seeds' spread, whatever a yardstick's is.
    assert [end["within"] for end in result["miou"]] == [True, None, True]
    assert "% | - | yardstick |" in numerics.format_table(result)


def test_what_bfloat16_is_off_in_the_mean_is_held_to_the_largest_mean():
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.5),
        ("bfloat16", 0): run(1.05, 1.05, miou=0.5),
        ("float32-rounded", 0): run(1.06, 1.0, miou=0.5),
        ("float32-nudged", 0): run(1.03, 1.04, miou=0.5),
    }
    row = numerics.compare(runs, 0)["rows"][0]
    assert row["allowed"] == pytest.approx([0.09, 0.0525]) and row["within"] is True


def test_yardsticks_start_from_changed_weights(monkeypatch):
    generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    generator.set_weights([np.array([[1 + 2**-7], [1 + 2**-9]]), np.array([-3e38])])
    networks = types.SimpleNamespace(generator=generator)
    monkeypatch.setattr(numerics.stages, "make_stages", lambda *given: given)
    given = "config", networks, 255
    nearest = functools.partial(numerics._rounded, None)
    assert numerics._stages_from(nearest, *given) == given
    kernel, bias = generator.get_weights()
    assert kernel.ravel().tolist() == [1 + 2**-7, 1]  # bfloat16 has seven bits
    assert bias.dtype == np.float32 and abs(bias / -3e38 - 1) < 2**-8
    up, down = list(numerics.NUDGES.values())[:2]
    for towards, expected in (
        (up, [1 + 2**-23, -1 + 2**-24]),  # float32 has 23 bits
        (down, [1 - 2**-24, -1 - 2**-23]),
    ):
        generator.set_weights([np.array([[1], [-1]]), np.zeros(1)])
        change = functools.partial(numerics._nudged, towards)
        numerics._stages_from(change, *given)
        kernel, bias = generator.get_weights()
        assert kernel.ravel().tolist() == expected
        assert bias.dtype == np.float32 and 0 < bias * np.sign(towards) < 1e-37


def test_further_roundings_move_each_weight_by_a_draw_as_far_as_rounding_does():
    weights = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    weights[0] = [0.0, 1.0, -(2.0**-100), 1.9] * 10
    nearest = numerics._rounded(None, tf.constant(weights)) - weights
    _, exponent = np.frexp(weights)
    half = np.ldexp(1.0, exponent - 9)  # of the last bit of bfloat16
    assert 0.95 < np.abs(nearest / half).max() <= 1
    spread = pytest.approx(3**-0.5, rel=0.05)  # any distance is as likely as any other
    assert (nearest / half)[1:].numpy().std() == spread
    moves = []
    for seed in list(numerics.ROUNDINGS.values())[1:]:
        draws = np.random.default_rng(seed)
        for _ in range(2):  # two variables of one shape
            moved = numerics._rounded(draws, tf.constant(weights)).numpy()
            assert moved.dtype == np.float32
            assert np.all(moved[weights == 0] == 0)
            share = ((moved - weights) / half)[1:]
            assert 0.95 < np.abs(share).max() <= 1.001  # rounded to float32
            assert abs(share.mean()) < 0.05
            assert share.std() == spread
            moves.append(share.ravel())
    for one, other in itertools.combinations(moves, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_further_nudges_draw_a_direction_for_each_weight():
    weights = tf.constant(np.random.default_rng(0).normal(size=(30, 40)), tf.float32)
    moved = []
    for seed in list(numerics.NUDGES.values())[2:]:
        draws = np.random.default_rng(seed)
        for _ in range(2):  # two variables of one shape
            nudged = numerics._nudged(draws, weights).numpy()
            assert nudged.dtype == np.float32
            up = nudged > weights.numpy()
            ends = np.where(up, np.inf, -np.inf).astype(np.float32)
            np.testing.assert_array_equal(nudged, np.nextafter(weights, ends))
            assert 0.4 < up.mean() < 0.6
            moved.append(up)
    for one, other in itertools.combinations(moved, 2):
        assert 0.4 < (one == other).mean() < 0.6


REJOINING = Config(
    arm="vgg16_g", crop_size=64, batch_size=1, width=0.03125, dropout=0.0,
    backbone_weights="none", phase1_steps=4, phase2_steps=4, jit_compile="off",
    lambda_adv=1.0,
)  # fmt: skip


def losses_of(make_stages, networks, sees=lambda: None):
    """Of four steps of each stage on drawn images, all in a row."""
    rng = np.random.default_rng(1)
    found = []
    for stage in make_stages(REJOINING, networks, 255):
        for _ in range(stage.num_steps):
            image = tf.constant(rng.normal(0, 60, (1, 64, 64, 3)), tf.float32)
            label = tf.constant(rng.integers(0, 3, (1, 64, 64)), tf.int32)
            scalars = stage.step(image, label)
            found += [float(v) for k, v in scalars.items() if k.startswith("loss/")]
            sees()
    return found


def other_networks():
    """Weights that the run's seed does not lead to."""
    config = dataclasses.replace(REJOINING, seed=5)
    return numerics.stages.create_networks(config, ("a", "b", "c"))


@pytest.fixture(scope="module")
def plain_run():
    """Its losses, and its networks at the end."""
    networks = other_networks()
    return losses_of(numerics.stages.make_stages, networks), networks


def test_one_that_rejoins_itself_has_the_runs_own_losses(plain_run):
    networks = other_networks()
    way = numerics.VARIANTS["float32"]
    rejoining = functools.partial(numerics._rejoining_stages, way, "DATA")
    assert losses_of(rejoining, networks) == plain_run[0] and len(plain_run[0]) == 20


def test_bfloat16_goes_its_own_way_for_one_update(plain_run, monkeypatch):
    create, followers = numerics.stages.create_networks, []

    def remember(*given):
        assert given[1] == ("a", "b", "c")
        followers.append(create(*given))
        return followers[-1]

    ours, apart = other_networks(), []
    monkeypatch.setattr(numerics.stages, "create_networks", remember)

    def sees():
        theirs = followers[0].generator.trainable_variables
        pairs = zip(theirs, ours.generator.trainable_variables, strict=True)
        apart.append(max(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs))

    way = numerics.VARIANTS["bfloat16"]
    found = losses_of(
        functools.partial(numerics._rejoining_stages, way, "DATA"), ours, sees
    )
    assert followers[0].generator.compute_dtype == "bfloat16"
    # Weights are as far apart as one update of either leads at most, then two.
    assert all(0 < one < 2.1e-4 for one in apart[::2])
    assert all(one > 0 for one in apart[1::2])
    np.testing.assert_allclose(found, plain_run[0], rtol=0.05)  # small and random
    assert found != plain_run[0]
    # The run itself is as it is without another beside it.
    ends = plain_run[1].variables, ours.variables
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_a_rejoined_one_the_losses_are_compared_alone():
    runs = {
        ("float32", 0): run(3.0, 1.0, miou=0.50),
        ("bfloat16-rejoined", 0): run(3.0, 1.03, miou=0.50),
        ("float32-xla-rejoined", 0): run(3.0, 1.005, miou=0.50),
        # which changes nothing of theirs
        ("float32-nudged", 0): run(9.0, 9.0, miou=0.50),
    }
    result = numerics.compare(runs, 0)
    rows = {row["variant"]: row for row in result["rows"]}
    assert rows["bfloat16-rejoined"]["within"] is False  # its mean: 0.75 % of 0.67
    assert rows["bfloat16-rejoined"]["allowed"] == pytest.approx([0.02, 0.02 / 3])
    assert rows["float32-xla-rejoined"]["outside_from"] == 2
    assert [end["variant"] for end in result["miou"]] == ["float32-nudged"]


def test_a_rejoined_ones_large_loss_is_held_against_itself():
    runs = {
        ("float32", 0): run(4.0, 1.0, 1.0, miou=0.5),  # 2 in the mean
        ("bfloat16-rejoined", 0): run(4.06, 1.0, 1.008, miou=0.5),
    }
    (row,) = numerics.compare(runs, 0)["rows"]
    assert row["largest"] == pytest.approx(0.06 / 4) and row["within"]
    assert row["mean"] == pytest.approx((0.06 / 4 + 0.008 / 2) / 3)


def test_losses_of_the_first_steps_are_compared_and_the_miou_at_the_end():
    losses = np.ones(60)
    runs = {
        ("float32", 0): run(*losses, miou=0.50),
        ("float32", 1): run(*losses, miou=0.52),
        ("bfloat16", 0): run(*np.where(np.arange(60) < 50, 1, 9), miou=0.53),
    }
    result = numerics.compare(runs, 0, compared_steps=50)
    (row,) = result["rows"]
    assert row["largest"] == 0 and row["within"] and row["steps"] == [50, 60]
    assert result["miou"][0]["within"] is False
    assert "\n\nphase1: losses of the first 50 of 60 steps\n" in numerics.format_table(
        result
    )
    result = numerics.compare(runs, 0, compared_steps=51)
    assert result["rows"][0]["outside_from"] == 51
    result = numerics.compare(runs, 0)  # all of them
    assert result["rows"][0]["outside_from"] == 51
    assert "the first" not in numerics.format_table(result)


def change_of(make_stages):
    """What it does to G's weights: a function, or one with the arguments it has."""
    if getattr(make_stages, "func", None) is numerics._rejoining_stages:
        return make_stages.args  # nothing
    (change,) = getattr(make_stages, "args", [None])
    return change and (change.func, *change.args)


@pytest.fixture(autouse=True)
def digests(monkeypatch):
    """Of data that is not there."""
    known = {}
    prepared = types.SimpleNamespace(digests=known, class_names=("a", "b", "c"))
    monkeypatch.setattr(numerics, "open_dataset", lambda *_: prepared)
    return known


@pytest.fixture
def one_step(monkeypatch):
    """Runs of one step each, in no time; what each did to G's weights (`change_of`)."""
    changes = []

    def train(config, data_dir, workdir, progress, make_stages):
        changes.append(change_of(make_stages))
        pathlib.Path(workdir).mkdir()
        progress("phase1", 1, 1, {"loss/mce": 1.0})
        return {"miou": 0.5}

    monkeypatch.setattr(numerics, "train", train)
    return changes


def test_runs_on_other_data_are_not_taken(one_step, tmp_path, digests):
    given = Config(dataset="camvid"), "DATA", str(tmp_path), [], 2
    digests |= {"train": "x", "val": "v", "test": "t"}
    numerics.run_variants(*given)
    digests["test"] = "u"  # which the run does not use
    numerics.run_variants(*given)
    digests["val"] = "w"
    with pytest.raises(ValueError, match="float32-0.json: .* other examples of val"):
        numerics.run_variants(*given)


def test_finished_runs_are_shown_without_the_data(one_step, monkeypatch, tmp_path):
    def open_nothing(name, data_dir):
        raise FileNotFoundError(f"{name} is not prepared")

    first = numerics.run_variants(Config(), "DATA", str(tmp_path), [], 2)
    monkeypatch.setattr(numerics, "open_dataset", open_nothing)
    said = []
    shown = numerics.run_variants(
        Config(), "DATA", str(tmp_path), [], 2, report=said.append
    )
    assert shown == first and "synthetic is not prepared" in said[0]
    with pytest.raises(FileNotFoundError):
        numerics.run_variants(Config(), "DATA", str(tmp_path), [], 3)


def test_behind_each_run_that_was_made_free_memory_goes_back(
    one_step, monkeypatch, tmp_path
):
    """Else a process of many runs grows by what lies between their blocks."""
    given = []
    monkeypatch.setattr(numerics.allocation, "give_back_now", lambda: given.append(1))
    for num_seeds, expected in ((2, 2), (3, 3), (3, 3)):
        numerics.run_variants(Config(), "DATA", str(tmp_path), [], num_seeds)
        assert len(given) == expected


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match="variants=float8: must be among float32, "):
        numerics.run_variants(Config(), "DATA", "RUNS", ["float8"])


def test_runs_are_made_kept_and_told_apart(monkeypatch, tmp_path):
    made, changes = [], []

    def train(config, data_dir, workdir, progress, make_stages):
        made.append(config)
        changes.append(change_of(make_stages))
        (tmp_path / workdir).mkdir(parents=True)
        for step in (1, 2):
            progress("phase1", step, 2, {"loss/mce": 1.0 / step, "gradient/x": 5.0})
        return {"miou": 0.5 + config.seed / 100}

    monkeypatch.setattr(numerics, "train", train)
    config = Config(seed=3)
    lines = []
    result = numerics.run_variants(
        config,
        "DATA",
        str(tmp_path),
        [*VARIANTS, "float32-xla"],
        2,
        report=lines.append,
    )
    assert [(c.precision, c.jit_compile, c.seed, c.log_every) for c in made] == [
        ("float32", "off", 3, 1),
        ("float32", "off", 4, 1),
        ("float32", "off", 3, 1),
        ("float32", "off", 3, 1),
        ("float32", "off", 3, 1),
        ("mixed_bfloat16", "off", 3, 1),
        ("float32", "on", 3, 1),
        ("float32", "off", 3, 1),
    ]
    # What may widen a tolerance runs beside it unasked, and what holds bfloat16 closer.
    rejoined = numerics.VARIANTS["bfloat16"], "DATA"
    yardsticks = [(numerics._rounded, None), *UP_AND_DOWN]
    assert changes == [None, None, *yardsticks, None, None, rejoined]
    assert [row["loss"] for row in result["rows"]] == ["phase1 mce"] * 6
    assert result["rows"][0]["float32"] == 0.75 and len(lines) == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bfloat16-3.json", "bfloat16-rejoined-3.json", "float32-3.json",
        "float32-4.json", "float32-nudged-3.json",
        "float32-nudged-down-3.json", "float32-rounded-3.json", "float32-xla-3.json",
    ]  # fmt: skip
    fewer = numerics.run_variants(config, "DATA", str(tmp_path), VARIANTS, 2)
    without_xla = [r for r in result["rows"] if r["variant"] != "float32-xla"]
    assert fewer["rows"] == without_xla and len(made) == 8
    first = numerics.run_variants(
        config, "DATA", str(tmp_path), VARIANTS, 2, compared_steps=1
    )
    assert [row["steps"] for row in first["rows"]] == [[1, 2]] * 5
    other = dataclasses.replace(config, crop_size=321)
    with pytest.raises(ValueError, match="other settings"):
        numerics.run_variants(other, "DATA", str(tmp_path), ["bfloat16"], 2)


def test_more_nudges_run_where_they_are_asked_for(one_step, tmp_path):
    drawn = one_step
    given = Config(), "DATA", str(tmp_path), ["float32-xla"], 2
    numerics.run_variants(*given)
    assert len(drawn) == 5
    result = numerics.run_variants(*given, num_nudges=4)
    first, second = drawn[5:]
    assert first[0] is second[0] is numerics._nudged
    of_first, of_second = first[1].random(9), second[1].random(9)
    assert of_first.tolist() == np.random.default_rng(1).random(9).tolist()
    assert of_second.tolist() == np.random.default_rng(2).random(9).tolist()
    names = [row["variant"] for row in result["rows"]]
    assert names == [*list(numerics.NUDGES)[:4], "float32-xla"]
    assert result["strays"][0]["nudges"] == 4
    for number in (1, 9):
        with pytest.raises(ValueError, match=f"num_nudges={number}: must be 2 to 8"):
            numerics.run_variants(*given, num_nudges=number)
    # XLA has nothing to do with roundings.
    numerics.run_variants(*given, num_nudges=4, num_roundings=8)
    assert len(drawn) == 7


def test_more_roundings_run_where_they_are_asked_for(one_step, tmp_path):
    drawn = one_step
    given = Config(), "DATA", str(tmp_path), ["bfloat16"], 2
    numerics.run_variants(*given)
    assert [change[0] for change in drawn if change][:3] == [
        numerics._rounded, numerics._nudged, numerics._nudged,
    ]  # fmt: skip
    before = len(drawn)
    result = numerics.run_variants(*given, num_roundings=3)
    first, second = drawn[before:]
    assert first[0] is second[0] is numerics._rounded
    for seed, change in ((1, first), (2, second)):
        expected = np.random.default_rng(seed).random(9)
        assert change[1].random(9).tolist() == expected.tolist()
    names = [row["variant"] for row in result["rows"]]
    assert names[:3] == list(numerics.ROUNDINGS)[:3]
    (strays,) = result["strays"]
    assert strays == {"loss": "phase1 mce", "roundings": 3, "outside": []}
    for number in (0, 9):
        with pytest.raises(ValueError, match=f"num_roundings={number}: must be 1 to 8"):
            numerics.run_variants(*given, num_roundings=number)


def test_it_says_what_the_runs_were_made_on(one_step, monkeypatch, tmp_path):
    def compared(commit, num_seeds):
        monkeypatch.setattr(numerics, "describe_machine", lambda: {"commit": commit})
        return numerics.run_variants(
            Config(seed=4), "DATA", str(tmp_path), [], num_seeds
        )

    with_it = {"tensorflow": tf.__version__}
    both = [{"commit": "first"} | with_it, {"commit": "second"} | with_it]
    result = compared("first", 2)
    assert result["seed"] == 4 and result["machines"] == both[:1]
    assert compared("second", 3)["machines"] == both
    result = compared("third", 3)
    assert result["machines"] == both  # which made none of them
    told = "The runs were not all made on one machine with one commit."
    assert told in numerics.format_table(result).splitlines()
    assert told not in numerics.format_table(result | {"machines": both[:1]})
    kept = tmp_path / "float32-4.json"  # as a version wrote it that did not say
    content = json.loads(kept.read_text())
    del content["machine"]
    kept.write_text(json.dumps(content))
    assert compared("third", 3)["machines"] == both


@pytest.mark.parametrize(
    "content, message",
    [
        ("{}", "must hold config, losses, miou"),
        ("[]", "not JSON (it holds a list"),
        ("x", "not JSON"),
        ({"losses": []}, "losses and miou must be numbers"),
        ({"losses": {"phase1 mce": ["1"]}}, "losses and miou must be numbers"),
        ({"losses": {"phase1 mce": []}}, "losses and miou must be numbers"),
        ({"miou": "0.5"}, "losses and miou must be numbers"),
        ({"miou": None}, "no labelled pixel was validated"),
    ],
)
def test_damaged_results_are_one_line_with_the_files_name(tmp_path, content, message):
    config = Config()
    if isinstance(content, dict):
        changed = dataclasses.replace(config, **numerics.VARIANTS["float32"])
        settings = json.loads(dataclasses.replace(changed, log_every=1).to_json())
        whole = {"config": settings, "losses": {"phase1 mce": [1.0]}, "miou": 0.5}
        content = json.dumps(whole | content)
    (tmp_path / "float32-0.json").write_text(content)
    expected = re.escape(f"{tmp_path}/float32-0.json: {message}")
    with pytest.raises(ValueError, match=expected) as error:
        numerics.run_variants(config, "DATA", str(tmp_path), [])
    assert "\n" not in str(error.value)


def test_a_run_without_a_labelled_pixel_is_one_line(monkeypatch, tmp_path):
    def train(config, data_dir, workdir, progress, make_stages):
        (tmp_path / workdir).mkdir()
        progress("phase1", 1, 1, {"loss/mce": 1.0})
        return {"miou": None}

    monkeypatch.setattr(numerics, "train", train)
    with pytest.raises(ValueError, match="float32-0.json: no labelled pixel"):
        numerics.run_variants(Config(), "DATA", str(tmp_path), [])


def test_losses_of_other_steps_are_not_compared(tmp_path):
    runs = {
        ("float32", 0): run(3.0, 1.0, miou=0.50),
        ("bfloat16", 0): run(3.0, miou=0.52),
    }
    with pytest.raises(ValueError, match="bfloat16: losses of the steps .*mce': 1}"):
        numerics.compare(runs, 0)
    guarded = dataclasses.replace(Config(), guard=True)
    with pytest.raises(ValueError, match="guard=True: must be off"):
        numerics.run_variants(guarded, "DATA", str(tmp_path), [])


@pytest.mark.parametrize(
    "given, config, error, message",
    [
        ({"precision": "float32"}, {}, None, "precision=float32: the comparison"),
        ({"jit_compile": "on"}, {}, None, "jit_compile=on: the comparison chooses"),
        ({"log_every": 5}, {}, None, "log_every=5: the comparison chooses"),
        ({}, {"dropout": 0.5}, None, "dropout=0.5: must be 0"),
        # which has no fc6 and fc7
        ({}, {"arm": "resnet50_g", "dropout": 0.5, "guard": True}, None, "guard=True"),
        ({}, {"guard": True}, None, "guard=True: must be off"),
        ({}, {}, tf.errors.DataLossError(None, None, "corrupt\nat 7"), "corrupt"),
    ],
)
def test_the_program_ends_with_one_line(
    monkeypatch, tmp_path, given, config, error, message
):
    class Flags(dict):
        data_dir, workdir, variants, num_seeds = "DATA", str(tmp_path), [], 2
        compared_steps, num_nudges, num_roundings = 50, 2, 1

        def __missing__(self, name):
            value = given.get(name)
            return types.SimpleNamespace(present=name in given, value=value)

    def train(*_, **__):
        raise error

    monkeypatch.setattr(program, "FLAGS", Flags())
    monkeypatch.setattr(
        program,
        "config_from_flags",
        lambda: dataclasses.replace(Config(dropout=0.0), **config),
    )
    for name in ("show_own_messages", "keep_freed_memory"):
        monkeypatch.setattr(program, name, lambda: None)
    monkeypatch.setattr(numerics, "train", train)
    with pytest.raises(SystemExit) as exit_:
        program.main([""])
    assert exit_.value.code.startswith(f"error: {message}")
    assert "\n" not in exit_.value.code


def test_the_program_names_a_folder_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    settings = {
        "data_dir": "DATA",
        "workdir": f"{tmp_path}/file",
        "num_seeds": 2,
        "compared_steps": 50,
        "num_nudges": 2,
        "num_roundings": 1,
    }
    given = types.SimpleNamespace(variants=[], **settings)
    monkeypatch.setattr(program, "FLAGS", given)
    monkeypatch.setattr(program, "_config_from_flags", Config)
    for name in ("show_own_messages", "keep_freed_memory"):
        monkeypatch.setattr(program, name, lambda: None)
    with pytest.raises(SystemExit) as exit_:
        program.main([""])
    told = f"error: workdir={tmp_path}/file: {tmp_path}/file is no folder"
    assert exit_.value.code == told


@pytest.mark.parametrize("off, within", [(0.0, True), (0.01, True), (0.1, False)])
def test_a_loss_that_is_0_in_every_step_is_held_against_the_tolerance_itself(
    off, within
):
    runs = {
        ("float32", 0): run(0.0, 0.0, miou=0.5),
        ("bfloat16", 0): run(off, 0.0, miou=0.5),
    }
    (row,) = numerics.compare(runs, 0)["rows"]
    assert row["largest"] == off and row["within"] is within


@pytest.mark.parametrize("off, code", [(0.03, None), (0.5, 2)])
def test_the_exit_code_is_that_of_the_variants(monkeypatch, tmp_path, off, code):
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.50),
        ("float32", 1): run(1.0, 1.0, miou=0.51),
        ("float32-rounded", 0): run(1.01, 1.0, miou=0.9),  # nothing is asked of it
        ("bfloat16", 0): run(1 + off, 1.0, miou=0.50),
    }
    result = numerics.compare(runs, 0)
    settings = {"data_dir": "DATA", "workdir": str(tmp_path)}
    given = types.SimpleNamespace(
        variants=VARIANTS,
        num_seeds=2,
        compared_steps=50,
        num_nudges=3,
        num_roundings=5,
        **settings,
    )
    monkeypatch.setattr(program, "FLAGS", given)
    monkeypatch.setattr(program, "_config_from_flags", Config)

    def run_variants(*_, compared_steps, num_nudges, num_roundings, **__):
        assert (compared_steps, num_nudges, num_roundings) == (50, 3, 5)
        return result

    monkeypatch.setattr(program, "run_variants", run_variants)
    for name in ("show_own_messages", "keep_freed_memory"):
        monkeypatch.setattr(program, name, lambda: None)
    if code is None:
        program.main([""])
    else:
        with pytest.raises(SystemExit) as exit_:
            program.main([""])
        assert exit_.value.code == code
    assert (tmp_path / "numerics.json").exists()


def test_a_second_implementations_bfloat16_is_held_against_its_own_float32():
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.5),
        ("torch-float32", 0): run(1.01, 1.0, miou=0.5),
        ("torch-bfloat16", 0): run(1.21, 1.0, miou=0.6),
    }
    result = numerics.compare(runs, 0)
    ours, theirs = result["rows"]
    assert ours["within"] is True and ours["allowed"][0] == 0.02
    assert theirs["float32"] == pytest.approx(1.005)
    assert theirs["largest"] == pytest.approx(0.2 / 1.005)
    assert theirs["within"] is None  # a yardstick
    assert result["miou"][1]["difference"] == pytest.approx(0.1)


@pytest.mark.parametrize("variant", ["bfloat16", "bfloat16-xla"])
@pytest.mark.parametrize(
    "off, peer_off, theirs, allowed, within",
    [
        (0.10, 0.0, 0.02, 0.06, False),  # PyTorch's is small: the tolerance stands
        (0.14, 0.0, 0.10, 0.15, True),
        (0.16, 0.0, 0.10, 0.15, False),
        (0.14, 0.05, 0.10, 0.15, True),  # sensitive in float32 too
        (0.14, 0.07, 0.10, 0.06, False),  # another run
    ],
)
def test_bfloat16_may_be_off_as_far_as_pytorchs_is(
    variant, off, peer_off, theirs, allowed, within
):
    runs = {
        ("float32", 0): run(1.0, 1.0, 1.0, miou=0.5),
        (variant, 0): run(1.0 + off, 1.0, 1.0, miou=0.5),
        ("torch-float32", 0): run(1.0 + peer_off, 1.0, 1.0, miou=0.5),
        ("torch-bfloat16", 0): run(1.0 + peer_off, 1.0 - theirs, 1.0, miou=0.5),
    }
    rows = {row["variant"]: row for row in numerics.compare(runs, 0)["rows"]}
    mean = max(0.02, 1.5 * theirs / 3) if allowed > 0.06 else 0.02
    # Shares of the peer's own mean loss, which is up to 1.02.
    assert rows[variant]["allowed"] == pytest.approx([allowed, mean], rel=0.03)
    assert rows[variant]["within"] is within
    assert rows["torch-float32"]["allowed"] == pytest.approx([0.02, 0.02 / 3])


@pytest.mark.parametrize("nudge", numerics.NUDGES)
@pytest.mark.parametrize("variant", ["float32-xla", "torch-float32"])
@pytest.mark.parametrize(
    "off, nudged, allowed, step",
    [
        ([0.019, 0, 0], None, [0.02, 0.02 / 3], None),
        ([0, 0.03, 0], None, [0.02, 0.02 / 3], 2),
        ([0, 0.03, 0], [0, 0.01, 0], [0.02, 0.02 / 3], 2),  # the last bit does little
        ([0, 0.05, 0], [0, 0.04, 0.02], [0.06, 0.03], None),
        ([0, 0, 0.05], [0, 0.04, 0.02], [0.06, 0.03], None),  # moved apart before
        ([0, 0.07, 0], [0, 0.04, 0.02], [0.06, 0.03], 2),  # more than it does
        ([0.05, 0, 0], [0, 0.04, 0.02], [0.06, 0.03], 1),  # before it does anything
    ],
)
def test_another_order_of_sums_may_be_off_as_the_last_bit_is(
    nudge, variant, off, nudged, allowed, step
):
    def with_loss_d(losses):
        return run(*losses, miou=0.5) | {
            "losses": {"phase1 mce": losses, "phase2 loss_d": [1.0, 1.0]}
        }

    one = np.ones(3)
    runs = {
        ("float32", 0): with_loss_d(one),
        (variant, 0): with_loss_d(one + off),
        ("bfloat16", 0): with_loss_d(one),
    }
    if nudged is not None:
        runs[nudge, 0] = with_loss_d(one - nudged)
    result = numerics.compare(runs, 0)
    rows = {(row["variant"], row["loss"]): row for row in result["rows"]}
    row = rows[variant, "phase1 mce"]
    assert row["allowed"] == pytest.approx(allowed)
    assert row["outside_from"] == step and row["within"] is (step is None)
    # Each loss by its own.
    assert rows[variant, "phase2 loss_d"]["allowed"] == [0.02, 0.02 / 3]
    assert rows["bfloat16", "phase2 loss_d"]["allowed"] == [0.06, 0.02]
    if step:
        assert f"% | **outside** from step {step} |" in numerics.format_table(result)
    if nudged is not None:
        assert rows[nudge, "phase1 mce"]["within"] is None


def test_of_two_nudges_the_larger_counts_in_each_step_and_in_the_mean():
    one = np.ones(4)
    off = {
        "float32-nudged": [0, 0.04, 0.02, 0.02],
        "float32-nudged-down": [0.02, 0, 0.04, 0.10],
        "float32-xla": [0.029, 0.059, 0.059, 0.149],
    }
    runs = {(name, 0): run(*(one + by), miou=0.5) for name, by in off.items()}
    runs = {("float32", 0): run(*one, miou=0.5)} | runs
    row = numerics.compare(runs, 0)["rows"][-1]
    assert row["allowed"] == pytest.approx([0.15, 0.06]) and row["outside_from"] is None
    assert row["within"] is False and row["mean"] == pytest.approx(0.074)
    for step, by in enumerate([0.031, 0.061, 0.061, 0.151]):
        losses = runs["float32-xla", 0]["losses"]["phase1 mce"]
        changed = [1 + by if at == step else loss for at, loss in enumerate(losses)]
        runs["float32-xla", 0] = run(*changed, miou=0.5)
        assert numerics.compare(runs, 0)["rows"][-1]["outside_from"] == step + 1
        runs["float32-xla", 0] = run(*losses, miou=0.5)


def test_each_of_three_nudges_or_more_is_judged_by_the_others():
    off = {
        "float32-nudged": [0, 0.04, 0.02],
        "float32-nudged-down": [0.03, 0.01, 0.07],  # 0.06 are allowed by the others
        "float32-nudged-drawn-1": [0, 0.03, 0.04],
        "float32-nudged-drawn-2": [0.021, 0.001, 0.001],  # by 0.03 of the second
    }
    one = np.ones(3)
    runs = {(name, 0): run(*(one + by), miou=0.5) for name, by in off.items()}
    runs = {("float32", 0): run(*one, miou=0.5)} | runs
    result = numerics.compare(runs, 0)
    refused = ["float32-nudged-down"]
    (strays,) = result["strays"]
    assert strays == {"loss": "phase1 mce", "nudges": 4, "outside": refused}
    told = "phase1 mce: of 4 nudges, each judged by the others as XLA is by all of"
    told += " them, outside are: float32-nudged-down"
    assert told in numerics.format_table(result).splitlines()
    # Neither XLA nor weights rounded once have a say in it.
    runs["float32-rounded", 0] = runs["float32-xla", 0] = run(9.0, 9.0, 9.0, miou=0.5)
    assert numerics.compare(runs, 0)["strays"] == [strays]
    # In the mean alone: 0.0367 of 0.035.
    runs["float32-nudged-down", 0] = run(*(one + [0.03, 0.05, 0.03]), miou=0.5)
    assert numerics.compare(runs, 0)["strays"][0]["outside"] == refused
    del runs["float32-nudged-drawn-1", 0], runs["float32-nudged-drawn-2", 0]
    result = numerics.compare(runs, 0)
    assert result["strays"] == []
    assert "judged by the others" not in numerics.format_table(result)


def test_each_of_three_roundings_or_more_is_judged_by_the_others_and_by_nudges():
    off = {
        "float32-rounded": [0, 0.04, 0.02],
        "float32-rounded-drawn-1": [0.07, 0.05, 0.02],
        # 0.105 are allowed by the others
        "float32-rounded-drawn-2": [0.13, 0.01, 0.01],
    }
    one = np.ones(3)
    runs = {(name, 0): run(*(one + by), miou=0.5) for name, by in off.items()}
    runs = {("float32", 0): run(*one, miou=0.5)} | runs
    (strays,) = numerics.compare(runs, 0)["strays"]
    refused = ["float32-rounded-drawn-2"]
    assert strays == {"loss": "phase1 mce", "roundings": 3, "outside": refused}
    told = "phase1 mce: of 3 roundings, each judged by the others as bfloat16 is by all"
    told += " of them, outside are: float32-rounded-drawn-2"
    assert told in numerics.format_table(numerics.compare(runs, 0)).splitlines()
    runs["float32-nudged", 0] = run(1.0, 1.09, 1.0, miou=0.5)  # allows 0.135
    (strays,) = numerics.compare(runs, 0)["strays"]
    assert strays["outside"] == []
    # PyTorch's bfloat16 counts as it does for ours: by one step of 12 % here.
    runs["float32-nudged", 0] = run(1.0, 1.0, 1.0, miou=0.5)
    assert numerics.compare(runs, 0)["strays"][0]["outside"] == refused
    runs["torch-float32", 0] = run(1.0, 1.0, 1.0, miou=0.5)
    runs["torch-bfloat16", 0] = run(1.0, 1.0, 1.12, miou=0.5)
    assert numerics.compare(runs, 0)["strays"][0]["outside"] == []
    del runs["float32-rounded-drawn-1", 0]
    assert numerics.compare(runs, 0)["strays"] == []


def test_a_mean_beyond_what_the_last_bit_does_is_outside():
    runs = {
        ("float32", 0): run(1.0, 1.0, 1.0, miou=0.5),
        ("float32-nudged", 0): run(1.04, 1.0, 1.0, miou=0.5),
        ("float32-xla", 0): run(1.03, 1.03, 1.03, miou=0.5),
    }
    row = numerics.compare(runs, 0)["rows"][1]
    assert row["allowed"] == pytest.approx([0.06, 0.02])
    assert row["within"] is False and row["outside_from"] is None


def test_what_a_variant_is_held_against_runs_too(monkeypatch, tmp_path):
    made = []

    def train(config, data_dir, workdir, progress, make_stages):
        made.append((config.precision, make_stages))
        (tmp_path / workdir).mkdir(parents=True)
        progress("phase1", 1, 1, {"loss/mce": 1.0})
        return {"miou": 0.5}

    monkeypatch.setattr(numerics, "train", train)
    given = (Config(), "DATA", str(tmp_path), ["torch-bfloat16"], 2)
    with pytest.raises(ValueError, match="torch-bfloat16,torch-float32: PyTorch's"):
        numerics.run_variants(*given)
    assert not made
    numerics.run_variants(*given, make_torch_stages=print)
    assert made[4:] == [("float32", print), ("mixed_bfloat16", print)]
    assert all(maker is not print for _, maker in made[:4])
    # What widens torch-float32's.
    assert [change_of(maker) for _, maker in made[2:4]] == UP_AND_DOWN
