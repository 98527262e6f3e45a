"""Types, names, flags that do nothing, and what is seldom meant."""

import dataclasses
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ss_gan_tf import config_rules
from ss_gan_tf.config import CHOICES, PRESETS, RANGES, Config
from ss_gan_tf.config_rules import LISTS, PATHS, WORDS

# Fields that a rule of their own bounds, in config.py.
OWN_RULE = ("profile_steps",)
FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def refused(name, value, rule=None):
    with pytest.raises(ValueError, match=rule) as error:
        Config(**{name: value})
    text = str(error.value)
    assert text.startswith(f"{name}=") and text.isprintable() and len(text) < 500


def test_every_field_has_a_range_or_a_set():
    for name, field in FIELDS.items():
        homes = [
            name in rules for rules in (CHOICES, RANGES, LISTS, WORDS, PATHS, OWN_RULE)
        ]
        assert sum(homes) == (field.type is not bool), name


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_other_types(name):
    kind = FIELDS[name].type
    others = [None, {}, [[1]], b"x", object]
    others += [] if kind is str else ["1"]
    others += [] if kind is bool else [True]
    others += [1.5] if kind in (int, str, bool) else []
    for value in others:
        refused(name, value, "must be")


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_every_float_is_finite(name, value):
    refused(name, value, "must be finite")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [(), (1, 1), (0,), (2000,), range(1, 99), ("1",)])
def test_lists_hold_different_numbers_in_their_range(name, value):
    refused(name, tuple(value))


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ["", "..", "a/b", "/a", "a\n", "a b", "\udc80"])
def test_names_of_folders_are_words(name, value):
    refused(name, value, "must be letters, digits and underscores")


@pytest.mark.parametrize("name", PATHS)
def test_paths_hold_no_control_characters(name):
    refused(name, "a\nb", "must hold no control characters")


def test_integers_and_lists_become_what_the_field_says():
    config = Config(scale_min=1, aspp_rates=[6, 12], eval_scales=[1, 2])
    assert type(config.scale_min) is float and config.aspp_rates == (6, 12)
    assert [type(scale) for scale in config.eval_scales] == [float, float]
    assert typing.get_type_hints(Config)["scale_min"] is float


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(FIELDS)),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.floats()),
)
def test_any_value_makes_a_run_or_one_line(name, value):
    try:
        config = Config(**{name: value})
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert Config.from_json(config.to_json()) == config


# --- Flags that do nothing ---------------------------------------------------


@pytest.mark.parametrize(
    "settings, used, unused",
    [
        ({"arm": "vgg16"}, ["dropout", "fc_filters"], ["adversary_lr", "generator_lr"]),
        ({"arm": "vgg16_g"}, ["adversary_lr"], ["aspp_rates", "gradient_ratio"]),
        ({"arm": "resnet50_g"}, ["aspp_rates"], ["dropout", "fc_filters"]),
        ({"init_generator": "run"}, ["generator_lr"], ["phase1_steps", "phase1_lr"]),
        ({"extractor": "none"}, ["grid_size"], ["normalize_features"]),
        (PRESETS["recommended"], ["gradient_ratio", "lambda_max"], ["lambda_adv"]),
        ({"arm": "vgg16", "guard": True}, ["guard"], config_rules.GUARD),
        ({"guard": False}, ["guard"], config_rules.GUARD),
        ({"guard": True}, ["guard", *config_rules.GUARD], []),
        ({"guard": True, "lambda_adv": 0.0}, ["guard", *config_rules.GUARD], []),
        (
            {"guard": True, "placebo": "entropy"},
            ["guard", "adversary_lr", "adversary_optimizer", "adversary_warmup_steps"],
            ["adversarial_form", *config_rules.GUARD],
        ),
        (
            {"guard": True, "placebo": "frozen_adversary"},
            ["guard", "adversarial_form"],
            ["adversary_lr", "adversary_optimizer", "adversary_warmup_steps"]
            + [*config_rules.GUARD],
        ),
        # The control is the adversarial arm's command and one flag more.
        (
            PRESETS["recommended"] | {"lambda_adv": 0.0},
            ["lambda_adv", "adversary_lr"],
            [],
        ),
    ],
)
def test_what_a_run_never_reads(settings, used, unused):
    reasons = config_rules.unused(Config(**settings))
    assert not set(used) & set(reasons)
    assert set(unused) <= set(reasons) <= set(FIELDS)
    assert all(reasons.values())


# --- What is seldom meant ----------------------------------------------------


def test_presets_are_wise():
    for preset in PRESETS.values():
        assert config_rules.unwise(Config(**preset), (720, 960)) == []


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"lambda_adv": 0.1}, "lambda_adv=0.1: above 0.05"),
        (
            {"arm": "resnet50", "backbone_weights": "none", "batch_size": 1},
            "batch_size=1: batch normalisation that trains",
        ),
        (
            {"arm": "resnet50", "head_norm": "batch", "batch_size": 1},
            "batch_size=1: batch normalisation that trains",
        ),
        ({"crop_size": 1000}, "crop_size=1000: is larger than every training image"),
        ({"phase1_lr": 1e-6}, "phase1_lr_end=1e-05: is above phase1_lr=1e-06"),
        ({"phase1_lr": 0.0, "phase1_lr_end": 0.0}, "phase1_lr=0.0"),
        ({"phase1_lr_warmup_steps": 100_001}, "phase1_lr_warmup_steps=100001: phase 1"),
        ({"generator_lr": 0.0}, "generator_lr=0.0"),
        ({"adversary_lr": 0.0}, "adversary_lr=0.0"),
        ({"lambda_ramp_steps": 200_000}, "lambda_ramp_steps=200000: phase 2 ends"),
        ({"val_split": "train"}, "val_split=train"),
    ],
)
def test_what_is_seldom_meant_is_said(settings, text):
    (line,) = config_rules.unwise(Config(**settings), (720, 960))
    assert line.startswith(text) and "\n" not in line


def test_no_warning_where_the_setting_has_no_effect():
    for values in (
        {"arm": "vgg16", "lambda_adv": 0.1, "generator_lr": 0.0},
        {"lambda_adv": 0.1, "adversarial_weighting": "gradient_ratio"},
        {"batch_size": 1},
        {"crop_size": 1000, "scale_max": 2.0},
    ):
        assert config_rules.unwise(Config(**values), (720, 960)) == []
    assert config_rules.unwise(Config(crop_size=4096)) == []
