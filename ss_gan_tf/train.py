"""One run from prepared data to an exported network: `train`.

    phase1   G alone (eq. 4); left out when G starts from another run
    warmup   A alone, where asked for
    phase2   G and A alternate (eq. 3 and 6), or the control: phase 1's step with
             phase 2's rates

Order, augmentation and dropout of a stage's n-th step are functions of (seed, stage,
n), so adversarial run and control meet the same batches, and a resumed run reads
nothing that came before.
"""

import dataclasses
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import checkpoints, losses, summaries, train_step
from ss_gan_tf.backbones import MEAN_RGB, load_imagenet, normalize
from ss_gan_tf.config import Config
from ss_gan_tf.evaluate import evaluate, make_predictor, write_metrics
from ss_gan_tf.export import export
from ss_gan_tf.input_pipeline import eval_examples, open_dataset, train_batches

Progress = Callable[[str, int, int, dict[str, float]], None]
STAGES = ("phase1", "warmup", "phase2")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training with one step function."""

    name: str  # one of STAGES
    num_steps: int
    step: Callable  # (image, label) -> scalars
    first_step: int  # TensorBoard's step at its start

    @property
    def updates_generator(self) -> bool:
        """Whether G changes."""
        return self.name != "warmup"


@dataclasses.dataclass
class Networks:
    """What the steps change and a checkpoint saves; A's parts may be absent."""

    generator: keras.Model
    generator_optimizer: keras.optimizers.Optimizer
    adversary: keras.Model | None = None
    extractor: keras.Model | None = None
    adversary_optimizer: keras.optimizers.Optimizer | None = None


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
        RUN/eval/VAL_SPLIT/metrics.json holds too.

    Raises:
        FileNotFoundError: data, weights or the run to start from are missing.
        ValueError: they do not fit the config, or RUN holds another run.
        FloatingPointError: a loss is no longer finite.
    """
    # --- Data ----------------------------------------------------------------
    data = open_dataset(config.dataset, data_dir)
    for split in (config.train_split, config.val_split):
        data.source(split)  # an unknown split is an error before the long work

    # --- Models and optimizers -----------------------------------------------
    is_new = not os.path.exists(os.path.join(workdir, "run.json"))
    if not is_new:
        checkpoints.check_same_run(workdir, config, data.class_names)
    networks, weights = create_networks(config, data.class_names)
    if is_new:
        _describe_run(config, data, data_dir, workdir, networks, weights)
    stages = make_stages(config, networks, data.ignore_label)

    # --- Loop ----------------------------------------------------------------
    training = _Training(config, data, networks, workdir, progress)
    for stage in stages[training.restore(stages) :]:
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
        self.predictor = make_predictor(
            networks.generator,
            num_classes=data.num_classes,
            normalize=normalize,
            mode=config.eval_mode,
            window=config.eval_window,
            overlap=config.eval_overlap,
        )

    def restore(self, stages: list[Stage]) -> int:
        """Loads the newest checkpoint; returns the index of the stage to go on with."""
        path = self.manager.restore_or_initialize()
        if not path:
            return 0
        where = self.position.describe()
        logging.info("continuing from %s, %s step %d", path, *where.values())
        return [stage.name for stage in stages].index(where["phase"])

    def run(self, stage: Stage):
        """Does the steps of one stage that are still to be done."""
        config = self.config
        if self.position.describe()["phase"] != stage.name:
            self._enter(stage)
        first = self.position.describe()["step"]
        counted_from, clock, values = first, time.monotonic(), {}
        for step, batch in enumerate(self._batches(stage, first), start=first + 1):
            seed_dropout(self.networks.generator, config.seed, stage.name, step)
            scalars = stage.step(batch["image"], batch["label"])
            self.position.step.assign(step)
            is_last = step == stage.num_steps
            if step % config.log_every == 0 or is_last:
                values = _finite(stage, step, scalars)
                seconds = time.monotonic() - clock
                values["steps_per_second"] = (step - counted_from) / seconds
                self._log(stage, step, values)
                counted_from, clock = step, time.monotonic()
            if self.progress:
                self.progress(stage.name, step, stage.num_steps, values)
            evaluates = stage.updates_generator and (
                step % config.eval_every == 0 or is_last
            )
            saves = step % config.save_every == 0 or is_last
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
            reset_optimizer(self.networks.generator_optimizer)
            if self.config.init_generator:
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
            seed=stage_seed(config.seed, stage.name),
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
        at = stage.first_step + step
        logging.info(
            "%s step %d: val mIoU %.2f %%", stage.name, step, 100 * metrics["miou"]
        )
        self.writer.validation(at, metrics)
        self.writer.pictures(at, self._pictures())
        if metrics["miou"] > self.best[stage.name].numpy():
            self.best[stage.name].assign(metrics["miou"])
            self.best_managers[stage.name].save(at)

    def _evaluate(self, limit):
        return evaluate(
            self.networks.generator,
            eval_examples(self.data, self.config.val_split, limit=limit or None),
            class_names=self.data.class_names,
            ignore_label=self.data.ignore_label,
            normalize=normalize,
            mode=self.config.eval_mode,
            window=self.config.eval_window,
            overlap=self.config.eval_overlap,
            predictor=self.predictor,
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
            if self.networks.adversary is not None:
                real, fake = verdicts(
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
        where = {"checkpoint": self.manager.latest_checkpoint}
        where |= self.position.describe()
        metrics = (
            self._evaluate(0)
            | {
                "dataset": self.config.dataset,
                "split": self.config.val_split,
                "limit": 0,
            }
            | where
        )
        path = os.path.join(self.workdir, "eval", self.config.val_split, "metrics.json")
        write_metrics(metrics, path)
        run = checkpoints.read_run(self.workdir)
        generator, info = checkpoints.load_generator(run, "last")
        export(
            generator,
            os.path.join(self.workdir, "export"),
            class_names=run.class_names,
            class_colors=run.class_colors,
            ignore_label=run.ignore_label,
            normalize=normalize,
            metadata={"arm": self.config.arm, "dataset": self.config.dataset, **info},
        )
        return metrics


# --- What a run is made of ---------------------------------------------------


def create_networks(
    config: Config, class_names: tuple[str, ...]
) -> tuple[Networks, dict]:
    """Models with their first weights, and their optimizers.

    G is built first, so its random weights do not depend on A's existence.

    Args:
        config: the run.
        class_names: of the data set.

    Returns:
        The networks, and where their weights come from.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    keras.utils.set_random_seed(config.seed)
    try:
        generator, weights = checkpoints.initial_generator(config, class_names)
        networks = Networks(generator, _generator_optimizer(config))
        provenance = {"generator": weights}
        if config.uses_adversary:
            provenance["extractor"] = _add_adversary(networks, config, len(class_names))
    finally:
        keras.config.set_dtype_policy(policy)
    return networks, provenance


