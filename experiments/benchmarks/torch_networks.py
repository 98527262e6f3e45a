"""The networks of the paper in PyTorch: the peer that the steps are timed against.

Layers carry the names of the Keras layers, so `copy_weights` needs no table.
Shapes are PyTorch's: images [B, 3, H, W], logits [B, C, H, W].
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def scaled(filters, width):
    """Filters of a layer at a width, as `ss_gan_tf.backbones.scaled` has them."""
    return max(8, int(round(filters * width / 8)) * 8)


# --- Generator, Table 1 ------------------------------------------------------


class VGG16(nn.Module):
    """Blocks of 3x3 convolutions and 2x2 max pooling: the outputs of all pools."""

    def __init__(self, width, num_blocks=5):
        super().__init__()
        plan = [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]
        self.plan, channels = plan[:num_blocks], 3
        for block, (convs, filters) in enumerate(self.plan, start=1):
            for conv in range(1, convs + 1):
                layer = nn.Conv2d(channels, scaled(filters, width), 3, padding=1)
                self.add_module(f"block{block}_conv{conv}", layer)
                channels = layer.out_channels
        self.channels = [scaled(filters, width) for _, filters in self.plan]

    def forward(self, x):
        """[B, 3, H, W] -> a list of [B, F_k, H/2^k, W/2^k]."""
        pools = []
        for block, (convs, _) in enumerate(self.plan, start=1):
            for conv in range(1, convs + 1):
                x = F.relu(self.get_submodule(f"block{block}_conv{conv}")(x), True)
            x = F.max_pool2d(x, 2)
            pools.append(x)
        return pools


class FCN8s(VGG16):
    """VGG16 with fc6 and fc7 as convolutions, fused with pool4 and pool3."""

    def __init__(self, num_classes, width=1.0, dropout=0.5, fc_filters=4096):
        super().__init__(width)
        hidden = scaled(fc_filters, width)
        self.fc6 = nn.Conv2d(self.channels[4], hidden, 7, padding=3)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.fc7_score = nn.Conv2d(hidden, num_classes, 1)
        self.dropout = dropout
        for block in (4, 3):
            up = nn.ConvTranspose2d(
                num_classes, num_classes, 4, stride=2, padding=1, bias=False
            )
            self.add_module(f"block{block}_pool_upsample", up)
            skip = nn.Conv2d(self.channels[block - 1], num_classes, 1)
            self.add_module(f"block{block}_pool_score", skip)

    def forward(self, image):
        """Normalised image [B, 3, H, W] -> float32 logits [B, C, H, W]."""
        pools = super().forward(_pad_to_multiple(image, 32))
        x = F.relu(self.fc6(pools[4]), True)
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.fc7(x), True)
        x = self.fc7_score(F.dropout(x, self.dropout, self.training))
        for block in (4, 3):
            skip = self.get_submodule(f"block{block}_pool_score")(pools[block - 1])
            x = self.get_submodule(f"block{block}_pool_upsample")(x) + skip
        return _enlarge(x, image)


class ResNet50Stem(nn.Module):
    """7x7 convolution, frozen batch norm, 3x3 max pooling: stride 4."""

    def __init__(self, width=1.0):
        super().__init__()
        self.conv1_conv = nn.Conv2d(3, scaled(64, width), 7, stride=2, padding=3)
        self.conv1_bn = nn.BatchNorm2d(scaled(64, width), eps=1.001e-5)
        self.channels = [scaled(64, width)]

    def forward(self, x):
        """[B, 3, H, W] -> one tensor [B, 64, H/4, W/4], in a list as VGG16's."""
        x = F.relu(self.conv1_bn(self.conv1_conv(x)), True)
        return [F.max_pool2d(x, 3, stride=2, padding=1)]


