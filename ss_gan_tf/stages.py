"""What a run is made of: its networks, its stages, its seeds.

phase1   G alone (eq. 4); left out when G starts from another run
warmup   A alone, where asked for
phase2   G and A alternate (eq. 3 and 6), or the control: phase 1's step with
         phase 2's rates
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import checkpoints, losses, replicas, train_step
from ss_gan_tf.backbones import load_imagenet
from ss_gan_tf.config import Config
from ss_gan_tf.optimizers import Adam

STAGES = ("phase1", "warmup", "phase2")


# --- Networks and optimizers -------------------------------------------------


@dataclasses.dataclass
class Networks:
    """What the steps change and a checkpoint saves; A's parts may be absent."""

    generator: keras.Model
    generator_optimizer: keras.optimizers.Optimizer
    adversary: keras.Model | None = None
    extractor: keras.Model | None = None
    adversary_optimizer: keras.optimizers.Optimizer | None = None
    average: keras.Model | None = None  # G's running average

    @property
    def evaluated(self) -> keras.Model:
        """What is validated and exported: the average where there is one."""
        return self.average or self.generator

    @property
    def variables(self) -> list[keras.Variable]:
        """All that a step reads or changes, optimizers included."""
        parts = (
            self.generator,
            self.generator_optimizer,
            self.adversary,
            self.extractor,
            self.adversary_optimizer,
        )
        return [v for part in parts if part is not None for v in part.variables]


