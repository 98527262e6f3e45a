"""Do other precisions and XLA follow the float32 run? The same run, several times.

Each run is one of `train.train`: same batches, same first weights, same seeds of
dropout. What is compared is every loss of every step, or of the first ones, and the
mIoU at the end; how far apart float32 runs of other seeds end says what a difference in
mIoU means.

    WORKDIR/VARIANT-SEED.json   losses and mIoU of a finished run; it is not run again
"""

import dataclasses
import functools
import gc
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ss_gan_tf import allocation, stages
from ss_gan_tf.checkpoints import other_splits
from ss_gan_tf.config import Config
from ss_gan_tf.evaluate import write_metrics
from ss_gan_tf.input_pipeline import open_dataset
from ss_gan_tf.machine import describe_machine
from ss_gan_tf.results import read_json
from ss_gan_tf.train import train

REFERENCE = "float32"
# Yardsticks: weights of G rounded to bfloat16, or moved as far as that leads, each by
# what a generator of that seed draws; or each weight's larger or smaller neighbour, or
# one of the two, as drawn.
ROUNDED = "float32-rounded"
ROUNDINGS = {
    ROUNDED: None,
    **{f"{ROUNDED}-drawn-{seed}": seed for seed in range(1, 8)},
}
NUDGES = {
    "float32-nudged": np.inf,
    "float32-nudged-down": -np.inf,
    **{f"float32-nudged-drawn-{seed}": seed for seed in range(1, 7)},
}
# Arithmetic without what a run makes of it: every so many steps such a variant goes on
# from the float32 run's weights and optimizers. So a loss is at most one update of G
# and two of A apart.
REJOINED = {"bfloat16-rejoined": "bfloat16", "float32-xla-rejoined": "float32-xla"}
REJOIN_EVERY = 2
VARIANTS = {
    REFERENCE: {"precision": "float32", "jit_compile": "off"},
    **{
        name: {"precision": "float32", "jit_compile": "off"}
        for name in (*ROUNDINGS, *NUDGES)
    },
    "bfloat16": {"precision": "mixed_bfloat16", "jit_compile": "off"},
    "float32-xla": {"precision": "float32", "jit_compile": "on"},
    "bfloat16-xla": {"precision": "mixed_bfloat16", "jit_compile": "on"},
    # The run that is trained, beside the losses that are told.
    **{name: {"precision": "float32", "jit_compile": "off"} for name in REJOINED},
    "torch-float32": {"precision": "float32", "jit_compile": "off"},
    "torch-bfloat16": {"precision": "mixed_bfloat16", "jit_compile": "off"},
}
# Whose losses a variant's are held against, where that is not float32.
REFERENCES = {"torch-bfloat16": "torch-float32"}
CHOSEN = ("precision", "jit_compile", "log_every")  # set here for each run
# A step's loss may be off by this share of the float32 run's mean over the compared
# steps of its phase; the mean over the steps by a third of it. bfloat16 has 8 bits, XLA
# and PyTorch have another order of sums. Of yardsticks nothing is asked: they show what
# bfloat16 does to such a run where it rounds but once, and in another implementation,
# and what the last bit of float32's weights does to it. A rejoined one has no time to
# go astray; it is next to the float32 run, so a loss above that mean is held against
# itself.
TOLERANCES = {
    "bfloat16": 0.06,
    "float32-xla": 0.02,
    "bfloat16-xla": 0.06,
    "torch-float32": 0.02,
    "bfloat16-rejoined": 0.02,
    "float32-xla-rejoined": 0.002,
}
# Some runs are so sensitive that what is no error leads further than that. There ours
# may be off by so many times what its yardsticks are, whichever is off most.
# Another order of sums, in a step: what the last bit of the weights did there or
# before, in any nudge. One alone has a chance of its own to end up near float32, and
# two say little of a chaotic run: more may be asked for, beforehand, because they only
# allow more. Judging each of them by the others indicates how often these rules refuse
# what is no error.
# bfloat16, which rounds from the first step on, where a yardstick's change has yet to
# grow: what they, weights rounded once and PyTorch's bfloat16 did in any step. That
# PyTorch makes the same run, its float32 says by keeping to bfloat16's tolerance. One
# rounding says as little of a chaotic run as one nudge, so there may be more of them.
FACTOR = 1.5
_ORDERS_OF_SUMS = ("float32-xla", "torch-float32")
_OURS_IN_BFLOAT16 = ("bfloat16", "bfloat16-xla")