def _add_adversary(networks, config, num_classes):
    """Builds A and its extractor; returns where the extractor's weights come from."""
    provenance, num_features = None, None
    if config.extractor != "none":
        networks.extractor = adversary_lib.build_extractor(
            config.backbone,
            width=config.width,
            normalize_features=config.normalize_features,
            trainable=config.extractor == "trainable",
        )
        num_features = networks.extractor.output_shape[-1]
        provenance = load_imagenet(
            networks.extractor, config.backbone, config.backbone_weights
        )
    networks.adversary = adversary_lib.build_adversary(
        num_classes, num_features, grid_size=config.grid_size, width=config.width
    )
    networks.adversary_optimizer = (
        keras.optimizers.Adam(config.adversary_lr, name="adversary_adam")
        if config.adversary_optimizer == "adam"
        else keras.optimizers.SGD(config.adversary_lr, 0.9, name="adversary_momentum")
    )
    return provenance


def _generator_optimizer(config):
    return keras.optimizers.Adam(
        config.phase1_lr,
        weight_decay=config.weight_decay or None,
        global_clipnorm=config.gradient_clip_norm or None,
        name="generator_adam",
    )


def make_stages(config: Config, networks: Networks, ignore_label: int) -> list[Stage]:
    """The stages of a run in order, each with its step function.

    Args:
        config: the run.
        networks: from `create_networks`.
        ignore_label: of the data set.

    Returns:
        phase1 (unless G starts from another run), warmup (where A wants one), phase2
        (for the arms that have it).
    """
    common = {"ignore_label": ignore_label, "jit_compile": config.jit_compile}
    stages = []
    if not config.init_generator:
        step = train_step.make_segmentation_step(
            networks.generator,
            networks.generator_optimizer,
            learning_rate=linear_decay(
                config.phase1_lr, config.phase1_lr_end, config.phase1_steps
            ),
            **common,
        )
        stages.append(Stage("phase1", config.phase1_steps, step, 0))
    if not config.uses_phase2:
        return stages
    offset = 0 if config.init_generator else config.phase1_steps
    if config.uses_adversary and config.adversary_warmup_steps:
        step = make_warmup_step(config, networks, common)
        stages.append(Stage("warmup", config.adversary_warmup_steps, step, offset))
    step = make_phase2_step(config, networks, common)
    stages.append(Stage("phase2", config.phase2_steps, step, offset))
    return stages


