"""One run from prepared data to an exported network: `train`.

Order, augmentation and dropout of a stage's n-th step are functions of (seed, stage,
n), so adversarial run and control meet the same batches, and a resumed run reads
nothing that came before.
"""

import dataclasses
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import __version__, checkpoints, lock, preflight, stages, summaries
from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf.backbones import MEAN_RGB, normalize
from ss_gan_tf.config import BOOKKEEPING, Config
from ss_gan_tf.evaluate import evaluate, write_metrics
from ss_gan_tf.export import export
from ss_gan_tf.inference import make_predictor
from ss_gan_tf.input_pipeline import eval_examples, open_dataset, train_batches
from ss_gan_tf.per_image import write_per_image
from ss_gan_tf.profiling import ProfileWindow

_LOG = logging.getLogger(__name__)

Progress = Callable[[str, int, int, dict[str, float]], None]


# --- The run -----------------------------------------------------------------


def train(
    config: Config, data_dir: str, workdir: str, progress: Progress | None = None
) -> dict:
    """Trains, validates, exports; continues where the same run stopped.

    Args:
        config: the run.
        data_dir: prepared data.
        workdir: the run's folder, RUN.
        progress: called after every step with (stage, steps done, steps in all,
            newest logged scalars).

    Returns:
        The metrics of the last G on the validation split, which
        RUN/eval/VAL_SPLIT/metrics.json holds too; per_image.npz beside it holds the
        counts that they come from.

    Raises:
        FileNotFoundError: data, weights or the run to start from are missing.
        ValueError: they do not fit the config, RUN holds another run or is in use,
            or there is too little room.
        FloatingPointError: a loss is no longer finite.
    """
    with lock.alone_in(workdir):
        return _train(config, data_dir, workdir, progress)


def _train(config, data_dir, workdir, progress):
    """`train`, in a folder of its own."""
    # --- Data ----------------------------------------------------------------
    data = open_dataset(config.dataset, data_dir)
    for split in (config.train_split, config.val_split):
        data.source(split)  # an unknown split is an error before the long work

    # --- Models and optimizers -----------------------------------------------
    resumes = checkpoints.has_checkpoint(workdir)
    if resumes:
        checkpoints.check_same_run(workdir, config, data.class_names)
    preflight.check(config, data, workdir)
    networks, weights = stages.create_networks(
        config, data.class_names, load_weights=not resumes
    )
    if resumes:
        old = checkpoints.read_run(workdir)
        fields = {"config": config, "data_dir": os.path.abspath(data_dir)}
        fields["provenance"] = old.provenance | {"execution": _execution(config)}
        checkpoints.write_run(dataclasses.replace(old, **fields))
    else:
        _describe_run(config, data, data_dir, workdir, networks, weights)
    _LOG.info("execution: %s", _execution(config))
    plan = stages.make_stages(config, networks, data.ignore_label)

    # --- Loop ----------------------------------------------------------------
    training = _Training(config, data, networks, workdir, progress)
    for stage in plan[training.restore(plan) :]:
        training.run(stage)

    # --- Result --------------------------------------------------------------
    return training.conclude()