def run_variants(
    config: Config,
    data_dir: str,
    workdir: str,
    variants: Sequence[str],
    num_seeds: int = 3,
    report: Callable[[str], None] | None = None,
    make_torch_stages: Callable | None = None,
    compared_steps: int | None = None,
    num_nudges: int = 2,
    num_roundings: int = 1,
) -> dict:
    """Runs float32 for every seed and each variant for the first one.

    Args:
        config: the run, without the guard, which would leave out losses; `CHOSEN` and
            the seed are replaced.
        data_dir: prepared data.
        workdir: where the results of finished runs are kept.
        variants: keys of `VARIANTS`; float32 is always run, and what a variant is
            held against or what may widen its tolerance (`FACTOR`). Nothing is asked
            of yardsticks: nudges widen that of float32-xla, torch-float32 and
            bfloat16, roundings and, where it is asked for, `torch-bfloat16` that of
            bfloat16, beside which the rejoined one always runs. Those of
            `REJOINED` have float32's mIoU, which is not compared.
        num_seeds: float32 runs, from the config's seed upwards.
        report: called with a line for each run.
        make_torch_stages: `stages.make_stages` whose steps are PyTorch's, for the
            variants of that name.
        compared_steps: of each stage, how many losses are compared, from the first
            step; None is all.
        num_nudges: how many of `NUDGES` such a variant brings along, the first ones.
        num_roundings: how many of `ROUNDINGS` bfloat16 does.

    Returns:
        What `compare` says, "seed", and "machines", which is what the runs were made on
        and with (`describe_machine`, and TensorFlow's version), each once.

    Raises:
        ValueError: an unknown variant, one of PyTorch without its stages, a guarded
            run, or runs without a labelled pixel; or the folder holds damaged results
            or those of other settings or data.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise ValueError(
            f"variants={','.join(sorted(unknown))}: must be among {', '.join(VARIANTS)}"
        )
    if not 2 <= num_nudges <= len(NUDGES):
        raise ValueError(f"num_nudges={num_nudges}: must be 2 to {len(NUDGES)}")
    if not 1 <= num_roundings <= len(ROUNDINGS):
        raise ValueError(
            f"num_roundings={num_roundings}: must be 1 to {len(ROUNDINGS)}"
        )
    if config.guard:
        raise ValueError("guard=True: must be off, it leaves out what is not finite")
    wanted = set(variants) | {REFERENCES[v] for v in variants if v in REFERENCES}
    if wanted.intersection(_ORDERS_OF_SUMS + _OURS_IN_BFLOAT16):
        wanted.update(list(NUDGES)[:num_nudges])
    if wanted.intersection(_OURS_IN_BFLOAT16):
        wanted.update(list(ROUNDINGS)[:num_roundings])
    if "bfloat16" in wanted:  # a wide tolerance would hide an error of a single step
        wanted.add("bfloat16-rejoined")
    of_torch = sorted(v for v in wanted if v.startswith("torch"))
    if of_torch and make_torch_stages is None:
        raise ValueError(f"variants={','.join(of_torch)}: PyTorch's stages are missing")
    seeds = range(config.seed, config.seed + num_seeds)
    plan = [(REFERENCE, seed) for seed in seeds]
    plan += [(v, config.seed) for v in VARIANTS if v in wanted and v != REFERENCE]
    makers = dict.fromkeys(of_torch, make_torch_stages)
    for variant, other in REJOINED.items():
        makers[variant] = functools.partial(
            _rejoining_stages, VARIANTS[other], data_dir
        )
    for change, yardsticks in ((_rounded, ROUNDINGS), (_nudged, NUDGES)):
        for yardstick, how in yardsticks.items():
            if isinstance(how, int):
                how = np.random.default_rng(how)
            makers[yardstick] = functools.partial(
                _stages_from, functools.partial(change, how)
            )
    places = {run: os.path.join(workdir, "-".join(map(str, run))) for run in plan}
    kept = all(os.path.exists(f"{place}.json") for place in places.values())
    digests = _digests(config, data_dir, kept, report)
    runs = {}
    for variant, seed in plan:
        changed = dataclasses.replace(
            config, **VARIANTS[variant], seed=seed, log_every=1
        )
        make_stages = makers.get(variant, stages.make_stages)
        runs[variant, seed] = _run(
            changed, digests, data_dir, places[variant, seed], make_stages
        )
        if report:
            miou = 100 * runs[variant, seed]["miou"]
            report(f"{variant}, seed {seed}: mIoU {miou:.2f} %")
    machines = []  # a run of an earlier version does not say
    for run in runs.values():
        if "machine" in run and run["machine"] not in machines:
            machines.append(run["machine"])
    return {
        "seed": config.seed,
        "machines": machines,
        **compare(runs, config.seed, compared_steps),
    }


def _digests(config, data_dir, kept, report):
    """Those of the data's splits; none where the data are neither there nor needed."""
    try:
        return open_dataset(config.dataset, data_dir).digests
    except FileNotFoundError as error:
        if not kept:
            raise
        if report:
            report(f"runs are shown as they are, not held against data: {error}")
        return {}


