"""The training steps of `ss_gan_tf.train_step` in PyTorch, as one would write them.

The same losses on the same maps with as few passes: one forward of G, the features
once, A before G. Images and maps are [B, C, H, W], labels [B, H, W].
"""

import contextlib

import torch
import torch.nn.functional as F

from experiments.benchmarks import torch_networks
from experiments.benchmarks.step_rows import KEEPS, drawn_batch
from experiments.benchmarks.torch_networks import area_pool
from experiments.benchmarks.workers import available_cores


def make_segmentation_step(generator, optimizer, ignore_label=255, bfloat16=False):
    """G alone on eq. 4: (image, label) -> loss."""

    def step(image, label):
        optimizer.zero_grad(set_to_none=True)
        with _precision(bfloat16, image.device.type):
            logits = generator(image)
        loss = segmentation_loss(logits, label, ignore_label)
        loss.backward()
        optimizer.step()
        return {"loss/mce": loss.item()}

    return step


def make_adversarial_step(
    generator,
    adversary,
    extractor,
    generator_optimizer,
    adversary_optimizer,
    epsilon=0.9,
    lambda_adv=1e-2,
    ignore_label=255,
    bfloat16=False,
    adversarial_form="saturating",
    gradient_ratio=None,
    lambda_max=100.0,
):
    """One update of A (eq. 6), then one of G (eq. 3)."""
    weights = list(adversary.parameters())
    update_adversary = _make_adversary_update(
        adversary, extractor, adversary_optimizer, epsilon, ignore_label, bfloat16
    )

    def step(image, label):
        with _precision(bfloat16, image.device.type):
            logits = generator(image)

        # --- A: eq. 6 --------------------------------------------------------
        loss_d, valid, features = update_adversary(image, label, logits.detach())

        # --- G: eq. 3 --------------------------------------------------------
        generator_optimizer.zero_grad(set_to_none=True)
        # A's own gradient is not wanted here, and its kernels are left out.
        for weight in weights:
            weight.requires_grad_(False)
        at_logits = logits.detach().requires_grad_()
        segmentation = segmentation_loss(at_logits, label, ignore_label)
        u = at_logits.softmax(1)
        fake = torch.where((label != ignore_label)[:, None], u, u.detach())
        with _precision(bfloat16, image.device.type):
            verdicts = adversary(fake, features)
        if adversarial_form == "saturating":
            adversarial = -bce(0.0, verdicts, valid)
        else:
            adversarial = bce(1.0, verdicts, valid)
        (to_truth,) = torch.autograd.grad(segmentation, at_logits)
        (to_adversary,) = torch.autograd.grad(adversarial, at_logits)
        weight_of_a = lambda_adv
        if gradient_ratio is not None:
            norm = to_adversary.norm()
            wanted = gradient_ratio * to_truth.norm() / norm.clamp(min=1e-30)
            weight_of_a = torch.where(norm > 0, wanted, 0.0).clamp(max=lambda_max)
        logits.backward(to_truth + weight_of_a * to_adversary)
        generator_optimizer.step()
        for weight in weights:
            weight.requires_grad_(True)
        return {
            "loss/mce": segmentation.item(),
            "loss/adversarial": adversarial.item(),
            "loss/loss_g": (segmentation + weight_of_a * adversarial).item(),
            "loss/loss_d": loss_d.item(),
        }

    return step


def make_warmup_step(
    generator,
    adversary,
    extractor,
    optimizer,
    epsilon=0.9,
    ignore_label=255,
    bfloat16=False,
):
    """A alone on eq. 6."""
    update = _make_adversary_update(
        adversary, extractor, optimizer, epsilon, ignore_label, bfloat16
    )

    def step(image, label):
        with torch.no_grad(), _precision(bfloat16, image.device.type):
            logits = generator(image)
        return {"loss/loss_d": update(image, label, logits)[0].item()}

    return step


