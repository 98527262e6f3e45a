"""The program offers what has a module, prints it and keeps it."""

import ast
import inspect
import json
import os
import signal
import time
import types

import pytest
from absl import flags

from experiments import benchmark


def measurement(value):
    """A module as `experiments.benchmarks` has them, which measures nothing."""
    return types.SimpleNamespace(
        READS=("arm", f"size_of_{value}", f"word_of_{value}"),
        define_flags=lambda: (
            flags.DEFINE_integer(f"size_of_{value}", 1, "Size."),
            flags.DEFINE_multi_string(f"word_of_{value}", [], "Words."),
        ),
        run=lambda flags_values, keep: {"rows": [value], "arm": flags_values.arm},
        format=lambda result: f"measured {result['rows'][0]} of {result['arm']}",
    )


@pytest.fixture
def program(monkeypatch, own_flags):
    """main with flags of its own and two made-up measurements."""
    monkeypatch.setattr(
        benchmark, "MODULES", {"input": measurement("a"), "step": measurement("b")}
    )
    values = own_flags(benchmark.define_flags)
    monkeypatch.setattr(benchmark, "FLAGS", values)

    def program(*arguments):
        for name in values:
            values[name].unparse()  # what an earlier call gave
        benchmark.main(values(["benchmark", *arguments]))

    return program


def test_one_measurement(program, capsys):
    program("--what=step", "--arm=resnet50")
    out = capsys.readouterr().out
    assert "commit" in out
    assert "--- step ---\nmeasured b of resnet50" in out
    assert "measured a" not in out


def test_all_of_them_as_json(program, tmp_path, capsys):
    path = tmp_path / "new" / "speed.json"
    program("--what=all", f"--json={path}")
    result = json.loads(path.read_text())
    assert list(result["results"]) == ["input", "step"]
    assert result["results"]["step"] == {"rows": ["b"], "arm": "vgg16_g"}
    assert result["machine"]["cores"] >= 1
    assert result["flags"] == ["--what=all"]
    assert result["finished"]
    assert [file.name for file in path.parent.iterdir()] == ["speed.json"]
    assert str(path) in capsys.readouterr().out


def test_unknown_measurement_is_one_line(program):
    with pytest.raises(SystemExit) as end:
        program("--what=colour")
    assert end.value.code == "error: what=colour: must be one of input, step, all."


def test_json_that_cannot_be_written_is_found_first(program, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # The last is a folder in which nobody, root included, may make a file.
    for path in (tmp_path, tmp_path / "file" / "speed.json", "/proc/speed.json"):
        with pytest.raises(SystemExit) as end:
            program(f"--json={path}")
        assert end.value.code.startswith(f"error: json={path}: ")
        assert "\n" not in end.value.code and "Errno" not in end.value.code
    assert "measured" not in capsys.readouterr().out


def test_a_file_is_shown_again(program, tmp_path, capsys):
    path = tmp_path / "speed.json"
    program("--what=all", "--arm=resnet50", f"--json={path}")
    printed = capsys.readouterr().out
    program(f"--show={path}", f"--show={path}")
    first, second = capsys.readouterr().out.split("\n\n--- step ---")[:2]
    assert "commit" in first and first.endswith("measured a of resnet50")
    lines = first.splitlines()
    lines.remove("--what=all --arm=resnet50")
    assert all(line in printed for line in lines)
    assert second.startswith("\nmeasured b of resnet50\n\n" + first.splitlines()[0])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"results": None}, "not written by --json: AttributeError"),
        ({"results": {"colour": {}}}, "not written by --json: KeyError('colour')"),
        ({"results": []}, "not written by --json: AttributeError"),
        ({"machine": {}}, "not written by --json: KeyError"),
    ],
)
def test_what_is_no_measurement_is_not_shown(program, tmp_path, change, says):
    path = tmp_path / "speed.json"
    program(f"--json={path}")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit) as end:
        program(f"--show={path}")
    assert end.value.code.startswith(f"error: show={path}: ")
    assert says in end.value.code


def test_a_file_that_cannot_be_read_is_named_with_the_flag(program, tmp_path):
    (tmp_path / "text").write_text("hello")
    for path, why in (
        (tmp_path, "directory"),
        (tmp_path / "x", "No such file"),
        (tmp_path / "text", "is not JSON of --json: Expecting value"),
    ):
        with pytest.raises(SystemExit) as end:
            program(f"--show={path}")
        assert end.value.code.startswith(f"error: show={path}: ")
        assert why in end.value.code and "Errno" not in end.value.code


