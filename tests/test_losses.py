"""Equations 3-7 by hand, against NumPy, and where numbers are extreme."""

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import losses

VOID = 255
LN2 = np.log(2.0)


def numpy_segmentation_loss(logits, label, ignore_label):
    """Eq. 4 pixel by pixel in float64: mean within an image, then over images."""
    per_image = []
    for image_logits, image_label in zip(np.float64(logits), label, strict=True):
        nll = []
        for pixel in np.ndindex(image_label.shape):
            if image_label[pixel] != ignore_label:
                z = image_logits[pixel] - image_logits[pixel].max()
                p = np.exp(z) / np.exp(z).sum()
                nll.append(-np.log(p[image_label[pixel]]))
        per_image.append(np.mean(nll) if nll else 0.0)
    return np.mean(per_image)


def numpy_binary_cross_entropy(target, logits, valid):
    """Eq. 5 as printed, in float64."""
    p = 1 / (1 + np.exp(-np.float64(logits)))
    nll = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    per_image = [
        n[v].mean() if v.any() else 0.0 for n, v in zip(nll, valid, strict=True)
    ]
    return np.mean(per_image)


def uneven_labels(rng, shape, num_classes):
    """Random ids with unlabelled pixels: few, many, and in the last image all."""
    label = rng.integers(0, num_classes, shape).astype(np.int32)
    for image, share in zip(label, (0.1, 0.9, 1.0), strict=True):
        image[rng.random(image.shape) < share] = VOID
    assert 0 < np.sum(label[1] != VOID) < np.sum(label[0] != VOID)
    return label


def uneven_cells(rng, shape):
    """Random labelled cells: many, few, and in the last image none."""
    return rng.random(shape) < np.array([0.8, 0.3, 0.0]).reshape(3, 1, 1)


def segmentation_loss(logits, label):
    return losses.segmentation_loss(tf.constant(logits), tf.constant(label), VOID)


def gradient_of(function, x):
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value.numpy(), tape.gradient(value, x).numpy()


# --- Eq. 4 -------------------------------------------------------------------


def test_segmentation_loss_by_hand():
    # Image 0: true classes with p = 1/2 and 1/4, one void pixel: (1 + 2)/2 ln 2.
    # Image 1: one labelled pixel with p = 1/8: 3 ln 2. Mean of both: 9/4 ln 2.
    # (The mean over all three labelled pixels would be 2 ln 2.)
    probs = np.array(
        [
            [[[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]],
            [[[1 / 8, 1 / 2, 3 / 8], [1 / 8, 1 / 8, 3 / 4], [1 / 8, 1 / 8, 3 / 4]]],
        ]
    )  # [2,1,3,3]
    label = np.int32([[[0, 1, VOID]], [[0, VOID, VOID]]])
    loss = losses.segmentation_loss(tf.constant(np.log(probs)), label, VOID)
    assert loss.numpy() == pytest.approx(9 / 4 * LN2, rel=1e-6)


@pytest.mark.parametrize("num_classes", [2, 11, 21])
def test_segmentation_loss_of_a_uniform_prediction_is_ln_c(num_classes):
    logits = tf.fill([2, 4, 4, num_classes], 3.0)
    label = tf.ones([2, 4, 4], tf.int32)
    loss = losses.segmentation_loss(logits, label, VOID)
    assert loss.numpy() == pytest.approx(np.log(num_classes), rel=1e-6)


def test_segmentation_loss_agrees_with_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 7, 9, 5)).astype(np.float32)
    label = uneven_labels(rng, (3, 7, 9), 5)
    loss = segmentation_loss(logits, label)
    expected = numpy_segmentation_loss(logits, label, VOID)
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)


def test_segmentation_gradient_is_zero_where_unlabelled_and_p_minus_y_elsewhere():
    # d mce / d logits = (p - y) / (labelled pixels of the image * images).
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (3, 6, 6, 4)).astype(np.float32)
    label = uneven_labels(rng, (3, 6, 6), 4)
    _, gradient = gradient_of(
        lambda x: losses.segmentation_loss(x, label, VOID), logits
    )
    valid = label != VOID
    assert np.all(gradient[~valid] == 0)
    assert np.all(np.abs(gradient[valid]).max(-1) > 0)
    p = np.exp(np.float64(logits))
    p /= p.sum(-1, keepdims=True)
    y = np.eye(4)[np.where(valid, label, 0)]
    count = np.maximum(valid.sum((1, 2)), 1).reshape(3, 1, 1, 1)
    expected = np.where(valid[..., None], (p - y) / count / 3, 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_image_without_a_labelled_pixel_adds_nothing_but_counts():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    label = rng.integers(0, 3, (2, 5, 5)).astype(np.int32)
    label[1] = VOID
    both = segmentation_loss(logits, label)
    first = segmentation_loss(logits[:1], label[:1])
    assert both.numpy() == pytest.approx(first.numpy() / 2, rel=1e-6)
    nothing, gradient = gradient_of(
        lambda x: losses.segmentation_loss(x, label[1:], VOID), logits[1:]
    )
    assert nothing == 0 and np.all(gradient == 0)


def test_micro_batches_average_to_the_batch():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, 6, 6, 4)).astype(np.float32)
    label = uneven_labels(rng, (3, 6, 6), 4)
    whole = segmentation_loss(logits, label)
    parts = [segmentation_loss(logits[i : i + 1], label[i : i + 1]) for i in range(3)]
    assert whole.numpy() == pytest.approx(np.mean(parts), rel=1e-6)


