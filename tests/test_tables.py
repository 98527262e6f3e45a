"""Tables of a report, on runs that were never trained."""

import dataclasses
import json

import pytest

from ss_gan_tf.comparison import Comparison, read_result
from ss_gan_tf.page import Table, Text
from ss_gan_tf.tables import Tables

# IoU and mIoU of a share r of right pixels are r / (2 - r):
# 0.9 -> 81.82, 0.8 -> 66.67, 0.7 -> 53.85, 0.5 -> 33.33.


@pytest.fixture
def tables(fake_run):
    """Two seeds of vgg16: phase 1 0.7, control 0.8, adversarial 0.9 and 0.8."""
    paths = [
        fake_run("p0", [0.7] * 3, arm="vgg16"),
        fake_run("c0", [0.8] * 3, lambda_adv=0.0),
        fake_run("c1", [0.7] * 3, lambda_adv=0.0, seed=1),
        fake_run("a0", [0.9] * 3),
        fake_run("a1", [0.8] * 3, seed=1),
    ]
    return Tables(Comparison(map(read_result, paths)), "test")


def rows(blocks):
    """First cell -> the others, of all tables."""
    tables = [block for block in blocks if isinstance(block, Table)]
    return {row[0]: row[1:] for table in tables for row in table.rows}


def test_table_3_has_paper_ours_and_difference(tables):
    found = rows(tables.table3())
    # (81.82 + 66.67) / 2 = 74.24, s = 15.15 / sqrt(2) = 10.71.
    assert found["camvid: ours"] == [
        "53.85 (1)",
        "-",
        "74.24 ± 10.71 (2)",
        "-",
        "60.26 ± 9.07 (2)",
        "-",
    ]
    assert found["cityscapes: paper"][:4] == ["68.34", "75.85", "70.27", "77.40"]
    assert set(found["cityscapes: ours"]) == {"-"}
    assert "camvid: paper" not in found


def test_differences_from_the_paper(fake_run):
    path = fake_run("a", [0.9], dataset="cityscapes", arm="resnet50_g")
    tables = Tables(Comparison([read_result(path)]), "test")
    found = rows(tables.table3())
    assert found["cityscapes: ours"][3] == "81.82 (1)"
    assert found["cityscapes: difference"] == ["-"] * 3 + ["+4.42", "-", "-"]


def test_table_4_takes_the_classes_of_the_data_set(fake_run):
    path = fake_run("a", [0.9], dataset="cityscapes", arm="vgg16_g")
    found = rows(Tables(Comparison([read_result(path)]), "test").table4())
    # Of the paper's classes the stand-in has road, sky and car, its vehicle.
    ours = ["81.82 (1)", "-", "-", "81.82 (1)", "-", "81.82 (1)"]
    assert found["vgg16_g: ours"] == ours
    assert found["vgg16_g: difference"][0] == "-14.82"  # 81.82 - 96.64
    assert found["vgg16_g: paper"][0] == "96.64"
    assert set(found["resnet50: ours"]) == {"-"}


def test_gains_are_listed_by_seed_with_their_mean(tables):
    (table,) = tables.gains()
    control = [row[1:] for row in table.rows if row[0] == "the control"]
    # 15.15 and 66.67 - 53.85 = 12.82: mean 13.99, s 1.65, standard error 1.17, of
    # which Student's t of one degree takes 12.71.
    assert control[0] == ["0", "+15.15", "+15.15 to +15.15", "+15.15"]
    assert control[1][:2] == ["1", "+12.82"]
    assert control[2] == ["mean", "+13.99", "-0.82 to +28.80 over seeds", "+13.99"]
    assert ["the entropy placebo", "-", "-", "-", "-"] in list(map(list, table.rows))


def test_conclusions_are_those_of_the_rules(tables):
    texts = [block.text for block in tables.conclusions()]
    assert any("the control: no difference shown (+13.99" in text for text in texts)
    assert any("Against phase 1: a lead, not a result" in text for text in texts)
    assert not any("placebo" in text for text in texts)