class ResNet50ASPP(ResNet50Stem):
    """ResNet50 at output stride 8 with an ASPP head under group normalisation."""

    PLAN = ((3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 1, 2), (3, 512, 1, 4))

    def __init__(self, num_classes, width=1.0, rates=(12, 24, 36)):
        super().__init__(width)
        channels = self.channels[0]
        for stage, (blocks, filters, strides, rate) in enumerate(self.PLAN, start=2):
            filters = scaled(filters, width)
            for block in range(1, blocks + 1):
                name, stride = f"conv{stage}_block{block}", strides if block == 1 else 1
                if block == 1:
                    self._conv_bn(f"{name}_0", channels, 4 * filters, 1, stride)
                self._conv_bn(f"{name}_1", channels, filters, 1, stride)
                self._conv_bn(f"{name}_2", filters, filters, 3, 1, rate)
                self._conv_bn(f"{name}_3", filters, 4 * filters, 1)
                channels = 4 * filters
        self.rates, filters = rates, scaled(256, width)
        self._conv_norm("aspp_1x1", channels, filters, 1)
        for rate in rates:
            self._conv_norm(f"aspp_rate{rate}", channels, filters, 3, rate)
        self._conv_norm("aspp_image", channels, filters, 1)
        self._conv_norm("aspp_project", filters * (2 + len(rates)), filters, 1)
        self.score = nn.Conv2d(filters, num_classes, 1)

    def _conv_bn(self, name, channels, filters, size, stride=1, rate=1):
        conv = nn.Conv2d(
            channels, filters, size, stride, rate * (size // 2), dilation=rate
        )
        self.add_module(f"{name}_conv", conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(filters, eps=1.001e-5))

    def _conv_norm(self, name, channels, filters, size, rate=1):
        padding = rate * (size // 2)
        conv = nn.Conv2d(
            channels, filters, size, padding=padding, dilation=rate, bias=False
        )
        self.add_module(f"{name}_conv", conv)
        groups = min(32, filters // 8)
        self.add_module(f"{name}_norm", nn.GroupNorm(groups, filters, eps=1e-3))

    def train(self, mode=True):
        """Batch normalisation stays frozen, as the generator's is in training."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        return self

    def forward(self, image):
        """Normalised image [B, 3, H, W] -> float32 logits [B, C, H, W]."""
        (x,) = super().forward(_pad_to_multiple(image, 8))
        for stage, (blocks, *_) in enumerate(self.PLAN, start=2):
            for block in range(1, blocks + 1):
                x = self._bottleneck(x, f"conv{stage}_block{block}")
        branches = [
            self._conv_norm_relu(f"aspp_{name}", x) for name in self._branches()
        ]
        pooled = self._conv_norm_relu("aspp_image", x.mean((2, 3), keepdim=True))
        branches.append(pooled.expand(-1, -1, *x.shape[2:]))
        x = self._conv_norm_relu("aspp_project", torch.cat(branches, 1))
        return _enlarge(self.score(x), image)

    def _branches(self):
        return ["1x1", *(f"rate{rate}" for rate in self.rates)]

    def _bottleneck(self, x, name):
        def conv_bn(x, index):
            x = self.get_submodule(f"{name}_{index}_conv")(x)
            return self.get_submodule(f"{name}_{index}_bn")(x)

        shortcut = conv_bn(x, 0) if hasattr(self, f"{name}_0_conv") else x
        x = F.relu(conv_bn(x, 1), True)
        x = F.relu(conv_bn(x, 2), True)
        return F.relu(shortcut + conv_bn(x, 3), True)

    def _conv_norm_relu(self, name, x):
        x = self.get_submodule(f"{name}_conv")(x)
        return F.relu(self.get_submodule(f"{name}_norm")(x), True)


def _pad_to_multiple(image, multiple):
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))


def _enlarge(scores, image):
    """8x bilinear in float32, cut to the image's size."""
    x = F.interpolate(
        scores.float(), scale_factor=8, mode="bilinear", align_corners=False
    )
    return x[:, :, : image.shape[2], : image.shape[3]]


# --- Adversary, Table 2 ------------------------------------------------------


class Extractor(nn.Module):
    """The frozen first layers of a backbone; each position at unit RMS."""

    def __init__(self, backbone, width=1.0):
        super().__init__()
        vgg = backbone == "vgg16"
        self.trunk = VGG16(width, num_blocks=2) if vgg else ResNet50Stem(width)
        self.eval().requires_grad_(False)

    def forward(self, image):
        """[B, 3, H, W] -> [B, F, H/4, W/4]."""
        x = self.trunk(image)[-1]
        full = x.float()
        mean_square = full.square().mean(1, keepdim=True)
        return (full * torch.rsqrt(mean_square + 1e-6)).to(x.dtype)


class Adversary(nn.Module):
    """Label map and features -> S x S verdict logits."""

    def __init__(self, num_classes, num_features, grid_size=4, width=1.0):
        super().__init__()
        self.grid_size = grid_size
        filters = [scaled(number, width) for number in (64, 128, 256, 512)]
        self.conv0 = nn.Conv2d(num_classes, filters[0], 3, padding=1)
        self.conv1 = nn.Conv2d(filters[0] + num_features, filters[1], 3, padding=1)
        self.conv3 = nn.Conv2d(filters[1], filters[2], 3, padding=1)
        self.conv5 = nn.Conv2d(filters[2], filters[3], 3, padding=1)
        self.conv6 = nn.Conv2d(filters[3], 1, 3, padding=1)

    def forward(self, label_map, features):
        """[B, C, H, W] and [B, F, h, w] -> float32 [B, S, S]."""
        x = F.leaky_relu(self.conv0(label_map), 0.2)
        x = area_pool(x, features.shape[2:])
        x = F.leaky_relu(self.conv1(torch.cat([x, features], 1)), 0.2)
        x = F.leaky_relu(self.conv3(F.avg_pool2d(x, 2)), 0.2)
        x = F.leaky_relu(self.conv5(F.avg_pool2d(x, 2)), 0.2)
        size = (self.grid_size, self.grid_size)
        return area_pool(self.conv6(x).float(), size)[:, 0]


def area_pool(x, size):
    """Exact area average of each output cell, as `resampling.adaptive_average_pool`."""
    height, width = x.shape[2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(x, (height // size[0], width // size[1]))
    rows = _area_weights(height, size[0]).to(x)
    columns = _area_weights(width, size[1]).to(x)
    return torch.einsum("ih,jw,bfhw->bfij", rows, columns, x)


def _area_weights(n, m):
    i, j = torch.arange(m)[:, None], torch.arange(n)[None]
    overlap = torch.minimum((i + 1) * n, (j + 1) * m) - torch.maximum(i * n, j * m)
    return overlap.clamp(min=0) / n


# --- Building and filling ----------------------------------------------------


def build_generator(backbone, num_classes, width=1.0, dropout=0.5, fc_filters=4096):
    """G of an arm in training mode, channels last."""
    model = (
        FCN8s(num_classes, width, dropout, fc_filters)
        if backbone == "vgg16"
        else ResNet50ASPP(num_classes, width)
    )
    return model.train().to(memory_format=torch.channels_last)


def build_adversary(backbone, num_classes, width=1.0, grid_size=4):
    """(extractor, A) of an arm, channels last."""
    extractor = Extractor(backbone, width)
    features = extractor.trunk.channels[-1]
    adversary = Adversary(num_classes, features, grid_size, width)
    last = torch.channels_last
    return extractor.to(memory_format=last), adversary.to(memory_format=last)


def fold_batch_norm(module):
    """Puts each NAME_bn into its NAME_conv, for inference; the module is changed."""
    for name, norm in list(module.named_children()):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        conv = f"{name.removesuffix('_bn')}_conv"
        folded = fuse_conv_bn_eval(module.get_submodule(conv), norm)
        setattr(module, conv, folded)
        setattr(module, name, nn.Identity())


def copy_weights(keras_model, module):
    """Fills a module with the weights of the Keras model of the same layer names.

    Args:
        keras_model: from `ss_gan_tf.generator` or `ss_gan_tf.adversary`.
        module: of this module, in the same size.

    Raises:
        ValueError: a layer or a weight has no partner, or another shape.
    """
    for layer, places in _partners(keras_model, module):
        for place, weight in zip(places, layer.get_weights(), strict=True):
            tensor = _turned(torch.from_numpy(weight), to_keras=False)
            if place.shape != tensor.shape:
                raise ValueError(
                    f"{layer.name}: {tuple(tensor.shape)}, {tuple(place.shape)}"
                )
            place.data.copy_(tensor)


def copy_weights_back(module, keras_model):
    """Inverse of `copy_weights`."""
    for layer, places in _partners(keras_model, module):
        layer.set_weights(
            [_turned(place.detach(), to_keras=True).numpy() for place in places]
        )


def _partners(keras_model, module):
    """(Keras layer, the module's tensors in the order of its weights) by name."""
    # A dropout layer's only weight is the state of its random numbers.
    ours = {
        layer.name: layer
        for layer in keras_model.layers
        if layer.weights and not layer.name.endswith("dropout")
    }
    theirs = {
        name.rpartition(".")[2]: part
        for name, part in module.named_modules()
        if next(part.parameters(recurse=False), None) is not None
    }
    if set(ours) != set(theirs):
        raise ValueError(f"layers without a partner: {sorted(set(ours) ^ set(theirs))}")
    for name, part in theirs.items():
        places = [part.weight, part.bias]
        if isinstance(part, nn.BatchNorm2d):
            places += [part.running_mean, part.running_var]
        yield ours[name], [place for place in places if place is not None]


def _turned(tensor, to_keras):
    """A kernel's axes in the other library's order, others as they are."""
    if tensor.ndim != 4:
        return tensor
    # Keras: k k in out; a transposed one is k k out in, and turned alike.
    return tensor.permute(2, 3, 1, 0) if to_keras else tensor.permute(3, 2, 0, 1)