def test_ignore_label_may_be_a_class_id():
    # Pixel 0 is ignored, pixel 1 has p = 1/2.
    logits = tf.zeros([1, 1, 2, 2])
    loss = losses.segmentation_loss(logits, tf.constant([[[0, 1]]]), 0)
    assert loss.numpy() == pytest.approx(LN2)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_segmentation_loss_is_finite_at_extreme_logits(size):
    # True class at `size`, the other at 0: 0 where it wins, 1e4 nats where it loses.
    logits = np.zeros((1, 2, 2, 2), np.float32)
    logits[..., 1] = size
    label = np.ones((1, 2, 2), np.int32)
    loss, gradient = gradient_of(
        lambda x: losses.segmentation_loss(x, label, VOID), logits
    )
    assert loss == pytest.approx(max(0, -size))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    # 4096 pixels at ln 2 each: a half-precision sum would be off by per cents.
    logits = tf.zeros([1, 64, 64, 2], dtype)
    loss = segmentation_loss(logits, tf.zeros([1, 64, 64], tf.int32))
    assert loss.dtype == tf.float32
    assert loss.numpy() == pytest.approx(LN2, rel=1e-5)
    cells = tf.ones([1, 64, 64], tf.bool)
    loss = losses.binary_cross_entropy(1.0, logits[..., 0], cells)
    assert loss.dtype == tf.float32
    assert loss.numpy() == pytest.approx(LN2, rel=1e-5)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError):
        segmentation_loss(tf.zeros([2, 4, 4, 3]), tf.zeros([2, 4, 5], tf.int32))
    logits, cells = tf.zeros([2, 4, 4]), tf.ones([2, 4, 4], tf.bool)
    for wrong in (tf.zeros([2, 4, 4, 1]), tf.zeros([2, 4, 1]), tf.zeros([1, 4, 4])):
        with pytest.raises(ValueError):
            losses.binary_cross_entropy(1.0, wrong, cells)
        with pytest.raises(ValueError):
            losses.adversary_loss(logits, wrong, cells)
        with pytest.raises(ValueError):
            losses.adversary_loss(wrong, logits, cells)
        with pytest.raises(ValueError):
            losses.adversarial_loss(wrong, cells)


# --- Eq. 5 and 6 -------------------------------------------------------------


def verdict(p):
    """The logit of a probability."""
    return np.float32(np.log(p / (1 - p)))


def test_binary_cross_entropy_by_hand():
    # Image 0: p = 0.8 and an unlabelled cell; image 1: p = 0.8 and p = 0.5.
    # t = 1: (-ln 0.8 + (-ln 0.8 + ln 2)/2) / 2; t = 0: the same with 0.2 for 0.8.
    logits = [[[verdict(0.8), 50.0]], [[verdict(0.8), 0.0]]]
    cells = [[[True, False]], [[True, True]]]
    for target, p in ((1.0, 0.8), (0.0, 0.2)):
        loss = losses.binary_cross_entropy(
            target, tf.constant(logits), tf.constant(cells)
        )
        expected = (-np.log(p) + (-np.log(p) + LN2) / 2) / 2
        assert loss.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [0.0, 1.0, 0.7])
def test_binary_cross_entropy_agrees_with_numpy(target):
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, (3, 4, 4)).astype(np.float32)
    cells = uneven_cells(rng, (3, 4, 4))
    loss = losses.binary_cross_entropy(target, logits, cells)
    expected = numpy_binary_cross_entropy(target, logits, cells)
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)