def _stages_from(change, config, networks, *args, **kwargs):
    """`stages.make_stages`; before it G's weights are changed."""
    for weight in networks.generator.weights:
        if weight.dtype == "float32":
            weight.assign(change(weight.value))
    return stages.make_stages(config, networks, *args, **kwargs)


def _rounded(draws, weights):
    """Without the bits that bfloat16 has not, or up to half its last one elsewhere."""
    if draws is None:
        return tf.cast(tf.cast(weights, tf.bfloat16), tf.float32)
    fraction, exponent = np.frexp(weights)  # 8 bits of a fraction from 0.5 to 1
    moves = np.where(fraction, draws.uniform(-(2**-9), 2**-9, weights.shape), 0)
    return tf.constant(np.ldexp(fraction + moves, exponent), tf.float32)


def _nudged(towards, weights):
    """The next numbers of float32 on the way to that one, or as a generator draws."""
    if isinstance(towards, np.random.Generator):
        towards = towards.choice([-np.inf, np.inf], weights.shape)
    ends = tf.broadcast_to(tf.constant(towards, tf.float32), tf.shape(weights))
    return tf.math.nextafter(weights, ends)


def _rejoining_stages(way, data_dir, config, networks, ignore_label, weakening=None):
    """`stages.make_stages` without a guard; the losses are those of another way.

    Args:
        way: its precision and jit_compile.
        data_dir: prepared data.
        config: of the run that is trained.
        networks: its.
        ignore_label: of the data set.
        weakening: must be None.
    """
    other_config = dataclasses.replace(config, **way)
    names = open_dataset(config.dataset, data_dir).class_names
    others = stages.create_networks(other_config, names)
    trained = stages.make_stages(config, networks, ignore_label, weakening)
    following = stages.make_stages(other_config, others, ignore_label)

    def beside(step, other_step):
        numbers = itertools.count()

        def on_batch(image, label):
            if next(numbers) % REJOIN_EVERY == 0:
                for theirs, ours in zip(
                    others.variables, networks.variables, strict=True
                ):
                    theirs.assign(ours)
            scalars = other_step(image, label)
            step(image, label)
            return scalars

        return on_batch

    return [
        dataclasses.replace(stage, step=beside(stage.step, other.step))
        for stage, other in zip(trained, following, strict=True)
    ]


def _run(config, digests, data_dir, place, make_stages):
    """Losses of every step and the last mIoU; from the file where there is one."""
    path, settings = f"{place}.json", json.loads(config.to_json())
    if not os.path.exists(path):
        _make(config, settings, digests, data_dir, place, path, make_stages)
    kept = read_json(path, ("config", "losses", "miou"))
    if kept["config"] != settings:
        raise ValueError(f"{path}: is of a run with other settings; move it away")
    splits = dict.fromkeys((config.train_split, config.val_split))
    if other := other_splits(kept.get("data_digests", {}), digests, splits):
        raise ValueError(
            f"{path}: is of a run whose {config.dataset} had other examples of "
            f"{' and '.join(other)} than those prepared now; move it away"
        )
    if kept["miou"] is None:
        raise ValueError(f"{path}: no labelled pixel was validated, so no mIoU")
    if not (
        isinstance(kept["losses"], dict)
        and all(map(_is_numbers, kept["losses"].values()))
        and _is_numbers([kept["miou"]])
    ):
        raise ValueError(f"{path}: losses and miou must be numbers")
    return kept


def _is_numbers(values):
    if not (isinstance(values, list) and values):
        return False
    return all(type(value) in (int, float) for value in values)


