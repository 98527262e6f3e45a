"""Every hyperparameter of the reproduction, in one place.

`Config` holds one run; the comment behind a field gives its unit and its source
("Sec." and "Table" are the paper's, "silent" means that the paper does not say).
`ARMS` are the paper's four experiments, `PRESETS` the three ready-made settings.
WORKSPACE.md names the modules that read a `Config`; all others take plain arguments.
"""

import dataclasses
import json
import os
from collections.abc import Collection
from typing import Any

from ss_gan_tf import config_rules, strict_json

# arm -> (backbone, trained with the adversary): the columns of Tables 3 and 4.
ARMS = {
    "vgg16": ("vgg16", False),
    "resnet50": ("resnet50", False),
    "vgg16_g": ("vgg16", True),
    "resnet50_g": ("resnet50", True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: a value is outside its range or contradicts another; the message
            names the field, the value and the rule.
    """

    # --- What ----------------------------------------------------------------
    arm: str = "vgg16_g"  # key of ARMS; Sec. 2.3
    dataset: str = "synthetic"  # name of a prepared data set; Sec. 2.1
    train_split: str = "train"  # split that is trained on
    val_split: str = "val"  # split that `best` is chosen on
    seed: int = 0  # initial weights, data order, augmentation, dropout

    # --- Data (Sec. 2.3) -----------------------------------------------------
    crop_size: int = 500  # px, square training crop; Sec. 2.3
    batch_size: int = 2  # images per step; Sec. 2.3
    flip: bool = True  # horizontal flip of half the examples; silent
    scale_min: float = 1.0  # smallest random enlargement; silent
    scale_max: float = 1.0  # largest random enlargement; silent

    # --- Generator (Table 1) -------------------------------------------------
    backbone_weights: str = "imagenet"  # imagenet (downloads), a file, or none
    width: float = 1.0  # factor on every filter count; not the paper's below 1
    fc_filters: int = 4096  # of fc6 and fc7 of the VGG16 arm; Table 1
    dropout: float = 0.5  # after fc6 and fc7 of the VGG16 arm; silent
    aspp_rates: tuple[int, ...] = (12, 24, 36)  # feature cells; silent
    head_norm: str = "group"  # group | batch | none: ResNet arm's head; silent
    init_generator: str = ""  # run or checkpoint whose G starts phase 2 directly

    # --- Adversary (Table 2, Fig. 4, eq. 1-2) --------------------------------
    grid_size: int = 4  # cells a side; 1 one verdict, 0 dense; Sec. 1.1
    epsilon: float = 0.9  # eq. 1, least truth probability; silent (Luc et al.)
    extractor: str = "frozen"  # frozen | trainable | none; silent
    normalize_features: bool = True  # unit RMS over channels; silent

    # --- Losses (eq. 3-7) ----------------------------------------------------
    lambda_adv: float = 1e-2  # weight of the adversarial term; 0 is the control
    lambda_on: str = "generator"  # generator | adversary | both; reading of eq. 7
    lambda_ramp_steps: int = 0  # phase-2 steps over which G's weight grows to full
    adversarial_form: str = "saturating"  # saturating (eq. 3) | nonsaturating
    adversarial_weighting: str = "fixed"  # fixed (lambda_adv) | gradient_ratio
    gradient_ratio: float = 0.5  # adversarial/segmentation gradient norm at logits
    lambda_max: float = 100.0  # bound of lambda under gradient_ratio
    placebo: str = "none"  # none | entropy | frozen_adversary: not in the paper

    # --- Optimization (Sec. 2.3) ---------------------------------------------
    phase1_steps: int = 100_000  # G alone
    phase1_lr: float = 1e-4  # Adam, linear to phase1_lr_end
    phase1_lr_end: float = 1e-5  # reached at the end of phase 1; Sec. 2.3
    phase1_lr_warmup_steps: int = 0  # first steps over which the rate grows to full
    phase2_steps: int = 100_000  # G and A alternate; length silent
    generator_lr: float = 3e-5  # Adam, phase 2, linear to a tenth (decay silent)
    adversary_lr: float = 3e-4  # phase 2, linear to a tenth (decay silent)
    phase2_lr_decay: float = 0.1  # factor reached at the end of phase 2; silent
    adversary_optimizer: str = "momentum"  # momentum (0.9) | adam
    adversary_warmup_steps: int = 0  # A alone, before phase 2
    weight_decay: float = 0.0  # decoupled, on G; none stated
    gradient_clip_norm: float = 0.0  # global norm on G, 0 is off; none stated
    precision: str = "float32"  # or mixed_bfloat16, mixed_float16; losses in float32
    ema_decay: float = 0.0  # running average of G's weights, per step; 0 is off

    # --- Guard (not in the paper) --------------------------------------------
    guard: bool = False  # goes back and weakens A where phase 2 collapses
    guard_retries: int = 3  # times, before the run ends with phase 1's weights
    guard_miou_drop: float = 0.02  # share of 1 that mIoU may fall below phase 1's

    # --- Execution -----------------------------------------------------------
    jit_compile: str = "auto"  # XLA: auto (on GPUs) | on | off
    accumulate_steps: int = 1  # parts of a batch, one after the other; divide it
    distribute: str = "none"  # none | mirrored (all GPUs here) | multi_worker
    deterministic: bool = False  # the same bits again on the same machine, slower

    # --- Evaluation (Sec. 2.2, 2.3) ------------------------------------------
    eval_mode: str = "auto"  # whole | sliding; auto: sliding for cityscapes; Sec. 2.3
    eval_window: int = 500  # px, side of a sliding window; Sec. 2.3
    eval_overlap: float = 1 / 3  # share of a window that its neighbour repeats; silent
    eval_scales: tuple[float, ...] = (1.0,)  # shares of the size, averaged; silent
    eval_flip: bool = False  # average with the mirror image too; silent
    eval_limit: int = 0  # validation images during training, 0 is all
    eval_metrics: str = "basic"  # basic (eq. 8) | full: outlines, granulation, ECE

    # --- Bookkeeping ---------------------------------------------------------
    log_every: int = 50  # steps between scalars
    eval_every: int = 5_000  # steps between validations
    save_every: int = 2_500  # steps between checkpoints
    keep_checkpoints: int = 2  # newest full checkpoints that stay on disk
    panels: int = 4  # validation images shown in TensorBoard
    profile_steps: tuple[int, ...] = ()  # first,last step of G that is profiled

    def __post_init__(self):
        config_rules.check_types(self)
        if self.eval_mode == "auto":
            mode = "sliding" if self.dataset == "cityscapes" else "whole"
            object.__setattr__(self, "eval_mode", mode)
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            _require(value in allowed, name, value, f"must be one of {allowed}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            _require(low <= value <= high, name, value, f"must be in [{low}, {high}]")
        _require(
            self.scale_min <= self.scale_max,
            "scale_min",
            self.scale_min,
            f"must not exceed scale_max={self.scale_max}",
        )
        _require(
            self.batch_size % self.accumulate_steps == 0,
            "accumulate_steps",
            self.accumulate_steps,
            f"must divide batch_size={self.batch_size}",
        )
        _require(
            self.distribute == "none" or self.jit_compile != "on",
            "jit_compile",
            self.jit_compile,
            f"does not go with distribute={self.distribute}: XLA compiles steps of "
            "one device",
        )
        _require(
            not self.profile_steps
            or len(self.profile_steps) == 2
            and 1 <= self.profile_steps[0] <= self.profile_steps[1],
            "profile_steps",
            self.profile_steps,
            "must be empty, or two steps FIRST,LAST with 1 <= FIRST <= LAST",
        )
        if self.lambda_adv == 0:
            _require(
                self.lambda_on != "adversary",
                "lambda_adv",
                self.lambda_adv,
                "with lambda_on=adversary would leave A untrained at full weight; "
                "the control is lambda_adv=0 with lambda_on=generator",
            )
        if self.adversarial_weighting == "gradient_ratio":
            _require(
                self.lambda_on == "generator",
                "lambda_on",
                self.lambda_on,
                "must be generator under adversarial_weighting=gradient_ratio",
            )
        if self.placebo != "none":
            _require(
                self.uses_adversary,
                "placebo",
                self.placebo,
                "takes the adversary's place in phase 2 of a _g arm with lambda_adv "
                f"above 0, not in arm={self.arm}, lambda_adv={self.lambda_adv}",
            )
        if self.uses_adversary and self.grid_size:
            # A's last feature map has a sixteenth of the crop's side.
            _require(
                self.crop_size // 16 >= self.grid_size,
                "grid_size",
                self.grid_size,
                f"exceeds A's last feature map at crop_size={self.crop_size} "
                f"({self.crop_size // 16} cells a side)",
            )
        if self.width != 1:
            _require(
                self.backbone_weights == "none",
                "width",
                self.width,
                f"does not fit backbone_weights={self.backbone_weights}, weights of "
                "width 1; set width=1 or backbone_weights=none",
            )
        if self.init_generator:
            _require(
                self.uses_phase2,
                "init_generator",
                self.init_generator,
                f"starts phase 2, which arm={self.arm} does not have",
            )

    @property
    def backbone(self) -> str:
        """`vgg16` or `resnet50`."""
        return ARMS[self.arm][0]

    @property
    def uses_phase2(self) -> bool:
        """True for the arms whose name ends in `_g`."""
        return ARMS[self.arm][1]

    @property
    def is_control(self) -> bool:
        """True when phase 2 runs without an adversary (lambda = 0)."""
        return self.uses_phase2 and self.lambda_adv == 0

    @property
    def uses_adversary(self) -> bool:
        """True when A is built."""
        return self.uses_phase2 and not self.is_control

    @property
    def trains_adversary(self) -> bool:
        """True when A is trained: built, and not the placebo that stays random."""
        return self.uses_adversary and self.placebo != "frozen_adversary"

    @property
    def can_go_back(self) -> bool:
        """True when the guard may weaken A; a weakened placebo would be none."""
        return self.guard and self.uses_adversary and self.placebo == "none"

    def hyperparameters(self) -> dict[str, Any]:
        """The fields by which runs are told apart: no bookkeeping, no evaluation."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in EVALUATION + BOOKKEEPING}

    def to_json(self) -> str:
        """The fields as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Inverse of `to_json`.

        Raises:
            ValueError: the text is not a JSON object, or has unknown fields.
        """
        values = strict_json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"config: is a {type(values).__name__}, not an object")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise config_rules.refusal("config", unknown, "unknown fields")
        if isinstance(values.get("jit_compile"), bool):  # a switch once
            values["jit_compile"] = "on" if values["jit_compile"] else "off"
        return cls(**values)


def differences(
    first: Config, second: Config, ignored: Collection[str] = ()
) -> dict[str, str]:
    """Fields in which two runs differ.

    Args:
        first: the run that is there.
        second: the one that is asked for now.
        ignored: fields that do not count.

    Returns:
        name -> both values in words; two spellings of one path are no difference.
    """
    found = {}
    for field in dataclasses.fields(Config):
        pair = getattr(first, field.name), getattr(second, field.name)
        if field.name in ignored or pair[0] == pair[1]:
            continue
        is_path = field.name in config_rules.PATHS and all(pair)
        if not (is_path and os.path.realpath(pair[0]) == os.path.realpath(pair[1])):
            found[field.name] = f"{field.name}={pair[0]!r} there, {pair[1]!r} now"
    return found


def _require(condition: bool, name: str, value, rule: str):
    if not condition:
        raise config_rules.refusal(name, value, rule)


CHOICES = {
    "arm": tuple(ARMS),
    "head_norm": ("group", "batch", "none"),
    "extractor": ("frozen", "trainable", "none"),
    "lambda_on": ("generator", "adversary", "both"),
    "adversarial_form": ("saturating", "nonsaturating"),
    "adversarial_weighting": ("fixed", "gradient_ratio"),
    "adversary_optimizer": ("momentum", "adam"),
    "placebo": ("none", "entropy", "frozen_adversary"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "jit_compile": ("auto", "on", "off"),
    "distribute": ("none", "mirrored", "multi_worker"),
    "eval_mode": ("auto", "whole", "sliding"),
    "eval_metrics": ("basic", "full"),
}

RANGES = {
    "seed": (0, 2**31 - 1),
    "crop_size": (32, 4096),
    "batch_size": (1, 4096),
    "scale_min": (0.1, 10.0),
    "scale_max": (0.1, 10.0),
    "width": (0.03125, 1.0),
    "fc_filters": (8, 65536),
    "dropout": (0.0, 0.95),
    "grid_size": (0, 256),
    "epsilon": (0.5, 1.0),
    "lambda_adv": (0.0, 100.0),
    "lambda_ramp_steps": (0, 10**9),
    "gradient_ratio": (1e-6, 100.0),
    "lambda_max": (1e-6, 1e6),
    "phase1_steps": (1, 10**9),
    "phase1_lr": (0.0, 1.0),
    "phase1_lr_end": (0.0, 1.0),
    "phase1_lr_warmup_steps": (0, 10**9),
    "phase2_steps": (1, 10**9),
    "generator_lr": (0.0, 1.0),
    "adversary_lr": (0.0, 1.0),
    "phase2_lr_decay": (0.0, 1.0),
    "adversary_warmup_steps": (0, 10**9),
    "weight_decay": (0.0, 1.0),
    "gradient_clip_norm": (0.0, 1e6),
    "ema_decay": (0.0, 0.999999),
    "guard_retries": (0, 1000),
    "guard_miou_drop": (0.0, 1.0),
    "accumulate_steps": (1, 4096),
    "eval_window": (32, 8192),
    "eval_overlap": (0.0, 0.95),
    "eval_limit": (0, 10**9),
    "log_every": (1, 10**9),
    "eval_every": (1, 10**9),
    "save_every": (1, 10**9),
    "keep_checkpoints": (1, 1000),
    "panels": (0, 64),
}

# Fields that change how a step is computed: its numbers within rounding, the draws of
# dropout, and what batch normalisation that trains sees at a time.
EXECUTION = ("jit_compile", "accumulate_steps", "distribute", "deterministic")

# Fields that change what a validation measures. Best checkpoints and the guard compare
# validations, so a run keeps them to its end.
EVALUATION = (
    "eval_mode",
    "eval_window",
    "eval_overlap",
    "eval_scales",
    "eval_flip",
    "eval_limit",
)

# Fields that change what is written and when, but no weight; with a guard `eval_every`
# says when it may heed a validation.
BOOKKEEPING = (
    "eval_metrics",
    "log_every",
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "panels",
    "profile_steps",
)

PRESETS = {
    # The paper as read: the dataclass defaults.
    "paper": {},
    # An adversary that is felt and does no harm: a held gradient ratio, a warm-up,
    # Adam, the non-saturating form, scale jitter. On CamVid VGG16 gained over the
    # control in short runs and neither gained nor lost in long ones; ResNet50's short
    # runs show no difference.
    "recommended": {
        "scale_min": 0.5,
        "scale_max": 2.0,
        "adversarial_form": "nonsaturating",
        "adversarial_weighting": "gradient_ratio",
        "gradient_ratio": 0.5,
        "adversary_optimizer": "adam",
        "adversary_lr": 5e-4,
        "adversary_warmup_steps": 500,
        "guard": True,
    },
    # Minutes on two cores, from random weights; not the paper's network.
    "smoke": {
        "backbone_weights": "none",
        "width": 0.125,
        "crop_size": 128,
        "batch_size": 4,
        "dropout": 0.1,
        "phase1_steps": 900,
        "phase1_lr": 2e-3,
        "phase1_lr_end": 2e-4,
        "phase2_steps": 150,
        "generator_lr": 3e-4,
        "adversarial_form": "nonsaturating",
        "adversarial_weighting": "gradient_ratio",
        "gradient_ratio": 0.3,
        "adversary_optimizer": "adam",
        "adversary_lr": 5e-4,
        "adversary_warmup_steps": 50,
        "guard": True,
        "log_every": 20,
        "eval_every": 300,
        "save_every": 300,
    },
}
