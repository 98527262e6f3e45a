"""Which variant is chosen, and what the page says of it, on runs never trained."""

import json
import pathlib

import pytest

from ss_gan_tf import variants
from ss_gan_tf.comparison import Comparison, Gain, read_result
from ss_gan_tf.tables import Tables

# IoU and mIoU of a share r of right pixels are r / (2 - r):
# 0.9 -> 81.82, 0.8 -> 66.67, 0.7 -> 53.85, 0.6 -> 42.86.
KINDS = ("val", "test")
TOLD = {"weak": ["--gradient_ratio=0.1"], "strong": []}
BAD = "not comparable"
FACTS = {"settings": {"variants": TOLD, "last_validations": 3}, "runs": {}}


@pytest.fixture
def make(fake_run):
    """Tables of a control at 0.7 and of runs name -> right shares by seed."""

    def make(split="test", kinds=KINDS, **roles):
        found = []
        for name, shares in {"control": [0.7, 0.7], **roles}.items():
            fields = {"lambda_adv": 0.0} if name == "control" else {}
            fields |= {"crop_size": 320} if name == "unfair" else {}
            for seed, share in enumerate(shares):
                path = fake_run(
                    f"{name}{seed}", [share] * 3, kinds=kinds, seed=seed, **fields
                )
                known = name in ("control", "adversarial")
                found.append(read_result(path, variant=None if known else name))
        return Tables(Comparison(found), split, FACTS)

    return make


def test_the_largest_mean_of_those_with_all_seeds_is_chosen():
    gains = {
        "few": [Gain(0, 9.0)],
        "first": [Gain(0, 1.0), Gain(1, 3.0)],
        "equal": [Gain(0, 2.0), Gain(1, 2.0)],
        "less": [Gain(0, 3.0), Gain(1, 0.5)],
    }
    assert variants.choose(gains) == "first"
    assert variants.choose({"loss": [Gain(0, -1.0)], "none": []}) == "loss"
    assert variants.choose({"none": []}) is None
    assert variants.choose(gains, left_out={"first", "less"}) == "equal"
    assert variants.choose(gains, left_out={"first", "equal", "less"}) == "few"
    assert variants.choose(gains, left_out=set(gains)) is None


def test_variants_stand_beside_the_arm_and_the_chosen_one_is_reported(make):
    made = make(adversarial=[0.8, 0.7], weak=[0.8, 0.9], strong=[0.6])
    table, pictures, sentence, _ = variants.tables(made)
    assert list(table.header[3:5]) == ["seed 0", "seed 1"] and "on val" in table.caption
    rows = {row[0]: list(row[1:]) for row in table.rows}
    # 66.67 - 53.85 = 12.82 and 81.82 - 53.85 = 27.97: mean 20.40, error 7.58; of two
    # seeds 95 % reach 12.71 times that, 96.26.
    up, more = "+12.82 (+12.82 to +12.82)", "+27.97 (+27.97 to +27.97)"
    assert rows == {
        "adversarial": ["+6.41", "-75.04 to +87.86", up, "+0.00 (+0.00 to +0.00)", "-"],
        "weak": ["+20.40", "-75.86 to +116.66", up, more, "--gradient_ratio=0.1"],
        "strong": ["-10.99", "-", "-10.99 (-10.99 to -10.99)", "-", "-"],
    }
    (picture,) = pictures.pictures
    assert picture.name == "camvid-vgg16-variants-gains.svg"
    assert b"weak (2)" in picture.data and b"strong (1)" in picture.data
    assert sentence.text == (
        "Chosen on val: weak. On test: Against the control: no difference shown "
        "(+20.40 points, 95 % interval over 2 seeds -75.86 to +116.66)."
    )


def test_each_stands_beside_the_arm_that_it_varies_and_on_test_too(make):
    made = make(adversarial=[0.8, 0.7], weak=[0.8, 0.9], strong=[0.6])
    found = variants.tables(made)[-1]
    assert found.header == [
        "variant",
        "val: over the adversarial arm",
        "test: over the control",
        "seed 0",
        "seed 1",
        "test: over the adversarial arm",
    ]
    # Over the arm: 66.67 - 66.67 = 0 and 81.82 - 53.85 = 27.97, so 13.99 +- 12.71 x
    # 13.99; 42.86 - 66.67 = -23.81 of one seed.
    over_arm = "+13.99 (-163.72 to +191.70)"
    one = "-23.81 (one seed)"
    assert [row[:3] for row in found.rows] == [
        ["adversarial", "-", "+6.41 (-75.04 to +87.86)"],
        ["weak", over_arm, "+20.40 (-75.86 to +116.66)"],
        ["strong", one, "-10.99 (one seed)"],
    ]
    assert [row[3:] for row in found.rows] == [
        ["+12.82 (+12.82 to +12.82)", "+0.00 (+0.00 to +0.00)", "-"],
        ["+12.82 (+12.82 to +12.82)", "+27.97 (+27.97 to +27.97)", over_arm],
        ["-10.99 (-10.99 to -10.99)", "-", one],
    ]


def test_on_val_alone_there_is_nothing_elsewhere(make):
    found = variants.tables(make(split="val", adversarial=[0.8], weak=[0.9]))[-1]
    assert found.header == ["variant", "val: over the adversarial arm"]
    assert found.rows == [["adversarial", "-"], ["weak", "+15.15 (one seed)"]]