def _make(config, settings, digests, data_dir, place, path, make_stages):
    """Trains, and writes the losses of every step and the last mIoU."""
    # An interrupted one begins anew: its first losses are gone.
    shutil.rmtree(place, ignore_errors=True)
    losses = {}
    machine = {**describe_machine(), "tensorflow": tf.__version__}

    def keep(stage, step, num_steps, values):
        for name, value in values.items():
            if name.startswith("loss/"):
                losses.setdefault(f"{stage} {name.removeprefix('loss/')}", []).append(
                    value
                )

    metrics = train(config, data_dir, place, progress=keep, make_stages=make_stages)
    result = {
        "config": settings,
        "data_digests": digests,
        "machine": machine,
        "losses": losses,
        "miou": metrics["miou"],
    }
    write_metrics(result, path)
    shutil.rmtree(place)
    gc.collect()  # its networks are in cycles
    allocation.give_back_now()


def compare(
    runs: dict[tuple[str, int], dict], seed: int, compared_steps: int | None = None
) -> dict:
    """How far each variant is from float32 of the same seed.

    Args:
        runs: (variant, seed) -> "losses" (name -> value of every step) and "miou".
        seed: that of the variants.
        compared_steps: of each stage, how many losses are compared, from the first
            step; None is all.

    Returns:
        "rows": variant, loss, steps (how many are compared, of how many), float32 (mean
        over these steps of the run that the variant is held against), largest and mean
        (absolute differences as shares of it, a rejoined one's of the step's own loss
        where that is larger), largest_at (the step), allowed ([of the largest, of the
        mean]), within, outside_from (the first step with more than it may have; early
        steps may have less than the largest).
        "miou": variant, value, difference, within; "spread" is the largest less the
        smallest mIoU of the float32 runs. Allowed and within are None for yardsticks.
        "strays", of runs with three nudges or more: loss, nudges (how many), outside
        (which of them would be, judged by the others as XLA is by all of them); with
        three roundings or more, those in nudges' place, judged as bfloat16 is.

    Raises:
        ValueError: a variant has other losses, or of other steps, than float32.
    """
    of_seeds = [
        run["miou"] for (variant, _), run in runs.items() if variant == REFERENCE
    ]
    spread = max(of_seeds) - min(of_seeds)
    rows, ends, off = [], [], {}
    for (variant, _), run in runs.items():
        if variant == REFERENCE:
            continue
        tolerance = TOLERANCES.get(variant)  # None: a yardstick's
        reference = runs[REFERENCES.get(variant, REFERENCE), seed]
        if _lengths(run) != _lengths(reference):
            raise ValueError(
                f"{variant}: losses of the steps {_lengths(run)}, float32's are "
                f"{_lengths(reference)}"
            )
        for name, values in reference["losses"].items():
            expected, given = (
                np.array(of[:compared_steps]) for of in (values, run["losses"][name])
            )
            scale = np.abs(expected).mean() or 1.0  # 0 in all steps: by itself
            if variant in REJOINED:
                scale = np.maximum(scale, np.abs(expected))
            off[variant, name] = np.abs(given - expected) / scale
            rows.append(
                {
                    "variant": variant,
                    "loss": name,
                    "steps": [len(expected), len(values)],
                    "float32": float(expected.mean()),
                    "largest": float(off[variant, name].max()),
                    "largest_at": int(off[variant, name].argmax()) + 1,
                    "mean": float(off[variant, name].mean()),
                }
            )
        if variant in REJOINED:  # float32's
            continue
        difference = run["miou"] - reference["miou"]
        ends.append(
            {
                "variant": variant,
                "value": run["miou"],
                "difference": difference,
                "within": tolerance and abs(difference) <= spread,
            }
        )
    for row in rows:
        row |= _judge(off, row["variant"], row["loss"])
    strays = [
        _strays(off, loss, *kind)
        for kind in (
            ("nudges", NUDGES, "float32-xla"),
            ("roundings", ROUNDINGS, "bfloat16"),
        )
        for loss in runs[REFERENCE, seed]["losses"]
    ]
    return {
        "rows": rows,
        "miou": ends,
        "of_seeds": of_seeds,
        "spread": spread,
        "strays": [of_loss for of_loss in strays if of_loss],
    }


