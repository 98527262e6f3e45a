"""From a batch to a gradient update: where tapes and optimizers meet.

`make_segmentation_step` is phase 1 and the lambda = 0 control,
`make_adversarial_step` phase 2, `make_warmup_step` its start with A alone. Each
returns a `tf.function(image, label) -> dict of scalars` and works with any Keras
models of the stated shapes: image [B, H, W, 3] as the generator wants it, label
[B, H, W] int32 ids or `ignore_label`.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import losses

Schedule = Callable[[tf.Tensor], tf.Tensor]
Step = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]

# --- Phase 1 -----------------------------------------------------------------


def make_segmentation_step(
    generator: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    learning_rate: Schedule | None = None,
    ignore_label: int = 255,
    jit_compile: bool = False,
) -> Step:
    """G alone on eq. 4.

    Args:
        generator: image -> logits [B, H, W, C].
        optimizer: of G.
        learning_rate: optimizer.iterations -> rate; None leaves the optimizer's own.
        ignore_label: id of unlabelled pixels.
        jit_compile: compile the step with XLA.

    Returns:
        The step.
    """
    optimizer.build(generator.trainable_variables)

    @tf.function(jit_compile=jit_compile)
    def segmentation_step(image, label):
        with tf.GradientTape() as through_generator:
            logits, regularization = _forward(generator, image)
        segmentation, gradient = _segmentation_at_logits(logits, label, ignore_label)
        rate = _set_rate(optimizer, learning_rate, optimizer.iterations)
        _update_generator(
            generator, optimizer, through_generator, logits, regularization, gradient
        )
        return {"loss/mce": segmentation, "learning_rate/generator": rate}

    return segmentation_step


# --- Phase 2 -----------------------------------------------------------------


def make_adversarial_step(
    generator: keras.Model,
    adversary: keras.Model,
    generator_optimizer: keras.optimizers.Optimizer,
    adversary_optimizer: keras.optimizers.Optimizer,
    *,
    extractor: keras.Model | None = None,
    epsilon: float = 0.9,
    lambda_adv: float = 1e-2,
    lambda_on: str = "generator",
    lambda_ramp_steps: int = 0,
    adversarial_form: str = "saturating",
    gradient_ratio: float | None = None,
    lambda_max: float = 100.0,
    placebo: str = "none",
    generator_lr: Schedule | None = None,
    adversary_lr: Schedule | None = None,
    ignore_label: int = 255,
    jit_compile: bool = False,
) -> Step:
    """One update of A, then one of G, on the same batch with one forward of G.

    A sees eq. 1-2's maps and takes eq. 6; G takes eq. 3 against the updated A. The
    gradient of eq. 3 is formed at G's logits, where the norms of its two parts are
    compared, and then sent through G once.

    Args:
        generator: image -> logits [B, H, W, C].
        adversary: [label map [B,H,W,C], features] (or the map alone where
            `extractor` is None) -> verdict logits [B, S, S].
        generator_optimizer: of G.
        adversary_optimizer: of A, and of the extractor where that is trainable.
        extractor: image -> features; None: A sees the label map alone.
        epsilon: eq. 1.
        lambda_adv: weight of the adversarial term, above 0.
        lambda_on: `generator`, `adversary` or `both`; see `losses.lambda_weights`.
        lambda_ramp_steps: G's steps over which its weight grows linearly to full.
        adversarial_form: `saturating` or `nonsaturating`.
        gradient_ratio: when set, G's weight is chosen at every step so that the
            adversarial gradient has this share of the segmentation gradient's norm.
        lambda_max: bound of the weight under `gradient_ratio`.
        placebo: `entropy` puts the prediction's entropy in the place of the
            adversarial loss and leaves all else, A's training included, as it is.
        generator_lr: generator_optimizer.iterations -> G's rate; None: its own.
        adversary_lr: generator_optimizer.iterations -> A's rate; None: its own.
        ignore_label: id of unlabelled pixels.
        jit_compile: compile the step with XLA.

    Returns:
        The step. `gradient/ratio` is that of the weighted parts, as applied.

    Raises:
        ValueError: lambda_adv is not positive: the control is
            `make_segmentation_step`.
    """
    if lambda_adv <= 0:
        raise ValueError(
            f"lambda_adv={lambda_adv}: must be above 0; train the control "
            "with make_segmentation_step"
        )
    on_generator, on_adversary = losses.lambda_weights(lambda_adv, lambda_on)
    update_adversary = _make_adversary_update(
        adversary, extractor, adversary_optimizer, epsilon, on_adversary, ignore_label
    )
    generator_optimizer.build(generator.trainable_variables)

    @tf.function(jit_compile=jit_compile)
    def adversarial_step(image, label):
        step = generator_optimizer.iterations
        with tf.GradientTape() as through_generator:
            logits, regularization = _forward(generator, image)

        # --- A: eq. 6 --------------------------------------------------------
        a_rate = _set_rate(adversary_optimizer, adversary_lr, step)
        scalars, features = update_adversary(image, label, tf.nn.softmax(logits))

        # --- G: eq. 3 --------------------------------------------------------
        segmentation, segmentation_gradient = _segmentation_at_logits(
            logits, label, ignore_label
        )
        with tf.GradientTape() as at_logits:
            at_logits.watch(logits)
            fake = adversary_lib.fake_map(tf.nn.softmax(logits), label, ignore_label)
            fake_logits = adversary_lib.judge(adversary, fake, features)
            cells = adversary_lib.valid_cells(label, ignore_label, fake_logits)
            adversarial = losses.adversarial_loss(fake_logits, cells, adversarial_form)
            if placebo == "entropy":
                adversarial = losses.entropy_loss(logits, label, ignore_label)
        adversarial_gradient = at_logits.gradient(adversarial, logits)
        segmentation_norm = tf.norm(segmentation_gradient)
        adversarial_norm = tf.norm(adversarial_gradient)
        if gradient_ratio is None:
            weight = tf.constant(on_generator, tf.float32)
        else:
            weight = losses.gradient_ratio_lambda(
                segmentation_norm, adversarial_norm, gradient_ratio, lambda_max
            )
        weight *= _ramp(step, lambda_ramp_steps)
        g_rate = _set_rate(generator_optimizer, generator_lr, step)
        _update_generator(
            generator,
            generator_optimizer,
            through_generator,
            logits,
            regularization,
            segmentation_gradient + weight * adversarial_gradient,
        )
        return scalars | {
            "loss/mce": segmentation,
            "loss/adversarial": adversarial,
            "loss/loss_g": losses.generator_loss(segmentation, adversarial, weight),
            "gradient/segmentation": segmentation_norm,
            "gradient/adversarial": adversarial_norm,
            "gradient/lambda": weight,
            "gradient/ratio": tf.math.divide_no_nan(
                weight * adversarial_norm, segmentation_norm
            ),
            "learning_rate/generator": g_rate,
            "learning_rate/adversary": a_rate,
        }

    return adversarial_step


def make_warmup_step(
    generator: keras.Model,
    adversary: keras.Model,
    adversary_optimizer: keras.optimizers.Optimizer,
    *,
    extractor: keras.Model | None = None,
    epsilon: float = 0.9,
    loss_weight: float = 1.0,
    learning_rate: Schedule | None = None,
    ignore_label: int = 255,
    jit_compile: bool = False,
) -> Step:
    """A alone on eq. 6 while G stays as it is.

    Args:
        generator: image -> logits [B, H, W, C].
        adversary: as for `make_adversarial_step`.
        adversary_optimizer: of A.
        extractor: as for `make_adversarial_step`.
        epsilon: eq. 1.
        loss_weight: weight of loss_d.
        learning_rate: adversary_optimizer.iterations -> rate; None: its own.
        ignore_label: id of unlabelled pixels.
        jit_compile: compile the step with XLA.

    Returns:
        The step.
    """
    update_adversary = _make_adversary_update(
        adversary, extractor, adversary_optimizer, epsilon, loss_weight, ignore_label
    )

    @tf.function(jit_compile=jit_compile)
    def warmup_step(image, label):
        rate = _set_rate(
            adversary_optimizer, learning_rate, adversary_optimizer.iterations
        )
        # Dropout and batch statistics stay on, so that A meets the maps that phase 2
        # will show it; the moving statistics that this moves are put back.
        statistics = [(w, tf.identity(w)) for w in generator.non_trainable_weights]
        logits = tf.cast(generator(image, training=True), tf.float32)
        for weight, value in statistics:
            weight.assign(value)
        scalars, _ = update_adversary(image, label, tf.nn.softmax(logits))
        return scalars | {"learning_rate/adversary": rate}

    return warmup_step


# --- Shared parts ------------------------------------------------------------


def _forward(generator, image):
    """(float32 logits, the model's own regularisation losses) in training mode."""
    logits = tf.cast(generator(image, training=True), tf.float32)
    return logits, list(generator.losses)


def _segmentation_at_logits(logits, label, ignore_label):
    """Eq. 4 and its gradient at G's logits."""
    with tf.GradientTape() as at_logits:
        at_logits.watch(logits)
        segmentation = losses.segmentation_loss(logits, label, ignore_label)
    return segmentation, at_logits.gradient(segmentation, logits)


def _update_generator(generator, optimizer, tape, logits, regularization, gradient):
    """Sends the gradient at the logits through G and applies it."""
    ones = [tf.ones_like(loss) for loss in regularization]
    gradients = tape.gradient(
        [logits, *regularization],
        generator.trainable_variables,
        output_gradients=[gradient, *ones],
    )
    optimizer.apply(gradients, generator.trainable_variables)


def _make_adversary_update(
    adversary, extractor, optimizer, epsilon, weight, ignore_label
):
    """A's half of the step: (image, label, probs) -> (scalars, features for G)."""
    trains_extractor = extractor is not None and bool(extractor.trainable_variables)
    variables = list(adversary.trainable_variables)
    if trains_extractor:
        variables += extractor.trainable_variables
    optimizer.build(variables)

    def features_of(image):
        return None if extractor is None else extractor(image, training=False)

    def update(image, label, probs):
        probs = tf.stop_gradient(probs)
        real = adversary_lib.real_map(probs, label, epsilon, ignore_label)
        fake = adversary_lib.fake_map(probs, label, ignore_label)
        frozen = None if trains_extractor else features_of(image)
        with tf.GradientTape() as tape:
            features = features_of(image) if trains_extractor else frozen
            real_logits = adversary_lib.judge(adversary, real, features)
            fake_logits = adversary_lib.judge(adversary, fake, features)
            cells = adversary_lib.valid_cells(label, ignore_label, real_logits)
            loss = losses.adversary_loss(real_logits, fake_logits, cells)
            weighted = weight * loss
        optimizer.apply(tape.gradient(weighted, variables), variables)
        accuracy = adversary_lib.verdict_accuracy(real_logits, fake_logits, cells)
        scalars = {f"adversary/accuracy_{k}": v for k, v in accuracy.items()}
        # G meets the adversary as just updated, extractor included.
        features = features_of(image) if trains_extractor else frozen
        return scalars | {"loss/loss_d": loss}, features

    return update


def _set_rate(optimizer, schedule, step):
    """The rate of this step, written into the optimizer where a schedule is given."""
    if schedule is None:
        return tf.convert_to_tensor(optimizer.learning_rate)
    rate = tf.cast(schedule(step), tf.float32)
    optimizer.learning_rate.assign(rate)
    return rate


def _ramp(step, ramp_steps):
    """Share of the full adversarial weight at G's step, 1 without a ramp."""
    if not ramp_steps:
        return 1.0
    return tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / ramp_steps)