@pytest.mark.parametrize("share, points", [(0.6, "-10.99"), (0.7, "+0.00")])
def test_a_chosen_one_without_a_gain_says_so(make, share, points):
    _, sentence, _ = variants.tables(make(adversarial=[share], weak=[0.5]))
    assert sentence.text.startswith(
        f"Chosen on val: adversarial, though it gains nothing there ({points}). On test"
    )


def test_the_choice_is_made_on_validation_alone(make, fake_run):
    # On test the other one is better: that must not matter.
    made = make(adversarial=[0.8], weak=[0.9])
    better = read_result(fake_run("x", [0.95], kinds=("test",)))
    arm = made.compared.get(made.groups[0], 0, "adversarial")
    arm.metrics["test"] = better.metrics["test"]
    assert variants.tables(made)[1].text.startswith("Chosen on val: weak. On test: ")


def test_what_cannot_be_concluded_is_said(make):
    flattered = variants.tables(make(split="val", adversarial=[0.8], weak=[0.9]))
    assert "flatters its gain" in flattered[1].text


def test_without_validation_nothing_is_chosen(make):
    blocks = variants.tables(make(kinds=("test",), adversarial=[0.8], weak=[0.9]))
    assert blocks[1].text == "None can be chosen: no pair was evaluated on val."


def test_an_unfair_variant_gets_no_conclusion(make):
    made = make(adversarial=[0.8], unfair=[0.9])
    table, sentence, elsewhere = variants.tables(made)
    assert [row[0] for row in table.rows] == ["adversarial", "unfair (not comparable)"]
    assert sentence.text.startswith("Chosen on val: adversarial.")
    arm = made.compared.get(made.groups[0], 0, "adversarial")
    assert elsewhere.rows[1] == ["unfair", BAD, BAD, "-", "-", BAD]
    arm.metrics["test"]["flip"] = True  # there alone
    _, sentence, _ = variants.tables(made)
    assert sentence.text.endswith(
        "Not comparable, the runs differ in evaluation flip too."
    )


def test_where_none_can_be_compared_none_is_chosen(make):
    made = make(unfair=[0.9])
    assert variants.tables(made)[1].text == (
        "None can be chosen: unfair cannot be compared, and no other was evaluated on "
        "val."
    )


def guard(made, role, *actions, seed=0):
    """Writes what the guard did to a run."""
    run = made.compared.get(made.groups[0], seed, role).run
    lines = [
        json.dumps({"step": step, "action": action}) + "\n"
        for step, action in enumerate(actions, start=10)
    ]
    pathlib.Path(run.workdir, "guard.jsonl").write_text("".join(lines))


def test_what_the_guard_ended_is_marked_and_never_chosen(make):
    made = make(adversarial=[0.8, 0.8], weak=[0.9, 0.9], strong=[0.7, 0.8])
    guard(made, "weak", "back", "end", seed=1)
    guard(made, "adversarial", "back")
    table, pictures, sentence, _ = variants.tables(made)
    assert b"weak (2), ended by the guard" in pictures.pictures[0].data
    assert pictures.pictures[0].data.count(b"ended by the guard") == 1
    rows = {row[0]: row for row in table.rows}
    assert rows["weak"][3] == "+27.97 (+27.97 to +27.97)"
    assert rows["weak"][4] == "+27.97 (+27.97 to +27.97), the guard ended it"
    assert rows["adversarial"][3].endswith("12.82), the guard went back")
    assert "guard" not in "".join(rows["strong"])
    assert sentence.text.startswith("Chosen on val: adversarial. On test: A gain")
    back = " The guard stepped in in the adversarial arm (seed 0: back 1 times)."
    assert sentence.text.endswith(back)


def test_where_the_guard_ended_all_none_is_chosen(make):
    made = make(adversarial=[0.8], weak=[0.9])
    guard(made, "weak", "back")
    assert variants.tables(made)[1].text.endswith(
        " The guard stepped in in weak (seed 0: back 1 times)."
    )
    for role in ("weak", "adversarial"):
        guard(made, role, "end")
    assert variants.tables(made)[1].text == (
        "None can be chosen: the guard ended adversarial, weak, and no other was "
        "evaluated on val."
    )


def test_the_picture_shows_means_and_their_intervals_over_seeds(make, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        variants.figures, "draw_gains", lambda rows, title: drawn.extend(rows) or b"<"
    )
    variants.tables(make(adversarial=[0.8], weak=[0.8, 0.9]))
    (arm, point, nothing), (weak, mean, (low, high)) = drawn
    assert (arm, nothing, weak) == ("adversarial (1)", None, "weak (2)")
    assert [point, mean] == pytest.approx([12.82, 20.40], abs=0.01)
    assert [low, high] == pytest.approx([-75.86, 116.66], abs=0.01)


def test_without_variants_nothing_is_shown(make):
    assert variants.tables(make(adversarial=[0.8])) == []


def test_variants_are_among_the_runs_and_their_metrics(make):
    made = make(adversarial=[0.8], my_variant=[0.9])
    names = [row[0] for row in made.runs()[0].rows]
    assert "vgg16 my_variant, seed 0" in names  # its own name, underscores too
    assert "my_variant" in [row[0] for row in made.full_metrics()[0].rows]