def _make_adversary_update(
    adversary, extractor, optimizer, epsilon, ignore_label, bfloat16
):
    """(image, label, logits) -> (loss_d, labelled cells, features)."""

    def update(image, label, logits):
        with torch.no_grad(), _precision(bfloat16, image.device.type):
            features = extractor(image)
        optimizer.zero_grad(set_to_none=True)
        probs = logits.softmax(1)
        real = real_map(probs, label, epsilon, ignore_label)
        with _precision(bfloat16, image.device.type):
            on_real, on_fake = adversary(real, features), adversary(probs, features)
        valid = valid_cells(label, ignore_label, on_real)
        loss_d = bce(1.0, on_real, valid) + bce(0.0, on_fake, valid)
        loss_d.backward()
        optimizer.step()
        return loss_d, valid, features

    return update


def _precision(bfloat16, device):
    if not bfloat16:
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)


def segmentation_loss(logits, label, ignore_label):
    """Eq. 4: mean over each image's labelled pixels, then over images."""
    nll = F.cross_entropy(logits, label, ignore_index=ignore_label, reduction="none")
    return _mean_where(nll, label != ignore_label)


def bce(target, logits, valid):
    """Eq. 5, mean over each image's labelled cells, then over images."""
    nll = F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="none"
    )
    return _mean_where(nll, valid)


def _mean_where(values, valid):
    total = torch.where(valid, values, 0.0).sum((1, 2))
    return (total / valid.sum((1, 2)).clamp(min=1)).mean()


@torch.no_grad()
def real_map(probs, label, epsilon, ignore_label):
    """Eq. 1 and 2; the prediction where no label is."""
    valid = (label != ignore_label)[:, None]
    index = torch.where(valid[:, 0], label, 0)[:, None]
    u_true = probs.gather(1, index)
    keep = u_true >= epsilon
    scale = (1.0 - epsilon) / torch.where(keep, 1.0, 1.0 - u_true)
    scaled = (probs * scale).scatter(1, index, epsilon)
    return torch.where(keep | ~valid, probs, scaled)


def valid_cells(label, ignore_label, verdicts):
    """[B, S, S]: cells that hold a labelled pixel."""
    valid = (label != ignore_label).float()[:, None]
    return area_pool(valid, verdicts.shape[1:])[:, 0] > 0


# --- What a worker does ------------------------------------------------------


def build_peer(settings):
    """The peer's steps by phase, on the batch that ours sees.

    A library that ends in `step_rows.KEEPS` keeps freed memory as ours does: for CPUs.
    On a GPU float32 goes through TF32, as it does in XLA, and cuDNN looks for its
    fastest kernels; there "peak_memory" is the most that lay on the device.
    """
    if settings["library"].endswith(KEEPS):
        # Not at the top: a machine without TensorFlow imports this file.
        from ss_gan_tf.allocation import keep_freed_memory

        keep_freed_memory()
    torch.set_num_threads(available_cores())
    device = settings.get("device", "cpu")
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    backbone = settings["arm"].removesuffix("_g")
    sizes = (backbone, settings["num_classes"], settings["width"])
    generator = torch_networks.build_generator(*sizes).to(device)
    compiled = generator
    if settings["library"].startswith("torch.compile"):
        compiled = torch.compile(generator)
    weights = [weight for weight in generator.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, 1e-4, eps=1e-7, fused=True)
    bfloat16 = settings["precision"] == "mixed_bfloat16"
    steps = {}
    if "phase1" in settings["phases"]:
        steps["phase1"] = make_segmentation_step(compiled, adam, bfloat16=bfloat16)
    if "adversarial" in settings["phases"]:
        extractor, adversary = torch_networks.build_adversary(*sizes)
        adversary = adversary.to(device)
        momentum = torch.optim.SGD(adversary.parameters(), 3e-4, 0.9, fused=True)
        steps["adversarial"] = make_adversarial_step(
            compiled,
            adversary,
            extractor.to(device),
            adam,
            momentum,
            bfloat16=bfloat16,
        )
    image, label = drawn_batch(settings)
    # A view of [B, H, W, 3]: channels last already.
    image = torch.from_numpy(image).to(device).permute(0, 3, 1, 2)
    label = torch.from_numpy(label).long().to(device)
    work = {
        phase: lambda step=step: step(image, label) for phase, step in steps.items()
    }
    if device == "cuda":
        work["peak_memory"] = torch.cuda.max_memory_allocated
    return work
