"""Watches training for collapse: numbers in, decision out.

It reads the scalars of every step and every validation mIoU, and says when a run has to
go back to its best state of phase 2 with a weaker adversary. Nothing here knows
TensorFlow, and the whole state is a dict of JSON values, so that a checkpoint holds it.

    not_finite          a gradient is not finite: it counts as zero; noted, and a
                        collapse when it goes on for about `WINDOW` steps
    segmentation        eq. 4 above `LOSS_FACTOR` times its level at the end of phase 1
    pushed              gradient ratio above its limit
    adversary_diverged  eq. 6 far above what it was
    adversary_forgot    paired accuracy back at chance after it was good
    validation          validation mIoU more than `miou_drop` below phase 1's
    adversary_wins      paired accuracy at 1, or eq. 3's adversarial term where it is
                        when A rejects every prediction: noted once
    adversary_idle      paired accuracy still at chance after `IDLE_STEPS`: noted once

Equations, ratio and accuracy are running means over about `WINDOW` steps.
"""

import copy
import dataclasses
import math

CHECK_EVERY = 10  # steps between decisions
WINDOW = 20  # steps that a running mean remembers
LOSS_FACTOR = 2.0  # eq. 4 against phase 1's level
CANNOT_TELL = 2 * math.log(2)  # eq. 6 of an adversary that cannot tell
DIVERGED_FACTOR = 3.0  # eq. 6 against the lowest that it was
DIVERGED = 20.0  # nats; eq. 6 above it was never good
GOOD_PAIRED = 0.75  # paired accuracy of an adversary that has learnt
CHANCE_PAIRED = 0.58  # paired accuracy near chance
WINS_PAIRED = 0.995  # paired accuracy of an adversary that has won outright
REJECTED = 0.01  # d of the predictions of such a one
IDLE_STEPS = 200  # steps after which it should have learnt something
LEAST_SCALE = 2.0**-10  # of a loss; float16's largest number would be 6e7 there
MANY_SKIPPED = 0.15  # share of skipped updates that one bad batch does not explain
LOWER = 0.1  # factor on the adversary's weight, or on its rate, at each way back

