"""A run's steps in PyTorch: a second implementation that the first is held against.

`make_stages` takes the place of `ss_gan_tf.stages.make_stages`. First weights, batches,
rates, losses and order are those of the run; layers, gradients and updates are
PyTorch's, bfloat16 is its autocast.
"""

import math

import numpy as np
import torch

from experiments.benchmarks import torch_networks, torch_step
from experiments.benchmarks.workers import available_cores
from ss_gan_tf import config_rules, stages
from ss_gan_tf.config import Config

# What the peer's networks and steps have one way of doing.
_ONE_WAY = {
    "dropout": (0.0,),
    "extractor": ("frozen",),
    "normalize_features": (True,),
    "head_norm": ("group",),
    "aspp_rates": ((12, 24, 36),),
    "lambda_on": ("generator",),
    "lambda_ramp_steps": (0,),
    "placebo": ("none",),
    "weight_decay": (0.0,),
    "gradient_clip_norm": (0.0,),
    "ema_decay": (0.0,),
    "accumulate_steps": (1,),
    "distribute": ("none",),
    "precision": ("float32", "mixed_bfloat16"),
}


def make_stages(
    config: Config, networks: stages.Networks, ignore_label: int, weakening=None
) -> list[stages.Stage]:
    """The stages of a run, each step in PyTorch.

    The last step of a stage writes G's weights back into `networks`, to be validated.

    Args:
        config: the run.
        networks: lends the first weights.
        ignore_label: of the data set.
        weakening: must be None: a comparison has no guard.

    Returns:
        As `ss_gan_tf.stages.make_stages`.

    Raises:
        ValueError: the peer cannot do what the run asks for.
    """
    check(config)
    if weakening is not None:
        raise ValueError("guard=True: must be off, the peer has none")
    return _Peer(config, networks, ignore_label).make_stages()


def check(config: Config):
    """Lets pass what the peer can do.

    Raises:
        ValueError: a field has a value that the peer does not know.
    """
    unread = config_rules.unused(config)
    for name, values in _ONE_WAY.items():
        if name not in unread and getattr(config, name) not in values:
            allowed = " or ".join(map(str, values))
            raise ValueError(
                f"{name}={getattr(config, name)}: must be {allowed} for the run in "
                "PyTorch"
            )
    if config.backbone == "resnet50" and config.backbone_weights == "none":
        raise ValueError(
            "backbone_weights=none: must be a file or imagenet for the run in PyTorch: "
            "without them batch normalisation trains, and the peer's is fixed"
        )
    if config.uses_adversary and not config.grid_size:
        raise ValueError("grid_size=0: must be above 0 for the run in PyTorch")


class _Peer:
    """Networks and optimizers in PyTorch, and steps on TensorFlow's batches."""

    def __init__(self, config, networks, ignore_label):
        torch.set_num_threads(available_cores())
        self.config, self.networks = config, networks
        self.common = {
            "ignore_label": ignore_label,
            "bfloat16": config.precision == "mixed_bfloat16",
        }
        num_classes = networks.generator.output_shape[-1]
        self.generator = torch_networks.build_generator(
            config.backbone, num_classes, config.width, 0.0, config.fc_filters
        )
        torch_networks.copy_weights(networks.generator, self.generator)
        if config.uses_adversary:
            self.extractor, self.adversary = torch_networks.build_adversary(
                config.backbone, num_classes, config.width, config.grid_size
            )
            torch_networks.copy_weights(networks.extractor, self.extractor)
            torch_networks.copy_weights(networks.adversary, self.adversary)
            # One for warm-up and phase 2, as in the run.
            self.adversary_optimizer = _optimizer(
                self.adversary, config.adversary_optimizer
            )

    def make_stages(self):
        """Those of the run, with PyTorch's steps."""
        make = {"phase1": self._phase1, "warmup": self._warmup, "phase2": self._phase2}
        lengths, first, found = stages.stage_lengths(self.config), 0, []
        for name, num_steps in lengths.items():
            step = self._on_batches(make[name](), num_steps)
            found.append(stages.Stage(name, num_steps, step, first))
            first = lengths.get("phase1", 0)  # G has done these
        return found

    def _on_batches(self, step, num_steps):
        """The step on TensorFlow's tensors, numbered from 0."""
        number = 0

        def on_batch(image, label):
            nonlocal number
            image = torch.from_numpy(np.array(image)).permute(0, 3, 1, 2)
            label = torch.from_numpy(np.array(label)).long()
            scalars = step(number, image, label)
            number += 1
            if number == num_steps:
                torch_networks.copy_weights_back(
                    self.generator, self.networks.generator
                )
            return scalars

        return on_batch

    # --- Stages --------------------------------------------------------------

    def _phase1(self):
        config = self.config
        rate = stages.linear_decay(
            config.phase1_lr,
            config.phase1_lr_end,
            config.phase1_steps,
            config.phase1_lr_warmup_steps,
        )
        return self._segmentation(rate)

    def _warmup(self):
        step = torch_step.make_warmup_step(
            self.generator,
            self.adversary,
            self.extractor,
            self.adversary_optimizer,
            self.config.epsilon,
            **self.common,
        )

        def at_rate(number, image, label):
            _set_rate(self.adversary_optimizer, self.config.adversary_lr)
            return step(image, label)

        return at_rate

    def _phase2(self):
        config = self.config
        decay, steps = config.phase2_lr_decay, config.phase2_steps
        rate, adversary_rate = (
            stages.linear_decay(start, start * decay, steps)
            for start in (config.generator_lr, config.adversary_lr)
        )
        if config.is_control:
            return self._segmentation(rate)
        by_ratio = config.adversarial_weighting == "gradient_ratio"
        optimizer = _optimizer(self.generator, "adam")
        step = torch_step.make_adversarial_step(
            self.generator,
            self.adversary,
            self.extractor,
            optimizer,
            self.adversary_optimizer,
            config.epsilon,
            config.lambda_adv,
            adversarial_form=config.adversarial_form,
            gradient_ratio=config.gradient_ratio if by_ratio else None,
            lambda_max=config.lambda_max,
            **self.common,
        )

        def at_rates(number, image, label):
            _set_rate(optimizer, float(rate(number)))
            _set_rate(self.adversary_optimizer, float(adversary_rate(number)))
            return step(image, label)

        return at_rates

    def _segmentation(self, rate):
        optimizer = _optimizer(self.generator, "adam")
        step = torch_step.make_segmentation_step(
            self.generator, optimizer, **self.common
        )

        def at_rate(number, image, label):
            _set_rate(optimizer, float(rate(number)))
            return step(image, label)

        return at_rate


# --- Optimizers --------------------------------------------------------------

_EPSILON = 1e-7  # of Keras' Adam


def _optimizer(module, kind):
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if kind == "adam":
        return torch.optim.Adam(weights, 0.0, eps=_EPSILON, fused=True)
    return torch.optim.SGD(weights, 1.0, momentum=0.9)


def _set_rate(optimizer, rate):
    """Sets the rate of the next step, in Keras' way of counting.

    Keras' momentum remembers rate times gradient, PyTorch's the gradient; Keras adds
    epsilon before, PyTorch after the bias of the second moment is corrected.
    """
    (group,) = optimizer.param_groups
    for state in optimizer.state.values():
        if "momentum_buffer" in state and rate:
            state["momentum_buffer"] *= group["lr"] / rate
    if isinstance(optimizer, torch.optim.Adam):
        done = max((int(s["step"]) for s in optimizer.state.values()), default=0)
        group["eps"] = _EPSILON / math.sqrt(1 - group["betas"][1] ** (done + 1))
    group["lr"] = rate
