"""From runs to what may be said of the adversary: differences, intervals, conclusions.

A gain is a difference of mIoU between two runs of one seed, scored on the same images.
Two kinds of luck lie in it: of the images, for which a paired bootstrap over images
gives an interval, and of the seed, for which the spread over seeds does.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ss_gan_tf import checkpoints, config_rules, metrics, results
from ss_gan_tf.bootstrap import paired_difference, seed_spread
from ss_gan_tf.config import BOOKKEEPING, EVALUATION, EXECUTION, Config, differences
from ss_gan_tf.per_image import PerImage, check_same_images, read_per_image

# In what a fair pair may differ: A's own settings, and what changes no weight.
# Only an adversarial run goes back by it.
GUARD = ("guard", "guard_retries", "guard_miou_drop")
MAY_DIFFER = {*results.ADVERSARY_FIELDS, "placebo", *GUARD, *BOOKKEEPING, *EXECUTION}
MAY_DIFFER |= {*EVALUATION}  # an evaluation says itself how it was made

# What two evaluations must share, as metrics.json has it, and what it means that a
# field is not there.
SAME_EVALUATION = {
    "mode": "whole",
    "window": None,
    "overlap": None,
    "scales": [1.0],
    "flip": False,
    "partial": False,
}


# --- Runs --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Result:
    """One run as a comparison sees it.

    Attributes:
        run: what it says of itself.
        role: a key of `results.ROLES`, or the name of a study's variant.
        metrics: kind of evaluation ("test", "val-best") -> metrics.json.
        counts: kind -> counts of each image; only where evaluation kept them.
        train_seconds: of all its processes, where a study took the time.
    """

    run: checkpoints.Run
    role: str
    metrics: dict[str, dict[str, Any]]
    counts: dict[str, PerImage]
    train_seconds: float | None = None

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.run.config

    @property
    def group(self) -> tuple[str, str]:
        """(data set, backbone): runs of one group are compared."""
        return self.config.dataset, self.config.backbone

    def miou(self, kind: str) -> float | None:
        """MIoU of an evaluation as a fraction; None where there is none."""
        return self.metrics.get(kind, {}).get("miou")


def read_result(
    workdir: str, train_seconds: float | None = None, variant: str | None = None
) -> Result:
    """Reads a run and all its evaluations of whole splits.

    Args:
        workdir: RUN.
        train_seconds: passed on.
        variant: of a study, whose role is its name.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a file of it is damaged; the message names the file.
    """
    run = checkpoints.read_run(workdir)
    found, counts = {}, {}
    folder = os.path.join(workdir, "eval")
    for kind in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if not os.path.isfile(os.path.join(folder, kind, "metrics.json")):
            continue  # an evaluation that was interrupted
        figures = results.read_metrics(workdir, kind)
        if figures.get("limit"):
            continue  # figures of a part are not those of the split
        found[kind] = figures
        path = os.path.join(folder, kind, "per_image.npz")
        if os.path.exists(path):
            counts[kind] = read_per_image(path)
            matrix = figures.get("confusion_matrix")
            total = counts[kind].counts["confusion"].sum(axis=0)
            if matrix is not None and not np.array_equal(matrix, total):
                raise ValueError(
                    f"{path}: its counts do not add up to the confusion matrix of the "
                    "metrics.json beside it; evaluate the run again"
                )
    role = variant or results.role_of(run.config)
    return Result(run, role, found, counts, train_seconds)


class Comparison:
    """Runs by data set, backbone, seed and role.

    Args:
        runs: results in any order.

    Raises:
        ValueError: two of them have the same place, or runs of a data set have
            different classes.
    """

    def __init__(self, runs: Iterable[Result]):
        self.runs: list[Result] = []
        self._places: dict[tuple, Result] = {}
        for result in runs:
            place = (*result.group, result.config.seed, result.role)
            other = self._places.setdefault(place, result)
            if other is not result:
                raise ValueError(
                    f"{other.run.workdir} and {result.run.workdir} are both the "
                    f"{result.role} run of {place[0]}, {place[1]}, seed {place[2]}"
                )
            for known in self.runs:
                same_data = known.config.dataset == result.config.dataset
                if same_data and known.run.class_names != result.run.class_names:
                    raise ValueError(
                        f"{known.run.workdir} and {result.run.workdir} have different "
                        f"classes of {result.config.dataset}"
                    )
            self.runs.append(result)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(data set, backbone) of all runs, in order of appearance."""
        return list(dict.fromkeys(result.group for result in self.runs))

    def seeds(self, group: tuple[str, str]) -> list[int]:
        """Seeds of a group, from the smallest."""
        return sorted({r.config.seed for r in self.runs if r.group == group})

    def get(self, group: tuple[str, str], seed: int, role: str) -> Result | None:
        """The run of a place; None where it is missing."""
        return self._places.get((*group, seed, role))

    def variants(self, group: tuple[str, str]) -> list[str]:
        """Names of a group's variants, in order of appearance."""
        roles = dict.fromkeys(r.role for r in self.runs if r.group == group)
        return [role for role in roles if role not in results.ROLES]

    def mious(self, group: tuple[str, str], role: str, kind: str) -> list[float]:
        """MIoU of a role for every seed that has one, in %."""
        found = (self.get(group, seed, role) for seed in self.seeds(group))
        values = (result.miou(kind) for result in found if result is not None)
        return [100 * value for value in values if value is not None]

    def gains(
        self,
        group: tuple[str, str],
        against: str,
        kind: str,
        of: str = "adversarial",
    ) -> list["Gain"]:
        """What one role has over another, for every seed that has both.

        Args:
            group: (data set, backbone).
            against: a role.
            kind: of the evaluation.
            of: a role, or a variant.
        """
        return [
            _gain(ours.config.seed, ours, other, kind)
            for ours, other in self._pairs(group, of, against)
            if None not in (ours.miou(kind), other.miou(kind))
        ]

    def unfair(
        self,
        group: tuple[str, str],
        against: str,
        kind: str,
        of: str = "adversarial",
    ) -> list[str]:
        """Settings in which two roles differ, but should not.

        Args:
            group: (data set, backbone).
            against: a role.
            kind: of the evaluation.
            of: a role, or a variant.

        Returns:
            Fields of Config; of evaluations what they differ in.
        """
        found = []
        for pair in self._pairs(group, of, against):
            starts = (checkpoints.with_start(r.config, r.run.workdir) for r in pair)
            found += unfair_differences(*starts)
            first, second = (result.run for result in pair)
            other = first.other_splits(second.data_digests, _splits_behind(pair, kind))
            found += [f"examples of {split}" for split in other]
            ours, other = (each.metrics.get(kind) for each in pair)
            found += [f"evaluated step ({why})" for why in _before_the_end(pair, kind)]
            if ours and other:
                found += [
                    f"evaluation {name}"
                    for name, default in SAME_EVALUATION.items()
                    if ours.get(name, default) != other.get(name, default)
                ]
            if problem := _other_images(*pair, kind):
                found.append(f"evaluated images ({problem})")
        return list(dict.fromkeys(found))

    def early(self, group: tuple[str, str], kind: str) -> list[str]:
        """Evaluations of a group's last checkpoints from before their runs' ends.

        Args:
            group: (data set, backbone).
            kind: of the evaluation.

        Returns:
            For each the run's folder and the step.
        """
        told = (_early(r, kind) for r in self.runs if r.group == group)
        return [text for text in told if text]

    def _pairs(self, group, of, against) -> list[tuple[Result, Result]]:
        """Runs of two roles, for every seed that has both."""
        pairs = (
            (self.get(group, seed, of), self.get(group, seed, against))
            for seed in self.seeds(group)
        )
        return [(ours, other) for ours, other in pairs if ours and other]