class _Training:
    """The loop's state: networks, position, best results, and where they are kept."""

    def __init__(self, config, data, networks, workdir, progress):
        self.config, self.data, self.networks = config, data, networks
        self.workdir, self.progress = workdir, progress
        self.position = checkpoints.Position()
        self.best = {phase: tf.Variable(-1.0) for phase in checkpoints.PHASES}
        parts = {k: v for k, v in vars(networks).items() if v is not None}
        self.manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(position=self.position, best=self.best, **parts),
            os.path.join(workdir, "checkpoints"),
            max_to_keep=config.keep_checkpoints,
            checkpoint_name="state",
        )
        self.best_managers = {
            phase: tf.train.CheckpointManager(
                tf.train.Checkpoint(
                    generator=networks.generator, position=self.position
                ),
                os.path.join(workdir, "best", phase),
                max_to_keep=1,
                checkpoint_name="generator",
            )
            for phase in checkpoints.PHASES
        }
        self.writer = summaries.Summaries(workdir)
        self.writer.text("config", config.to_json())
        settings = dataclasses.asdict(config)
        self.writer.hparams({k: settings[k] for k in settings.keys() - BOOKKEEPING})
        self.profile = ProfileWindow(workdir, config.profile_steps)
        self.last_validation = (None, None, {})  # stage, step, metrics
        self.per_image = None  # the counts behind them
        self.predictor = make_predictor(
            networks.generator,
            num_classes=data.num_classes,
            normalize=normalize,
            mode=config.eval_mode,
            window=config.eval_window,
            overlap=config.eval_overlap,
            scales=config.eval_scales,
            flip=config.eval_flip,
        )

    def restore(self, plan: list[stages.Stage]) -> int:
        """Loads the newest checkpoint; returns the index of the stage to go on with."""
        path = self.manager.latest_checkpoint
        if not path:
            return 0
        try:
            self.manager.checkpoint.restore(path).assert_consumed()
        except checkpoints.UNREADABLE as error:
            raise ValueError(
                f"{path}: cannot be restored ({str(error).strip()[:200]!r}); "
                "to continue from an older state, name it in the file `checkpoint` "
                "beside it"
            ) from error
        where = self.position.describe()
        _LOG.info("continuing from %s, %s step %d", path, *where.values())
        return [stage.name for stage in plan].index(where["phase"])

    def run(self, stage: stages.Stage):
        """Does the steps of one stage that are still to be done."""
        config = self.config
        if self.position.describe()["phase"] != stage.name:
            self._enter(stage)
        first = self.position.describe()["step"]
        counted_from, clock, values = first, time.monotonic(), {}
        for step, batch in enumerate(self._batches(stage, first), start=first + 1):
            stages.seed_dropout(self.networks.generator, config.seed, stage.name, step)
            # The warm-up leaves G's steps uncounted: 0 is in no window.
            number = stage.first_step + step if stage.updates_generator else 0
            with self.profile.step(number):
                scalars = stage.step(batch["image"], batch["label"])
            self.position.step.assign(step)
            is_last = step == stage.num_steps
            evaluates = stage.updates_generator and (
                step % config.eval_every == 0 or is_last
            )
            saves = step % config.save_every == 0 or is_last
            if evaluates or saves:
                _finite(stage, step, scalars)
                self._check_state(stage, step)
            if step % config.log_every == 0 or is_last:
                values = _finite(stage, step, scalars)
                seconds = time.monotonic() - clock
                values["steps_per_second"] = (step - counted_from) / seconds
                self._log(stage, step, values)
                counted_from, clock = step, time.monotonic()
            if self.progress:
                self.progress(stage.name, step, stage.num_steps, values)
            if evaluates:
                self._validate(stage, step)
            if saves:
                self.manager.save(stage.first_step + step)
            if evaluates or saves:  # they do not count as training time
                counted_from, clock = step, time.monotonic()

    def _enter(self, stage):
        """Starts a stage: fresh optimizer state for G, position at 0."""
        self.position.stage.assign(stage.name)
        self.position.step.assign(0)
        if stage.name == "phase2":
            stages.reset_optimizer(self.networks.generator_optimizer)
            # G as phase 2 finds it competes for the phase's best.
            last_stage, _, metrics = self.last_validation
            if last_stage == "phase1":
                self._keep_best(stage, 0, metrics["miou"] or 0.0)
            else:
                self._validate(stage, 0)

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
            normalize=normalize,
            seed=stages.stage_seed(config.seed, stage.name),
            first_example=first * config.batch_size,
            num_examples=(stage.num_steps - first) * config.batch_size,
        )

    def _log(self, stage, step, values):
        if stage.updates_generator:
            self.writer.scalars(stage.first_step + step, values)
        else:
            self.writer.scalars(step, values, prefix="warmup/")

    def _validate(self, stage, step):
        """Validation mIoU, pictures, and G kept where it is the phase's best."""
        metrics = self._evaluate(self.config.eval_limit)
        self.last_validation = (stage.name, step, metrics)
        at = stage.first_step + step
        miou = metrics["miou"] or 0.0  # None where no pixel is labelled
        _LOG.info("%s step %d: val mIoU %.2f %%", stage.name, step, 100 * miou)
        self.writer.validation(at, metrics)
        self.writer.pictures(at, self._pictures())
        self._keep_best(stage, step, miou)

    def _keep_best(self, stage, step, miou):
        if miou > self.best[stage.name].numpy():
            self.best[stage.name].assign(miou)
            self.best_managers[stage.name].save(stage.first_step + step)

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

    def _evaluate(self, limit):
        """Metrics; the counts behind the newest ones stay in `self.per_image`."""
        return evaluate(
            self.networks.generator,
            eval_examples(self.data, self.config.val_split, limit=limit or None),
            class_names=self.data.class_names,
            ignore_label=self.data.ignore_label,
            normalize=normalize,
            mode=self.config.eval_mode,
            window=self.config.eval_window,
            overlap=self.config.eval_overlap,
            scales=self.config.eval_scales,
            flip=self.config.eval_flip,
            predictor=self.predictor,
            full=self.config.eval_metrics == "full",
            on_counts=lambda images: setattr(self, "per_image", images),
        )

    def _pictures(self):
        """Panels and verdict maps of the first validation images."""
        pictures = {}
        if not self.config.panels:
            return pictures
        examples = eval_examples(
            self.data, self.config.val_split, limit=self.config.panels
        )
        for number, example in enumerate(examples.as_numpy_iterator()):
            probs = self.predictor(example["image"][np.newaxis])
            pictures[f"panel/{number}"] = summaries.validation_panel(
                example,
                probs[0].argmax(-1),
                self.data.class_colors,
                self.data.ignore_label,
            )
            if self.networks.adversary is not None and _fits_verdicts(example):
                real, fake = _verdicts(
                    self.networks,
                    example,
                    probs,
                    self.config.epsilon,
                    self.data.ignore_label,
                )
                pictures[f"verdicts/{number}"] = summaries.verdict_panel(
                    example["image"], real, fake
                )
        return pictures

    def conclude(self) -> dict:
        """Evaluates the last G on the whole validation split and exports it."""
        self.writer.close()
        self.profile.close()
        folder = os.path.join(self.workdir, "eval", self.config.val_split)
        checkpoint = self.manager.latest_checkpoint
        facts = {
            "dataset": self.config.dataset,
            "split": self.config.val_split,
            "partial": self.data.partial,
            "limit": 0,
            "checkpoint": os.path.relpath(checkpoint, self.workdir),
            **self.position.describe(),
        }
        stage, step, metrics = self.last_validation
        if (stage, step) != (facts["phase"], facts["step"]) or self.config.eval_limit:
            metrics = self._evaluate(0)
        metrics |= facts
        write_per_image(self.per_image, os.path.join(folder, "per_image.npz"))
        write_metrics(metrics, os.path.join(folder, "metrics.json"))
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


