"""The generators of Table 1: image -> class logits at the image's size.

    image [B,H,W,3] - pad - backbone - head - [B,h,w,C] - 8x bilinear - crop - logits

Inside a builder only `keras.layers`, `keras.ops` and this package's layers touch
symbolic tensors. Everything behind the last convolution is float32.
"""

import keras
from keras import layers

from ss_gan_tf import backbones
from ss_gan_tf.backbones import scaled
from ss_gan_tf.convolution import Conv2D
from ss_gan_tf.dilation import DilatedConv2D
from ss_gan_tf.resampling import BilinearUpsampling, BroadcastLike, PadToMultiple


def build_generator(
    backbone: str,
    num_classes: int,
    *,
    width: float = 1.0,
    fc_filters: int = 4096,
    dropout: float = 0.5,
    aspp_rates: tuple[int, ...] = (12, 24, 36),
    head_norm: str = "group",
    freeze_backbone_norm: bool = True,
) -> keras.Model:
    """The segmentation network G of an arm.

    Args:
        backbone: `vgg16` (FCN-8s) or `resnet50` (dilated, ASPP).
        num_classes: C.
        width: factor on every filter count.
        fc_filters: of fc6 and fc7 before `width` (vgg16); 1024 is DeepLab-LargeFOV's
            number and leaves a third of the parameters.
        dropout: rate behind fc6 and fc7 (vgg16).
        aspp_rates: dilation of the 3x3 ASPP branches, in feature cells (resnet50).
        head_norm: `group`, `batch` or `none` (resnet50).
        freeze_backbone_norm: fix the backbone's batch normalisation (resnet50).

    Returns:
        Model: normalised image [B, H, W, 3], H and W at least 32 -> float32 logits
        [B, H, W, C].

    Raises:
        ValueError: an unknown backbone.
    """
    backbones.check_backbone(backbone)
    image = keras.Input((None, None, 3), name="image")
    if backbone == "vgg16":
        x = PadToMultiple(32, name="pad", dtype="float32")(image)
        fc_filters = scaled(fc_filters, width)
        scores = fcn8s(
            x, num_classes, width=width, fc_filters=fc_filters, dropout=dropout
        )
    else:
        x = PadToMultiple(8, name="pad", dtype="float32")(image)
        x = backbones.resnet50_trunk(x, width)
        scores = aspp_head(x, num_classes, width, aspp_rates, head_norm)
    logits = BilinearUpsampling(8, name="logits")(scores, reference=image)
    model = keras.Model(image, logits, name="generator")
    if backbone == "resnet50" and freeze_backbone_norm:
        backbones.freeze_batch_norm(model)
    return model


def fcn8s(
    x, num_classes: int, *, width: float, fc_filters: int, dropout: float
) -> keras.KerasTensor:
    """Table 1, `vgg16`: rows 0-7 and the fusion with pool4 and pool3.

    Args:
        x: [B, H, W, 3], H and W multiples of 32.
        num_classes: C.
        width: factor on the trunk's filter counts.
        fc_filters: of fc6 and fc7.
        dropout: rate.

    Returns:
        Scores [B, H/8, W/8, C].
    """
    features = backbones.vgg16_trunk(x, width)
    x = _fc(features["block5_pool"], fc_filters, 7, "fc6")  # row 5
    x = layers.Dropout(dropout, name="fc6_dropout")(x)
    x = _fc(x, fc_filters, 1, "fc7")  # row 6
    x = layers.Dropout(dropout, name="fc7_dropout")(x)
    x = _score(num_classes, name="fc7_score")(x)  # row 7 [B,H/32,W/32,C]
    for name in ("block4_pool", "block3_pool"):  # -> 1/16 -> 1/8
        x = layers.Conv2DTranspose(
            num_classes,
            4,
            strides=2,
            padding="same",
            use_bias=False,
            kernel_initializer=backbones.bilinear_kernel,
            dtype="float32",
            name=f"{name}_upsample",
        )(x)
        # Pooled VGG features reach the hundreds: zero is FCN's start for a skip.
        skip = features[name]
        score = _score(num_classes, kernel_initializer="zeros", name=f"{name}_score")
        x = layers.Add(dtype="float32", name=f"{name}_fuse")([x, score(skip)])
    return x


def _fc(x, filters, size, name):
    """A fully connected layer of VGG16 as a convolution."""
    return Conv2D(
        filters,
        size,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _score(num_classes, **settings):
    """The linear layer of a head, in float32 in every precision.

    bfloat16 knows a logit of 10 to 0.04, and a softmax shows that in full; these layers
    have few filters and take no time.
    """
    return Conv2D(num_classes, 1, dtype="float32", **settings)


def aspp_head(x, num_classes: int, width: float, rates: tuple[int, ...], norm: str):
    """Table 1, `resnet50` rows 5-7: ASPP with an image-level branch, classifier.

    Args:
        x: [B, h, w, F].
        num_classes: C.
        width: factor on filter counts.
        rates: dilation of the 3x3 branches, in cells.
        norm: `group`, `batch` or `none`.

    Returns:
        Scores [B, h, w, C].
    """
    filters = scaled(256, width)
    branches = [conv_norm_relu(x, filters, 1, norm=norm, name="aspp_1x1")]
    for rate in rates:
        branches.append(
            conv_norm_relu(
                x, filters, 3, norm=norm, dilation_rate=rate, name=f"aspp_rate{rate}"
            )
        )
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_image_pool")(x)
    pooled = conv_norm_relu(pooled, filters, 1, norm=norm, name="aspp_image")
    branches.append(BroadcastLike(name="aspp_image_enlarge")(pooled, reference=x))
    x = layers.Concatenate(name="aspp_concat")(branches)
    x = conv_norm_relu(x, filters, 1, norm=norm, name="aspp_project")  # row 6
    return _score(num_classes, name="score")(x)  # row 7


def conv_norm_relu(x, filters, size, *, norm, dilation_rate=1, name):
    """Convolution, normalisation, ReLU; a bias where there is no normalisation."""
    conv = Conv2D if dilation_rate == 1 else DilatedConv2D
    x = conv(
        filters,
        size,
        padding="same",
        dilation_rate=dilation_rate,
        use_bias=norm == "none",
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    if norm == "group":
        # 32 groups at full width. Never fewer than 8 channels a group: the image-level
        # branch has one position, where a channel alone would be normalised to 0.
        groups = min(32, filters // 8)
        x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
    elif norm == "batch":
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
