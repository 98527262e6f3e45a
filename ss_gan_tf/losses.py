"""Equations 3-7, one function each.

Pure functions of tensors in float32: no models, no weights but the ones an equation
names. Shapes: B images, H W pixels, C classes, S cells a side. Real = ground truth
= 1, fake = generated = 0. Every loss is a mean within an image and then over the B
images, as eq. 7 averages over N; an image without a labelled pixel contributes 0.
"""

import tensorflow as tf


def segmentation_loss(
    logits: tf.Tensor, label: tf.Tensor, ignore_label: int
) -> tf.Tensor:
    """Multi-class cross entropy, eq. 4.

        mce(y, p) = - y ln p, mean over the image's labelled pixels

    Args:
        logits: [B, H, W, C] before the softmax.
        label: [B, H, W] int32 ids in [0, C) or `ignore_label`.
        ignore_label: pixels with this id add neither value nor gradient.

    Returns:
        Scalar, nats per pixel; ln C for a uniform prediction.

    Raises:
        ValueError: the static shapes of logits and label disagree.
    """
    logits.shape[:-1].assert_is_compatible_with(label.shape)
    valid = label != ignore_label  # [B,H,W]
    nll = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.where(valid, label, 0), logits=tf.cast(logits, tf.float32)
    )
    return _mean_where(nll, valid)


def binary_cross_entropy(
    target: float, logits: tf.Tensor, cell_valid: tf.Tensor
) -> tf.Tensor:
    """Binary cross entropy of verdicts against one target, eq. 5.

        bce(t, p) = -{ t ln p + (1 - t) ln(1 - p) }, mean over the labelled cells

    Args:
        target: t, 1 (ground truth) or 0 (generated).
        logits: [B, S, S] before the sigmoid.
        cell_valid: [B, S, S] bool; cells without a labelled pixel carry no loss.

    Returns:
        Scalar, nats per cell; ln 2 at logits of 0.

    Raises:
        ValueError: the static shapes of logits and cell_valid disagree.
    """
    logits = tf.cast(logits, tf.float32)
    nll = target * tf.nn.softplus(-logits) + (1.0 - target) * tf.nn.softplus(logits)
    return _mean_where(nll, cell_valid)


def adversarial_loss(
    fake_logits: tf.Tensor, cell_valid: tf.Tensor, form: str = "saturating"
) -> tf.Tensor:
    """G's adversarial term of eq. 3, without lambda.

        saturating:     - bce(0, d(g(x), x)) = ln(1 - d)    (the paper)
        nonsaturating:  + bce(1, d(g(x), x)) = - ln d

    Args:
        fake_logits: [B, S, S] verdicts on generated maps before the sigmoid.
        cell_valid: [B, S, S] bool.
        form: `saturating` or `nonsaturating`.

    Returns:
        Scalar, nats per cell; -ln 2 or +ln 2 for an undecided adversary.

    Raises:
        ValueError: an unknown form, or shapes that disagree.
    """
    if form == "saturating":
        return -binary_cross_entropy(0.0, fake_logits, cell_valid)
    if form == "nonsaturating":
        return binary_cross_entropy(1.0, fake_logits, cell_valid)
    raise ValueError(f"form={form!r}: must be saturating or nonsaturating")


def entropy_loss(logits: tf.Tensor, label: tf.Tensor, ignore_label: int) -> tf.Tensor:
    """Mean entropy of the prediction: a placebo for the adversarial term of eq. 3.

        h(p) = - sum_c p_c ln p_c, mean over the image's labelled pixels

    Not in the paper. Like the adversary it makes maps more decided, but nothing of it
    was learnt from the ground truth: a gain that it shares is not the adversary's.

    Args:
        logits: [B, H, W, C] before the softmax.
        label: [B, H, W] int32; only says which pixels are labelled.
        ignore_label: pixels with this id add neither value nor gradient.

    Returns:
        Scalar, nats per pixel; ln C for a uniform prediction, 0 for a certain one.

    Raises:
        ValueError: the static shapes of logits and label disagree.
    """
    logits.shape[:-1].assert_is_compatible_with(label.shape)
    log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    entropy = -tf.reduce_sum(tf.exp(log_probs) * log_probs, -1)  # [B,H,W]
    return _mean_where(entropy, label != ignore_label)


def generator_loss(segmentation, adversarial, lambda_adv):
    """Loss of G, eq. 3: mce(y, g(x)) + lambda * (adversarial term).

    Args:
        segmentation: scalar of `segmentation_loss`.
        adversarial: scalar of `adversarial_loss`, whose sign is eq. 3's.
        lambda_adv: weight; eq. 7's lambda as this project reads it.

    Returns:
        Scalar, nats.
    """
    return segmentation + lambda_adv * adversarial


def adversary_loss(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, cell_valid: tf.Tensor
) -> tf.Tensor:
    """Binary cross entropy of the adversary's verdicts, eq. 6.

        loss_d = bce(1, d(y, x)) + bce(0, d(g(x), x))

    Args:
        real_logits: [B, S, S] verdicts on ground-truth maps before the sigmoid.
        fake_logits: [B, S, S] verdicts on generated maps.
        cell_valid: [B, S, S] bool; cells without a labelled pixel carry no loss.

    Returns:
        Scalar, nats per cell; 2 ln 2 = 1.386 for an adversary that cannot tell.

    Raises:
        ValueError: the static shapes disagree.
    """
    on_real = binary_cross_entropy(1.0, real_logits, cell_valid)
    return on_real + binary_cross_entropy(0.0, fake_logits, cell_valid)


def lambda_weights(lambda_adv: float, lambda_on: str) -> tuple[float, float]:
    """Where eq. 7's lambda goes: (weight of G's adversarial term, weight of loss_d).

    Args:
        lambda_adv: lambda.
        lambda_on: `generator` (the prose), `adversary` (as printed) or `both`.

    Returns:
        The two weights.

    Raises:
        ValueError: an unknown place.
    """
    weights = {
        "generator": (lambda_adv, 1.0),
        "adversary": (1.0, lambda_adv),
        "both": (lambda_adv, lambda_adv),
    }
    if lambda_on not in weights:
        raise ValueError(f"lambda_on={lambda_on!r}: must be one of {tuple(weights)}")
    return weights[lambda_on]


def gradient_ratio_lambda(
    segmentation_norm: tf.Tensor,
    adversarial_norm: tf.Tensor,
    ratio: float,
    lambda_max: float,
) -> tf.Tensor:
    """The lambda that gives the adversarial gradient a fixed share.

        lambda = min(ratio * |d mce / d logits| / |d adversarial / d logits|, max)

    Not in the paper, whose constant lambda leaves that share below a thousandth.

    Args:
        segmentation_norm: scalar, Euclidean norm at G's logits.
        adversarial_norm: scalar, the same for the unweighted adversarial term.
        ratio: wanted |lambda * adversarial| / |segmentation|.
        lambda_max: bound.

    Returns:
        Scalar without gradient; 0 where the adversarial gradient vanishes.
    """
    wanted = tf.math.divide_no_nan(ratio * segmentation_norm, adversarial_norm)
    return tf.stop_gradient(tf.minimum(wanted, lambda_max))


def _mean_where(values: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Mean over the valid entries of each image, then over images."""
    values.shape.assert_is_compatible_with(valid.shape)
    axes = list(range(1, len(values.shape)))
    total = tf.reduce_sum(tf.where(valid, values, 0.0), axes)  # [B]
    count = tf.reduce_sum(tf.cast(valid, values.dtype), axes)
    return tf.reduce_mean(tf.math.divide_no_nan(total, count))