def test_unfair_pairs_get_no_conclusion(fake_run):
    paths = fake_run("c", [0.8], lambda_adv=0.0, crop_size=320), fake_run("a", [0.9])
    found = [*map(read_result, paths)]
    for result in found:
        result.metrics["test"] |= {"granulation": {"specks": 2.0}}
    tables = Tables(Comparison(found), "test")
    texts = [block.text for block in tables.conclusions()]
    assert "Against the control: not comparable, the runs differ in crop_size too." in (
        texts
    )
    assert rows(tables.gains())["the control"] == ["-", "not comparable", "-", "-"]
    assert rows(tables.classes())["sky"][-2:] == ["not comparable", "-"]
    differences = tables.full_metrics()[1]
    assert {row[1] for row in differences.rows} == {"not comparable"}
    of_steps = {0: [(10, 0.5)]}
    assert tables.during_training(tables.groups[0], of_steps, of_steps) == []


def test_the_arm_beside_its_control_during_training(tables):
    group = tables.groups[0]
    control = {0: [(10, 0.5), (20, 0.6)], 1: [(10, 0.4)], 2: [(10, 0.1)]}
    arm = {0: [(0, 0.4), (10, 0.51), (20, 0.58)], 1: [(10, 0.43)]}
    (table,) = tables.during_training(group, control, arm)
    assert table.header == ["step", "seed 0", "seed 1", "mean"]
    assert table.rows == [
        ["10", "+1.00", "+3.00", "+2.00"],
        ["20", "-2.00", "-", "-2.00"],
    ]
    long = {0: [(step, 0.5) for step in range(1, 42)]}
    (table,) = tables.during_training(group, long, long)
    assert [row[0] for row in table.rows] == [str(step) for step in range(2, 42, 3)]
    assert tables.during_training(group, {}, arm) == []


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("images", [1, 3])
def test_what_val_says_stands_beside_it(fake_run, opposed, images):
    """One image makes no interval, so nothing was shown that val could oppose."""
    kinds, off = ("test", "val"), {"lambda_adv": 0.0}
    control = read_result(fake_run("c", [0.8] * images, kinds=kinds, **off))
    arm = read_result(fake_run("a", [0.9] * images, kinds=kinds))
    if opposed:
        for one in (control.metrics, control.counts):
            other = arm.metrics if one is control.metrics else arm.counts
            one["val"], other["val"] = other["val"], one["val"]
    blocks = Tables(Comparison([control, arm]), "test").conclusions()
    (val,) = [block for block in blocks if block.text.startswith("On val: ")]
    said = {1: "no difference shown", 3: "a lead, not"}[images]
    assert val.text.startswith(f"On val: against the control: {said}")
    told = opposed and images == 3
    assert ("depends on the split" in val.text) == val.strong == told
    assert ("-15.15" if opposed else "+15.15") in val.text
    of_val = Tables(Comparison([control, arm]), "val").conclusions()
    assert not any(block.text.startswith("On val: ") for block in of_val)


def test_best_checkpoints_that_were_chosen_on_other_data(tables):
    assert rows(tables.gains())["the control"][-1] != "-"
    run = tables.compared.runs[1].run
    run.provenance["data_digests"] = {"val": "v"}
    tables.compared.runs[3].run.provenance["data_digests"] = {"val": "w"}
    blocks = tables.gains()
    assert rows(blocks)["the control"][-1] == "-"
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert texts == [
        "camvid, vgg16, best checkpoints, the control: not comparable, the runs differ "
        "in examples of val too."
    ]


def test_every_run_and_missing_ones(tables):
    found = rows(tables.runs())
    mean = found["vgg16 adversarial, seed 0"]
    # test, test-best, val, val-best, mean of two validations, steps, hours
    assert mean == ["81.82", "81.82", "-", "-", "81.82 (of 2)", "40", "-"]
    assert set(found["vgg16 phase1, seed 1"]) == {"-"}
    assert "vgg16 entropy, seed 0" not in found


