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
multiplies what is sent back, an overflow skips its update alone, and every scalar that
a step returns is without the scale.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import losses
from ss_gan_tf.micro_batches import in_parts

Schedule = Callable[[tf.Tensor], tf.Tensor]
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
    share = 1.0 / accumulate_steps

    def segmentation_part(image, label):
        passed = _forward(generator, image)
        segmentation, gradient = _segmentation_at_logits(
            passed[0], label, ignore_label, share
        )
        gradients = _backward(generator, optimizer, passed, gradient, share)
        return (), (segmentation, gradients)

    @tf.function(jit_compile=jit_compile)
    def segmentation_step(image, label):
        statistics = _statistics(generator)
        _, (segmentation, gradients) = in_parts(
            segmentation_part,
            accumulate_steps,
            (image, label),
            total=(tf.constant(0.0), variables),
        )
        rate = _set_rate(optimizer, learning_rate, optimizer.iterations)
        scalars = _apply_finite("generator", optimizer, gradients, variables)
        _keep_finite(statistics)
        scalars |= {"loss/mce": segmentation, "learning_rate/generator": rate}
        return scalars | _loss_scale("generator", optimizer)

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
    strength: tf.Variable | None = None,
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
        lambda_ramp_steps: G's steps over which its weight grows linearly to full.
        adversarial_form: `saturating` or `nonsaturating`.
        gradient_ratio: when set, G's weight is chosen at every step so that the
            adversarial gradient has this share of the segmentation gradient's norm.
        lambda_max: bound of the weight under `gradient_ratio`.
        strength: factor on G's weight, changed between steps; None is 1.
        real_map: eq. 1, (probs, label, epsilon, ignore_label) -> [B, H, W, C].
        generator_lr: generator_optimizer.iterations -> G's rate; None: its own.
        adversary_lr: generator_optimizer.iterations -> A's rate; None: its own.
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
    generator_optimizer.build(generator.trainable_variables)
    share = 1.0 / accumulate_steps

    def both_gradients(logits, label, *features):
        """Eq. 4, eq. 3's adversarial term, and their gradients at G's logits."""
        segmentation, segmentation_gradient = _segmentation_at_logits(
            logits, label, ignore_label, share
        )
        with tf.GradientTape() as at_logits:
            at_logits.watch(logits)
            fake = adversary_lib.fake_map(tf.nn.softmax(logits), label, ignore_label)
            fake_logits = adversary_lib.judge(adversary, fake, *features)
            cells = adversary_lib.valid_cells(label, ignore_label, fake_logits)
            adversarial = share * losses.adversarial_loss(
                fake_logits, cells, adversarial_form
            )
            scaled = generator_optimizer.scale_loss(adversarial)
        adversarial_gradient = at_logits.gradient(scaled, logits)
        adversarial_gradient /= generator_optimizer.scale_loss(1.0)
        gradients = (segmentation_gradient, adversarial_gradient)
        return gradients, (segmentation, adversarial)

    @tf.function(jit_compile=jit_compile)
    def adversarial_step(image, label):
        step = generator_optimizer.iterations
        statistics = _statistics(generator)
        logits, send_back = _run_generator(
            generator, generator_optimizer, image, accumulate_steps
        )

        # --- A: eq. 6 --------------------------------------------------------
        a_rate = _set_rate(adversary_optimizer, adversary_lr, step)
        scalars, features = update_adversary(image, label, tf.nn.softmax(logits))

        # --- G: eq. 3 --------------------------------------------------------
        gradients, (segmentation, adversarial) = in_parts(
            both_gradients,
            accumulate_steps,
            (logits, label, *features),
            keep=(tf.float32, tf.float32),
            total=(tf.constant(0.0), tf.constant(0.0)),
        )
        segmentation_norm = tf.norm(gradients[0])
        adversarial_norm = _norm(gradients[1], generator_optimizer)
        if gradient_ratio is None:
            weight = tf.constant(on_generator, tf.float32)
        else:
            weight = losses.gradient_ratio_lambda(
                segmentation_norm, adversarial_norm, gradient_ratio, lambda_max
            )
        weight *= _ramp(step, lambda_ramp_steps)
        if strength is not None:
            weight *= strength
        g_rate = _set_rate(generator_optimizer, generator_lr, step)
        scalars |= _apply_finite(
            "generator",
            generator_optimizer,
            send_back(gradients[0] + weight * gradients[1]),
            generator.trainable_variables,
        )
        _keep_finite(statistics)
        return (
            scalars
            | {
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
            | _loss_scale("generator", generator_optimizer)
        )

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

    @tf.function(jit_compile=jit_compile)
    def warmup_step(image, label):
        rate = _set_rate(
            adversary_optimizer, learning_rate, adversary_optimizer.iterations
        )
        # Dropout and batch statistics stay on, so that A meets the maps that phase 2
        # will show it; the moving statistics that this moves are put back.
        statistics = [(w, tf.identity(w)) for w in generator.non_trainable_weights]
        (logits,), _ = in_parts(
            lambda image: ([_logits(generator, image)], ()),
            accumulate_steps,
            (image,),
            keep=[tf.float32],
        )
        for weight, value in statistics:
            weight.assign(value)
        scalars, _ = update_adversary(image, label, tf.nn.softmax(logits))
        return scalars | {"learning_rate/adversary": rate}

    return warmup_step


# --- Shared parts ------------------------------------------------------------


def _logits(generator, image):
    """G in training mode, in float32."""
    return tf.cast(generator(image, training=True), tf.float32)


def _forward(generator, image):
    """(logits, the model's own regularisation losses, the tape through G)."""
    with tf.GradientTape() as through_generator:
        logits = _logits(generator, image)
        regularization = list(generator.losses)
    return logits, regularization, through_generator


def _backward(generator, optimizer, passed, gradient, share):
    """Gradients of G's variables, under the optimizer's loss scale.

    Args:
        generator: G.
        optimizer: of G.
        passed: what `_forward` returned.
        gradient: at the logits.
        share: weight of the regularisation, the parts' sum being 1.

    Returns:
        One for each trainable variable.
    """
    logits, regularization, through_generator = passed
    shares = [share * tf.ones_like(loss) for loss in regularization]
    return through_generator.gradient(
        [logits, *regularization],
        generator.trainable_variables,
        output_gradients=[optimizer.scale_loss(g) for g in (gradient, *shares)],
    )


def _run_generator(generator, optimizer, image, num_parts):
    """(logits of the batch, what sends a gradient at them back through G).

    In one part G's activations are kept until then. In several only the logits are:
    each part's forward pass is done again, with the same dropout.
    """
    if num_parts == 1:
        passed = _forward(generator, image)
        return passed[0], lambda gradient: _backward(
            generator, optimizer, passed, gradient, 1.0
        )
    state = [(v, tf.identity(v)) for v in generator.non_trainable_variables]
    (logits,), _ = in_parts(
        lambda image: ([_logits(generator, image)], ()),
        num_parts,
        (image,),
        keep=[tf.float32],
    )

    def send_back_part(image, gradient):
        passed = _forward(generator, image)
        return (), _backward(generator, optimizer, passed, gradient, 1.0 / num_parts)

    def send_back(gradient):
        for variable, value in state:
            variable.assign(value)
        _, gradients = in_parts(
            send_back_part,
            num_parts,
            (image, gradient),
            total=generator.trainable_variables,
        )
        return gradients

    return logits, send_back


def _segmentation_at_logits(logits, label, ignore_label, share):
    """Eq. 4 and its gradient at G's logits, both as a part's share of the batch's."""
    with tf.GradientTape() as at_logits:
        at_logits.watch(logits)
        segmentation = share * losses.segmentation_loss(logits, label, ignore_label)
    return segmentation, at_logits.gradient(segmentation, logits)


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
            scaled = optimizer.scale_loss(weight / num_parts * loss)
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
        scalars = _apply_finite("adversary", optimizer, gradients, variables)
        if trains_extractor:  # G meets the adversary as just updated
            features, _ = in_parts(
                lambda image: (features_of(image), ()),
                num_parts,
                (image,),
                keep=feature_types,
            )
        accuracy = adversary_lib.verdict_accuracy(real, fake, cells)
        scalars |= {f"adversary/accuracy_{k}": v for k, v in accuracy.items()}
        scalars["loss/loss_d"] = losses.adversary_loss(real, fake, cells)
        return scalars | _loss_scale("adversary", optimizer), features

    return update


def _apply_finite(name, optimizer, gradients, variables):
    """One update in which gradients that are not all finite count as zero.

    It costs one pass over the gradients, and what is not finite reaches neither the
    weights nor the optimizer's slots; the optimizer's clock goes on. A loss scale has
    to see its overflows, and skips those updates itself.

    Returns:
        {"finite/NAME": 1 or 0}, empty under a loss scale.
    """
    if _has_loss_scale(optimizer):
        optimizer.apply(gradients, variables)
        return {}
    given = [g for g in gradients if g is not None]
    finite = tf.math.is_finite(tf.add_n([tf.nn.l2_loss(g) for g in given]))
    kept = iter(
        tf.cond(finite, lambda: given, lambda: [tf.zeros_like(g) for g in given])
    )
    gradients = [g if g is None else next(kept) for g in gradients]
    optimizer.apply(gradients, variables)
    return {f"finite/{name}": tf.cast(finite, tf.float32)}


def _statistics(generator):
    """G's weights that a forward pass moves, each with its value now."""
    weights = [w for w in generator.non_trainable_weights if "float" in w.dtype]
    return [(w, tf.identity(w)) for w in weights]


def _keep_finite(statistics):
    """Puts a value back where its successor is not finite."""
    for weight, value in statistics:
        weight.assign(tf.where(tf.math.is_finite(weight), weight, value))


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


def _has_loss_scale(optimizer):
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _loss_scale(name, optimizer):
    """Scalar of the loss scale, where the optimizer has one."""
    if not _has_loss_scale(optimizer):
        return {}
    return {f"loss_scale/{name}": tf.identity(optimizer.dynamic_scale)}


def _norm(gradient, optimizer):
    """Euclidean norm; 0 for an overflow under a loss scale, whose update is skipped."""
    norm = tf.norm(gradient)
    if not _has_loss_scale(optimizer):
        return norm  # an overflow is to be seen, and to stop the run
    return tf.where(tf.math.is_finite(norm), norm, 0.0)
