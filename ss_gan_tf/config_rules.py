"""What is asked of a `Config` beside ranges and contradictions.

`check_types` refuses what is no value at all, `unused` tells which fields a run never
reads, so that a flag that does nothing can be refused, and `unwise` what is legal and
seldom meant.
"""

import dataclasses
import math
import re
import typing
from typing import Any

# Fields that name a folder of DATA or RUN: a word, so that no path climbs out of it.
WORDS = ("dataset", "train_split", "val_split")
# Fields that hold a path, or stand for one: any text without control characters.
PATHS = ("backbone_weights", "init_generator")
# Fields that hold several numbers -> the range of each.
LISTS = {"aspp_rates": (1, 1000), "eval_scales": (0.1, 10.0)}
MAX_LIST = 16  # numbers in one of them

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def check_types(config: Any):
    """Refuses values of another type than their field's, and names that are none.

    Lists become tuples and integers become floats where the field says so.

    Args:
        config: a dataclass instance that is being made.

    Raises:
        ValueError: names field, value and rule.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if typing.get_origin(field.type) is tuple:
            kind = typing.get_args(field.type)[0]
            if not isinstance(value, list | tuple) or len(value) > MAX_LIST:
                raise refusal(name, value, f"must be at most {MAX_LIST} numbers")
            value = tuple(_typed(name, each, kind) for each in value)
            if name in LISTS:
                _check_list(name, value)
        else:
            value = _typed(name, value, field.type)
        object.__setattr__(config, name, value)
        if name in WORDS and not re.fullmatch(r"\w+", value, re.ASCII):
            raise refusal(name, value, "must be letters, digits and underscores")
        if name in PATHS and not value.isprintable():
            raise refusal(name, value, "must hold no control characters, in UTF-8")


def refusal(name: str, value: Any, rule: str) -> ValueError:
    """The error that names field, value and rule in one line."""
    text = ascii(value) if not repr(value).isprintable() else repr(value)
    return ValueError(
        f"{name}={text if len(text) < 200 else text[:200] + '...'}: {rule}"
    )


def _typed(name: str, value: Any, kind: type) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        try:
            number = float(value)
        except OverflowError as error:
            raise refusal(name, value, "must be finite") from error
        if not math.isfinite(number):
            raise refusal(name, value, "must be finite")
        return number
    if type(value) is not kind:
        raise refusal(name, value, f"must be {_KINDS[kind]}")
    return value


def _check_list(name: str, values: tuple):
    low, high = LISTS[name]
    if not 0 < len(set(values)) == len(values):
        raise refusal(name, values, "must be different numbers, one at least")
    if not all(low <= value <= high for value in values):
        raise refusal(name, values, f"must be in [{low}, {high}]")


# --- Fields that do nothing --------------------------------------------------

PHASE1 = ("phase1_steps", "phase1_lr", "phase1_lr_end", "phase1_lr_warmup_steps")
PHASE2 = ("phase2_steps", "generator_lr", "phase2_lr_decay")
GUARD = ("guard_retries", "guard_miou_drop")
ADVERSARY = (
    "grid_size", "epsilon", "extractor", "normalize_features",
    "lambda_adv", "lambda_on", "lambda_ramp_steps",
    "adversarial_form", "adversarial_weighting", "gradient_ratio", "lambda_max",
    "adversary_lr", "adversary_optimizer", "adversary_warmup_steps",
)  # fmt: skip


def unused(config: Any) -> dict[str, str]:
    """Field -> why this run never reads it.

    The control (lambda_adv=0) is left out: it is the adversarial arm's command with
    one flag more, so the adversary's flags belong to it.
    """
    reasons = {}

    def because(reason: str, *names: str):
        reasons.update(dict.fromkeys(names, reason))

    if config.backbone == "vgg16":
        because(f"arm={config.arm} has no ASPP head", "aspp_rates", "head_norm")
    else:
        because(f"arm={config.arm} has no fc6 and fc7", "dropout", "fc_filters")
    if config.init_generator:
        because("init_generator takes the place of phase 1", *PHASE1)
    if not config.uses_phase2:
        because(f"arm={config.arm} ends with phase 1", *PHASE2, *ADVERSARY)
    elif config.uses_adversary:
        if config.adversarial_weighting == "fixed":
            weighting = "adversarial_weighting=fixed uses lambda_adv"
            because(weighting, "gradient_ratio", "lambda_max")
        else:
            because("adversarial_weighting=gradient_ratio sets lambda", "lambda_adv")
        if config.extractor == "none":
            because("extractor=none has no features", "normalize_features")
        if config.placebo == "entropy":
            because("placebo=entropy replaces A's loss for G", "adversarial_form")
        if config.placebo == "frozen_adversary":
            rates = ("adversary_lr", "adversary_optimizer", "adversary_warmup_steps")
            because("placebo=frozen_adversary never trains A", *rates)
    if config.eval_mode == "whole":
        because("eval_mode=whole has no windows", "eval_window", "eval_overlap")
    if not config.uses_phase2:
        because(f"arm={config.arm} has no phase 2 to go back in", *GUARD)
    elif config.placebo != "none":
        because(f"placebo={config.placebo} is never taken back", *GUARD)
    elif not config.guard:
        because("guard=False never goes back", *GUARD)
    return reasons


# --- What is seldom meant ----------------------------------------------------


def unwise(config: Any, largest_image: tuple[int, int] | None = None) -> list[str]:
    """What is legal and seldom meant, a line each.

    Args:
        config: the run.
        largest_image: greatest (H, W) of the training images, pixels; None: unknown.
    """
    trains_norm = config.backbone == "resnet50" and (
        config.backbone_weights == "none" or config.head_norm == "batch"
    )
    largest = max(largest_image or (0, 0)) * config.scale_max
    cases = {
        f"lambda_adv={config.lambda_adv}: above 0.05 a fixed weight may drown the "
        "segmentation loss; the paper's is 0.01": config.uses_adversary
        and config.adversarial_weighting == "fixed"
        and config.lambda_adv > 0.05,
        "batch_size=1: batch normalisation that trains sees one image at a time": (
            trains_norm and config.batch_size == 1
        ),
        f"crop_size={config.crop_size}: is larger than every training image, the "
        f"largest has {largest:.0f} pixels a side; the rest is padding": (
            0 < largest < config.crop_size
        ),
        f"phase1_lr_end={config.phase1_lr_end}: is above "
        f"phase1_lr={config.phase1_lr}, so the rate grows": (
            not config.init_generator and config.phase1_lr_end > config.phase1_lr
        ),
        f"phase1_lr_warmup_steps={config.phase1_lr_warmup_steps}: phase 1 ends before "
        "the rate is at full": (
            not config.init_generator
            and config.phase1_lr_warmup_steps > config.phase1_steps
        ),
        "phase1_lr=0.0: phase 1 trains nothing": (
            not config.init_generator and not config.phase1_lr
        ),
        "generator_lr=0.0: phase 2 does not change G": (
            config.uses_phase2 and not config.generator_lr
        ),
        "adversary_lr=0.0: A learns nothing": (
            config.uses_adversary and not config.adversary_lr
        ),
        f"lambda_ramp_steps={config.lambda_ramp_steps}: phase 2 ends before the weight "
        "is at full": (
            config.uses_adversary and config.lambda_ramp_steps > config.phase2_steps
        ),
        f"val_split={config.val_split}: the best checkpoint is chosen on the images "
        "that were trained on": config.val_split == config.train_split,
    }
    return [text for text, applies in cases.items() if applies]
