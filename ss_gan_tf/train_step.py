"""From a batch to a gradient update: where tapes and optimizers meet.

`make_segmentation_step` is phase 1 and the lambda = 0 control,
`make_adversarial_step` phase 2, `make_warmup_step` its start with A alone. Each
returns a `tf.function(image, label) -> dict of scalars` and works with any Keras
models of the stated shapes: image [B, H, W, 3] as the generator wants it, label
[B, H, W] int32 ids or `ignore_label`.

With `accumulate_steps` = N a step goes through its batch in N parts and makes the one
update of the whole batch: eq. 4 and 6 are means over images, so the parts' gradients
add up to the batch's, and the norms at G's logits are those of the whole batch. What
differs beyond rounding: dropout draws other masks, and batch normalisation that trains
sees a part at a time.

Under mixed_float16 an optimizer is a `keras.optimizers.LossScaleOptimizer`: its scale
multiplies what is sent back, an overflow skips its update alone (the step counts), and
every scalar that a step returns is without the scale.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import gradients as gradients_lib
from ss_gan_tf import losses, replicas
from ss_gan_tf.gradients import Schedule, apply, share_of_batch
from ss_gan_tf.micro_batches import in_parts

Step = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]

# --- Phase 1 -----------------------------------------------------------------


def make_segmentation_step(
    generator: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    learning_rate: Schedule | None = None,
    ignore_label: int = 255,
    accumulate_steps: int = 1,
    jit_compile: bool = False,
) -> Step:
    """G alone on eq. 4.

    Args:
        generator: image -> logits [B, H, W, C].
        optimizer: of G.
        learning_rate: optimizer.iterations -> rate; None leaves the optimizer's own.
        ignore_label: id of unlabelled pixels.
        accumulate_steps: parts in which the batch is computed; they divide B.
        jit_compile: compile the step with XLA.

    Returns:
        The step.
    """
    variables = generator.trainable_variables
    optimizer.build(variables)
    share = share_of_batch(accumulate_steps)

    def segmentation_part(image, label):
        passed = gradients_lib.forward(generator, image)
        segmentation, gradient = _segmentation_at_logits(
            passed[0], label, ignore_label, share
        )
        gradients = gradients_lib.backward(
            generator, optimizer, passed, gradient, share
        )
        return (), (segmentation, gradients)

    def segmentation_step(image, label):
        statistics = gradients_lib.statistics_of(generator)
        _, (segmentation, gradients) = in_parts(
            segmentation_part,
            accumulate_steps,
            (image, label),
            total=(tf.constant(0.0), variables),
        )
        rate = gradients_lib.set_rate(optimizer, learning_rate, optimizer.iterations)
        scalars = apply("generator", optimizer, gradients, variables)
        gradients_lib.keep_finite(statistics)
        scalars |= {
            "loss/mce": replicas.total(segmentation),
            "learning_rate/generator": rate,
        }
        return scalars | gradients_lib.loss_scale("generator", optimizer)

    return replicas.make_function(segmentation_step, generator, jit_compile)


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
    strength: tf.Variable | None = None,
    lost_steps: tf.Variable | None = None,
    real_map: Callable = adversary_lib.real_map,
    generator_lr: Schedule | None = None,
    adversary_lr: Schedule | None = None,
    ignore_label: int = 255,
    accumulate_steps: int = 1,
    jit_compile: bool = False,
) -> Step:
    """One update of A, then one of G, on the same batch with one forward of G.

    A sees eq. 1-2's maps and takes eq. 6; G takes eq. 3 against the updated A. The
    gradient of eq. 3 is formed at G's logits, where the norms of its two parts are
    compared, and then sent through G once. In several parts nothing but the logits
    and A's features outlives A's update, and G's forward pass is done a second time.

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
        lambda_ramp_steps: G's steps over which its weight grows linearly to full,
            also where lambda is loss_d's.
        adversarial_form: `saturating` or `nonsaturating`.
        gradient_ratio: when set, G's weight is chosen at every step so that the
            adversarial gradient has this share of the segmentation gradient's norm.
        lambda_max: bound of the weight under `gradient_ratio`.
        placebo: `entropy` puts the prediction's entropy in the place of the
            adversarial loss and leaves all else, A's training included, as it is.
        strength: factor on G's weight, changed between steps; None is 1.
        lost_steps: float32, steps that generator_optimizer.iterations lacks because an
            earlier state of it was restored; rates and ramp count them. None is 0.
        real_map: eq. 1, (probs, label, epsilon, ignore_label) -> [B, H, W, C].
        generator_lr: steps of G -> G's rate; None: its own.
        adversary_lr: steps of G -> A's rate; None: its own.
        ignore_label: id of unlabelled pixels.
        accumulate_steps: parts in which the batch is computed; they divide B.
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
        adversary,
        extractor,
        adversary_optimizer,
        epsilon,
        on_adversary,
        ignore_label,
        accumulate_steps,
        real_map,
    )
    gradients_at_logits = _make_gradients_at_logits(
        adversary,
        generator_optimizer,
        adversarial_form,
        placebo,
        ignore_label,
        accumulate_steps,
    )
    generator_optimizer.build(generator.trainable_variables)

    def adversarial_step(image, label):
        step = generator_optimizer.iterations
        if lost_steps is not None:
            step = tf.cast(step, tf.float32) + lost_steps
        statistics = gradients_lib.statistics_of(generator)
        logits, send_back = gradients_lib.run_generator(
            generator, generator_optimizer, image, accumulate_steps
        )

        # --- A: eq. 6 --------------------------------------------------------
        a_rate = gradients_lib.set_rate(adversary_optimizer, adversary_lr, step)
        scalars, features = update_adversary(image, label, tf.nn.softmax(logits))

        # --- G: eq. 3 --------------------------------------------------------
        gradients, (segmentation, adversarial) = in_parts(
            gradients_at_logits,
            accumulate_steps,
            (logits, label, *features),
            keep=(tf.float32, tf.float32),
            total=(tf.constant(0.0), tf.constant(0.0)),
        )
        segmentation, adversarial = map(replicas.total, (segmentation, adversarial))
        norms = [gradients_lib.norm(x, generator_optimizer) for x in gradients]
        weight = tf.constant(on_generator, tf.float32)
        if gradient_ratio is not None:
            weight = losses.gradient_ratio_lambda(*norms, gradient_ratio, lambda_max)
        weight *= ramp(step, lambda_ramp_steps)
        if strength is not None:
            weight *= strength
        g_rate = gradients_lib.set_rate(generator_optimizer, generator_lr, step)
        scalars |= apply(
            "generator",
            generator_optimizer,
            send_back(gradients[0] + weight * gradients[1]),
            generator.trainable_variables,
        )
        gradients_lib.keep_finite(statistics)
        scalars |= {
            "loss/mce": segmentation,
            "loss/adversarial": adversarial,
            "loss/loss_g": losses.generator_loss(segmentation, adversarial, weight),
            "gradient/segmentation": norms[0],
            "gradient/adversarial": norms[1],
            "gradient/lambda": weight,
            "gradient/ratio": tf.math.divide_no_nan(weight * norms[1], norms[0]),
            "learning_rate/generator": g_rate,
            "learning_rate/adversary": a_rate,
        }
        return scalars | gradients_lib.loss_scale("generator", generator_optimizer)

    return replicas.make_function(adversarial_step, generator, jit_compile)


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
    accumulate_steps: int = 1,
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
        accumulate_steps: parts in which the batch is computed; they divide B.
        jit_compile: compile the step with XLA.

    Returns:
        The step.
    """
    update_adversary = _make_adversary_update(
        adversary,
        extractor,
        adversary_optimizer,
        epsilon,
        loss_weight,
        ignore_label,
        accumulate_steps,
    )

    def warmup_step(image, label):
        rate = gradients_lib.set_rate(
            adversary_optimizer, learning_rate, adversary_optimizer.iterations
        )
        # Dropout and batch statistics stay on, so that A meets the maps that phase 2
        # will show it; the moving statistics that this moves are put back.
        statistics = [(w, tf.identity(w)) for w in generator.non_trainable_weights]
        logits = gradients_lib.logits_in_parts(generator, image, accumulate_steps)
        for weight, value in statistics:
            weight.assign(value)
        scalars, _ = update_adversary(image, label, tf.nn.softmax(logits))
        return scalars | {"learning_rate/adversary": rate}

    return replicas.make_function(warmup_step, generator, jit_compile)


# --- Shared parts ------------------------------------------------------------


def _segmentation_at_logits(logits, label, ignore_label, share):
    """Eq. 4 and its gradient at G's logits, both as a part's share of the batch's."""
    with tf.GradientTape() as at_logits:
        at_logits.watch(logits)
        segmentation = share * losses.segmentation_loss(logits, label, ignore_label)
    return segmentation, at_logits.gradient(segmentation, logits)


