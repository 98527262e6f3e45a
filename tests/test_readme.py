"""What README.md and other pages name exists: commands, flags, files, symbols."""

import ast
import dataclasses
import functools
import importlib
import math
import pathlib
import re
import runpy
import shlex

import cv2
import numpy as np
import pytest

from experiments.flags import config_from_flags
from ss_gan_tf.config import BOOKKEEPING, PRESETS, Config

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "WORKSPACE.md", "docs/measurements.md")
}
README = TEXTS["README.md"]
documents = pytest.mark.parametrize("name", TEXTS)


def blocks(text, language):
    """Contents of the fenced blocks of one language, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for found, body in fenced if found == language]


def shell_lines(text):
    """Every command of the shell blocks as a list of words."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


COMMANDS = [
    pytest.param(words[2], words[3:], id=f"{name}-{words[2]}-{number}")
    for name, text in TEXTS.items()
    for number, words in enumerate(shell_lines(text))
    if words[:2] == ["python", "-m"] and words[2] != "pytest"
]


@pytest.fixture
def flags_of(own_flags):
    """Module -> its flags, defined anew and in a set of their own."""

    importlib.import_module("absl.logging")  # its flags belong to the real set

    def flags_of(module):
        def define():
            code = runpy.run_module(module)  # some define their flags here,
            code.get("define_flags", dict)()  # and others when they start

        return own_flags(define)

    return flags_of


# --- Commands ----------------------------------------------------------------


@pytest.mark.parametrize("page", [*TEXTS, "CHANGELOG.md"])
def test_no_section_stands_twice(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert len(headings) == len(set(headings)) > 0


def test_the_documents_show_every_command():
    shown = {parameters.values[0] for parameters in COMMANDS}
    programs = {
        f"{path.parent.name}.{path.stem}"
        for folder in ("experiments", "data_prep")
        for path in (ROOT / folder).glob("*.py")
        if "app.run(main)" in path.read_text(encoding="utf-8")
    }
    assert shown == programs


@pytest.mark.parametrize("module, arguments", COMMANDS)
def test_commands_have_the_flags_they_are_shown_with(
    module, arguments, flags_of, monkeypatch
):
    values = flags_of(module)
    rest = values([module, *arguments])
    assert rest == [module], f"not flags: {rest[1:]}"
    if module == "experiments.train":
        monkeypatch.setattr("experiments.flags.FLAGS", values)
        assert config_from_flags()  # no value contradicts another


@documents
def test_flags_in_the_text_exist(name, flags_of):
    known = {"logdir", "help", "flagfile"}  # tensorboard's; every command's
    for module in {parameters.values[0] for parameters in COMMANDS}:
        known |= set(flags_of(module))
    used = set(re.findall(r"(?<![\w-])--(\w+)", TEXTS[name]))
    assert used and used <= known


def test_every_field_of_config_is_among_the_flags():
    section = README.split("\n## Flags\n")[1].split("\n## ")[0]
    for field in dataclasses.fields(Config):
        assert f"`--{field.name}`" in section, field.name


def test_the_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py):(test_\w+)`", TEXTS["WORKSPACE.md"])
    assert len(named) > 20
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


@documents
def test_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in shell_lines(TEXTS[name]):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words[1]


# --- Tables ------------------------------------------------------------------


def test_the_table_of_presets():
    """Every setting in which presets differ has its row; bookkeeping aside."""
    header = "| setting | `paper` | `recommended` | `smoke` |"
    table = README.split(header)[1].split("\n\n")[0].splitlines()[2:]
    configs = [Config(**PRESETS[name]) for name in ("paper", "recommended", "smoke")]
    differ = {
        field.name
        for field in dataclasses.fields(Config)
        if len({getattr(config, field.name) for config in configs}) > 1
    } - set(BOOKKEEPING)
    shown = set()
    for row in table:
        flag, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        name = flag.strip("`-")
        shown.add(name)
        for cell, config in zip(cells, configs, strict=True):
            value = getattr(config, name)
            if isinstance(value, bool):
                assert cell == ("on" if value else "off"), row
            elif cell != "-":  # has no effect there
                read = cell if isinstance(value, str) else float(cell.replace(",", ""))
                assert read == value, row
    assert shown == differ


# --- Files and symbols -------------------------------------------------------


def home(path):
    """A path as the documents write it: modules of the library without folder."""
    return ROOT / path if "/" in path else ROOT / "ss_gan_tf" / path


@functools.cache
def top_level_names(path):
    """Functions, classes and constants of a module."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = {getattr(node, "name", None) for node in nodes}
    targets = [target for node in nodes for target in getattr(node, "targets", ())]
    return names | {getattr(target, "id", None) for target in targets}


@documents
def test_files_exist(name):
    folders = r"(?:ss_gan_tf|experiments|data_prep|tests|docs|\.ci)/"
    suffixes = r"(?:py|md|toml|cff)"
    paths = re.findall(rf"`({folders}[\w./*]*|[\w./]+\.{suffixes})`", TEXTS[name])
    prose = re.sub(r"^```.*?^```$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    paths += re.findall(r"\]\(([^)#:]+)\)", prose)
    assert paths
    for path in paths:
        assert (ROOT / path).exists() or home(path).exists(), path


@documents
def test_symbols_exist(name):
    for path, symbol in re.findall(r"`([\w./]+\.py):([\w.]+)`", TEXTS[name]):
        assert symbol.split(".")[0] in top_level_names(home(path)), f"{path}:{symbol}"


def test_pictures_are_small():
    pictures = re.findall(r"!\[.*?\]\((.+?)\)", README)
    assert pictures
    for path in pictures:
        assert (ROOT / path).stat().st_size < 300_000, path


# --- Programs ----------------------------------------------------------------


def test_the_example_with_a_models_own_runs(capsys):
    section = README.split("\n## Any Keras segmentation model\n")[1]
    (program,) = blocks(section, "python")
    exec(compile(program, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("phase 1: ")) < math.log(7)  # better than guessing
    scalars = ast.literal_eval(second.removeprefix("phase 2: "))
    assert scalars["gradient/ratio"] == pytest.approx(0.3, abs=1e-3)
    assert all(math.isfinite(value) for value in scalars.values())


def test_the_exported_model_is_used_as_shown(tiny_run, tmp_path, capsys):
    program = blocks(README, "python")[0]
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), np.full((40, 50, 3), 99, np.uint8))
    program = program.replace("EXPORT", f"{tiny_run}/export")
    program = program.replace("PHOTO.jpg", str(photo))
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "(1, 40, 50) (1, 40, 50, 7)"


def test_two_runs_are_compared_as_shown(tiny_run, capsys):
    program = blocks(README, "python")[1]
    for run in ("vgg16_control", "vgg16_g"):
        shown = f"RUNS/{run}/eval/test"
        assert shown in program
        program = program.replace(shown, f"{tiny_run}/eval/val")
    exec(compile(program, "README.md", "exec"), {})
    shown = capsys.readouterr().out.strip()
    assert shown == "mIoU +0.00%, 95 % interval +0.00% to +0.00%"
