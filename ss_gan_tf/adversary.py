"""The adversary A (Table 2, Fig. 4) and what it is shown (eq. 1-2).

    label map [B,H,W,C] - conv 0 - area resample to the extractor's size -+
                                                                          concat - ...
    image     [B,H,W,3] - extractor: first layers of VGG16 or ResNet50 ---+

Real = ground truth = 1, fake = generated = 0. The field also calls A a
discriminator.
"""

import keras
import tensorflow as tf
from keras import layers

from ss_gan_tf import backbones
from ss_gan_tf.backbones import scaled
from ss_gan_tf.convolution import Conv2D, LeakyReLU, height_width
from ss_gan_tf.resampling import (
    AdaptiveAveragePooling,
    AveragePooling2D,
    UnitRMS,
    adaptive_average_pool,
)

# --- Networks ----------------------------------------------------------------


def build_extractor(
    backbone: str,
    *,
    width: float = 1.0,
    normalize_features: bool = True,
    trainable: bool = False,
) -> keras.Model:
    """The image branch of Fig. 4: the first layers of a backbone, stride 4.

    Args:
        backbone: `vgg16` (up to block2_pool) or `resnet50` (up to pool1_pool).
        width: factor on filter counts.
        normalize_features: scale each position to unit RMS over channels.
        trainable: A's optimizer updates it; batch normalisation stays fixed.

    Returns:
        Model: normalised image [B, H, W, 3] -> features [B, h, w, F].

    Raises:
        ValueError: an unknown backbone.
    """
    backbones.check_backbone(backbone)
    image = keras.Input((None, None, 3), name="image")
    if backbone == "vgg16":
        x = backbones.vgg16_trunk(image, width, num_blocks=2)["block2_pool"]
    else:
        x = backbones.resnet50_stem(image, width)
    if normalize_features:
        x = UnitRMS(name="unit_rms")(x)
    model = keras.Model(image, x, name="extractor")
    model.trainable = trainable
    if trainable:
        backbones.freeze_batch_norm(model)
    return model


def build_adversary(
    num_classes: int,
    num_features: int | None,
    *,
    grid_size: int = 4,
    width: float = 1.0,
) -> keras.Model:
    """The adversary A, Table 2; LeakyReLU 0.2, "same" padding, He initialisation.

    Args:
        num_classes: C, channels of the label map.
        num_features: F of the extractor; None: A sees the label map alone,
            resampled to stride 4.
        grid_size: S, verdicts a side; 0 leaves them dense (stride 16).
        width: factor on filter counts.

    Returns:
        Model: [label map [B,H,W,C], features [B,h,w,F]] (the map alone where
        `num_features` is None) -> float32 verdict logits [B, S, S].
    """
    label_map = keras.Input((None, None, num_classes), name="label_map")
    x = _conv(label_map, scaled(64, width), 0)
    inputs = [label_map]
    if num_features is None:
        x = AdaptiveAveragePooling(stride=4, name="area")(x)
    else:
        features = keras.Input((None, None, num_features), name="features")
        inputs.append(features)
        x = AdaptiveAveragePooling(name="area")(x, reference=features)
        x = layers.Concatenate(name="merge")([x, features])
    x = _conv(x, scaled(128, width), 1)
    x = AveragePooling2D(2, name="pool2")(x)
    x = _conv(x, scaled(256, width), 3)
    x = AveragePooling2D(2, name="pool4")(x)
    x = _conv(x, scaled(512, width), 5)
    # [B,h/4,w/4,1]
    x = Conv2D(
        1,
        3,
        padding="same",
        kernel_initializer="he_normal",
        dtype="float32",
        name="conv6",
    )(x)
    if grid_size:
        x = AdaptiveAveragePooling(grid_size, dtype="float32", name="grid")(x)
    x = SqueezeChannel(dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="adversary")


@keras.saving.register_keras_serializable("ss_gan_tf")
class SqueezeChannel(layers.Layer):
    """[B, S, S, 1] -> [B, S, S]."""

    def call(self, x):
        """Drops the last axis, which has size 1."""
        return tf.squeeze(x, axis=-1)


def _conv(x, filters, number):
    """Row `number` of Table 2: 3x3 convolution and LeakyReLU."""
    x = Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer="he_normal",
        name=f"conv{number}",
    )(x)
    return LeakyReLU(0.2, name=f"leaky{number}")(x)


