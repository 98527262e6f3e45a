"""One run from prepared data to an exported network: `train`.

Order, augmentation and dropout of a stage's n-th step are functions of (seed, stage,
n), so adversarial run and control meet the same batches, and a resumed run reads
nothing that came before. Everything else that a step depends on, and how far every
written file was, is in the newest state: a run that was stopped at any moment goes on
as if it had not been.
"""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable

import keras
import tensorflow as tf

from ss_gan_tf import (
    __version__,
    checkpoints,
    gradients,
    guard,
    preflight,
    replicas,
    stages,
    summaries,
)
from ss_gan_tf.backbones import MEAN_RGB, normalize
from ss_gan_tf.config import Config
from ss_gan_tf.evaluate import write_evaluation
from ss_gan_tf.export import export
from ss_gan_tf.input_pipeline import open_dataset, to_model, train_batches
from ss_gan_tf.machine import describe_machine
from ss_gan_tf.profiling import ProfileWindow
from ss_gan_tf.run_state import RunState
from ss_gan_tf.validation import Validation
from ss_gan_tf.workers import Workers, digest

_LOG = logging.getLogger(__name__)

Progress = Callable[[str, int, int, dict[str, float]], None]


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


# --- The run -----------------------------------------------------------------


def train(
    config: Config,
    data_dir: str,
    workdir: str,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    make_stages: Callable = stages.make_stages,
) -> dict:
    """Trains, validates, exports; continues where the same run stopped.

    One run at a time in a process: what custom gradients were traced meanwhile goes
    when it returns (`gradients.released`).

    Args:
        config: the run.
        data_dir: prepared data.
        workdir: the run's folder, RUN.
        progress: called after every step with (stage, steps done, steps in all,
            newest logged scalars).
        stop: asked between steps, and between images while validating, whether to save
            and stop; of several workers all stop when one is asked to.
        make_stages: in place of `stages.make_stages`, for experiments with the steps.

    Returns:
        The metrics of the last G on the validation split, which
        RUN/eval/VAL_SPLIT/metrics.json holds too; per_image.npz beside it holds the
        counts that they come from.

    Raises:
        FileNotFoundError: data, weights or the run to start from are missing.
        ValueError: they do not fit the config, RUN holds another run or is in use,
            or there is too little room.
        FloatingPointError: a loss is no longer finite.
        OSError: no room to write, and what was saved before stays good; or ImageNet's
            weights could not be downloaded.
        ConnectionError: another worker is gone.
        Stopped: `stop` said so.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = replicas.make_strategy(config.distribute)
    with replicas.naming_lost_workers(strategy), gradients.released():
        Workers(strategy).agree(functools.partial(_settle, config, strategy))
        with replicas.own_folder(strategy, workdir) as folder:
            try:
                return _train(
                    config, data_dir, folder, progress, stop, make_stages, strategy
                )
            except Stopped as reason:  # all workers stop here, and leave together
                stopped = reason
    raise stopped


def _train(config, data_dir, workdir, progress, stop, make_stages, strategy):
    """`train`, in a folder of its own."""
    workers = Workers(strategy)
    data, resumes = workers.agree(
        functools.partial(_prepare, config, data_dir, workdir)
    )

    # --- Models and optimizers -----------------------------------------------
    with strategy.scope():
        networks = stages.create_networks(config, data.class_names)
    if not resumes:
        weights = workers.agree(
            lambda: (stages.load_first_weights(networks, config, data.class_names), {})
        )
        _describe_run(config, data, data_dir, workdir, networks, weights)
    _LOG.info("execution: %s", _execution(config))

    # --- Loop ----------------------------------------------------------------
    training = _Training(
        config, data, networks, workdir, progress, stop, make_stages, strategy
    )
    first = workers.agree(training.restore_alike)
    if resumes:
        _describe_start(config, data_dir, workdir, has_steps=not training.is_over())
    for stage in training.plan[first:]:
        training.run(stage)

    # --- Result --------------------------------------------------------------
    return training.conclude()


def _settle(config, strategy):
    """Refuses a batch that the devices cannot share.

    Returns:
        None, and what all workers must have alike; of weights whether there are any,
        not where.
    """
    replicas.check_batch(
        config.batch_size, config.accumulate_steps, strategy.num_replicas_in_sync
    )
    fields = json.loads(config.to_json()) | {
        "backbone_weights": config.backbone_weights != "none",
        "init_generator": bool(config.init_generator),
    }
    return None, {"version": __version__} | fields


def _prepare(config, data_dir, workdir):
    """Refuses what cannot be trained, before the long work.

    Returns:
        (data, whether the run goes on), and what all workers must have alike.
    """
    data = open_dataset(config.dataset, data_dir)
    for field in ("train_split", "val_split"):
        split = getattr(config, field)
        data.source(split)  # an unknown one is an error
        if split in data.unlabelled_splits:
            raise ValueError(f"{field}={split}: {config.dataset}'s has no labels")
    resumes = checkpoints.has_checkpoint(workdir)
    if resumes:
        checkpoints.check_same_run(
            workdir, config, data.class_names, digests=data.digests
        )
    else:
        checkpoints.make_way(workdir, config, data.class_names, data.digests)
    preflight.check(config, data, workdir, resumes=resumes)
    digests = {
        f"digest of {split}": data.digests.get(split)
        for split in (config.train_split, config.val_split)
    }
    return (data, resumes), {"goes on": resumes} | digests


class _Training:
    """The loop over the stages of one run."""

    def __init__(
        self, config, data, networks, workdir, progress, stop, make_stages, strategy
    ):
        self.config, self.data, self.networks = config, data, networks
        self.workdir, self.progress, self.stop = workdir, progress, stop
        self.guard = guard.Guard(
            config.guard_retries,
            config.guard_miou_drop,
            ratio_limit=_ratio_limit(config),
        )
        weakening = None
        if config.can_go_back:
            weakening = stages.Weakening()
        with strategy.scope():
            self.plan = make_stages(config, networks, data.ignore_label, weakening)
        self.workers = Workers(strategy)
        self.state = RunState(
            workdir, networks, self.plan, self.guard, weakening, config.keep_checkpoints
        )
        self.validation = Validation(config, data, networks, strategy)
        self.profile = ProfileWindow(workdir, config.profile_steps)

    def restore(self) -> int:
        """Loads the newest state; returns the index of the stage to go on with."""
        resumes = self.state.restore()
        self.writer = summaries.Summaries(self.workdir)
        if resumes:
            return [stage.name for stage in self.plan].index(self.state.stage)
        self.writer.text("config", self.config.to_json())
        self.writer.hparams(self.config.hyperparameters())
        return 0

    def restore_alike(self) -> tuple[int, dict]:
        """`restore`, and what all workers must have alike then."""
        first, facts = self.restore(), {}
        if self.workers.count > 1:
            facts = {
                "stage": self.state.stage,
                "step": self.state.step,
                "digest of the weights": digest(self.networks.variables),
            }
        return first, facts

    def is_over(self) -> bool:
        """Whether every step has been done."""
        last = self.plan[-1]
        return (self.state.stage, self.state.step) == (last.name, last.num_steps)

    def _stop_if_asked(self, stage, step, is_saved=False):
        if self.stop and self.workers.any(self.stop()):
            if not is_saved:
                self.state.save(stage, step)
            raise Stopped(
                f"stopped at {stage.name} step {step} of {stage.num_steps}, with its "
                "state saved; the same command goes on from there"
            )

    # --- Steps ---------------------------------------------------------------

    def run(self, stage: stages.Stage):
        """Does the steps of one stage that are still to be done."""
        config = self.config
        if self.state.stage != stage.name:
            self._enter(stage)
        first = self.state.step
        if self.state.validation_is_due:
            self._end_step(stage, first, True, self._occasions(stage, first)[1])
        if self.state.step == stage.num_steps:
            return
        counted_from, clock, values = first, time.monotonic(), {}
        for step, batch in enumerate(self._batches(stage, first), start=first + 1):
            stages.seed_dropout(
                self.networks.generator,
                config.seed,
                stage.name,
                step,
                config.accumulate_steps,
            )
            # The warm-up leaves G's steps uncounted: 0 is in no window.
            number = stage.first_step + step if stage.updates_generator else 0
            with self.profile.step(number):
                scalars = stage.step(*to_model(batch, normalize))
            self.guard.see(scalars)
            self.state.position.step.assign(step)
            evaluates, saves = self._occasions(stage, step)
            if evaluates or saves:
                self._finite(stage, step, scalars)
                self._check_state(stage, step)
            if step % config.log_every == 0 or step == stage.num_steps:
                values = self._finite(stage, step, scalars)
                seconds = time.monotonic() - clock
                values["steps_per_second"] = (step - counted_from) / seconds
                self._log(stage, step, values)
                counted_from, clock = step, time.monotonic()
            if self.progress:
                self.progress(stage.name, step, stage.num_steps, values)
            if self._end_step(stage, step, evaluates, saves):
                return
            if evaluates or saves:  # they do not count as training time
                counted_from, clock = step, time.monotonic()

    def _occasions(self, stage, step):
        """Whether a step ends with a validation, and whether with a saved state."""
        is_last = step == stage.num_steps
        evaluates = step % self.config.eval_every == 0 or is_last
        saves = step % self.config.save_every == 0 or is_last
        return stage.updates_generator and evaluates, saves

    def _end_step(self, stage, step, evaluates, saves):
        """Validates, heeds the guard, saves, stops; returns whether the stage is over.

        The state is saved behind everything that it has to know, and before the best
        one that it counts.
        """
        is_best = evaluates and self._validate(stage, step)
        is_over = False
        if not is_best and (evaluates or saves or step % guard.CHECK_EVERY == 0):
            is_over = self._heed_guard(stage, step, validated=evaluates)
        if is_over:
            step = stage.num_steps
        is_saved = saves or is_best or is_over
        if is_saved:
            self.state.save(stage, step)
        if is_best:
            self.state.keep_best(stage, step)
        self._stop_if_asked(stage, step, is_saved)
        return is_over

    def _enter(self, stage):
        """Starts a stage: fresh optimizer state for G, position at 0."""
        self.state.position.stage.assign(stage.name)
        self.state.position.step.assign(0)
        if stage.name != "phase2":
            return
        stages.reset_optimizer(self.networks.generator_optimizer)
        # G as phase 2 finds it competes for the phase's best.
        last_stage, _, metrics = self.state.last_validation
        if last_stage == "phase1":
            self.state.best["phase2"] = {"miou": metrics["miou"] or 0.0, "step": 0}
        else:
            self._validate(stage, 0)
        self.guard.enter_phase2(self.state.best["phase2"]["miou"])
        self.state.keep_before_phase2()
        self.state.save(stage, 0)
        self.state.keep_best(stage, 0)

    def _batches(self, stage, first):
        config = self.config
        return train_batches(
            self.data,
            config.train_split,
            batch_size=config.batch_size,
            crop_size=config.crop_size,
            scale_range=(config.scale_min, config.scale_max),
            flip=config.flip,
            pad_color=MEAN_RGB,
            seed=stages.stage_seed(config.seed, stage.name),
            first_example=first * config.batch_size,
            num_examples=(stage.num_steps - first) * config.batch_size,
            worker=(self.workers.number, self.workers.count),
        )

    def _log(self, stage, step, values):
        if stage.updates_generator:
            self.writer.scalars(stage.first_step + step, values)
        else:
            self.writer.scalars(step, values, prefix="warmup/")

    def _validate(self, stage, step):
        """Validation mIoU and pictures; returns whether G is the phase's best."""
        self.state.validation_is_due = step > 0  # a stage's start is entered again
        metrics = self.validation.metrics(
            self.config.eval_limit,
            progress=lambda *_: self._stop_if_asked(stage, step, is_saved=not step),
        )
        self.state.validation_is_due = False
        self.state.last_validation = (stage.name, step, metrics)
        at = stage.first_step + step
        miou = metrics["miou"] or 0.0  # None where no pixel is labelled
        told = "-" if metrics["miou"] is None else f"{miou:.2%}"
        _LOG.info("%s step %d: val mIoU %s", stage.name, step, told)
        self.writer.validation(at, metrics)
        self.writer.pictures(at, self.validation.pictures())
        is_best = miou > self.state.best[stage.name]["miou"]
        if is_best:
            self.state.best[stage.name] = {"miou": miou, "step": step}
        return is_best

    # --- Guard ---------------------------------------------------------------

    def _heed_guard(self, stage, step, validated):
        """Does what the guard decides; returns whether the stage is over."""
        adversarial = stage.name == "phase2" and self.config.can_go_back
        miou = (self.state.last_validation[2]["miou"] or 0.0) if validated else None
        decision = self.guard.decide(adversarial, miou)
        if decision is None:
            return False
        says = f"{stage.name} step {step}: {decision.alarm}: {decision.why}"
        if decision.action == "end" and not adversarial:
            raise FloatingPointError(f"{says}; {decision.remedy}")
        done = {
            "note": "noted",
            "back": "back to the best state of phase 2, with a weaker adversary",
            "end": "tried often enough: ends with phase 1's weights",
        }[decision.action]
        _LOG.warning("%s (%s). Remedy: %s", says, done, decision.remedy)
        if decision.action == "back":
            self.guard.go_back(decision)
            self.state.go_back(stage, step)
        elif decision.action == "end":
            self.guard.state["ended"] = True
            self.state.end(stage)
        at = {"phase": stage.name, "step": step}
        prefix = "" if stage.updates_generator else "warmup/"
        self.writer.alarm(
            step + stage.first_step * stage.updates_generator,
            at | dataclasses.asdict(decision) | {"remedy": decision.remedy},
            {k: self.guard.state[k] for k in ("strength", "adversary_rate")},
            prefix,
        )
        return decision.action == "end"

    def _finite(self, stage, step, scalars) -> dict[str, float]:
        """The scalars as floats; a guarded run leaves out what is not finite.

        Raises:
            FloatingPointError: one is not finite.
        """
        values = {name: float(value) for name, value in scalars.items()}
        broken = {k: v for k, v in values.items() if not math.isfinite(v)}
        if broken and not self.config.guard:
            raise FloatingPointError(
                f"{stage.name} step {step}: {broken}; the newest checkpoint is older. "
                "Lower the learning rate or the adversarial weight, or use float32"
            )
        return {k: v for k, v in values.items() if k not in broken}

    def _check_state(self, stage, step):
        """No state that is not finite is saved: it would push out the good ones."""
        for part in vars(self.networks).values():
            for variable in part.variables if part is not None else ():
                is_float = variable.dtype.startswith("float")
                if is_float and not tf.reduce_all(tf.math.is_finite(variable)):
                    raise FloatingPointError(
                        f"{stage.name} step {step}: {variable.path} is not finite; "
                        "the newest checkpoint is older"
                    )

    def conclude(self) -> dict:
        """Evaluates the last G on the whole validation split and exports it."""
        self.writer.close()
        self.profile.close()
        folder = os.path.join(self.workdir, "eval", self.config.val_split)
        checkpoint = checkpoints.find_checkpoint(self.workdir, "last")
        facts = {
            "dataset": self.config.dataset,
            "split": self.config.val_split,
            "partial": self.data.partial,
            "limit": 0,
            "checkpoint": os.path.relpath(checkpoint, self.workdir),
            **self.state.position.describe(),
        }
        if self.config.guard:
            facts["guard"] = {k: self.guard.state[k] for k in ("tries", "ended")}
        stage, step, metrics = self.state.last_validation
        is_newest = (stage, step) == (facts["phase"], facts["step"])
        has_counts = self.validation.per_image is not None  # no state holds them
        if not is_newest or self.config.eval_limit or not has_counts:
            metrics = self.validation.metrics(
                progress=lambda *_: self._stop_if_asked(self.plan[-1], step, True)
            )
        metrics |= facts
        write_evaluation(metrics, self.validation.per_image, folder)
        run = checkpoints.read_run(self.workdir)
        generator, _ = checkpoints.load_generator(run, "last")
        export(
            generator,
            os.path.join(self.workdir, "export"),
            class_names=run.class_names,
            class_colors=run.class_colors,
            ignore_label=run.ignore_label,
            normalize=normalize,
            metadata={"arm": self.config.arm, **facts},
        )
        return metrics