def create_networks(config: Config, class_names: tuple[str, ...]) -> Networks:
    """Models with random weights, and their optimizers.

    G is built first, so its random weights do not depend on A's existence.

    Args:
        config: the run.
        class_names: of the data set.

    Returns:
        The networks; a running average begins as G.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    keras.utils.set_random_seed(config.seed)
    try:
        generator = checkpoints.build_run_generator(config, len(class_names))
        networks = Networks(generator, _generator_optimizer(config))
        if config.uses_adversary:
            _add_adversary(networks, config, len(class_names))
        if config.ema_decay:
            networks.average = checkpoints.build_run_generator(config, len(class_names))
            networks.average.set_weights(generator.get_weights())
    finally:
        keras.config.set_dtype_policy(policy)
    return networks


def load_first_weights(
    networks: Networks, config: Config, class_names: tuple[str, ...]
) -> dict:
    """Gives a new run's networks the weights that it starts from.

    Called outside the strategy's scope it waits for no other worker: the networks'
    variables are there, and are assigned alone.

    Args:
        networks: from `create_networks`.
        config: the run.
        class_names: of the data set.

    Returns:
        Where the weights come from, by network.

    Raises:
        FileNotFoundError: no weights file, or no run or checkpoint to start from.
        OSError: the download failed.
        ValueError: they do not fit.
    """
    provenance = {
        "generator": checkpoints.initialize_generator(
            networks.generator, config, class_names
        )
    }
    if networks.extractor is not None:
        provenance["extractor"] = load_imagenet(
            networks.extractor, config.backbone, config.backbone_weights
        )
    if networks.average is not None:
        networks.average.set_weights(networks.generator.get_weights())
    return provenance


def _add_adversary(networks, config, num_classes):
    """Builds A, its extractor and its optimizer."""
    num_features = None
    if config.extractor != "none":
        networks.extractor = adversary_lib.build_extractor(
            config.backbone,
            width=config.width,
            normalize_features=config.normalize_features,
            trainable=config.extractor == "trainable",
        )
        num_features = networks.extractor.output_shape[-1]
    networks.adversary = adversary_lib.build_adversary(
        num_classes, num_features, grid_size=config.grid_size, width=config.width
    )
    networks.adversary_optimizer = (
        Adam(config.adversary_lr, name="adversary_adam")
        if config.adversary_optimizer == "adam"
        else keras.optimizers.SGD(config.adversary_lr, 0.9, name="adversary_momentum")
    )
    if config.precision == "mixed_float16":
        networks.adversary_optimizer = keras.optimizers.LossScaleOptimizer(
            networks.adversary_optimizer, name="adversary_loss_scale"
        )


def _generator_optimizer(config):
    optimizer = Adam(
        config.phase1_lr,
        weight_decay=config.weight_decay or None,
        # `gradients.apply` gives it the replicas' mean, and it takes their sum.
        global_clipnorm=config.gradient_clip_norm / replicas.count() or None,
        name="generator_adam",
    )
    if config.precision != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="generator_loss_scale")


def compiles(config: Config) -> bool:
    """Whether the steps go through XLA: `jit_compile`, its `auto` resolved here.

    `auto` is on where a step runs on one GPU, off on several and on CPUs, where
    dilated convolutions are slower under XLA, and VGG16 is at 500 pixels.
    """
    if config.jit_compile == "auto":
        if config.distribute != "none":
            return False  # the exchange between devices is not XLA's
        return bool(tf.config.list_logical_devices("GPU"))
    return config.jit_compile == "on"


# --- Stages ------------------------------------------------------------------


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


def _variable(value: float):
    return dataclasses.field(default_factory=lambda: tf.Variable(value))


@dataclasses.dataclass(frozen=True)
class Weakening:
    """What the guard changes between steps; as it begins it changes no bit."""

    strength: tf.Variable = _variable(1.0)  # factor on the weight of A's gradient for G
    adversary_rate: tf.Variable = _variable(1.0)  # factor on A's learning rate
    # Steps that G's optimizer has forgotten by going back. Rates follow the run's
    # clock, Adam's bias correction that of its averages.
    lost_steps: tf.Variable = _variable(0.0)


def make_stages(
    config: Config,
    networks: Networks,
    ignore_label: int,
    weakening: Weakening | None = None,
    real_map: Callable = adversary_lib.real_map,
) -> list[Stage]:
    """The stages of a run in order, each with its step function.

    Args:
        config: the run.
        networks: from `create_networks`.
        ignore_label: of the data set.
        weakening: of a guarded run's phase 2.
        real_map: what phase 2 shows A of the truth.

    Returns:
        phase1 (unless G starts from another run), warmup (where A wants one), phase2
        (for the arms that have it).
    """
    common = {
        "ignore_label": ignore_label,
        "accumulate_steps": config.accumulate_steps,
        "jit_compile": compiles(config),
    }
    stages, lengths = [], stage_lengths(config)
    if "phase1" in lengths:
        step = train_step.make_segmentation_step(
            networks.generator,
            networks.generator_optimizer,
            learning_rate=linear_decay(
                config.phase1_lr,
                config.phase1_lr_end,
                config.phase1_steps,
                config.phase1_lr_warmup_steps,
            ),
            **common,
        )
        step = _then_average(step, networks, config.ema_decay)
        stages.append(Stage("phase1", config.phase1_steps, step, 0))
    if "phase2" not in lengths:
        return stages
    offset = 0 if config.init_generator else config.phase1_steps
    if "warmup" in lengths:
        step = make_warmup_step(config, networks, common)
        stages.append(Stage("warmup", config.adversary_warmup_steps, step, offset))
    step = make_phase2_step(config, networks, common, weakening, real_map)
    step = _then_average(step, networks, config.ema_decay)
    stages.append(Stage("phase2", config.phase2_steps, step, offset))
    return stages


def stage_lengths(config: Config) -> dict[str, int]:
    """Steps of each stage that a run has, in its order."""
    lengths = {}
    if not config.init_generator:
        lengths["phase1"] = config.phase1_steps
    if config.trains_adversary and config.adversary_warmup_steps:
        lengths["warmup"] = config.adversary_warmup_steps
    if config.uses_phase2:
        lengths["phase2"] = config.phase2_steps
    return lengths


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


def make_phase2_step(
    config: Config,
    networks: Networks,
    common: dict,
    weakening: Weakening | None = None,
    real_map: Callable = adversary_lib.real_map,
) -> Callable:
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
    # At rate 0 A stays as random as it began: the placebo that learns nothing.
    adversary_lr = config.adversary_lr if config.trains_adversary else 0.0
    decayed = linear_decay(adversary_lr, adversary_lr * decay, steps)
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
        placebo=config.placebo,
        generator_lr=generator_lr,
        strength=weakening and weakening.strength,
        real_map=real_map,
        lost_steps=weakening and weakening.lost_steps,
        adversary_lr=(
            (lambda step: decayed(step) * weakening.adversary_rate)
            if weakening
            else decayed
        ),
        **common,
    )


def _then_average(step: Callable, networks: Networks, decay: float) -> Callable:
    """The step, followed by one of G's average where it has one.

        average += (1 - d) (weights - average),  d = min(decay, (1 + n) / (10 + n))

    n counts the phase's steps, so that the average forgets where the phase began.
    """
    if networks.average is None:
        return step
    pairs = list(zip(networks.average.weights, networks.generator.weights, strict=True))
    trained = {id(weight) for weight in networks.generator.trainable_weights}

    @tf.function
    def move_average():
        n = tf.cast(networks.generator_optimizer.iterations, tf.float32)
        share = 1.0 - tf.minimum(decay, (1.0 + n) / (10.0 + n))
        for average, weight in pairs:
            if id(weight) in trained:
                average.assign_add(share * (weight - average))
            else:  # moving statistics are averages already
                average.assign(weight)

    def averaging_step(image, label):
        scalars = step(image, label)
        move_average()
        return scalars

    return averaging_step


def linear_decay(
    start: float, end: float, num_steps: int, warmup_steps: int = 0
) -> train_step.Schedule:
    """Rate that falls linearly from `start` at step 0 to `end` at `num_steps`.

    Step n of the first `warmup_steps`, counted from 0, has (n + 1) / warmup_steps of
    it: Adam's first updates have full size whatever the gradients' (Ma and Yarats
    2021, arXiv 1910.04209).
    """
    decay = keras.optimizers.schedules.PolynomialDecay(start, max(num_steps, 1), end)
    if not warmup_steps:
        return decay

    def warmed_up(step):
        return decay(step) * train_step.ramp(step, warmup_steps)

    return warmed_up


# --- Randomness and state ----------------------------------------------------


def stage_seed(seed: int, stage: str) -> int:
    """Seed of a stage's data order and augmentation: equal with and without A."""
    entropy = np.random.SeedSequence([seed, STAGES.index(stage)])
    return int(entropy.generate_state(1)[0] >> 1)


def seed_dropout(
    generator: keras.Model, seed: int, stage: str, step: int, num_parts: int = 1
):
    """Makes the dropout of a step a function of (seed, stage, step).

    Args:
        generator: the model whose Keras seed generators are set.
        seed: the run's.
        stage: one of STAGES.
        step: steps done in the stage, this one included.
        num_parts: forward passes of a step; each of them counts on by one.
    """
    key = stage_seed(seed, stage)
    states = [
        variable
        for variable in generator.non_trainable_variables
        if variable.path.endswith("seed_generator_state")
    ]
    for number, state in enumerate(states):
        state.assign([(key + number) % 2**32, step * num_parts % 2**32])


def reset_optimizer(optimizer: keras.optimizers.Optimizer):
    """Fresh state: iterations and slots 0; the rate is set by the next step.

    A loss scale stays: it fits the numbers of the network, not the rate.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for variable in optimizer.variables:
        if variable is not optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape, variable.dtype))