def judge(
    adversary: keras.Model, label_map: tf.Tensor, features: tf.Tensor | None = None
) -> tf.Tensor:
    """A's verdicts on one kind of map.

    Args:
        adversary: from `build_adversary`, or of the same inputs.
        label_map: [B, H, W, C] from `real_map` or `fake_map`.
        features: [B, h, w, F] of the extractor; None: A takes the map alone.

    Returns:
        [B, S, S] logits.
    """
    inputs = label_map if features is None else [label_map, features]
    return adversary(inputs, training=True)


# --- What A sees -------------------------------------------------------------


def real_map(
    probs: tf.Tensor, label: tf.Tensor, epsilon: float, ignore_label: int
) -> tf.Tensor:
    """The ground truth as A sees it, eq. 1 and 2.

        vbar[l] = max(epsilon, u[l])                             (1)
        vbar[c] = u[c] (1 - vbar[l]) / (1 - u[l])    c != l      (2)

    So A cannot tell truth from prediction by looking for exact zeros and ones.
    Limit values: vbar = u wherever u[l] >= epsilon; epsilon = 1 gives the one-hot
    map. Unlabelled pixels show u, as in `fake_map`.

    Args:
        probs: [B, H, W, C] softmax of G, u in the paper.
        label: [B, H, W] int32 true classes l, or `ignore_label`.
        epsilon: least probability of the true class, in [0.5, 1].
        ignore_label: id of unlabelled pixels.

    Returns:
        [B, H, W, C] float32, sums to 1 over C; no gradient flows through it.
    """
    u = tf.cast(probs, tf.float32)
    valid = label != ignore_label  # [B,H,W]
    is_true = tf.one_hot(
        tf.where(valid, label, 0), u.shape[-1], on_value=True, off_value=False
    )  # [B,H,W,C]
    u_true = tf.reduce_sum(tf.where(is_true, u, 0.0), axis=-1, keepdims=True)
    keep = u_true >= epsilon  # eq. 2 is the identity there, 0/0 at u[l] = 1
    scale = (1.0 - epsilon) / tf.where(keep, 1.0, 1.0 - u_true)
    scaled_map = tf.where(is_true, epsilon, u * scale)
    shown = tf.where(keep | ~valid[..., tf.newaxis], u, scaled_map)
    return tf.stop_gradient(shown)


def fake_map(probs: tf.Tensor, label: tf.Tensor, ignore_label: int) -> tf.Tensor:
    """The prediction as A sees it: u, without gradient at unlabelled pixels.

    Args:
        probs: [B, H, W, C] softmax of G.
        label: [B, H, W] int32 ids or `ignore_label`.
        ignore_label: id of unlabelled pixels.

    Returns:
        [B, H, W, C] float32.
    """
    u = tf.cast(probs, tf.float32)
    valid = (label != ignore_label)[..., tf.newaxis]
    return tf.where(valid, u, tf.stop_gradient(u))


def valid_cells(label: tf.Tensor, ignore_label: int, verdicts: tf.Tensor) -> tf.Tensor:
    """Cells of the verdict grid that hold at least one labelled pixel.

    Args:
        label: [B, H, W] int32 ids or `ignore_label`.
        ignore_label: id of unlabelled pixels.
        verdicts: [B, S, S], lends its size.

    Returns:
        [B, S, S] bool.
    """
    valid = tf.cast(label != ignore_label, tf.float32)[..., tf.newaxis]
    size = height_width(verdicts[..., tf.newaxis])
    return adaptive_average_pool(valid, size)[..., 0] > 0


def verdict_accuracy(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, cell_valid: tf.Tensor
) -> dict[str, tf.Tensor]:
    """How often A is right, as shares of the batch's labelled cells.

    Eq. 1-2 make most of both maps equal, so plain accuracy stays near a half while
    A may well rank the pair of one cell; `paired` asks d(real) > d(fake), ties one
    half.

    Args:
        real_logits: [B, S, S] verdicts on real maps before the sigmoid.
        fake_logits: [B, S, S] verdicts on fake maps.
        cell_valid: [B, S, S] bool.

    Returns:
        `real`, `fake`, `paired`: scalars in [0, 1]; 0 without a labelled cell.
    """
    weight = tf.cast(cell_valid, tf.float32)

    def share(right):
        right = tf.cast(right, tf.float32)
        return tf.math.divide_no_nan(
            tf.reduce_sum(right * weight), tf.reduce_sum(weight)
        )

    above = tf.cast(real_logits > fake_logits, tf.float32)
    ties = tf.cast(real_logits == fake_logits, tf.float32)
    return {
        "real": share(real_logits > 0),
        "fake": share(fake_logits < 0),
        "paired": share(above + 0.5 * ties),
    }