def test_adversary_loss_tells_right_from_wrong():
    # Right: real +5, fake -3: softplus(-5) + softplus(-3) = 0.0067 + 0.0486.
    # Wrong, the same verdicts exchanged: softplus(3) + softplus(5) = 3.0486 + 5.0067.
    plus, minus = tf.fill([2, 4, 4], 5.0), tf.fill([2, 4, 4], -3.0)
    cells = tf.ones([2, 4, 4], tf.bool)
    right = losses.adversary_loss(plus, minus, cells).numpy()
    wrong = losses.adversary_loss(minus, plus, cells).numpy()
    assert right == pytest.approx(np.log1p(np.exp(-5)) + np.log1p(np.exp(-3)), rel=1e-5)
    assert wrong == pytest.approx(np.log1p(np.exp(3)) + np.log1p(np.exp(5)), rel=1e-5)


def test_undecided_adversary_pays_two_ln_two():
    zeros, cells = tf.zeros([2, 4, 4]), tf.ones([2, 4, 4], tf.bool)
    loss = losses.adversary_loss(zeros, zeros, cells)
    assert loss.numpy() == pytest.approx(2 * LN2)


def test_adversary_loss_agrees_with_numpy_and_pulls_verdicts_apart():
    rng = np.random.default_rng(5)
    real, fake = rng.normal(0, 2, (2, 3, 4, 4)).astype(np.float32)
    cells = uneven_cells(rng, (3, 4, 4))
    loss, on_real = gradient_of(lambda x: losses.adversary_loss(x, fake, cells), real)
    _, on_fake = gradient_of(lambda x: losses.adversary_loss(real, x, cells), fake)
    expected = numpy_binary_cross_entropy(1, real, cells)
    expected += numpy_binary_cross_entropy(0, fake, cells)
    assert loss == pytest.approx(expected, rel=1e-6)
    # Descent raises d(real) and lowers d(fake), and leaves unlabelled cells alone.
    assert np.all(on_real[cells] < 0) and np.all(on_fake[cells] > 0)
    assert np.all(on_real[~cells] == 0) and np.all(on_fake[~cells] == 0)


# --- Eq. 3 -------------------------------------------------------------------


def test_adversarial_loss_by_hand():
    # d = 0.8: ln(1 - d) = ln 0.2 and -ln d = -ln 0.8; d = 0.1: ln 0.9 and -ln 0.1.
    cells = tf.ones([1, 2, 2], tf.bool)
    for d in (0.8, 0.1):
        logits = tf.fill([1, 2, 2], verdict(d))
        saturating = losses.adversarial_loss(logits, cells, "saturating")
        nonsaturating = losses.adversarial_loss(logits, cells, "nonsaturating")
        assert saturating.numpy() == pytest.approx(np.log(1 - d), rel=1e-5)
        assert nonsaturating.numpy() == pytest.approx(-np.log(d), rel=1e-5)


def test_the_papers_form_is_the_default():
    logits, cells = tf.fill([1, 2, 2], 2.0), tf.ones([1, 2, 2], tf.bool)
    default = losses.adversarial_loss(logits, cells)
    assert default == losses.adversarial_loss(logits, cells, "saturating")
    assert default < 0


