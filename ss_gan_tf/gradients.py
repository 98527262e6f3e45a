"""How a gradient at G's logits becomes an update: the plumbing below the equations.

A gradient goes through G in one pass or in parts, under a loss scale where the
optimizer has one, and is summed over the replicas.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf
from tensorflow.python.framework import ops

from ss_gan_tf import replicas
from ss_gan_tf.micro_batches import in_parts

Schedule = Callable[[tf.Tensor], tf.Tensor]


# --- Through G ---------------------------------------------------------------


def logits_of(generator: keras.Model, image: tf.Tensor) -> tf.Tensor:
    """G in training mode, in float32."""
    return tf.cast(generator(image, training=True), tf.float32)


def forward(generator: keras.Model, image: tf.Tensor) -> tuple:
    """(logits, the model's own regularisation losses, the tape through G)."""
    with tf.GradientTape() as through_generator:
        logits = logits_of(generator, image)
        regularization = list(generator.losses)
    return logits, regularization, through_generator


def backward(
    generator: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    passed: tuple,
    gradient: tf.Tensor,
    share: float,
) -> list[tf.Tensor]:
    """Gradients of G's variables, under the optimizer's loss scale.

    Args:
        generator: G.
        optimizer: of G.
        passed: what `forward` returned.
        gradient: at the logits.
        share: weight of the regularisation; the shares of a batch sum to 1.

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


def run_generator(
    generator: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    image: tf.Tensor,
    num_parts: int,
) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
    """G's logits, and what sends a gradient at them back through G later.

    In one part G's activations are kept until then. In several only the logits are:
    each part's forward pass is done again, with the same dropout.

    Args:
        generator: G.
        optimizer: of G.
        image: [B, H, W, 3].
        num_parts: N, which divides B.

    Returns:
        Logits [B, H, W, C], and a function: gradient at them -> `backward`'s.
    """
    share = share_of_batch(num_parts)
    if num_parts == 1:
        passed = forward(generator, image)
        return passed[0], lambda gradient: backward(
            generator, optimizer, passed, gradient, share
        )
    state = [(v, tf.identity(v)) for v in generator.non_trainable_variables]
    logits = logits_in_parts(generator, image, num_parts)

    def send_back_part(image, gradient):
        passed = forward(generator, image)
        return (), backward(generator, optimizer, passed, gradient, share)

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


def logits_in_parts(
    generator: keras.Model, image: tf.Tensor, num_parts: int
) -> tf.Tensor:
    """`logits_of`, a part of the batch at a time."""
    (logits,), _ = in_parts(
        lambda image: ([logits_of(generator, image)], ()),
        num_parts,
        (image,),
        keep=[tf.float32],
    )
    return logits


def share_of_batch(num_parts: int) -> float:
    """Weight of one part's mean in the mean over the batch of all replicas."""
    return 1.0 / (num_parts * replicas.count())


@contextlib.contextmanager
def released() -> Iterator[None]:
    """What is traced in here goes once it is no longer used, with all its variables.

    TensorFlow (2.21) registers each gradient of `tf.custom_gradient` that is traced,
    until the process ends, and with it the whole graph: 0.8 GB more for each ResNet50
    that is trained in one process. Afterwards such graphs can be called, and no longer
    differentiated, nor saved with their gradients. That is also true of what another
    thread traces meanwhile.
    """
    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    others = set(registered)
    try:
        yield
    finally:
        for name in set(registered) - others:
            if name.startswith("CustomGradient-"):
                registered.pop(name, None)


# --- To the variables --------------------------------------------------------


def apply(
    name: str,
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable],
) -> dict[str, tf.Tensor]:
    """One update with the sum of all replicas' gradients, which the optimizer takes.

    Gradients that are not all finite, on any replica, count as zero. It costs one pass
    over them, and what is not finite reaches neither the weights nor the optimizer's
    slots. A loss scale has to see its overflows, and skips those updates itself. In
    both cases the optimizer's clock goes on: rates follow it, and a run and its
    control do not overflow in the same steps.

    Args:
        name: `generator` or `adversary`.
        optimizer: a Keras optimizer, which adds up what the replicas give it. Its
            clipping norm, if any, is one for its share: norm / replicas.
        gradients: of this replica.
        variables: in the gradients' order.

    Returns:
        {"finite/NAME": 1 or 0}, empty under a loss scale.
    """
    given = [g for g in gradients if g is not None]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if replicas.count() > 1 and inner.global_clipnorm:
        # It would clip each replica's part by itself: give it equal ones.
        given = [replicas.total(g) / replicas.count() for g in given]
    scalars = {}
    if not has_loss_scale(optimizer):
        squares = tf.add_n([tf.nn.l2_loss(g) for g in given])
        finite = tf.math.is_finite(replicas.total(squares))
        # Plain zeros of a known shape would become constants of the compiled graph,
        # which stay in memory: as much as all weights.
        given = tf.cond(
            finite,
            lambda: given,
            lambda: [
                tf.math.multiply_no_nan(g, tf.cast(finite, g.dtype)) for g in given
            ],
        )
        scalars = {f"finite/{name}": tf.cast(finite, tf.float32)}
    elif replicas.count() > 1:
        # It would look for an overflow on the first replica alone.
        overflow = ~tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in given])
        overflows = replicas.total(tf.cast(overflow, tf.float32)) > 0
        given = [tf.where(overflows, float("inf"), g) for g in given]
    kept = iter(given)
    gradients = [None if g is None else next(kept) for g in gradients]
    step = tf.identity(inner.iterations)
    optimizer.apply(gradients, variables)
    inner.iterations.assign(step + 1)
    return scalars


def statistics_of(generator: keras.Model) -> list[tuple]:
    """G's weights that a forward pass moves, each with its value now."""
    weights = [w for w in generator.non_trainable_weights if "float" in w.dtype]
    return [(w, tf.identity(w)) for w in weights]


def keep_finite(statistics: list[tuple]):
    """Puts a value of `statistics_of` back where its successor is not finite."""
    for weight, value in statistics:
        weight.assign(tf.where(tf.math.is_finite(weight), weight, value))


def set_rate(
    optimizer: keras.optimizers.Optimizer, schedule: Schedule | None, step: tf.Tensor
) -> tf.Tensor:
    """The rate of this step, written into the optimizer where a schedule is given."""
    if schedule is None:
        return tf.convert_to_tensor(optimizer.learning_rate)
    rate = tf.cast(schedule(step), tf.float32)
    optimizer.learning_rate.assign(rate)
    return rate


# --- Norms and scales --------------------------------------------------------


def norm(gradient: tf.Tensor, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Euclidean norm over the batch of all replicas.

    Args:
        gradient: of this replica's images.
        optimizer: that will get it.

    Returns:
        Scalar; 0 for an overflow under a loss scale, whose update is skipped.
    """
    if replicas.count() == 1:
        value = tf.norm(gradient)
    else:
        value = tf.sqrt(replicas.total(tf.reduce_sum(tf.square(gradient))))
    if not has_loss_scale(optimizer):
        return value  # an overflow is to be seen, and to stop the run
    return tf.where(tf.math.is_finite(value), value, 0.0)


def has_loss_scale(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer scales what is sent back (mixed_float16)."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def loss_scale(name: str, optimizer: keras.optimizers.Optimizer) -> dict:
    """Scalar of the loss scale, where the optimizer has one."""
    if not has_loss_scale(optimizer):
        return {}
    return {f"loss_scale/{name}": tf.identity(optimizer.dynamic_scale)}