def _fits_verdicts(example) -> bool:
    """Whether A's last feature map, a sixteenth of the image, has a cell."""
    return min(example["label"].shape) >= 32


def _verdicts(networks, example, probs, epsilon, ignore_label):
    """A's verdicts on one validation image: d(real map), d(fake map), [S, S] each."""
    label = tf.constant(example["label"][np.newaxis], tf.int32)
    features = None
    if networks.extractor is not None:
        image = tf.constant(example["image"][np.newaxis], tf.float32)
        features = networks.extractor(normalize(image), training=False)
    maps = (
        adversary_lib.real_map(probs, label, epsilon, ignore_label),
        adversary_lib.fake_map(probs, label, ignore_label),
    )
    real, fake = (
        tf.sigmoid(adversary_lib.judge(networks.adversary, shown, features))
        for shown in maps
    )
    return real[0].numpy(), fake[0].numpy()


def _finite(stage, step, scalars) -> dict[str, float]:
    """The scalars as floats.

    Raises:
        FloatingPointError: one is not finite.
    """
    values = {name: float(value) for name, value in scalars.items()}
    broken = {k: v for k, v in values.items() if not math.isfinite(v)}
    if broken:
        raise FloatingPointError(
            f"{stage.name} step {step}: {broken}; the newest checkpoint is older. "
            "Lower the learning rate or the adversarial weight, or use float32"
        )
    return values


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
                "execution": _execution(config),
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