def test_what_the_guard_did_is_said(fake_run):
    def made(name, seed, *actions):
        workdir = fake_run(name, [0.9], seed=seed, init_generator="X")
        with open(f"{workdir}/guard.jsonl", "w") as file:
            for step, action in zip((20, 30), actions, strict=False):
                file.write(json.dumps({"step": step, "action": action}) + "\n")
        return read_result(workdir)

    results = made("a", 0), made("b", 1, "back"), made("c", 2, "back", "end")
    tables = Tables(Comparison(results), "test")
    found = rows(tables.runs())
    assert found["vgg16 adversarial, seed 0"][4] == "81.82 (of 2)"
    back = "81.82 (of 1) (since the guard went back)"
    assert found["vgg16 adversarial, seed 1"][4] == back
    assert found["vgg16 adversarial, seed 2"][4] == "- (the guard ended it)"
    (text,) = [b.text for b in tables.conclusions() if "guard" in b.text]
    assert "seed 1: back 1 times; seed 2: ended with phase 1's weights" in text
    assert "seed 0" not in text


def test_unfinished_runs_of_a_study_are_named(tables):
    facts = {
        "settings": {"last_validations": 2},
        "runs": {"x": {"status": "failed: exit code 3"}, "y": {"status": "done"}},
    }
    blocks = Tables(tables.compared, "test", facts).runs()
    assert blocks[1].text == "Not finished: x (failed: exit code 3)."
    assert "mean of last 2" in blocks[0].header[5]


def test_classes_show_the_gain_and_its_range(tables):
    found = rows(tables.classes())
    assert set(found) == {"sky", "road", "car"}
    # 12.82 and 15.15: mean 13.99, 12.71 times the error of 1.17 on either side.
    assert found["sky"][3:] == ["+13.99 (-0.82 to +28.80)", "+12.82 to +15.15"]


def test_full_metrics_or_a_dash(tables, fake_run):
    assert rows(tables.full_metrics())["control"] == ["-"] * 13
    result = read_result(fake_run("full", [0.9]))
    result.metrics["test"] |= {
        "boundary": {"mean_iou": 0.5, "mean_f1": None},
        "granulation": {"specks": 2.5},
        "calibration": {"ece": 0.125, "mean_confidence": 0.75},
        "miou_small_classes": 0.25,
        "miou_large_classes": 0.5,
    }
    # Another seed without them does not count.
    basic = read_result(fake_run("basic", [0.9], seed=1))
    found = rows(Tables(Comparison([result, basic]), "test").full_metrics())
    expected = ["1", "50.00", "-", "-", "-", "2.50", "-", "-", "-", "12.50"]
    assert found["adversarial"] == [*expected, "75.00", "25.00", "50.00"]


def test_full_metrics_against_the_control_of_the_same_seed(fake_run):
    found = []
    for seed, specks in enumerate([(2.0, 3.0), (4.0, 7.0)]):
        for role, value in zip(("control", "arm"), specks, strict=True):
            settings = {"lambda_adv": 0.0} if role == "control" else {}
            result = read_result(
                fake_run(f"{role}{seed}", [0.9], seed=seed, **settings)
            )
            result.metrics["test"] |= {"granulation": {"specks": value}}
            if seed == 0:
                result.metrics["test"] |= {"calibration": {"ece": value / 100}}
            found.append(result)
    means, differences = Tables(Comparison(found), "test").full_metrics()
    assert differences.header == ["", "adversarial"]
    shown = {row[0]: row[1] for row in differences.rows}
    # 1 and 3: mean 2, s = sqrt(2), 12.706 s / sqrt(2) = 12.71.
    assert shown["specks /image"] == "+2.00 (-10.71 to +14.71)"
    assert shown["calibration error, %"] == "+1.00 (one seed)"
    assert "border ratio" not in shown
    column = means.header.index("specks /image")
    assert means.rows[1][column] == "3.00 \N{PLUS-MINUS SIGN} 1.41"


def test_partial_data_sets_are_marked(tables):
    result = tables.compared.runs[0]
    metrics = {"test": result.metrics["test"] | {"partial": True}}
    partial = Comparison([dataclasses.replace(result, metrics=metrics)])
    assert "camvid (partial): ours" in rows(Tables(partial, "test").table3())
