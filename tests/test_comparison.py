"""Differences, intervals and conclusions, on runs that were never trained."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from ss_gan_tf import comparison, metrics
from ss_gan_tf.comparison import Comparison, Gain, conclude, read_result
from ss_gan_tf.config import Config
from ss_gan_tf.per_image import PerImage
from ss_gan_tf.tables import Tables

GROUP = ("camvid", "vgg16")


def compare(*workdirs):
    return Comparison([read_result(path) for path in workdirs])


# --- Conclusions -------------------------------------------------------------


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ([], "not measured"),
        ([Gain(0, 3.0, (2.0, 4.0))], "a lead, not a result"),
        ([Gain(0, 0.2, (-5.0, 3.1))], "no difference shown"),
        ([Gain(0, -3.0, None)], "no difference shown"),
        # Mean 2, s = 0.1, t of 2 degrees 4.30: 4.30 * 0.1 / sqrt(3) = 0.25.
        ([Gain(0, 1.9, (1.0, 3.0)), Gain(1, 2.0, (0.1, 4.0)), Gain(2, 2.1, (1, 3))],
         "A gain over the control"),
        # t of 1 degree 12.71: 12.71 * 0.14 / sqrt(2) = 1.27.
        ([Gain(0, -1.9, (-3, -1.0)), Gain(1, -2.1, (-4, -0.1))],
         "A loss against the control"),
        # Twice the standard error of 0.29 is below the mean of 0.91, 4.30 times is not.
        ([Gain(0, 1.02, (0.8, 1.2)), Gain(1, 0.37, (0.2, 0.5)), Gain(2, 1.35, (1, 2))],
         "no difference shown"),
        # One interval holds 0.
        ([Gain(0, 1.9, (1.0, 3.0)), Gain(1, 2.1, (-0.1, 4.0))], "no difference shown"),
        # Intervals on different sides.
        ([Gain(0, 1.9, (1, 3)), Gain(1, -2.1, (-3, -1))], "no difference shown"),
        # Every interval is clear, but the seeds scatter.
        ([Gain(0, 0.5, (0.1, 0.9)), Gain(1, 3.5, (3.0, 4.0))], "no difference shown"),
        # No counts of each image.
        ([Gain(0, 1.9, None), Gain(1, 2.1, (1.0, 3.0))], "without counts"),
    ],
)  # fmt: skip
def test_conclusions(gains, verdict):
    assert verdict in conclude(gains, "the control")


def test_conclusions_name_the_figures():
    # s = 1 for 4, 5 and 6; 4.3027 / sqrt(3) = 2.484.
    gains = [Gain(seed, 4.0 + seed, (3, 7)) for seed in range(3)]
    text = conclude(gains, "phase 1")
    figures = "+5.00 points, 95 % interval over 3 seeds +2.52 to +7.48"
    assert text == f"A gain over phase 1 ({figures}; no seed's interval holds 0)."


def test_how_often_no_effect_is_called_one():
    """Where seeds differ by luck alone, one in twenty is taken for an effect."""
    draws = np.random.default_rng(0)
    for num_seeds in (2, 3, 5):
        found = [
            conclude(
                [Gain(s, x, (x - 1e-3, x + 1e-3)) for s, x in enumerate(points)], "it"
            )
            for points in draws.normal(size=(1000, num_seeds))
        ]
        assert sum("no difference" not in text for text in found) <= 65


# --- Runs --------------------------------------------------------------------


def test_gains_are_differences_of_the_same_seed(fake_run):
    # IoU of a share r of right pixels is r / (2 - r): 0.9 -> 81.82, 0.8 -> 66.67.
    paths = [
        fake_run("a0", [0.9] * 4),
        fake_run("c0", [0.8] * 4, lambda_adv=0.0),
        fake_run("c1", [0.5] * 4, lambda_adv=0.0, seed=1),
        fake_run("p0", [0.6] * 4, arm="vgg16"),
    ]
    compared = compare(*paths)
    assert compared.groups == [GROUP] and compared.seeds(GROUP) == [0, 1]
    (gain,) = compared.gains(GROUP, "control", "test")  # seed 1 has no other half
    assert (gain.seed, gain.points) == (0, pytest.approx(81.82 - 66.67, abs=0.01))
    # All images are alike, so drawing them again changes nothing.
    assert gain.interval == pytest.approx((gain.points, gain.points))
    assert compared.mious(GROUP, "control", "test") == pytest.approx(
        [66.67, 33.33], abs=0.01
    )
    assert compared.gains(GROUP, "entropy", "test") == []
    assert compared.gains(GROUP, "control", "val") == []


def test_intervals_follow_the_images(fake_run):
    ours, other = [0.9, 0.5, 0.7, 0.95], [0.7, 0.6, 0.7, 0.6]
    compared = compare(fake_run("a", ours), fake_run("c", other, lambda_adv=0.0))
    (gain,) = compared.gains(GROUP, "control", "test")
    low, high = gain.interval
    assert low < gain.points < high
    reverse = compare(
        fake_run("a2", other), fake_run("c2", ours, lambda_adv=0.0)
    ).gains(GROUP, "control", "test")[0]
    assert reverse.interval == pytest.approx((-high, -low), abs=2)


def test_without_counts_there_is_no_interval(fake_run):
    compared = compare(
        fake_run("a", [0.9], counts=False), fake_run("c", [0.8], lambda_adv=0.0)
    )
    assert compared.gains(GROUP, "control", "test")[0].interval is None


def test_different_images_are_not_comparable(fake_run):
    compared = compare(fake_run("a", [0.9, 0.9]), fake_run("c", [0.8], lambda_adv=0.0))
    (problem,) = compared.unfair(GROUP, "control", "test")
    assert "/c has others: images differ: 2 and 1" in problem
    assert compared.gains(GROUP, "control", "test")[0].interval is None


def test_a_pair_may_differ_in_the_adversary_alone():
    ours = Config(gradient_ratio=0.2, adversary_lr=1e-3, log_every=7)
    control = Config(lambda_adv=0.0)
    assert comparison.unfair_differences(ours, control) == []
    guarded = dataclasses.replace(ours, guard=not control.guard, guard_retries=1)
    assert comparison.unfair_differences(guarded, control) == []
    other = Config(lambda_adv=0.0, phase2_steps=7, init_generator="X")
    assert comparison.unfair_differences(ours, other) == [
        "init_generator",
        "phase2_steps",
    ]


def test_a_phase_1_of_another_network_is_unfair():
    ours = Config(init_generator="X", lambda_adv=0.1)
    phase1 = Config(arm="vgg16", phase1_steps=7, guard=True)
    assert comparison.unfair_differences(ours, phase1) == []
    other = dataclasses.replace(phase1, crop_size=64)
    assert comparison.unfair_differences(ours, other) == ["crop_size"]
    alone = dataclasses.replace(ours, init_generator="")
    assert comparison.unfair_differences(alone, phase1) == ["phase1_steps"]


def test_two_spellings_of_a_path_are_fair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Config(init_generator="STUDY/seed0/phase1")
    second = Config(init_generator=str(tmp_path / "STUDY" / "." / "seed0" / "phase1"))
    assert comparison.unfair_differences(first, second) == []
    assert comparison.unfair_differences(first, Config(init_generator="S")) != []


def test_a_study_that_has_moved_is_fair(fake_run, tmp_path):
    places = {"control": "/elsewhere/STUDY", "adversarial": str(tmp_path / "STUDY")}
    paths = [
        fake_run(
            f"STUDY/seed0/vgg16/{name}",
            [0.9],
            init_generator=f"{place}/seed0/vgg16/phase1",
            **({"lambda_adv": 0.0} if name == "control" else {}),
        )
        for name, place in places.items()
    ]
    assert compare(*paths).unfair(GROUP, "control", "test") == []
    other = fake_run("other", [0.9], lambda_adv=0.0, init_generator="/x/phase1")
    assert compare(paths[1], other).unfair(GROUP, "control", "test") == [
        "init_generator"
    ]


def test_evaluations_of_another_kind_are_unfair(fake_run):
    ours, other = fake_run("a", [0.9]), fake_run("c", [0.8], lambda_adv=0.0)
    for path, scales in ((ours, [1.0, 1.25]), (other, [1.0])):
        file = pathlib.Path(path, "eval", "test", "metrics.json")
        told = {"mode": "whole", "scales": scales, "flip": False}
        file.write_text(json.dumps(json.loads(file.read_text()) | told))
    compared = compare(ours, other)
    assert compared.unfair(GROUP, "control", "test") == ["evaluation scales"]
    told = compared.get(GROUP, 0, "adversarial").metrics["test"]
    told["scales"] = [1.0]
    del told["flip"]  # as it was written once
    assert compared.unfair(GROUP, "control", "test") == []
    assert compared.unfair(GROUP, "control", "test-best") == []


def test_another_truth_of_the_same_images_is_not_comparable(fake_run):
    paths = fake_run("a", [0.9, 0.8]), fake_run("c", [0.8, 0.8], lambda_adv=0.0)
    compared = compare(*paths)
    counts = compared.get(GROUP, 0, "control").counts["test"].counts["confusion"]
    counts[1, 0, 0] += 1
    (problem,) = compared.unfair(GROUP, "control", "test")
    assert problem.startswith("evaluated images (") and "image1: the truth" in problem
    texts = [block.text for block in Tables(compared, "test").conclusions()]
    assert any("the control: not comparable" in text for text in texts)


def test_without_counts_the_images_have_to_be_as_many(fake_run):
    ours, other = (
        fake_run("a", [0.9], counts=False),
        fake_run("c", [0.8], lambda_adv=0.0),
    )

    def problems(**changes):
        compared = compare(ours, other)
        compared.get(GROUP, 0, "adversarial").metrics["test"] |= changes
        return compared.unfair(GROUP, "control", "test")

    assert problems() == []
    told = "evaluated images ({other} has another number of {what})"
    for what, changes in {
        "images": {"num_images": 10},
        "labelled pixels": {"num_pixels": 5},
        "labelled pixels of a class": {"confusion_matrix": np.diag([99, 101, 100])},
    }.items():
        assert problems(**changes) == [told.format(other=other, what=what)]


@pytest.mark.parametrize("told", [{"step": 10}, {"phase": "phase1", "step": 40}])
def test_an_evaluation_from_before_the_end_is_not_comparable(fake_run, told):
    ours, other = fake_run("a", [0.9]), fake_run("c", [0.8], lambda_adv=0.0)
    compared = compare(ours, other)
    compared.get(GROUP, 0, "control").metrics["test"] |= {"phase": "phase2", "step": 40}
    assert compared.unfair(GROUP, "control", "test") == []
    early = {"phase": "phase2"} | told
    for kind in "test", "test-best":  # the best checkpoint may be of any step
        compared.get(GROUP, 0, "adversarial").metrics[kind] |= early
    (problem,) = compared.unfair(GROUP, "control", "test")
    says = f"{early['step']} of {early['phase']}, not 40 of phase2"
    assert problem == f"evaluated step ({ours}: {says})"
    assert compared.unfair(GROUP, "control", "test-best") == []


def test_two_evaluations_after_the_same_early_step_are_comparable(fake_run):
    compared = compare(fake_run("a", [0.9]), fake_run("c", [0.8], lambda_adv=0.0))
    for role in "adversarial", "control":
        compared.get(GROUP, 0, role).metrics["test"] |= {"phase": "phase2", "step": 20}
    assert compared.unfair(GROUP, "control", "test") == []
    told = compared.early(GROUP, "test")
    assert [text.split(": ")[1] for text in told] == [
        "20 of phase2, not 40 of phase2"
    ] * 2
    texts = [block.text for block in Tables(compared, "test").conclusions()]
    (text,) = (
        text for text in texts if text.startswith("Figures on test that are not")
    )
    assert (
        "; ".join(told) in text
    )  # a difference of the middle is not taken for the end's
    assert compared.early(GROUP, "val") == []
    compared.get(GROUP, 0, "control").metrics["test"]["step"] = 10
    assert len(compared.unfair(GROUP, "control", "test")) == 2


@pytest.mark.parametrize(
    "ours, other, kind, problems",
    [
        ({"train": "x", "val": "v"}, {"train": "y", "val": "v"}, "test", ["train"]),
        ({"train": "x", "val": "v"}, {"train": "x", "val": "w"}, "test", []),
        ({"train": "x", "val": "v"}, {"train": "x", "val": "w"}, "test-best", ["val"]),
        ({"train": "x"}, {}, "test", []),  # not kept once
        # Other images under the same names and labels.
        ({"train": "x", "test": "t"}, {"train": "x", "test": "u"}, "test", ["test"]),
        ({"train": "x", "test": "t"}, {"train": "x", "test": "u"}, "val", []),
        ({"test": "t"}, {"test": "u"}, "test-data0123abcd", []),
    ],
)
def test_pairs_that_were_trained_on_other_data(fake_run, ours, other, kind, problems):
    compared = compare(fake_run("a", [0.9]), fake_run("c", [0.8], lambda_adv=0.0))
    for role, digests in (("adversarial", ours), ("control", other)):
        result = compared.get(GROUP, 0, role)
        result.run.provenance["data_digests"] = digests
        evaluated = result.metrics.setdefault(kind, dict(result.metrics["test"]))
        evaluated["split"] = kind.partition("-")[0]
    expected = [f"examples of {split}" for split in problems]
    assert compared.unfair(GROUP, "control", kind) == expected


def test_both_means_of_a_difference_are_over_the_same_classes(fake_run):
    ours, other = fake_run("a", [0.9]), fake_run("c", [0.9], lambda_adv=0.0)
    compared = compare(ours, other)
    # A third class that is predicted and never true, in both alike.
    matrix = [[90, 5, 5], [0, 100, 0], [0, 0, 0]]
    for role in "adversarial", "control":
        told = compared.get(GROUP, 0, role).metrics["test"]
        told |= {"confusion_matrix": matrix, "miou": metrics.mean_iou(matrix)}
    assert compared.gains(GROUP, "control", "test")[0].points == 0
    told = compared.get(GROUP, 0, "control").metrics["test"]
    told["confusion_matrix"] = []
    assert compared.gains(GROUP, "control", "test")[0].points == 0
    del told["confusion_matrix"]
    assert compared.gains(GROUP, "control", "test")[0].points == 0


def test_counts_of_another_evaluation_are_refused(fake_run):
    ours, other = fake_run("a", [0.9]), fake_run("b", [0.8], seed=1)
    place = pathlib.Path("eval", "test", "per_image.npz")
    pathlib.Path(ours, place).write_bytes(pathlib.Path(other, place).read_bytes())
    with pytest.raises(ValueError, match="do not add up .* evaluate the run again"):
        read_result(ours)


def test_a_class_that_no_truth_has_makes_no_difference(fake_run):
    """One pixel of it would take a third off the mean of one run, by eq. 8."""
    ours, other = fake_run("a", [0.9] * 2), fake_run("c", [0.9] * 2, lambda_adv=0.0)
    compared = compare(ours, other)
    for role, wrong in (("adversarial", 1), ("control", 0)):
        result = compared.get(GROUP, 0, role)
        matrix = np.array([[90 - wrong, 10, wrong], [0, 100, 0], [0, 0, 0]])
        result.counts["test"].counts["confusion"][:] = matrix
        result.metrics["test"] |= {
            "miou": metrics.mean_iou(2 * matrix),
            "confusion_matrix": (2 * matrix).tolist(),
        }
    (gain,) = compared.gains(GROUP, "control", "test")
    assert -1 < gain.points < 0  # of 100 true pixels one is lost
    assert gain.interval == pytest.approx((gain.points, gain.points))


@pytest.mark.parametrize("labelled", [1, 2])
def test_an_interval_needs_two_images(labelled):
    ours, other = images(0.9, 0.7), images(0.5, 0.6)
    for each in ours, other:
        each.counts["confusion"][labelled:] = 0
    found = comparison.interval(ours, other)
    assert (found is None) == (labelled < 2)


def test_two_runs_of_one_place_are_refused(fake_run):
    with pytest.raises(ValueError, match="are both the adversarial run of camvid"):
        compare(fake_run("a", [0.9]), fake_run("b", [0.8]))


def test_parts_of_a_split_are_no_result(fake_run):
    path = fake_run("a", [0.9], kinds=("test", "val-first1"))
    metrics = pathlib.Path(path, "eval", "val-first1", "metrics.json")
    part = json.loads(metrics.read_text()) | {"limit": 1}
    metrics.write_text(json.dumps(part))
    assert list(read_result(path).metrics) == ["test"]


def test_an_interrupted_evaluation_is_no_result(fake_run):
    path = fake_run("a", [0.9])
    (pathlib.Path(path) / "eval" / "val-best").mkdir()  # per_image.npz comes first
    assert list(read_result(path).metrics) == ["test", "test-best"]


def test_damaged_runs_are_one_line(fake_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        read_result(str(tmp_path / "nowhere"))
    path = pathlib.Path(fake_run("a", [0.9]))
    for name, text in (
        ("eval/test/per_image.npz", "x"),
        ("eval/test/metrics.json", "x"),
        ("run.json", "x"),
    ):
        (path / name).write_text(text)
        with pytest.raises(ValueError) as error:
            read_result(str(path))
        assert str(path / name) in str(error.value) and "\n" not in str(error.value)


# --- Images ------------------------------------------------------------------


def images(*shares):
    matrices = [[[round(100 * s), 100 - round(100 * s)], [0, 100]] for s in shares]
    names = tuple(f"image{n}" for n in range(len(shares)))
    return PerImage(names, ("a", "b"), {"confusion": np.array(matrices)})


def test_images_are_chosen_by_rule():
    # Differences in the order of the names: +, 0, -, ++, -- .
    ours = images(0.8, 0.5, 0.4, 0.9, 0.1)
    other = images(0.6, 0.5, 0.6, 0.3, 0.9)
    chosen = comparison.telling_images(ours, other)
    assert {what: name for what, (name, _) in chosen.items()} == {
        "largest gain": "image3",
        "median": "image1",
        "largest loss": "image4",
    }
    assert chosen["median"][1] == 0
    assert chosen["largest gain"][1] > 0 > chosen["largest loss"][1]


def test_ties_go_to_the_first_name_and_of_the_loss_to_the_last():
    same = images(0.5, 0.5, 0.5)
    chosen = comparison.telling_images(same, same)
    assert [name for name, _ in chosen.values()] == ["image0", "image1", "image2"]