def test_of_a_stopped_measurement_what_there_is_is_shown(program, tmp_path, capsys):
    path = tmp_path / "speed.json"

    def run(values, keep):
        keep({"rows": ["half of b"], "arm": values.arm})
        raise ValueError("no memory")

    benchmark.MODULES["step"].run = run
    with pytest.raises(SystemExit):
        program("--what=step", f"--json={path}")
    assert not json.loads(path.read_text())["finished"]
    capsys.readouterr()
    program(f"--show={path}")
    shown = capsys.readouterr().out
    assert "\nstopped before its end\n--what=step\n" in shown
    assert "measured half of b of vgg16_g" in shown


def test_nothing_is_measured_beside_showing(program, tmp_path):
    for given in ("--what=step", "--repeats=2", "--json=x", "--size_of_a=1"):
        with pytest.raises(SystemExit) as end:
            program(f"--show={tmp_path}", given)
        assert end.value.code == (
            f"error: {given}: does nothing with --show; leave the flag out"
        )


def test_a_flag_that_does_nothing_is_refused_first(program, capsys):
    program("--what=all", "--size_of_a=2")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        program("--what=step", "--size_of_a=2")
    assert end.value.code == (
        "error: --size_of_a=2: does nothing with --what=step; leave the flag out"
    )
    assert "measured" not in capsys.readouterr().out


def test_a_value_given_twice_is_refused_first(program, capsys):
    """Its rows would be measured twice, and could not be told apart."""
    with pytest.raises(SystemExit) as end:
        program("--what=step", "--word_of_b=a", "--word_of_b=b", "--word_of_b=a")
    assert end.value.code == "error: word_of_b=a: is given twice"
    assert "measured" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["--repeats=2", "--what=step"], "--repeats=2: does nothing with --write_prog"),
        (["--what=all"], "write_programs=P: only with --what=step"),
        (["--write_programs="], "write_programs: needs a folder"),
    ],
)
def test_programs_are_written_alone_and_once(own_flags, arguments, error):
    values = own_flags(benchmark.define_flags)
    values(["benchmark", "--write_programs=P", *arguments])
    with pytest.raises(ValueError, match=error):
        benchmark.check(values.what, values)


def test_what_cannot_be_printed_is_kept(program, tmp_path):
    def unprintable(result):
        raise ValueError("no table")

    benchmark.MODULES["step"].format = unprintable
    with pytest.raises(SystemExit):
        program("--what=step", f"--json={tmp_path}/speed.json")
    assert json.loads((tmp_path / "speed.json").read_text())["finished"]


def test_what_is_missing_is_found_before_anything_is_measured(program, capsys):
    def check(values):
        raise ValueError("tf2onnx is not installed")

    benchmark.MODULES["step"].check = check
    with pytest.raises(SystemExit) as end:
        program("--what=all")
    assert end.value.code == "error: tf2onnx is not installed"
    assert "measured" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["raise", "SIGTERM", "SIGINT"])
def test_what_was_measured_before_the_end_is_kept(program, tmp_path, how):
    def run(values, keep):
        if how == "raise":
            raise ValueError("no memory")
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(10)

    benchmark.MODULES["step"].run = run
    path = tmp_path / "speed.json"
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    # A process in the background of a shell is deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            program("--what=all", f"--json={path}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    texts = {"raise": "no memory", "SIGTERM": "told to stop", "SIGINT": "interrupted"}
    assert end.value.code == f"error: {texts[how]}"
    result = json.loads(path.read_text())
    assert list(result["results"]) == ["input"] and not result["finished"]


def test_every_flag_is_read_by_a_measurement(own_flags):
    """So that one which does nothing is noticed."""
    defined = set(own_flags(benchmark.define_flags))
    read = {name for module in benchmark.MODULES.values() for name in module.READS}
    assert defined == read | {"what", "repeats", "json", "show"}


@pytest.mark.parametrize("what", benchmark.MODULES)
def test_a_measurement_reads_the_flags_that_it_names(what, own_flags):
    """By its code: the flags' values by name, or their names for `getattr`."""
    module = benchmark.MODULES[what]
    code = ast.parse(inspect.getsource(module))
    ours = [  # the lists of names themselves and the definitions are no reading
        node
        for node in code.body
        if not isinstance(node, ast.Assign)
        and getattr(node, "name", "") not in ("define_flags", "format")
    ]
    nodes = [node for part in ours for node in ast.walk(part)]
    values = ("values", "flags_values")
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in values
    }
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    defined = set(own_flags(benchmark.define_flags)) - {"repeats"}
    assert set(module.READS) <= attributes | strings
    assert attributes & defined <= set(module.READS)


def test_measurements_offered_are_those_with_a_module():
    for module in benchmark.MODULES.values():
        assert all(map(callable, (module.define_flags, module.run, module.format)))
