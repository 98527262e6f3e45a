"""Config: the paper's values, ranges, contradictions, presets, round trip."""

import dataclasses

import pytest

from ss_gan_tf.config import (
    ARMS,
    BOOKKEEPING,
    CHOICES,
    EVALUATION,
    EXECUTION,
    PRESETS,
    RANGES,
    Config,
)


def test_the_paper_preset_holds_the_numbers_of_section_2_3():
    config = Config(**PRESETS["paper"])
    assert (config.crop_size, config.batch_size) == (500, 2)
    assert (config.phase1_lr, config.phase1_lr_end) == (1e-4, 1e-5)
    assert config.phase1_steps == 100_000
    assert (config.generator_lr, config.adversary_lr) == (3e-5, 3e-4)
    assert config.adversary_optimizer == "momentum"
    assert config.lambda_adv == 1e-2 and config.lambda_on == "generator"
    assert config.grid_size == 4 and config.epsilon == 0.9
    assert config.adversarial_form == "saturating"
    assert config.adversarial_weighting == "fixed"
    assert config.weight_decay == 0 and config.gradient_clip_norm == 0
    assert (config.scale_min, config.scale_max) == (1, 1) and config.flip
    assert (config.eval_window, config.eval_overlap) == (500, 1 / 3)


@pytest.mark.parametrize(
    ("dataset", "asked", "mode"),
    [
        ("voc_sbd", "auto", "whole"),
        ("cityscapes", "auto", "sliding"),
        ("cityscapes", "whole", "whole"),
        ("camvid", "sliding", "sliding"),
    ],
)
def test_cityscapes_is_evaluated_in_windows_unless_told(dataset, asked, mode):
    config = Config(dataset=dataset, eval_mode=asked)
    assert config.eval_mode == mode
    assert Config.from_json(config.to_json()) == config


def test_recommended_is_what_was_measured():
    config = Config(**PRESETS["recommended"])
    assert config.adversarial_form == "nonsaturating"
    assert config.adversarial_weighting == "gradient_ratio"
    assert config.gradient_ratio == 0.5
    assert config.adversary_optimizer == "adam"
    assert config.adversary_warmup_steps > 0 and config.normalize_features
    assert (config.scale_min, config.scale_max) == (0.5, 2.0)
    assert config.width == 1.0


def test_the_four_arms():
    assert ARMS == {
        "vgg16": ("vgg16", False),
        "resnet50": ("resnet50", False),
        "vgg16_g": ("vgg16", True),
        "resnet50_g": ("resnet50", True),
    }


def test_a_placebo_takes_the_adversarys_place():
    entropy, frozen = Config(placebo="entropy"), Config(placebo="frozen_adversary")
    assert entropy.uses_adversary and entropy.trains_adversary
    assert frozen.uses_adversary and not frozen.trains_adversary
    for absent in ({"arm": "vgg16"}, {"lambda_adv": 0.0}):
        with pytest.raises(ValueError, match="placebo='entropy': takes the adversary"):
            Config(placebo="entropy", **absent)


@pytest.mark.parametrize(
    "arm, lambda_adv, uses_phase2, uses_adversary, is_control",
    [
        ("vgg16", 0.01, False, False, False),
        ("vgg16", 0.0, False, False, False),
        ("vgg16_g", 0.01, True, True, False),
        ("resnet50_g", 0.0, True, False, True),
    ],
)
def test_what_an_arm_runs(arm, lambda_adv, uses_phase2, uses_adversary, is_control):
    config = Config(arm=arm, lambda_adv=lambda_adv)
    assert config.uses_phase2 == uses_phase2
    assert config.uses_adversary == uses_adversary
    assert config.is_control == is_control


@pytest.mark.parametrize(
    "values",
    [
        {"arm": "vgg19"},
        {"crop_size": 31},
        {"batch_size": 0},
        {"epsilon": 1.1},
        {"lambda_adv": -1.0},
        {"lambda_adv": float("nan")},
        {"scale_min": 2.0, "scale_max": 1.0},
        {"aspp_rates": ()},
        {"aspp_rates": (6, 0)},
        {"aspp_rates": (6, 6)},
        {"eval_metrics": "all"},
        {"profile_steps": (3,)},
        {"profile_steps": (3, 2)},
        {"profile_steps": (0, 2)},
        {"lambda_adv": 0.0, "lambda_on": "adversary"},
        {"adversarial_weighting": "gradient_ratio", "lambda_on": "both"},
        {"arm": "vgg16", "init_generator": "elsewhere"},
        {"width": 0.5, "backbone_weights": "imagenet"},
        {"batch_size": 6, "accumulate_steps": 4},
        {"distribute": "mirrored", "jit_compile": "on"},
        # A's last feature map has 48 // 16 = 3 cells a side, the grid wants 4.
        {"crop_size": 48},
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_the_field(values):
    with pytest.raises(ValueError) as error:
        Config(**values)
    assert "\n" not in str(error.value)
    assert any(f"{name}=" in str(error.value) for name in values)


def test_ranges_and_choices_name_fields_and_hold_the_defaults():
    fields = {field.name: field for field in dataclasses.fields(Config)}
    assert {*CHOICES, *RANGES, *EVALUATION, *BOOKKEEPING, *EXECUTION} <= set(fields)
    assert not set(CHOICES) & set(RANGES)
    numbers = {n for n, f in fields.items() if f.type in (int, float)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(preset):
    config = Config(**PRESETS[preset])
    assert Config.from_json(config.to_json()) == config


def test_unknown_fields_in_json_are_named():
    with pytest.raises(ValueError, match="lamda"):
        Config.from_json('{"lamda": 1}')


@pytest.mark.parametrize("old, new", [("true", "on"), ("false", "off")])
def test_runs_of_the_time_when_jit_compile_was_a_switch(old, new):
    assert Config.from_json(f'{{"jit_compile": {old}}}').jit_compile == new


def test_the_grid_binds_only_where_there_is_an_adversary():
    assert Config(arm="vgg16", crop_size=48).crop_size == 48
    assert Config(arm="vgg16_g", lambda_adv=0.0, crop_size=48).is_control