REMEDIES = {
    "not_finite": "use --precision=float32, lower --generator_lr or --adversary_lr; "
    "one batch alone: look for a damaged example with data_prep.browse",
    "segmentation": "lower --gradient_ratio or --lambda_adv, or --generator_lr",
    "pushed": "lower --lambda_adv, or hold --adversarial_weighting=gradient_ratio",
    "adversary_diverged": "lower --adversary_lr",
    "adversary_forgot": "lower --adversary_lr, lengthen --adversary_warmup_steps",
    "validation": "lower --gradient_ratio or --lambda_adv",
    "adversary_wins": "lower --adversary_lr or --adversary_warmup_steps; with the "
    "saturating form use --adversarial_form=nonsaturating",
    "adversary_idle": "use --adversary_optimizer=adam and --adversary_warmup_steps",
}
# Alarms that lie with A: its rate is lowered, not its weight.
OF_ADVERSARY = ("adversary_diverged", "adversary_forgot")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done: `note`, `back` to the best state, or `end` with phase 1."""

    action: str
    alarm: str  # key of REMEDIES
    why: str  # with the numbers

    @property
    def remedy(self) -> str:
        """What a user can change."""
        return REMEDIES[self.alarm]


class Guard:
    """Watches one run.

    Args:
        retries: ways back before the run ends with phase 1's weights.
        miou_drop: share of 1 that validation mIoU may lie below phase 1's.
        ratio_limit: greatest gradient ratio.
    """

    def __init__(self, retries: int, miou_drop: float, ratio_limit: float):
        self.retries, self.miou_drop = retries, miou_drop
        self.ratio_limit = ratio_limit
        self._waiting = []
        self.state = {
            "tries": 0,
            "ended": False,
            "strength": 1.0,  # factor on the adversary's weight for G
            "adversary_rate": 1.0,  # factor on A's rate
            "lost_steps": 0,  # that G's optimizer has forgotten by going back
            "level": {},  # phase 1's: mce, miou
            "lowest_loss_d": None,
            "was_good": False,  # A told the pairs apart
            "noted": [],
            "skipped": 0,  # updates since the last decision
            **_fresh_means(),
        }

    def see(self, scalars: dict):
        """Takes a step's scalars; tensors are looked at when it is asked to decide."""
        self._waiting.append(scalars)

    def snapshot(self) -> dict:
        """The state, every step that was seen included, as JSON values."""
        self._catch_up()
        return copy.deepcopy(self.state)

    def enter_phase2(self, miou: float | None):
        """Keeps phase 1's levels; means start anew."""
        self._catch_up()
        mce = self.state["means"].get("loss/mce")
        self.state["level"] = {"mce": mce, "miou": miou or 0.0}
        self.state |= _fresh_means()

    def decide(self, adversarial: bool, miou: float | None = None) -> Decision | None:
        """Judges everything seen since it was asked last.

        Args:
            adversarial: whether G meets A, so that there is a state to go back to.
            miou: of a validation at this step, if there was one.

        Returns:
            None where all is well.
        """
        self._catch_up()
        skipped, self.state["skipped"] = self.state["skipped"], 0
        alarm = self._worst(adversarial, miou)
        if alarm is None and skipped:
            alarm = ("not_finite", f"{skipped} updates were not finite: skipped", False)
        if alarm is None:
            return None
        name, why, is_collapse = alarm
        if not is_collapse:
            return Decision("note", name, why)
        if not adversarial or self.state["tries"] >= self.retries:
            return Decision("end", name, why)
        return Decision("back", name, why)

    def go_back(self, decision: Decision):
        """Counts a try, weakens the adversary, forgets the means."""
        weakened = "adversary_rate" if decision.alarm in OF_ADVERSARY else "strength"
        self.state[weakened] *= LOWER
        self.state["tries"] += 1
        self.state["was_good"] = False
        self.state |= _fresh_means()

    def _catch_up(self):
        """Folds the waiting scalars into the means, in their order."""
        state, waiting, self._waiting = self.state, self._waiting, []
        for scalars in waiting:
            values = {name: float(value) for name, value in scalars.items()}
            values |= _finite_under_a_scale(values)
            finite = [v for name, v in values.items() if name.startswith("finite/")]
            state["skipped"] += sum(value < 1 for value in finite)
            state["steps"] += 1
            for name, value in values.items():
                if math.isfinite(value):
                    count = state["counts"][name] = state["counts"].get(name, 0) + 1
                    mean = state["means"].get(name, 0.0)
                    mean += (value - mean) / min(count, WINDOW)
                    state["means"][name] = mean
            self._remember()

    def _remember(self):
        """The best that A has been, once the means mean something."""
        state = self.state
        if state["counts"].get("loss/loss_d", 0) >= WINDOW:
            loss, lowest = state["means"]["loss/loss_d"], state["lowest_loss_d"]
            state["lowest_loss_d"] = loss if lowest is None else min(loss, lowest)
            paired = state["means"].get("adversary/accuracy_paired", 0.0)
            state["was_good"] |= paired >= GOOD_PAIRED
        if state["level"] and state["level"]["mce"] is None:
            # G came from another run: its first steps here stand for phase 1.
            if state["counts"].get("loss/mce", 0) >= WINDOW:
                state["level"]["mce"] = state["means"]["loss/mce"]

    def _worst(self, adversarial, miou):
        """(alarm, why, whether it is a collapse) of the worst, or None."""
        state, level = self.state, self.state["level"]
        settled = state["steps"] >= WINDOW
        mean = state["means"].get
        for name in ("finite/generator", "finite/adversary"):
            if settled and mean(name, 1.0) < 1 - MANY_SKIPPED:
                share = 1 - mean(name)
                return "not_finite", f"{share:.0%} of the updates are not finite", True
        if not adversarial:
            return None
        if miou is not None and miou < level["miou"] - self.miou_drop:
            why = f"validation mIoU {miou:.2%}, phase 1 had {level['miou']:.2%}"
            return "validation", why, True
        if not settled:
            return None
        if level["mce"] and mean("loss/mce", 0.0) > LOSS_FACTOR * level["mce"]:
            why = f"eq. 4 at {mean('loss/mce'):.3f}, phase 1 had {level['mce']:.3f}"
            return "segmentation", why, True
        if mean("gradient/ratio", 0.0) > self.ratio_limit:
            why = f"{mean('gradient/ratio'):.2f}, the limit is {self.ratio_limit:.2f}"
            return "pushed", f"gradient ratio {why}", True
        loss_d, paired = mean("loss/loss_d"), mean("adversary/accuracy_paired")
        if loss_d is None:
            return None
        lowest = state["lowest_loss_d"] or loss_d
        if loss_d > min(DIVERGED_FACTOR * max(lowest, CANNOT_TELL), DIVERGED):
            why = f"eq. 6 at {loss_d:.2f}, the lowest was {lowest:.2f}"
            return "adversary_diverged", why, True
        if state["was_good"] and paired < CHANCE_PAIRED:
            why = f"paired accuracy {paired:.2f} after {GOOD_PAIRED} or more"
            return "adversary_forgot", why, True
        term = mean("loss/adversarial", 1.0)
        wins = paired >= WINS_PAIRED or _rejects_all(term)
        if wins and self._first("adversary_wins"):
            why = f"paired accuracy {paired:.3f}, adversarial term of eq. 3 {term:.3g}"
            return "adversary_wins", why, False
        if (
            state["steps"] >= IDLE_STEPS
            and paired < CHANCE_PAIRED
            and self._first("adversary_idle")
        ):
            return "adversary_idle", f"paired accuracy {paired:.2f}", False
        return None

    def _first(self, alarm):
        """Whether an alarm comes for the first time; it then counts as noted."""
        is_first = alarm not in self.state["noted"]
        self.state["noted"] += [alarm] * is_first
        return is_first


def _rejects_all(term: float) -> bool:
    """Whether the adversarial term of eq. 3 says that d is below `REJECTED`.

    It is -ln d, never negative, in the non-saturating form, which then grows, and
    ln(1 - d), never positive, in the other, whose gradient vanishes with it.
    """
    return term > -math.log(REJECTED) or math.log(1 - REJECTED) < term < 0


def _finite_under_a_scale(values: dict[str, float]) -> dict[str, float]:
    """finite/NAME where a loss scale skips overflows, which are none of our business.

    A loss that is not finite is, and a scale that fell as if everything overflowed.
    """
    losses = [value for name, value in values.items() if name.startswith("loss/")]
    computed = all(map(math.isfinite, losses))
    return {
        f"finite/{part}": float(computed and values[name] >= LEAST_SCALE)
        for part in ("generator", "adversary")
        if (name := f"loss_scale/{part}") in values
    }


def _fresh_means() -> dict:
    return {"steps": 0, "means": {}, "counts": {}}