def make_warmup_step(config: Config, networks: Networks, common: dict) -> Callable:
    """A alone, at its first rate."""
    _, loss_weight = losses.lambda_weights(config.lambda_adv, config.lambda_on)
    return train_step.make_warmup_step(
        networks.generator,
        networks.adversary,
        networks.adversary_optimizer,
        extractor=networks.extractor,
        epsilon=config.epsilon,
        loss_weight=loss_weight,
        learning_rate=linear_decay(config.adversary_lr, config.adversary_lr, 1),
        **common,
    )


def make_phase2_step(config: Config, networks: Networks, common: dict) -> Callable:
    """The alternation, or the control: phase 1's step with phase 2's rates."""
    decay, steps = config.phase2_lr_decay, config.phase2_steps
    generator_lr = linear_decay(config.generator_lr, config.generator_lr * decay, steps)
    if config.is_control:
        return train_step.make_segmentation_step(
            networks.generator,
            networks.generator_optimizer,
            learning_rate=generator_lr,
            **common,
        )
    by_ratio = config.adversarial_weighting == "gradient_ratio"
    return train_step.make_adversarial_step(
        networks.generator,
        networks.adversary,
        networks.generator_optimizer,
        networks.adversary_optimizer,
        extractor=networks.extractor,
        epsilon=config.epsilon,
        lambda_adv=config.lambda_adv,
        lambda_on=config.lambda_on,
        lambda_ramp_steps=config.lambda_ramp_steps,
        adversarial_form=config.adversarial_form,
        gradient_ratio=config.gradient_ratio if by_ratio else None,
        lambda_max=config.lambda_max,
        generator_lr=generator_lr,
        adversary_lr=linear_decay(
            config.adversary_lr, config.adversary_lr * decay, steps
        ),
        **common,
    )


def linear_decay(start: float, end: float, num_steps: int) -> train_step.Schedule:
    """Rate that falls linearly from `start` at step 0 to `end` at `num_steps`."""
    return keras.optimizers.schedules.PolynomialDecay(start, max(num_steps, 1), end)


# --- Randomness and state ----------------------------------------------------


def stage_seed(seed: int, stage: str) -> int:
    """Seed of a stage's data order and augmentation: equal with and without A."""
    entropy = np.random.SeedSequence([seed, STAGES.index(stage)])
    return int(entropy.generate_state(1)[0] >> 1)


def seed_dropout(generator: keras.Model, seed: int, stage: str, step: int):
    """Makes the dropout of a step a function of (seed, stage, step).

    Args:
        generator: the model whose Keras seed generators are set.
        seed: the run's.
        stage: one of STAGES.
        step: steps done in the stage, this one included.
    """
    key = stage_seed(seed, stage)
    states = [
        variable
        for variable in generator.non_trainable_variables
        if variable.path.endswith("seed_generator_state")
    ]
    for number, state in enumerate(states):
        state.assign([(key + number) % 2**32, step])


def reset_optimizer(optimizer: keras.optimizers.Optimizer):
    """Fresh state: iterations and slots 0; the rate is set by the next step."""
    for variable in optimizer.variables:
        if variable is not optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape, variable.dtype))


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


def verdicts(
    networks: Networks,
    example: dict[str, np.ndarray],
    probs: np.ndarray,
    epsilon: float,
    ignore_label: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A's verdicts on one validation image.

    Args:
        networks: with an adversary.
        example: `image` [H, W, 3] uint8 and `label` [H, W].
        probs: [1, H, W, C] of G.
        epsilon: eq. 1.
        ignore_label: id of unlabelled pixels.

    Returns:
        d(real map) and d(fake map): [S, S] probabilities of "ground truth".
    """
    label = tf.constant(example["label"][np.newaxis], tf.int32)
    maps = (
        adversary_lib.real_map(probs, label, epsilon, ignore_label),
        adversary_lib.fake_map(probs, label, ignore_label),
    )
    inputs = []
    if networks.extractor is not None:
        image = tf.constant(example["image"][np.newaxis], tf.float32)
        inputs = [networks.extractor(normalize(image), training=False)]
    real, fake = (
        tf.sigmoid(networks.adversary([m, *inputs] if inputs else m, training=False))
        for m in maps
    )
    return real[0].numpy(), fake[0].numpy()


def _describe_run(config, data, data_dir, workdir, networks, weights):
    """Writes RUN/run.json."""
    packages = ("ss_gan_tf", "tensorflow", "keras", "numpy", "tensorflow-datasets")
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
                "versions": {"python": platform.python_version()}
                | {name: _version(name) for name in packages},
                "parameters": {
                    name: model.count_params()
                    for name, model in vars(networks).items()
                    if isinstance(model, keras.Model)
                },
            },
        )
    )


def _version(package):
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