def _ratio_limit(config) -> float:
    """The gradient ratio above which the guard takes A for too strong."""
    if config.adversarial_weighting == "fixed":
        return 1.0  # gradient_ratio is not read
    return max(1.0, 2 * config.gradient_ratio)


def _describe_run(config, data, data_dir, workdir, networks, weights):
    """Writes RUN/run.json."""
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
    os.makedirs(workdir, exist_ok=True)
    checkpoints.write_run(
        checkpoints.Run(
            workdir=workdir,
            config=config,
            data_dir=os.path.abspath(data_dir),
            class_names=tuple(data.class_names),
            class_colors=tuple(data.class_colors),
            ignore_label=data.ignore_label,
            provenance={
                "weights": weights,
                "data_digests": data.digests,
                "execution": _execution(config),
                "machines": [describe_machine()],
                "versions": {
                    "ss_gan_tf": __version__,
                    "python": platform.python_version(),
                }
                | {name: _version(name) for name in packages},
                "parameters": {
                    name: model.count_params()
                    for name, model in vars(networks).items()
                    if isinstance(model, keras.Model)
                },
            },
        )
    )


def _describe_start(config, data_dir, workdir, has_steps):
    """Brings RUN/run.json up to date where a run goes on."""
    run = checkpoints.read_run(workdir)
    told = run.provenance | {"execution": _execution(config)}
    here, machines = describe_machine(), told.get("machines", [{}])  # not told once
    if has_steps and here not in machines:
        told["machines"] = [*machines, here]
    fields = {"config": config, "data_dir": os.path.abspath(data_dir)}
    checkpoints.write_run(dataclasses.replace(run, **fields, provenance=told))


def _execution(config) -> dict:
    """How the steps of this start are computed."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [d.name for d in tf.config.list_logical_devices(kind)]
    return {"xla": stages.compiles(config), "devices": devices}


def _version(package):
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
