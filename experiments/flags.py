"""One absl flag per field of `Config`, made from the dataclass.

A flag that is not given keeps the preset's value, and the preset keeps the field's
default; so explicit flags win over the preset.
"""

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from ss_gan_tf import config_rules
from ss_gan_tf.config import CHOICES, PRESETS, Config

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the programs' own: --help lists them

# Fields that were switches: --NAME is on, --noNAME off, true and false are understood.
SWITCHES = ("jit_compile",)


def define_config_flags(preset: str = "paper"):
    """Defines --preset, with its default, and a flag for every field of Config."""
    flags.DEFINE_enum("preset", preset, list(PRESETS), "Where the defaults come from.")
    _define_fields()


def _define_fields(**options):
    """Defines a flag for every field of Config; options as for absl's DEFINE_...."""
    comments = _field_comments()
    for field in dataclasses.fields(Config):
        text = f"{comments.get(field.name, '')} (default {field.default!r})"
        if field.name in SWITCHES:
            parser = _SwitchParser(CHOICES[field.name])
            switch = flags.Flag(parser, None, field.name, None, text, boolean=True)
            flags.DEFINE_flag(switch, **options)
        elif field.name in CHOICES:
            flags.DEFINE_enum(field.name, None, CHOICES[field.name], text, **options)
        elif field.type is bool:
            flags.DEFINE_bool(field.name, None, text, **options)
        elif field.type is int:
            flags.DEFINE_integer(field.name, None, text, **options)
        elif field.type is float:
            flags.DEFINE_float(field.name, None, text, **options)
        elif field.type is str:
            flags.DEFINE_string(field.name, None, text, **options)
        else:  # a tuple of numbers
            flags.DEFINE_list(field.name, None, text, **options)


def refuse_arguments(argv: list[str]):
    """Ends the program when words are left that belong to no flag.

    absl leaves the `false` of `--flip false` over, and flip would be true.
    """
    if len(argv) > 1:
        sys.exit(
            f"error: unexpected argument {argv[1]!r}; a switch is written "
            "--flip, --noflip or --flip=false"
        )


def config_from_flags(arms: Sequence[str] = ()) -> Config:
    """The preset with every explicitly given flag over it.

    Args:
        arms: where the flags are for the runs of several arms; one of them has to read
            each flag, and all of them have to take its value.

    Returns:
        The config; of the first of several arms.

    Raises:
        ValueError: a value is out of range or contradicts another, or a flag is given
            that such a run never reads.
    """
    given = _given(FLAGS)
    values = PRESETS[FLAGS.preset] | given
    configs = [Config(**values | {"arm": arm}) for arm in arms] or [Config(**values)]
    refuse_unused(given, *configs)
    return configs[0]


def parse_fields(words: Sequence[str]) -> dict[str, Any]:
    """Flags that are written down elsewhere than on the command line.

    Args:
        words: "--gradient_ratio=0.3", "--noflip"; flags of Config's fields alone.

    Returns:
        Field -> value.

    Raises:
        ValueError: a word is no such flag, or its value is none.
    """
    values = flags.FlagValues()
    _define_fields(flag_values=values)
    for word in words:
        name = word.lstrip("-").split("=")[0]
        # absl itself would act on --flagfile and --undefok, which are no fields.
        if word.startswith("-") and not {name, name.removeprefix("no")} & set(values):
            raise ValueError(f"Unknown command line flag {name!r}")
    try:
        rest = values(["", *words])[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}")
    return _given(values)


def refuse_given(values: flags.FlagValues, names: Iterable[str], where: str):
    """Refuses flags that nothing reads.

    Args:
        values: the parsed flags.
        names: those that are not read.
        where: "with ...", "for ...": ends the sentence.

    Raises:
        ValueError: names the first of them that the command line gives.
    """
    for name in names:
        if values[name].present:
            given = " ".join(as_given(values, name))
            raise ValueError(f"{given}: does nothing {where}; leave the flag out")


def as_given(values: flags.FlagValues, name: str) -> list[str]:
    """A flag as words of a command line, one for each time that it is given."""
    return values[name].serialize().split("\n")


def refuse_doubles(name: str, values: Sequence[str]):
    """Refuses a value that a flag which may be given several times has twice.

    Raises:
        ValueError: names the first of them.
    """
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{name}={value}: is given twice")


def define_memory_flag():
    """Defines --keep_freed_memory, for a process that trains."""
    flags.DEFINE_bool(
        "keep_freed_memory",
        True,
        "On a CPU, for the next step: faster. Without, a process takes less memory.",
    )


def refuse_unused(given: dict[str, Any], *configs: Config):
    """Refuses fields that were given and that none of the runs reads.

    Raises:
        ValueError: names the first of them, and why.
    """
    unused = [config_rules.unused(config) for config in configs]
    for name, value in given.items():
        if all(name in reasons for reasons in unused):
            why = "; ".join(dict.fromkeys(reasons[name] for reasons in unused))
            rule = f"does nothing here: {why}; leave the flag out"
            raise config_rules.refusal(f"--{name}", value, rule)


def _given(values: flags.FlagValues) -> dict[str, Any]:
    """Field -> value, for the fields whose flags are given."""
    given = {}
    for field in dataclasses.fields(Config):
        if values[field.name].present:
            value = values[field.name].value
            if typing.get_origin(field.type) is tuple:
                kind = typing.get_args(field.type)[0]
                value = parse_numbers(field.name, value, kind)
            given[field.name] = value
    return given


def parse_numbers(name: str, words: Sequence[str], kind: type) -> tuple:
    """The numbers of a list flag.

    Args:
        name: the flag, for the error.
        words: what stands between the commas.
        kind: int or float.

    Raises:
        ValueError: one of them is no such number.
    """
    try:
        return tuple(kind(word) for word in words)
    except ValueError as error:
        rule = "must be integers" if kind is int else "must be numbers"
        raise ValueError(f"{name}={','.join(words)}: {rule}") from error


class _SwitchParser(flags.EnumParser):
    """One of the choices, or what a switch may say for `on` and `off`."""

    def parse(self, argument: str) -> str:
        """The choice that a word stands for."""
        words = {"true": "on", "1": "on", "false": "off", "0": "off"}
        word = str(argument).lower()
        return super().parse(words.get(word, word))


def _field_comments() -> dict[str, str]:
    """Field -> the comment behind it in config.py, its unit and source."""
    pattern = r"^    (\w+): [^#\n]+# (.+)$"
    return dict(re.findall(pattern, inspect.getsource(Config), re.MULTILINE))
