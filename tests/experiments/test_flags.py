"""One flag per Config field; explicit flags win over the preset."""

import dataclasses
import subprocess
import sys

import pytest
from absl import flags

from experiments.flags import (
    config_from_flags,
    define_config_flags,
    refuse_arguments,
)
from ss_gan_tf.config import PRESETS, Config


@pytest.fixture
def parse(monkeypatch):
    """Parses an argument list into a Config, on flags of its own."""

    def parse(*arguments):
        values = flags.FlagValues()
        monkeypatch.setattr("experiments.flags.FLAGS", values)
        for name in ("enum", "bool", "flag", "integer", "float", "string", "list"):
            define = getattr(flags, f"DEFINE_{name}")
            monkeypatch.setattr(
                f"experiments.flags.flags.DEFINE_{name}",
                lambda *args, define=define: define(*args, flag_values=values),
            )
        define_config_flags()
        monkeypatch.undo()
        monkeypatch.setattr("experiments.flags.FLAGS", values)
        values(["command", *arguments])
        return config_from_flags(), values

    return parse


def test_without_flags_the_paper(parse):
    assert parse()[0] == Config()


def test_every_field_has_a_flag_with_its_comment(parse):
    _, values = parse()
    for field in dataclasses.fields(Config):
        assert field.name in values
        assert not values[field.name].help.startswith(" "), "no comment in config.py"


def test_explicit_flags_win_over_the_preset(parse):
    config, _ = parse("--preset=recommended", "--gradient_ratio=0.25", "--noflip")
    expected = PRESETS["recommended"] | {"gradient_ratio": 0.25, "flip": False}
    assert config == Config(**expected)


def test_help_lists_every_field():
    # --help shows the key flags of the program, which are those that it defines.
    said = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--help"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for field in dataclasses.fields(Config):
        assert f"--{field.name}:" in said or f"--[no]{field.name}:" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dataset=camvid", "--eval_window=100"),
        ("--eval_mode=whole", "--eval_overlap=0.5"),
    ],
)
def test_what_a_run_does_not_read_is_refused(parse, arguments):
    with pytest.raises(ValueError, match=arguments[-1].strip("-").split("=")[0]):
        parse(*arguments)


def test_lists_of_rates(parse):
    assert parse("--arm=resnet50", "--aspp_rates=6,12")[0].aspp_rates == (6, 12)
    with pytest.raises(ValueError, match="aspp_rates=6,x"):
        parse("--aspp_rates=6,x")


def test_a_flag_that_is_given_its_default_still_counts(parse):
    """--scale_max=1 must switch off the jitter of `recommended`."""
    config, _ = parse("--preset=recommended", "--scale_min=1", "--scale_max=1")
    assert (config.scale_min, config.scale_max) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--arm=vgg16", "--adversary_lr=0.001"),
        ("--arm=vgg16", "--phase2_steps=100"),
        ("--arm=vgg16_g", "--aspp_rates=6,12"),
        ("--arm=resnet50_g", "--dropout=0.5"),
        ("--arm=vgg16_g", "--gradient_ratio=0.5"),
        ("--arm=vgg16_g", "--init_generator=run", "--phase1_lr=0.0001"),
        ("--preset=recommended", "--lambda_adv=0.01"),
        ("--extractor=none", "--nonormalize_features"),
    ],
)
def test_a_flag_that_does_nothing_is_refused(parse, arguments):
    name = arguments[-1].removeprefix("--").removeprefix("no").split("=")[0]
    with pytest.raises(ValueError, match="does nothing here") as error:
        parse(*arguments)
    text = str(error.value)
    assert text.startswith(f"--{name}=") and "\n" not in text


def test_what_a_preset_sets_is_not_refused(parse):
    config, _ = parse("--preset=recommended", "--arm=vgg16")
    assert config.adversary_warmup_steps == 500 and not config.uses_phase2


def test_the_control_is_the_adversarial_command_with_one_flag_more(parse):
    adversarial = (
        "--preset=recommended", "--arm=vgg16_g", "--init_generator=run",
        "--adversary_warmup_steps=60", "--adversary_lr=0.001", "--gradient_ratio=0.4",
    )  # fmt: skip
    assert parse(*adversarial)[0].uses_adversary
    assert parse(*adversarial, "--lambda_adv=0")[0].is_control


@pytest.mark.parametrize(
    "argument, value",
    [
        ("--jit_compile", "on"),
        ("--nojit_compile", "off"),
        ("--jit_compile=true", "on"),
        ("--jit_compile=False", "off"),
        ("--jit_compile=on", "on"),
        ("--jit_compile=auto", "auto"),
    ],
)
def test_jit_compile_is_a_choice_that_can_be_said_as_a_switch(parse, argument, value):
    assert parse("--jit_compile=off", argument)[0].jit_compile == value


def test_jit_compile_knows_its_words(parse):
    with pytest.raises(flags.IllegalFlagValueError, match="auto|on|off"):
        parse("--jit_compile=sometimes")


def test_words_that_belong_to_no_flag_are_refused():
    """absl parses --flip false as --flip and a word of its own."""
    refuse_arguments(["train"])
    with pytest.raises(SystemExit, match="unexpected argument 'false'"):
        refuse_arguments(["train", "false"])