def unfair_differences(first: Config, second: Config) -> list[str]:
    """Names of the settings that two runs should share, but do not.

    Of those of a phase that one of them has not, none is.
    """
    ignored = {*MAY_DIFFER}
    if not (first.uses_phase2 and second.uses_phase2):
        ignored |= {"arm", "init_generator", *config_rules.PHASE2}
        if first.init_generator or second.init_generator:
            ignored |= {*config_rules.PHASE1}
    return list(differences(first, second, ignored))


# --- Gains -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Gain:
    """A difference of mIoU for one seed, in points (0.01 of a fraction).

    Attributes:
        seed: of both runs.
        points: ours minus the other's.
        interval: of 95 %, from the paired bootstrap over images; None without counts
            of each image, of less than two images with a labelled pixel, or where the
            images or their truth differ.
    """

    seed: int
    points: float
    interval: tuple[float, float] | None = None


def _gain(seed, ours, other, kind) -> Gain:
    points = 100 * _difference(ours, other, kind)
    shared = ours.counts.keys() & other.counts.keys()
    if kind not in shared or _other_images(ours, other, kind):
        return Gain(seed, points)
    return Gain(seed, points, interval(ours.counts[kind], other.counts[kind]))


def _difference(ours, other, kind) -> float:
    """Of the means over the truth's classes, which are the same for both of a pair.

    Where one evaluation kept no matrix, of eq. 8.
    """
    pair = ours, other
    matrices = [each.metrics[kind].get("confusion_matrix") for each in pair]
    if all(matrices):
        means = [float(metrics.mean_iou_of_true(matrix)) for matrix in matrices]
        if not np.isnan(means).any():
            return means[0] - means[1]
    return ours.miou(kind) - other.miou(kind)


