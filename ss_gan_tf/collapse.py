"""Provoked collapses of phase 2, with the guard and without: a study on small runs.

WORKDIR/phase1-SEED/                    phase 1, shared by the runs of a seed
WORKDIR/PROVOCATION-GUARD-SEED/         phase 2 from there; GUARD is on or off
WORKDIR/collapse.json, collapse.md      what came of it, after every run

Every run is one of `train.train`; a study that was interrupted leaves the finished
ones as they are. What no flag can do to a run is done here, around its steps.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import checkpoints, optimizers, stages, train
from ss_gan_tf.config import PRESETS, Config
from ss_gan_tf.evaluate import write_metrics
from ss_gan_tf.summaries import GUARD_FILE

# Minutes on two cores: the smoke preset, shorter.
SETTINGS = PRESETS["smoke"] | {
    "crop_size": 96,
    "phase1_steps": 400,
    "phase2_steps": 100,
    "adversary_warmup_steps": 30,
    "eval_every": 50,
    "save_every": 100,
    "log_every": 10,
    "keep_checkpoints": 1,
    "panels": 0,
}
AT_STEP = 40  # of phase 2, where something happens in its middle


@dataclasses.dataclass(frozen=True)
class Provocation:
    """One way to make phase 2 collapse."""

    what: str
    changes: dict = dataclasses.field(default_factory=dict)  # fields of Config
    make_stages: Callable = stages.make_stages


def _void_visible(probs, label, epsilon, ignore_label):
    """Eq. 1's map with unlabelled pixels set to zero: A sees which map is the truth."""
    shown = adversary_lib.real_map(probs, label, epsilon, ignore_label)
    return tf.where((label != ignore_label)[..., tf.newaxis], shown, 0.0)


def _with_void_visible(config, networks, ignore_label, weakening):
    return stages.make_stages(
        config, networks, ignore_label, weakening, real_map=_void_visible
    )


def _around_phase2(wrap):
    """`make_stages` whose phase-2 step is `wrap(step, networks, steps_done)`."""

    def make_stages(config, networks, ignore_label, weakening):
        plan = stages.make_stages(config, networks, ignore_label, weakening)

        def steps_done():
            lost = int(weakening.lost_steps) if weakening else 0
            return optimizers.count_updates(networks.generator_optimizer) + lost

        return [
            dataclasses.replace(stage, step=wrap(stage.step, networks, steps_done))
            if stage.name == "phase2"
            else stage
            for stage in plan
        ]

    return make_stages


def _bad_batch(step, networks, steps_done):
    """Pixels that are not finite, in the batch of one step."""

    def stepping(image, label):
        if steps_done() == AT_STEP:
            image = image * np.nan
        return step(image, label)

    return stepping


def _adversary_reset(step, networks, steps_done):
    """A's weights drawn anew at one step."""

    def stepping(image, label):
        if steps_done() == AT_STEP:
            fresh = tf.random.Generator.from_seed(1)
            for weight in networks.adversary.trainable_weights:
                if len(weight.shape) > 1:
                    deviation = np.sqrt(2 / np.prod(weight.shape[:-1]))
                    weight.assign(fresh.normal(weight.shape, stddev=deviation))
                else:
                    weight.assign(tf.zeros(weight.shape))
        return step(image, label)

    return stepping


FIXED = {"adversarial_weighting": "fixed", "lambda_adv": 1.0}
PROVOCATIONS = {
    "none": Provocation("nothing: the smoke preset"),
    "lambda": Provocation("lambda = 1, non-saturating", FIXED),
    "lambda_saturating": Provocation(
        "lambda = 1, saturating", FIXED | {"adversarial_form": "saturating"}
    ),
    "ratio": Provocation("gradient ratio 5", {"gradient_ratio": 5.0}),
    "adversary_lr": Provocation("A's rate times 100", {"adversary_lr": 5e-2}),
    "one_hot": Provocation("one-hot maps: epsilon = 1", {"epsilon": 1.0}),
    "void": Provocation("void visible in one map", make_stages=_with_void_visible),
    "bad_batch": Provocation(
        f"a batch that is not finite at step {AT_STEP}",
        make_stages=_around_phase2(_bad_batch),
    ),
    "adversary_reset": Provocation(
        f"A drawn anew at step {AT_STEP}",
        make_stages=_around_phase2(_adversary_reset),
    ),
}


