"""The tables of a report: what was measured, in the paper's form and beyond it.

What has not been run is a dash.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from ss_gan_tf import comparison, paper, results
from ss_gan_tf.bootstrap import seed_spread
from ss_gan_tf.comparison import Comparison, Result
from ss_gan_tf.config import ARMS
from ss_gan_tf.datasets import DATASETS
from ss_gan_tf.page import Table, Text
from ss_gan_tf.words import (
    DASH,
    differ,
    difference,
    interval,
    mean_of,
    number,
    signed,
    spread,
)

NAMES = {
    "phase1": "phase 1",
    "control": "the control",
    "adversarial": "the adversarial arm",
    "entropy": "the entropy placebo",
    "frozen_adversary": "the placebo with a random adversary",
}
# Heading, place in metrics.json, factor.
FULL = (
    ("boundary IoU, %", ("boundary", "mean_iou"), 100),
    ("boundary F1, %", ("boundary", "mean_f1"), 100),
    ("component surplus /image", ("granulation", "surplus"), 1),
    ("hole surplus /image", ("granulation", "hole_surplus"), 1),
    ("specks /image", ("granulation", "specks"), 1),
    ("specks, % of pixels", ("granulation", "speck_share"), 100),
    ("border ratio", ("granulation", "border_ratio"), 1),
    ("large areas missed, %", ("granulation", "large_missed"), 100),
    ("calibration error, %", ("calibration", "ece"), 100),
    ("mean confidence, %", ("calibration", "mean_confidence"), 100),
)
# And behind them, of every evaluation.
CLASS_SIZES = (
    ("mIoU of small classes, %", ("miou_small_classes",), 100),
    ("mIoU of large classes, %", ("miou_large_classes",), 100),
)
COLUMNS = (*FULL, *CLASS_SIZES)
UNFAIR = "not comparable"
ONE_IN_TWENTY = "of twenty such intervals one is expected to miss the true value"
MOST_STEPS = 20  # rows of a table of steps


class Tables:
    """The tables of one comparison.

    Args:
        compared: the runs.
        split: that the tables are about.
        facts: study.json where the runs belong to a study.
    """

    def __init__(self, compared: Comparison, split: str, facts: dict | None = None):
        self.compared, self.split, self.facts = compared, split, facts
        self.groups = compared.groups

    # --- Conclusions and the paper's tables ----------------------------------

    def conclusions(self):
        """What may be said, group by group."""
        blocks = []
        for group in self.groups:
            blocks.append(Text(f"{self.name(group)}, mIoU on {self.split}:"))
            for role in ("control", "phase1", *results.PLACEBOS):
                gains = self.compared.gains(group, role, self.split)
                if not gains and role in results.PLACEBOS:
                    continue
                name = NAMES[role]
                text = comparison.conclude(gains, name)
                unfair = self.compared.unfair(group, role, self.split)
                if unfair:
                    text = f"Against {name}: not comparable, {differ(unfair)}"
                if role == "phase1" and gains:
                    text += " The extra steps alone may do this."
                blocks.append(Text(text, strong=role == "control"))
                if role == "control" and gains and not unfair:
                    blocks += self._on_val(group, role, gains, text)
            for kind in dict.fromkeys((self.split, self.val)):
                if early := self.compared.early(group, kind):
                    told = f"Figures on {kind} that are not of a run's end: "
                    blocks.append(Text(f"{told}{'; '.join(early)}.", strong=True))
            if guarded := self.guarded(group):
                blocks.append(Text(guarded, strong=True))
        blocks.append(
            Text(
                "Rules: a difference is that of the mean IoU over the classes that the "
                "truth has. A single seed is a lead, never a result, and that only "
                "where its interval excludes 0. A gain or a loss "
                "needs an interval over images (paired bootstrap, 95 %) that excludes "
                "0 on the same side for every seed, and a mean over seeds whose "
                "interval (Student's t, 95 %) does so too. All else is no difference "
                "shown."
            )
        )
        return blocks

    def table3(self):
        """The paper's Table 3 beside ours, mean over seeds, and the controls."""
        columns = [*ARMS, "vgg16 control", "resnet50 control"]
        rows = []
        names = [*(dataset for dataset, _ in self.groups), *paper.TABLE3]
        for dataset in dict.fromkeys(names):
            theirs = paper.TABLE3.get(dataset, {})
            ours = {}
            for column in columns:
                backbone, role = _place(column)
                ours[column] = self.compared.mious(
                    (dataset, backbone), role, self.split
                )
            title = self.name((dataset, None))
            row = [f"{title}: ours", *(spread(ours[c]) for c in columns)]
            if not theirs:
                rows.append(row)
                continue
            rows += [
                [f"{title}: paper", *(number(theirs.get(c)) for c in columns)],
                row,
                [
                    f"{title}: difference",
                    *(difference(ours[c], theirs.get(c)) for c in columns),
                ],
            ]
        caption = (
            f"mIoU in % on {self.split}, last checkpoint; mean over seeds, its sample "
            "standard deviation where there are several, and their number in brackets. "
            "The control is not in the paper."
        )
        return [Table(caption, ["", *columns], rows)]

    def table4(self):
        """The classes of the paper's Table 4, for data sets that have them."""
        blocks = []
        names = [*(dataset for dataset, _ in self.groups), "cityscapes"]
        for dataset in dict.fromkeys(names):
            known = DATASETS.get(dataset)
            if known is None or not known.table4_classes:
                continue
            rows = []
            for arm in ARMS:
                backbone, role = _place(arm)
                ours = [
                    self._class_ious((dataset, backbone), role, name)
                    for name in known.table4_classes
                ]
                theirs = [None] * len(ours)
                if dataset == "cityscapes":
                    theirs = [row[arm] for row in paper.TABLE4.values()]
                    rows.append([f"{arm}: paper", *map(number, theirs)])
                rows.append([f"{arm}: ours", *map(spread, ours)])
                if dataset == "cityscapes":
                    pairs = zip(ours, theirs, strict=True)
                    cells = (difference(*pair) for pair in pairs)
                    rows.append([f"{arm}: difference", *cells])
            blocks.append(
                Table(
                    f"{self.name((dataset, None))}: IoU in % on {self.split}",
                    ["", *paper.TABLE4],
                    rows,
                )
            )
        return blocks

    # --- Gains and runs ------------------------------------------------------

    def gains(self):
        """Differences for each seed with their intervals, and their spread."""
        blocks = []
        for group in self.groups:
            rows = []
            for role in ("phase1", "control", *results.PLACEBOS):
                gains = self.compared.gains(group, role, self.split)
                if gains and self.compared.unfair(group, role, self.split):
                    rows.append([NAMES[role], DASH, UNFAIR, DASH, DASH])
                    continue
                of_best = f"{self.split}-best"
                best = self.compared.gains(group, role, of_best)
                if best and (unfair := self.compared.unfair(group, role, of_best)):
                    best = []
                    told = f"{self.name(group)}, best checkpoints, {NAMES[role]}: "
                    blocks.append(Text(f"{told}not comparable, {differ(unfair)}"))
                for gain in gains:
                    rows.append(
                        [
                            NAMES[role],
                            str(gain.seed),
                            signed(gain.points),
                            interval(gain.interval),
                            *(
                                [signed(g.points) for g in best if g.seed == gain.seed]
                                or [DASH]
                            ),
                        ]
                    )
                if len(gains) > 1:
                    seeds = seed_spread([gain.points for gain in gains])
                    rows.append(
                        [
                            NAMES[role],
                            "mean",
                            signed(seeds.mean),
                            f"{interval((seeds.low, seeds.high))} over seeds",
                            signed(statistics.fmean(g.points for g in best))
                            if best
                            else DASH,
                        ]
                    )
                if not gains:
                    rows.append([NAMES[role], DASH, DASH, DASH, DASH])
            theirs = paper.TABLE3.get(group[0])
            if theirs:
                claim = theirs[f"{group[1]}_g"] - theirs[group[1]]
                rows.append(
                    ["the paper's, over phase 1", DASH, signed(claim)] + [DASH] * 2
                )
            blocks.append(
                Table(
                    f"{self.name(group)}: points of mIoU on {self.split} over",
                    ["over", "seed", "last", "95 % interval", "best checkpoints"],
                    rows,
                )
            )
        return blocks

    def runs(self):
        """One row for each run: last, best, mean of the last validations."""
        count = self.facts["settings"]["last_validations"] if self.facts else 3
        kinds = [self.split, f"{self.split}-best"]
        kinds += [k for k in (self.val, f"{self.val}-best") if k not in kinds]
        rows = []
        for group in self.groups:
            for seed in self.compared.seeds(group):
                for role in self._roles(group):
                    result = self.compared.get(group, seed, role)
                    if result is None:
                        if role not in results.PLACEBOS:
                            name = f"{group[1]} {results.in_words(role)}, seed {seed}"
                            rows.append([name, *[DASH] * (len(kinds) + 3)])
                        continue
                    rows.append(_run_row(result, kinds, count))
        header = ["run", *(f"{kind}, %" for kind in kinds)]
        header += [f"mean of last {count} validations, %", "steps", "training, h"]
        blocks = [
            Table(
                "mIoU; the best checkpoint is chosen on the validation split.",
                header,
                rows,
            )
        ]
        if self.facts:
            waiting = [
                f"{name} ({entry['status']})"
                for name, entry in self.facts["runs"].items()
                if entry["status"] != "done"
            ]
            if waiting:
                blocks.append(Text(f"Not finished: {'; '.join(waiting)}."))
        return blocks

    def classes(self):
        """Each class under control and adversary, mean over seeds."""
        blocks = []
        for group in self.groups:
            names = next(
                r.run.class_names for r in self.compared.runs if r.group == group
            )
            rows, unfair = [], self.compared.unfair(group, "control", self.split)
            for name in names:
                pairs = [
                    [
                        self._class_iou(group, seed, role, name)
                        for seed in self.compared.seeds(group)
                    ]
                    for role in ("phase1", "control", "adversarial")
                ]
                gains = [
                    ours - other
                    for other, ours in zip(*pairs[1:], strict=True)
                    if None not in (ours, other)
                ]
                cells = [
                    spread([v for v in values if v is not None]) for values in pairs
                ]
                reach = f"{min(gains):+.2f} to {max(gains):+.2f}" if gains else DASH
                told = (
                    [UNFAIR, DASH] if gains and unfair else [over_seeds(gains), reach]
                )
                rows.append([name, *cells, *told])
            blocks.append(
                Table(
                    f"{self.name(group)}: IoU in % on {self.split}; gain of the "
                    "adversarial arm over the control, mean over seeds with its 95 % "
                    f"interval (Student's t), and range; {ONE_IN_TWENTY}",
                    ["class", "phase 1", "control", "adversarial", "gain", "range"],
                    rows,
                )
            )
        return blocks

    def _on_val(self, group, role, gains, said) -> list[Text]:
        """Whether the split that checkpoints are chosen on says what was `said`."""
        if self.split == self.val or self.compared.unfair(group, role, self.val):
            return []
        there = self.compared.gains(group, role, self.val)
        if not there:
            return []
        text = comparison.conclude(there, NAMES[role])
        text = f"On {self.val}: {text[0].lower()}{text[1:]}"
        means = [statistics.fmean(g.points for g in of) for of in (gains, there)]
        opposed = means[0] * means[1] < 0 and "no difference shown" not in said
        if opposed:
            text += f" The sign is not that on {self.split}: it depends on the split."
        return [Text(text, strong=opposed)]

    def full_metrics(self):
        """Granulation, boundary, calibration, small and large classes over seeds."""
        blocks = []
        for group in self.groups:
            rows = []
            for role in self._roles(group):
                found = self._results(group, role)
                if role in results.PLACEBOS and not found:
                    continue
                found = [
                    result
                    for result in found
                    if any(
                        _figure(result, self.split, p) is not None for _, p, _ in FULL
                    )
                ]
                cells = [str(len(found) or DASH)]
                for _, place, factor in COLUMNS:
                    values = [_figure(result, self.split, place) for result in found]
                    cells.append(mean_of([factor * v for v in values if v is not None]))
                rows.append([results.in_words(role), *cells])
            blocks.append(
                Table(
                    f"{self.name(group)}, {self.split}; mean over the seeds that were "
                    "evaluated with the full metrics, and their sample standard "
                    "deviation; a dash where there is none.",
                    ["", "seeds", *(title for title, _, _ in COLUMNS)],
                    rows,
                )
            )
            blocks += self._full_differences(group)
        return blocks

    def _full_differences(self, group) -> list[Table]:
        """What the adversary and the placebos change of these figures."""
        of_role = {
            role: found
            for role in ("adversarial", *results.PLACEBOS)
            if (found := self._results(group, role))
        }
        rows = []
        unfair = {
            role
            for role in of_role
            if self.compared.unfair(group, "control", self.split, of=role)
        }
        for title, place, factor in COLUMNS:
            cells = []
            for role, found in of_role.items():
                pairs = []
                for result in found:
                    control = self.compared.get(group, result.config.seed, "control")
                    ours = _figure(result, self.split, place)
                    theirs = control and _figure(control, self.split, place)
                    if ours is not None and theirs is not None:
                        pairs.append(factor * (ours - theirs))
                cells.append(UNFAIR if pairs and role in unfair else over_seeds(pairs))
            if any(cell != DASH for cell in cells):
                rows.append([title, *cells])
        if not rows:
            return []
        caption = (
            f"{self.name(group)}, {self.split}: difference to the control of the same "
            "seed, mean over seeds and its 95 % interval (Student's t); "
            f"{ONE_IN_TWENTY}"
        )
        return [Table(caption, ["", *map(results.in_words, of_role)], rows)]

    def during_training(self, group, control, adversarial) -> list[Table]:
        """When the adversarial arm is ahead of the control.

        Args:
            group: (data set, backbone).
            control: seed -> [(step, mIoU)], fractions, of the validations of phase 2.
            adversarial: likewise.

        Returns:
            A table of the steps at which both were validated; none without such.
        """
        if self.compared.unfair(group, "control", self.split):
            return []
        points = {}
        for seed in sorted(control.keys() & adversarial.keys()):
            of_control = dict(control[seed])
            points[seed] = {
                step: 100 * (value - of_control[step])
                for step, value in adversarial[seed]
                if step in of_control
            }
        steps = sorted({step for of_seed in points.values() for step in of_seed})
        every = max(1, -(-len(steps) // MOST_STEPS))
        steps = steps[::-every][::-1]  # the last one stays
        rows = []
        for step in steps:
            there = [of[step] for of in points.values() if step in of]
            cells = [signed(of[step]) if step in of else DASH for of in points.values()]
            rows.append([f"{step:,}", *cells, signed(statistics.fmean(there))])
        caption = (
            f"{self.name(group)}: validation mIoU of the adversarial arm over the "
            "control of the same seed after so many steps, in points, of the images "
            "that training looked at"
        )
        header = ["step", *(f"seed {seed}" for seed in points), "mean"]
        return [Table(caption, header, rows)] if rows else []

    # --- Access --------------------------------------------------------------

    def name(self, group: tuple[str, str | None]) -> str:
        """Data set and backbone, in words; a partial data set says so."""
        dataset, backbone = group
        name = dataset + (" (partial)" if self.is_partial(dataset) else "")
        return f"{name}, {backbone}" if backbone else name

    @property
    def val(self) -> str:
        """The split that checkpoints and variants are chosen on."""
        return self.compared.runs[0].config.val_split

    def is_partial(self, dataset: str) -> bool:
        """Whether figures are of a data set that lacks images."""
        return any(
            metrics.get("partial")
            for result in self.compared.runs
            if result.config.dataset == dataset
            for kind, metrics in result.metrics.items()
            if "-data" not in kind  # not the run's own
        )

    def guard_outcomes(self, group: tuple[str, str], role: str) -> dict[int, dict]:
        """Seed -> what the guard did to its run of a role or variant."""
        return {
            result.config.seed: results.guard_outcome(result.run.workdir)
            for result in self._results(group, role)
        }

    def guarded(self, group: tuple[str, str], role: str = "adversarial") -> str:
        """What the guard did to a role or variant, in words; "" where it slept."""
        words = []
        for seed, outcome in self.guard_outcomes(group, role).items():
            if outcome["ended"]:
                text = "ended with phase 1's weights, which its row is"
                words.append(f"seed {seed}: {text}")
            elif outcome["ways_back"]:
                words.append(f"seed {seed}: back {outcome['ways_back']} times")
        if not words:
            return ""
        name = NAMES.get(role, role)
        return f"The guard stepped in in {name} ({'; '.join(words)})."

    def _class_iou(self, group, seed, role, name):
        result = self.compared.get(group, seed, role)
        value = _figure(result, self.split, ("iou", name)) if result else None
        return None if value is None else 100 * value

    def _class_ious(self, group, role, name):
        seeds = (result.config.seed for result in self._results(group, role))
        values = (self._class_iou(group, seed, role, name) for seed in seeds)
        return [value for value in values if value is not None]

    def _roles(self, group) -> list[str]:
        """Roles, then the group's variants."""
        return [*results.ROLES, *self.compared.variants(group)]

    def _results(self, group, role):
        """The runs of a role, by seed."""
        found = (self.compared.get(group, s, role) for s in self.compared.seeds(group))
        return [result for result in found if result is not None]


# --- Words -------------------------------------------------------------------


def _place(column: str) -> tuple[str, str]:
    """A column of Table 3 -> (backbone, role)."""
    if column.endswith(" control"):
        return column.removesuffix(" control"), "control"
    backbone, is_adversarial = ARMS[column]
    return backbone, "adversarial" if is_adversarial else "phase1"


def _run_row(result: Result, kinds, count) -> list[str]:
    config = result.config
    last = results.last_validations(result.run.workdir, config, count)
    steps = config.phase2_steps if config.uses_phase2 else config.phase1_steps
    hours = result.train_seconds and result.train_seconds / 3600
    name = f"{config.backbone} {results.in_words(result.role)}, seed {config.seed}"
    mious = [result.miou(kind) for kind in kinds] + [last["mean"]]
    cells = [number(None if value is None else 100 * value) for value in mious]
    if 0 < last["count"] < count:
        cells[-1] += f" (of {last['count']})"
    if last["guard"]["ended"]:
        cells[-1] = "- (the guard ended it)"
    elif last["guard"]["ways_back"]:
        cells[-1] += " (since the guard went back)"
    return [name, *cells, f"{steps:,}", number(hours)]


def over_seeds(differences: Sequence[float]) -> str:
    """Mean of a difference for each seed and its interval, or that it is of one."""
    if not differences:
        return DASH
    seeds = seed_spread(differences)
    if seeds.num_pairs == 1:
        return f"{signed(seeds.mean)} (one seed)"
    return f"{signed(seeds.mean)} ({interval((seeds.low, seeds.high))})"


def _figure(result: Result, kind: str, place: Sequence[str]) -> float | None:
    value: Any = result.metrics.get(kind)
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value