def _before_the_end(pair, kind) -> list[str]:
    """Of a pair's evaluations of last checkpoints those of a run that went on since.

    None where both were after the same step of equally long runs, which is fair, and
    is told of beside the difference.
    """
    places = {_place(result, kind) for result in pair}
    found = [text for result in pair if (text := _early(result, kind))]
    return found if len(places) > 1 else []


def _early(result, kind) -> str:
    """Which step an evaluation is of, where that is not the run's last; else empty."""
    step, of, end, phase = _place(result, kind)
    if "best" in kind.split("-")[1:] or (step, of) == (end, phase):
        return ""
    return f"{result.run.workdir}: {step} of {of}, not {end} of {phase}"


def _place(result, kind):
    """Step and phase that an evaluation is of, and those of the run's end."""
    figures, config = result.metrics.get(kind, {}), result.config
    phase = "phase2" if config.uses_phase2 else "phase1"
    end = config.phase2_steps if config.uses_phase2 else config.phase1_steps
    return figures.get("step", end), figures.get("phase", phase), end, phase


def _splits_behind(pair, kind) -> list[str]:
    """Splits whose examples make a pair's evaluations what they are."""
    config = pair[0].config
    splits = [config.train_split]
    if "best" in kind.split("-"):
        splits.append(config.val_split)  # the checkpoint was chosen on it
    if "-data" not in kind:  # else it is not of the run's data, and says of which
        evaluated = (result.metrics.get(kind, {}).get("split") for result in pair)
        splits += [split for split in evaluated if split]
    return list(dict.fromkeys(splits))


def _other_images(ours, other, kind) -> str:
    """Why two evaluations are not of the same images; empty where they are.

    Without counts of each image the whole split's numbers have to do.
    """
    if kind not in ours.counts.keys() & other.counts.keys():
        pair = [result.metrics.get(kind, {}) for result in (ours, other)]
        truths = [
            (
                figures.get("num_images"),
                figures.get("num_pixels"),
                np.sum(figures.get("confusion_matrix", []), axis=-1).tolist(),
            )
            for figures in pair
        ]
        names = ("images", "labelled pixels", "labelled pixels of a class")
        for name, first, second in zip(names, *truths, strict=True):
            if all(pair) and first and second and first != second:
                return f"{other.run.workdir} has another number of {name}"
        return ""
    try:
        check_same_images(ours.counts[kind], other.counts[kind])
    except ValueError as error:
        return f"{other.run.workdir} has others: {error}"
    return ""