def _make_gradients_at_logits(
    adversary, optimizer, form, placebo, ignore_label, num_parts
):
    """G's half of the step at its logits.

    Returns:
        (logits, label, *features) -> (gradients of eq. 4 and of eq. 3's adversarial
        term at the logits), (both losses), each as a part's share of the batch's.
    """
    share = share_of_batch(num_parts)

    def gradients_at_logits(logits, label, *features):
        segmentation, segmentation_gradient = _segmentation_at_logits(
            logits, label, ignore_label, share
        )
        with tf.GradientTape() as at_logits:
            at_logits.watch(logits)
            fake = adversary_lib.fake_map(tf.nn.softmax(logits), label, ignore_label)
            fake_logits = adversary_lib.judge(adversary, fake, *features)
            cells = adversary_lib.valid_cells(label, ignore_label, fake_logits)
            adversarial = losses.adversarial_loss(fake_logits, cells, form)
            if placebo == "entropy":
                adversarial = losses.entropy_loss(logits, label, ignore_label)
            adversarial *= share
            scaled = optimizer.scale_loss(adversarial)
        adversarial_gradient = at_logits.gradient(scaled, logits)
        adversarial_gradient /= optimizer.scale_loss(1.0)
        gradients = (segmentation_gradient, adversarial_gradient)
        return gradients, (segmentation, adversarial)

    return gradients_at_logits