def _strays(off, loss, kind, yardsticks, variant):
    """One of the "strays": these are no errors, so one outside is a false alarm.

    Args:
        off: (variant, loss) -> [T] how far off each step is.
        loss: which.
        kind: of the yardsticks, in words.
        yardsticks: theirs.
        variant: as which each of them is judged.
    """
    known = (*NUDGES, *ROUNDINGS, *REFERENCES, *REFERENCES.values())
    known = [name for name in known if (name, loss) in off]
    of_kind = [name for name in known if name in yardsticks]
    if len(of_kind) < 3:
        return None
    outside = []
    for judged in of_kind:
        as_variant = {
            (variant if name == judged else name, loss): off[name, loss]
            for name in known
        }
        if not _judge(as_variant, variant, loss)["within"]:
            outside.append(judged)
    return {"loss": loss, kind: len(of_kind), "outside": outside}


def _judge(off, variant, loss):
    """What a row has of "allowed", "within" and "outside_from".

    Args:
        off: (variant, loss) -> [T] how far off each step is.
        variant: the row's.
        loss: the row's.
    """
    if variant not in TOLERANCES:
        return {"allowed": None, "within": None, "outside_from": None}
    steps, mean = _allowed(off, variant, loss)
    outside = np.flatnonzero(off[variant, loss] > steps)
    return {
        "allowed": [float(np.max(steps)), float(mean)],
        "within": bool(not outside.size and off[variant, loss].mean() <= mean),
        "outside_from": int(outside[0]) + 1 if outside.size else None,
    }


def _allowed(off, variant, loss):
    """Of each step, one number or [T], and of their mean."""
    tolerance, nothing = TOLERANCES[variant], np.zeros(1)
    if variant in REJOINED:
        return tolerance, tolerance / 3
    yardsticks = [off.get((nudge, loss), nothing) for nudge in NUDGES]
    if variant in _ORDERS_OF_SUMS:
        steps = np.maximum.accumulate(functools.reduce(np.maximum, yardsticks))
    else:
        yardsticks += [off.get((rounding, loss), nothing) for rounding in ROUNDINGS]
        peer = off.get(("torch-float32", loss), nothing)
        if peer.max() <= tolerance and peer.mean() <= tolerance / 3:
            yardsticks.append(off.get(("torch-bfloat16", loss), nothing))
        steps = max(yardstick.max() for yardstick in yardsticks)
    mean = max(yardstick.mean() for yardstick in yardsticks)
    return np.maximum(tolerance, FACTOR * steps), max(tolerance / 3, FACTOR * mean)


def _lengths(run):
    return {name: len(values) for name, values in run["losses"].items()}


def format_table(result: dict) -> str:
    """The comparison for people."""
    lines = ["| run | loss | float32 | largest | mean | allowed | |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in result["rows"]:
        lines.append(
            f"| {row['variant']} | {row['loss']} | {row['float32']:.4f} "
            f"| {row['largest']:.2%} | {row['mean']:.2%} "
            f"| {_format_allowed(row)} |"
        )
    compared = {row["loss"].split()[0]: row["steps"] for row in result["rows"]}
    for stage, (first, steps) in compared.items():
        if first < steps:
            lines += ["", f"{stage}: losses of the first {first} of {steps} steps"]
    for of_loss in result["strays"]:
        outside = ", ".join(of_loss["outside"]) or "none"
        told = (
            f"{of_loss['nudges']} nudges, each judged by the others as XLA"
            if "nudges" in of_loss
            else f"{of_loss['roundings']} roundings, each judged by the others as "
            "bfloat16"
        )
        lines += [
            "",
            f"{of_loss['loss']}: of {told} is by all of them, outside are: {outside}",
        ]
    if len(result.get("machines", ())) > 1:
        lines += ["", "The runs were not all made on one machine with one commit."]
    values = ", ".join(f"{100 * value:.2f}" for value in result["of_seeds"])
    lines += ["", f"mIoU of the float32 runs, %: {values}"]
    lines.append(f"spread {100 * result['spread']:.2f} points")
    for end in result["miou"]:
        lines.append(
            f"{end['variant']}: {100 * end['value']:.2f}, "
            f"{100 * end['difference']:+.2f} points, {_verdict(end)}"
        )
    return "\n".join(lines)


def _format_allowed(row):
    if row["allowed"] is None:
        return f"- | {_verdict(row)}"
    largest, mean = row["allowed"]
    return f"{100 * largest:.1f}%, {100 * mean:.1f}% | {_verdict(row)}"


def _verdict(row):
    verdict = {True: "within", False: "**outside**", None: "yardstick"}[row["within"]]
    step = row.get("outside_from")
    return f"{verdict} from step {step}" if step else verdict