def run_study(
    data_dir: str,
    workdir: str,
    seeds: Sequence[int] = (0, 1, 2),
    provocations: Sequence[str] = tuple(PROVOCATIONS),
    changes: dict | None = None,
    report: Callable[[str], None] | None = None,
) -> dict:
    """Runs what is missing, writes the tables.

    Args:
        data_dir: prepared data with the synthetic set.
        workdir: folder of the runs.
        seeds: each has a phase 1 of its own.
        provocations: keys of PROVOCATIONS.
        changes: fields of Config in place of SETTINGS'.
        report: called with a line about each run.

    Returns:
        What collapse.json holds.
    """
    settings = SETTINGS | (changes or {})
    rows = []
    for seed in seeds:
        start = os.path.join(workdir, f"phase1-{seed}")
        config = Config(**settings | {"arm": "vgg16", "seed": seed, "guard": False})
        level = _finished(config, data_dir, start)["miou"]
        for name in provocations:
            provocation = PROVOCATIONS[name]
            for guarded in (True, False):
                folder = f"{name}-{'on' if guarded else 'off'}-{seed}"
                config = Config(
                    **settings
                    | {"seed": seed, "init_generator": start, "guard": guarded}
                    | provocation.changes
                )
                row = {"provocation": name, "guard": guarded, "seed": seed}
                row["phase1"] = level
                row |= _outcome(
                    config, data_dir, os.path.join(workdir, folder), provocation
                )
                rows.append(row)
                if report:
                    report(json.dumps(row))
                table = {"settings": settings, "commit_version": train.__version__}
                table |= summarize(rows)
                write_metrics(table, os.path.join(workdir, "collapse.json"))
                with open(os.path.join(workdir, "collapse.md"), "w") as file:
                    file.write(format_table(table))
    return table


def _finished(config, data_dir, workdir, provocation=None):
    """The metrics of a run, which is made where it is not there yet."""
    path = os.path.join(workdir, "eval", config.val_split, "metrics.json")
    if os.path.isfile(path) and checkpoints.read_run(workdir).config == config:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    make_stages = provocation.make_stages if provocation else stages.make_stages
    return train.train(config, data_dir, workdir, make_stages=make_stages)


def _outcome(config, data_dir, workdir, provocation):
    """Final mIoU, alarms, and how the run ended."""
    failed = os.path.join(workdir, "failed.txt")
    if os.path.isfile(failed):
        with open(failed, encoding="utf-8") as file:
            return {"miou": None, "alarms": [], "end": file.read()}
    try:
        metrics = _finished(config, data_dir, workdir, provocation)
    except FloatingPointError as error:
        with open(failed, "w", encoding="utf-8") as file:
            file.write(str(error))
        return {"miou": None, "alarms": [], "end": str(error)}
    alarms = []
    path = os.path.join(workdir, GUARD_FILE)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            alarms = [json.loads(line) for line in file]
    ended = metrics.get("guard", {}).get("ended")
    return {
        "miou": metrics["miou"],
        "alarms": [f"{a['alarm']}@{a['step']}:{a['action']}" for a in alarms],
        "end": "phase 1's weights" if ended else "done",
    }


def summarize(rows: list[dict]) -> dict:
    """Phase 1's level and spread over the seeds, and each provocation's outcome.

    Args:
        rows: one for each run: provocation, guard, seed, phase1, miou, alarms, end.

    Returns:
        {"phase1": {"mean", "range", "deviation"}, "rows", "outcomes"}; an outcome
        holds the change against phase 1 as mean and worst over the seeds, None where
        a run ended without a result.
    """
    levels = {row["seed"]: row["phase1"] for row in rows}
    values = list(levels.values())
    outcomes = []
    for key in dict.fromkeys((row["provocation"], row["guard"]) for row in rows):
        runs = [row for row in rows if (row["provocation"], row["guard"]) == key]
        changes = [r["miou"] - r["phase1"] for r in runs if r["miou"] is not None]
        outcomes.append(
            {
                "provocation": key[0],
                "guard": key[1],
                "runs": len(runs),
                "without_result": len(runs) - len(changes),
                "mean_change": statistics.fmean(changes) if changes else None,
                "worst_change": min(changes) if changes else None,
                "alarms": sorted({a.split("@")[0] for r in runs for a in r["alarms"]}),
            }
        )
    return {
        "phase1": {
            "seeds": sorted(levels),
            "mean": statistics.fmean(values),
            "range": max(values) - min(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        },
        "outcomes": outcomes,
        "rows": rows,
    }


def format_table(table: dict) -> str:
    """Markdown of `summarize`; points of mIoU."""
    level = table["phase1"]
    lines = [
        f"Phase 1 over seeds {', '.join(map(str, level['seeds']))}: "
        f"val mIoU {100 * level['mean']:.2f} % on average, range "
        f"{100 * level['range']:.2f}, standard deviation "
        f"{100 * level['deviation']:.2f} points.",
        "",
        "| provocation | guard | runs | change of val mIoU, mean | worst | alarms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in table["outcomes"]:
        mean, worst = (
            "-" if value is None else f"{100 * value:+.2f}"
            for value in (row["mean_change"], row["worst_change"])
        )
        if row["without_result"]:
            worst += f" ({row['without_result']} without a result)"
        cells = (
            PROVOCATIONS[row["provocation"]].what,
            "on" if row["guard"] else "off",
            row["runs"],
            mean,
            worst,
            ", ".join(row["alarms"]) or "-",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
