"""Numbers in, decision out: alarms, the way back, the end, the state in between."""

import dataclasses
import json
import re

import pytest

from ss_gan_tf import guard
from ss_gan_tf.config import Config

GOOD = {
    "loss/mce": 0.5,
    "loss/loss_d": 1.2,
    "gradient/ratio": 0.3,
    "adversary/accuracy_paired": 0.9,
    "finite/generator": 1.0,
    "finite/adversary": 1.0,
}


def make(retries=3, miou=0.6):
    """A guard at the start of phase 2, which phase 1 left at 0.5 nats and 60 % mIoU."""
    watching = guard.Guard(retries, miou_drop=0.02, ratio_limit=1.0)
    for _ in range(30):
        watching.see({"loss/mce": 0.5, "finite/generator": 1.0})
    assert watching.decide(False) is None
    watching.enter_phase2(miou)
    return watching


def feed(watching, num_steps, **changes):
    """Steps with changed scalars, `loss__mce` for loss/mce; the last decision."""
    changes = {name.replace("__", "/"): value for name, value in changes.items()}
    for _ in range(num_steps):
        watching.see(GOOD | changes)
    return watching.decide(True)


def test_a_loss_scale_that_finds_its_place_is_no_alarm():
    watching = make()
    for scale in (2.0**15, 2.0**14, 2.0**13, 2.0**12):
        assert feed(watching, 10, loss_scale__generator=scale) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__mce": float("nan"), "loss_scale__generator": 2.0**15},
        {"loss__loss_d": float("inf"), "loss_scale__adversary": 2.0**15},
        {"loss_scale__generator": 2.0**-20},
    ],
)
def test_under_a_loss_scale_too_a_run_that_stands_still_is_an_alarm(changes):
    watching = make()
    assert feed(watching, 5, **changes).action == "note"
    decision = feed(watching, 20, **changes)
    assert (decision.action, decision.alarm) == ("back", "not_finite")


def test_good_numbers_raise_nothing():
    watching = make()
    assert feed(watching, 500) is None
    assert watching.decide(True, miou=0.59) is None
    assert watching.snapshot()["strength"] == watching.snapshot()["adversary_rate"] == 1


@pytest.mark.parametrize(
    "alarm, changes, weakened",
    [
        ("segmentation", {"loss__mce": 1.5}, "strength"),
        ("pushed", {"gradient__ratio": 4.0}, "strength"),
        ("adversary_diverged", {"loss__loss_d": 9.0}, "adversary_rate"),
        ("adversary_forgot", {"adversary__accuracy_paired": 0.5}, "adversary_rate"),
        ("not_finite", {"finite__generator": 0.0}, "strength"),
        ("not_finite", {"finite__adversary": 0.0}, "strength"),
    ],
)
def test_a_collapse_goes_back_and_weakens_the_adversary(alarm, changes, weakened):
    watching = make()
    assert feed(watching, 40) is None
    decision = feed(watching, 60, **changes)
    assert (decision.action, decision.alarm) == ("back", alarm)
    assert decision.remedy and any(c.isdigit() for c in decision.why)
    watching.go_back(decision)
    state = watching.snapshot()
    assert state[weakened] == pytest.approx(0.1) and state["tries"] == 1
    assert feed(watching, 40) is None  # what led to the alarm is forgotten


def test_one_outlier_is_no_collapse():
    watching = make()
    feed(watching, 40)
    assert feed(watching, 1, loss__mce=5.0, gradient__ratio=9.0) is None


def test_an_adversary_that_diverged_from_the_start():
    assert feed(make(), 30, loss__loss_d=50.0).alarm == "adversary_diverged"


def test_an_adversary_that_starts_far_off_and_learns_is_let_be():
    """Features that are not normalised: eq. 6 starts at 6 to 7."""
    watching = make()
    paired = {"adversary__accuracy_paired": 0.5}
    assert feed(watching, 30, loss__loss_d=7.0, **paired) is None
    assert feed(watching, 60, loss__loss_d=1.4, **paired) is None


def test_validation_below_phase_1():
    assert make().decide(True, miou=0.581) is None
    decision = make().decide(True, miou=0.579)
    assert (decision.action, decision.alarm) == ("back", "validation")
    assert "57.90%" in decision.why and "60.00%" in decision.why


def test_a_single_bad_batch_is_noted_once():
    watching = make()
    feed(watching, 40)
    watching.see(GOOD | {"finite/generator": 0.0, "loss/mce": float("nan")})
    state = watching.snapshot()  # a checkpoint in between loses nothing
    watching = make()
    watching.state = state
    decision = watching.decide(True)
    assert (decision.action, decision.alarm) == ("note", "not_finite")
    assert watching.decide(True) is None
    assert watching.snapshot()["means"]["loss/mce"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "alarm, paired, steps", [("adversary_wins", 1.0, 30), ("adversary_idle", 0.5, 210)]
)
def test_what_is_noted_once_and_changes_nothing(alarm, paired, steps):
    watching = make()
    decision = feed(watching, steps, adversary__accuracy_paired=paired)
    assert (decision.action, decision.alarm) == ("note", alarm)
    assert feed(watching, 10, adversary__accuracy_paired=paired) is None


@pytest.mark.parametrize(
    "term, wins",
    [(4.5, False), (4.7, True), (-0.011, False), (-0.009, True), (0.7, False)],
)
def test_an_adversary_that_rejects_all_shows_in_eq_3(term, wins):
    """At d = 0.01: -ln d = 4.605, ln(1 - d) = -0.01005."""
    decision = feed(make(), 30, loss__adversarial=term)
    assert (decision is not None) == wins
    if wins:
        assert (decision.action, decision.alarm) == ("note", "adversary_wins")
        assert f"eq. 3 {term}" in decision.why


def test_after_its_tries_the_run_ends():
    watching = make(retries=2)
    for number in range(2):
        decision = watching.decide(True, miou=0.1)
        assert decision.action == "back"
        watching.go_back(decision)
        assert watching.snapshot()["strength"] == pytest.approx(0.1 ** (number + 1))
    assert watching.decide(True, miou=0.1).action == "end"


def test_without_an_adversary_there_is_no_way_back():
    watching = make()
    for _ in range(30):
        watching.see({"loss/mce": float("nan"), "finite/generator": 0.0})
    assert watching.decide(False).action == "end"
    assert make().decide(False, miou=0.1) is None  # the control may do as it does


def test_a_run_from_another_ones_weights_takes_its_first_steps_as_the_level():
    watching = guard.Guard(3, 0.02, 1.0)
    watching.enter_phase2(0.6)
    assert feed(watching, 30, loss__mce=0.4) is None
    assert watching.snapshot()["level"]["mce"] == pytest.approx(0.4)
    assert feed(watching, 60, loss__mce=0.9).alarm == "segmentation"


def test_the_state_survives_json_bit_for_bit():
    """Interrupted at any step, the decisions are those of a guard that was not."""
    one, other = make(), make()
    values = [0.1 * (k % 7) + k / 90 for k in range(90)]
    for number, value in enumerate(values):
        for watching in (one, other):
            watching.see(GOOD | {"loss/mce": value})
        if number % 4 == 0:
            state = json.loads(json.dumps(other.snapshot()))
            other = make()
            other.state = state
    assert one.snapshot() == other.snapshot()
    assert one.decide(True) == other.decide(True) is not None


def test_every_remedy_names_flags_that_exist():
    known = {field.name for field in dataclasses.fields(Config)}
    for remedy in guard.REMEDIES.values():
        flags = re.findall(r"--(\w+)", remedy)
        assert flags and set(flags) <= known