def _make_adversary_update(
    adversary,
    extractor,
    optimizer,
    epsilon,
    weight,
    ignore_label,
    num_parts,
    real_map=adversary_lib.real_map,
):
    """A's half of the step: (image, label, probs) -> (scalars, features for G)."""
    trains_extractor = extractor is not None and bool(extractor.trainable_variables)
    variables = list(adversary.trainable_variables)
    if trains_extractor:
        variables += extractor.trainable_variables
    optimizer.build(variables)
    share = share_of_batch(num_parts)
    feature_types = [] if extractor is None else [x.dtype for x in extractor.outputs]

    def features_of(image):
        """[features], or [] where A sees the label map alone."""
        return [] if extractor is None else [extractor(image, training=False)]

    def judge_part(image, label, probs):
        real = real_map(probs, label, epsilon, ignore_label)
        fake = adversary_lib.fake_map(probs, label, ignore_label)
        frozen = None if trains_extractor else features_of(image)
        with tf.GradientTape() as tape:
            features = features_of(image) if trains_extractor else frozen
            real_logits = adversary_lib.judge(adversary, real, *features)
            fake_logits = adversary_lib.judge(adversary, fake, *features)
            cells = adversary_lib.valid_cells(label, ignore_label, real_logits)
            loss = losses.adversary_loss(real_logits, fake_logits, cells)
            scaled = optimizer.scale_loss(weight * share * loss)
        verdicts = (real_logits, fake_logits, cells)
        kept = () if trains_extractor else frozen
        return (*verdicts, *kept), tape.gradient(scaled, variables)

    def update(image, label, probs):
        kept_types = [] if trains_extractor else feature_types
        (real, fake, cells, *features), gradients = in_parts(
            judge_part,
            num_parts,
            (image, label, tf.stop_gradient(probs)),
            keep=[tf.float32, tf.float32, tf.bool, *kept_types],
            total=variables,
        )
        scalars = apply("adversary", optimizer, gradients, variables)
        if trains_extractor:  # G meets the adversary as just updated
            features, _ = in_parts(
                lambda image: (features_of(image), ()),
                num_parts,
                (image,),
                keep=feature_types,
            )
        real, fake, cells = map(replicas.joined, (real, fake, cells))
        accuracy = adversary_lib.verdict_accuracy(real, fake, cells)
        scalars |= {f"adversary/accuracy_{k}": v for k, v in accuracy.items()}
        scalars["loss/loss_d"] = losses.adversary_loss(real, fake, cells)
        return scalars | gradients_lib.loss_scale("adversary", optimizer), features

    return update


def ramp(step, ramp_steps):
    """Share of the full value at a step counted from 0; 1 without a ramp."""
    if not ramp_steps:
        return 1.0
    return tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / ramp_steps)