def conclude(gains: Sequence[Gain], against: str) -> str:
    """What may be said, by rules that do not look at the runs.

    - No pair of runs: not measured.
    - One seed: a lead, not a result, where its interval excludes 0.
    - The interval over images excludes 0 on the same side for every seed, and so does
      Student's interval of the mean over seeds: a gain, or a loss.
    - Otherwise: no difference shown.

    Args:
        gains: one for each seed.
        against: what they are held against, in words.

    Returns:
        A sentence.
    """
    if not gains:
        return f"Against {against}: not measured."
    seeds = seed_spread([gain.points for gain in gains])
    mean = f"{seeds.mean:+.2f} points"
    if seeds.num_pairs == 1:
        if gains[0].interval is None:
            mean = f"{mean}, one seed, without an interval over images"
            return f"Against {against}: no difference shown ({mean})."
        low, high = gains[0].interval
        if low <= 0 <= high:
            mean = f"{mean}, one seed, whose interval over images holds 0"
            return f"Against {against}: no difference shown ({mean})."
        return f"Against {against}: a lead, not a result ({mean}, one seed)."
    span = f"{seeds.low:+.2f} to {seeds.high:+.2f}"
    figures = f"{mean}, 95 % interval over {seeds.num_pairs} seeds {span}"
    intervals = [gain.interval for gain in gains]
    if None in intervals:
        return (
            f"Against {against}: no difference shown ({figures}; without counts of "
            "each of several images there is no interval)."
        )
    if all(low > 0 for low, _ in intervals) and seeds.low > 0:
        return f"A gain over {against} ({figures}; no seed's interval holds 0)."
    if all(high < 0 for _, high in intervals) and seeds.high < 0:
        return f"A loss against {against} ({figures}; no seed's interval holds 0)."
    return f"Against {against}: no difference shown ({figures})."


# --- Images ------------------------------------------------------------------


def telling_images(ours: PerImage, other: PerImage) -> dict[str, tuple[str, float]]:
    """The images that a picture shows, chosen by rule.

    Args:
        ours: counts of the adversarial arm.
        other: counts of the same images for the control.

    Returns:
        {"largest gain", "median", "largest loss"} -> (name, difference of the image's
        mIoU in points). The median is the lower one of an even number; ties go to the
        name that comes first, those of the loss to the last: of equal images three.

    Raises:
        ValueError: the images are not the same, or their truth is not.
    """
    check_same_images(ours, other)
    mious = (
        np.array([metrics.mean_iou(matrix) for matrix in images.counts["confusion"]])
        for images in (ours, other)
    )
    points = 100 * np.subtract(*mious)
    order = sorted(
        (i for i in range(len(points)) if not np.isnan(points[i])),
        key=lambda i: (-points[i], ours.names[i]),
    )
    if not order:
        return {}
    chosen = {"largest gain": order[0], "median": order[len(order) // 2]}
    chosen["largest loss"] = order[-1]
    return {what: (ours.names[i], float(points[i])) for what, i in chosen.items()}


def interval(ours: PerImage, other: PerImage) -> tuple[float, float] | None:
    """95 % interval of a difference of mIoU in points, by the paired bootstrap.

    None where less than two images have a labelled pixel: it would have no width.

    Raises:
        ValueError: the images are not the same, or their truth is not.
    """
    check_same_images(ours, other)
    if np.count_nonzero(ours.counts["confusion"].sum(axis=(1, 2))) < 2:
        return None
    found = paired_difference(other.counts["confusion"], ours.counts["confusion"])
    return 100 * found.low, 100 * found.high