def test_both_forms_push_the_verdict_on_the_fake_map_up():
    # d/dx ln(1 - s(x)) = -s(x): weakest where A is sure (x = -4);
    # d/dx (-ln s(x)) = -(1 - s(x)): strongest there. Each over 2 cells, 1 image.
    x = np.float32([[[-4.0, 1.0]]])
    cells = tf.constant([[[True, True]]])
    s = 1 / (1 + np.exp(-np.float64(x)))
    for form, expected in (("saturating", -s / 2), ("nonsaturating", -(1 - s) / 2)):
        _, gradient = gradient_of(
            lambda logits, form=form: losses.adversarial_loss(logits, cells, form), x
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        assert np.all(gradient < 0)


@pytest.mark.parametrize("form", ["saturating", "nonsaturating"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_verdict_losses_are_finite_at_extreme_logits(form, size):
    logits = np.full((1, 2, 2), size, np.float32)
    cells = tf.constant([[[True, False], [True, True]]])
    for function in (
        lambda x: losses.adversarial_loss(x, cells, form),
        lambda x: losses.adversary_loss(x, -x, cells),
        lambda x: losses.adversary_loss(-x, x, cells),
    ):
        value, gradient = gradient_of(function, logits)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        assert gradient[0, 0, 1] == 0


def test_no_labelled_cell_no_loss():
    logits, cells = np.full((2, 2, 2), 3.0, np.float32), tf.zeros([2, 2, 2], tf.bool)
    for function in (
        lambda x: losses.adversarial_loss(x, cells),
        lambda x: losses.adversary_loss(x, x, cells),
    ):
        value, gradient = gradient_of(function, logits)
        assert value == 0 and np.all(gradient == 0)


def test_generator_loss_weighs_the_adversarial_term_alone():
    # 3 + 0.1 * (-2) = 2.8.
    loss = losses.generator_loss(tf.constant(3.0), tf.constant(-2.0), 0.1)
    assert loss.numpy() == pytest.approx(2.8)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form='hinge': must be saturating or"):
        losses.adversarial_loss(tf.zeros([1, 2, 2]), tf.ones([1, 2, 2], bool), "hinge")


# --- The entropy placebo -----------------------------------------------------


def test_entropy_loss_by_hand():
    # Image 0: p = (1/2, 1/2, 0) has ln 2; (1/2, 1/4, 1/4) has ln 2 / 2 + ln 4 / 2
    # = 3/2 ln 2; the uniform pixel is void: 5/4 ln 2. Image 1: one labelled pixel,
    # uniform over four halves of two: (1/4, 1/4, 1/2), 3/2 ln 2. Mean: 11/8 ln 2.
    # The ids themselves play no part.
    probs = np.array(
        [
            [[[1 / 2, 1 / 2, 1e-30], [1 / 2, 1 / 4, 1 / 4], [1 / 3, 1 / 3, 1 / 3]]],
            [[[1 / 4, 1 / 4, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]]],
        ]
    )  # [2,1,3,3]
    logits = tf.constant(np.log(probs))
    for ids in (np.array([0, 1, 2]), np.array([2, 2, 0])):
        label = np.int32([[[ids[0], ids[1], VOID]], [[ids[2], VOID, VOID]]])
        loss = losses.entropy_loss(logits, label, VOID)
        assert loss.numpy() == pytest.approx(11 / 8 * LN2, rel=1e-6)


def test_entropy_lies_between_certain_and_uniform():
    label = tf.zeros([1, 1, 1], tf.int32)
    certain, uniform = tf.constant([[[[1e4, 0.0, 0.0]]]]), tf.zeros([1, 1, 1, 3])
    value, gradient = gradient_of(
        lambda x: losses.entropy_loss(x, label, VOID), certain
    )
    assert value == 0 and np.all(np.isfinite(gradient))
    assert losses.entropy_loss(uniform, label, VOID).numpy() == pytest.approx(np.log(3))


def test_entropy_pushes_labelled_pixels_towards_what_they_say():
    # Descent raises the larger logit and leaves the unlabelled pixel alone.
    logits = np.float32([[[[1.0, 0.0], [1.0, 0.0]]]])
    label = tf.constant([[[1, VOID]]])
    _, gradient = gradient_of(lambda x: losses.entropy_loss(x, label, VOID), logits)
    assert gradient[0, 0, 0, 0] < 0 < gradient[0, 0, 0, 1]
    assert np.all(gradient[0, 0, 1] == 0)


# --- Eq. 7 -------------------------------------------------------------------


def test_where_lambda_goes():
    # (weight of G's adversarial term, weight of loss_d)
    assert losses.lambda_weights(0.01, "generator") == (0.01, 1.0)
    assert losses.lambda_weights(0.01, "adversary") == (1.0, 0.01)
    assert losses.lambda_weights(0.01, "both") == (0.01, 0.01)
    with pytest.raises(ValueError, match="lambda_on='discriminator'"):
        losses.lambda_weights(0.01, "discriminator")


def ratio_lambda(segmentation, adversarial, ratio=0.5, lambda_max=100.0):
    return losses.gradient_ratio_lambda(
        tf.constant(segmentation), tf.constant(adversarial), ratio, lambda_max
    ).numpy()


def test_gradient_ratio_lambda_by_hand():
    # 0.5 * 4 / 8 = 0.25; then |lambda * adversarial| = 2 is half of 4.
    assert ratio_lambda(4.0, 8.0) == pytest.approx(0.25)
    assert ratio_lambda(4.0, 8.0, ratio=2.0) == pytest.approx(1.0)


def test_gradient_ratio_lambda_is_bounded():
    # Wanted 0.5 * 1 / 1e-6 = 5e5.
    assert ratio_lambda(1.0, 1e-6) == 100.0
    assert ratio_lambda(1.0, 1e-6, lambda_max=7.0) == 7.0
    # Wanted beyond float32's range.
    assert ratio_lambda(1e30, 1e-30) == 100.0


def test_gradient_ratio_lambda_without_a_gradient_is_zero():
    assert ratio_lambda(1.0, 0.0) == 0.0
    assert ratio_lambda(0.0, 0.0) == 0.0
    assert ratio_lambda(0.0, 1.0) == 0.0


def test_gradient_ratio_lambda_has_no_gradient():
    norms = tf.constant(4.0), tf.constant(8.0)
    with tf.GradientTape() as tape:
        tape.watch(norms)
        weight = losses.gradient_ratio_lambda(*norms, 0.5, 100.0)
    assert tape.gradient(weight, norms) == (None, None)
