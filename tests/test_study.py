"""What a study runs, in which order, and what it does when runs fail or are stopped.

The programs are stand-ins that write what the real ones leave behind;
tests/experiments/test_study.py runs the real ones.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from ss_gan_tf import checkpoints, study
from ss_gan_tf.config import PRESETS, Config

# Trains or evaluates nothing; fails where the file `broken` names its folder.
PROGRAM = """
import json, os, sys
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[3:] if "=" in flag)
root, kind = sys.argv[1:3]
print(kind, "prints this")
with open(os.path.join(root, "calls"), "a") as calls:
    calls.write(json.dumps([kind, *sys.argv[3:]]) + "\\n")
broken = os.path.join(root, "broken")
if os.path.exists(broken) and open(broken).read() in kind + " " + flags["workdir"]:
    sys.exit(3)
os.makedirs(flags["workdir"], exist_ok=True)
if kind == "train":
    for name in ("checkpoints", "best", "guard", "export"):
        os.makedirs(os.path.join(flags["workdir"], name))
if kind == "evaluate":
    best = "-best" if flags["checkpoint"] == "best" else ""
    folder = os.path.join(flags["workdir"], "eval", flags["split"] + best)
    os.makedirs(folder)
    with open(os.path.join(folder, "metrics.json"), "w") as file:
        calls = len(open(os.path.join(root, "calls")).readlines())
        json.dump({"miou": calls / 100, "iou": {}, "num_images": 3}, file)
"""


class Bench:
    """A study of the stand-ins in a folder of its own."""

    def __init__(self, root):
        self.root, self.workdir = root, str(root / "study")
        (root / "program.py").write_text(PROGRAM)

    def run(self, report=None, **changes):
        programs = [
            [sys.executable, "-S", str(self.root / "program.py"), str(self.root), kind]
            for kind in ("train", "evaluate")
        ]
        return study.run_study(settings(**changes), self.workdir, *programs, report)

    def calls(self):
        """(program, run's name) of every call since the last look."""
        path = self.root / "calls"
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        return [
            (kind, flag.removeprefix(f"--workdir={self.workdir}/"))
            for kind, *flags in lines
            for flag in flags
            if flag.startswith("--workdir")
        ]

    def break_(self, name):
        (self.root / "broken").write_text(name)

    def mend(self):
        (self.root / "broken").unlink()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def settings(**changes):
    values = {
        "config": Config(**PRESETS["smoke"]),
        "flags": ("--preset=smoke",),
        "data_dir": "DATA",
        "seeds": 1,
        "backbones": ("vgg16",),
        "splits": ("test",),
    }
    return study.Settings(**values | changes)


def names(runs):
    return [run.name for run in runs]


# --- The plan ----------------------------------------------------------------


def test_every_seed_and_backbone_has_one_phase_1_and_all_else_starts_from_it():
    runs = study.plan(
        settings(seeds=2, backbones=("vgg16", "resnet50"), placebos=True), "STUDY"
    )
    roles = ["phase1", "control", "adversarial", "entropy", "frozen_adversary"]
    assert names(runs) == [
        f"seed{seed}/{backbone}/{role}"
        for seed in (0, 1)
        for backbone in ("vgg16", "resnet50")
        for role in roles
    ]
    for run in runs:
        seed, backbone, role = run.name.split("/")
        assert run.config.seed == int(seed[4:]) and run.config.backbone == backbone
        start = f"{seed}/{backbone}/phase1"
        assert run.needs == (None if role == "phase1" else start)
        if run.needs:
            assert run.config.init_generator == f"STUDY/{start}"
    assert runs[1].config.is_control and not runs[2].config.is_control
    assert [run.config.placebo for run in runs[2:5]] == [
        "none",
        "entropy",
        "frozen_adversary",
    ]


def test_without_placebos_three_runs():
    assert names(study.plan(settings(), "S")) == [
        f"seed0/vgg16/{role}" for role in ("phase1", "control", "adversarial")
    ]


def test_each_run_is_told_what_it_uses():
    flags = ("--preset=smoke", "--phase1_steps=7", "--phase2_steps=5", "--noflip")
    flags += ("--gradient_ratio=0.2", "--adversary_lr=0.001")
    told = settings(flags=flags, placebos=True)
    phase1, control, adversarial, entropy, frozen = (
        set(study.train_flags(run, told)) for run in study.plan(told, "S")
    )
    common = {"--preset=smoke", "--noflip", "--seed=0"}
    start = {"--arm=vgg16_g", "--init_generator=S/seed0/vgg16/phase1"}
    phase2 = common | start | {"--phase2_steps=5"}
    assert phase1 == common | {"--arm=vgg16", "--phase1_steps=7"}
    assert control == phase2 | {"--lambda_adv=0.0"}
    assert adversarial == phase2 | {"--gradient_ratio=0.2", "--adversary_lr=0.001"}
    assert entropy == adversarial | {"--placebo=entropy"}
    assert frozen == phase2 | {"--gradient_ratio=0.2", "--placebo=frozen_adversary"}


def test_a_backbones_flags_go_to_its_runs_alone():
    told = settings(
        flags=("--dropout=0.2", "--head_norm=none"), backbones=("vgg16", "resnet50")
    )
    for run in study.plan(told, "S"):
        given = {flag.split("=")[0] for flag in study.train_flags(run, told)}
        own = "--dropout" if run.config.backbone == "vgg16" else "--head_norm"
        assert given & {"--dropout", "--head_norm"} == {own}


def variant(name, *flags, **changes):
    return study.Variant(name, flags, changes)


RATIO = variant("ratio0.1", "--gradient_ratio=0.1", gradient_ratio=0.1)
FIXED = variant(
    "fixed",
    "--adversarial_weighting=fixed",
    "--lambda_adv=0.01",
    adversarial_weighting="fixed",
    lambda_adv=0.01,
)


@pytest.mark.parametrize("placebos", [False, True])
def test_runs_that_no_start_has_listed_are_known(placebos):
    asked = settings(seeds=2, placebos=placebos, variants=(RATIO,))
    told = {"seeds": 2, "backbones": ["vgg16"], "placebos": placebos}
    told["variants"] = {"ratio0.1": []}
    planned = names(study.plan(asked, "S"))
    facts = {"settings": told, "runs": {}}
    assert study.not_begun(facts) == planned
    facts["runs"] = dict.fromkeys(planned[:-1])
    assert study.not_begun(facts) == ["seed1/vgg16/ratio0.1"]


def test_variants_share_phase_1_and_control():
    told = settings(
        seeds=2,
        placebos=True,
        variants=(RATIO, FIXED),
        flags=("--preset=smoke", "--gradient_ratio=0.2", "--phase2_steps=5"),
    )
    runs = study.plan(told, "S")
    assert len(runs) == 2 * 7
    assert names(runs)[5:7] == ["seed0/vgg16/ratio0.1", "seed0/vgg16/fixed"]
    *_, ratio, fixed = runs
    assert (ratio.role, ratio.needs) == ("adversarial", "seed1/vgg16/phase1")
    assert ratio.config.init_generator == "S/seed1/vgg16/phase1"
    assert ratio.config.gradient_ratio == 0.1 and ratio.config.seed == 1
    start = ["--arm=vgg16_g", "--seed=1", "--init_generator=S/seed1/vgg16/phase1"]
    common = ["--preset=smoke", "--phase2_steps=5"]
    # The last of two equal flags counts.
    assert study.train_flags(ratio, told) == [
        *("--preset=smoke", "--gradient_ratio=0.2", "--phase2_steps=5", *start),
        "--gradient_ratio=0.1",
    ]
    # A fixed lambda reads no ratio, and the train program would refuse it.
    assert study.train_flags(fixed, told) == [*common, *start, *FIXED.flags]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("a/b", {"epsilon": 1.0}, "needs a name of letters"),
        ("", {"epsilon": 1.0}, "needs a name of letters"),
        (".", {"epsilon": 1.0}, "needs a name of letters"),
        ("..", {"epsilon": 1.0}, "needs a name of letters"),
        (".hidden", {"epsilon": 1.0}, "needs a name of letters"),
        ("-x", {"epsilon": 1.0}, "needs a name of letters"),
        ("control", {"epsilon": 1.0}, "none of phase1, control"),
        ("x", {"epsilon": 1.0, "crop_size": 9}, "not crop_size, which the control"),
        ("x", {"placebo": "entropy"}, "not placebo"),
        ("x", {"lambda_adv": 0.0}, "is the control"),
    ],
)
def test_what_no_variant_can_be(name, changes, message):
    with pytest.raises(ValueError, match=message):
        variant(name, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variants": (RATIO, RATIO)}, "variant=ratio0.1,ratio0.1: each name once"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
        ({"backbones": ("vgg19",)}, "arms=vgg19: must be vgg16"),
        ({"backbones": ("vgg16", "vgg16")}, "arms=vgg16,vgg16: each once"),
        ({"last_validations": 0}, "last_validations=0: must be"),
        ({"config": Config(lambda_adv=0)}, "runs the control by itself"),
    ],
)
def test_what_no_study_can_be_told(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


# --- Running -----------------------------------------------------------------


def test_a_study_trains_evaluates_and_writes_all_down(bench):
    result = bench.run(splits=("test", "val"))
    calls = bench.calls()
    assert [call for call in calls if call[0] == "train"] == [
        ("train", f"seed0/vgg16/{role}")
        for role in ("phase1", "control", "adversarial")
    ]
    assert len(calls) == 3 + 3 * 4
    with open(f"{bench.workdir}/study.json") as file:
        assert json.load(file) == result
    run = result["runs"]["seed0/vgg16/control"]
    assert (run["status"], run["role"], run["exit_code"]) == ("done", "control", 0)
    assert set(run["metrics"]) == {"test", "test-best", "val", "val-best"}
    assert run["metrics"]["test"]["miou"] > 0 and run["train_seconds"] > 0
    validations = run["validations"]
    assert (validations["mean"], validations["count"]) == (None, 0)
    assert validations["guard"] == {"ways_back": 0, "ended": False, "last_step": None}
    log = (bench.root / "study" / run["log"]).read_text()
    assert "--lambda_adv=0.0" in log and "train prints this" in log
    assert log.count("exit code 0") == 5
    assert result["settings"]["flags"] == ["--preset=smoke"]
    assert result["machine"]["cores"] > 0


def test_what_has_finished_is_not_done_again(bench):
    first = bench.run()
    bench.calls()
    assert bench.run()["runs"] == first["runs"] and bench.calls() == []
    bench.run(splits=("test", "val"))
    assert {kind for kind, _ in bench.calls()} == {"evaluate"}
    bench.run(seeds=2)
    assert all(name.startswith("seed1/") for _, name in bench.calls())


def test_what_an_earlier_start_asked_for_is_still_told(bench):
    bench.run(seeds=2, placebos=True, backbones=("resnet50",), splits=("test",))
    told = bench.run(seeds=1, backbones=("vgg16",), splits=("val",))["settings"]
    assert (told["seeds"], told["placebos"]) == (2, True)
    assert told["backbones"] == ["resnet50", "vgg16"]
    assert told["splits"] == ["test", "val"]


def test_a_crash_leaves_the_rest_of_the_study_alone(bench):
    bench.break_("train " + bench.workdir + "/seed0/vgg16/phase1")
    lines = []
    both = {"backbones": ("vgg16", "resnet50")}
    runs = bench.run(lines.append, **both)["runs"]
    assert runs["seed0/vgg16/phase1"]["status"] == "failed: exit code 3"
    assert runs["seed0/vgg16/control"]["status"] == "left out: its phase 1 failed"
    assert runs["seed0/resnet50/adversarial"]["status"] == "done"
    assert "2 of 6, seed0/vgg16/control: left out: its phase 1 failed" in lines
    log = bench.root / "study" / runs["seed0/vgg16/phase1"]["log"]
    assert "exit code 3" in log.read_text()
    bench.calls()
    bench.mend()
    runs = bench.run(**both)["runs"]
    assert {run["status"] for run in runs.values()} == {"done"}
    assert all("/vgg16/" in name for _, name in bench.calls())
    assert log.read_text().count("$ ") == 1 + 3  # the log goes on


def test_a_failed_evaluation_is_repeated_without_training(bench):
    bench.break_("evaluate " + bench.workdir + "/seed0/vgg16/control")
    runs = bench.run()["runs"]
    assert runs["seed0/vgg16/control"]["status"] == "failed: exit code 3"
    assert runs["seed0/vgg16/adversarial"]["status"] == "done"
    bench.calls()
    bench.mend()
    assert bench.run()["runs"]["seed0/vgg16/control"]["status"] == "done"
    assert bench.calls() == [("evaluate", "seed0/vgg16/control")] * 2


@pytest.mark.parametrize("moment", ["1 of 3, seed0/vgg16/phase1: done", "3 of 3"])
def test_a_study_that_was_stopped_goes_on(bench, moment):
    def stop(line):
        if line.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(stop)
    runs = bench.run()["runs"]
    assert {run["status"] for run in runs.values()} == {"done"}
    trained = [name for kind, name in bench.calls() if kind == "train"]
    assert trained == sorted(set(trained), key=trained.index) and len(trained) == 3


def test_a_stopped_training_counts_its_time(bench, monkeypatch):
    def call(command, log):
        if "evaluate" not in command:
            time.sleep(0.05)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "_call", call)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    name = "seed0/vgg16/phase1"
    before = study.read_study(bench.workdir)["runs"][name]["train_seconds"]
    assert before >= 0.05
    assert bench.run()["runs"][name]["train_seconds"] > before


def test_one_folder_under_two_names_is_one_study(bench, monkeypatch):
    monkeypatch.chdir(bench.root)
    for weights in ("w.h5", str(bench.root / "w.h5")):
        bench.calls()
        told = {"backbone_weights": weights, "width": 1.0}
        bench.run(config=Config(**PRESETS["smoke"] | told))
    assert bench.calls() == []


def test_another_kind_of_validation_is_another_study(bench):
    bench.run()
    config = Config(**PRESETS["smoke"] | {"eval_flip": True})
    with pytest.raises(ValueError, match=r"\(eval_flip=False there, True now\)"):
        bench.run(config=config)


def test_another_study_in_the_same_folder_is_refused(bench):
    bench.run()
    other = Config(**PRESETS["smoke"] | {"crop_size": 64, "log_every": 1})
    with pytest.raises(ValueError, match=r"\(crop_size=128 there, 64 now\)"):
        bench.run(config=other)


def test_windows_that_no_evaluation_has_are_no_other_study(bench):
    bench.run()
    bench.run(config=Config(**PRESETS["smoke"] | {"eval_window": 400}))
    sliding = {"eval_window": 400, "eval_mode": "sliding"}
    with pytest.raises(ValueError, match="eval_mode='whole' there"):
        bench.run(config=Config(**PRESETS["smoke"] | sliding))


@pytest.mark.parametrize(
    "trained_on, now, message",
    [
        ({"train": "a", "test": "b"}, {"train": "a", "test": "b"}, ""),
        ({"train": "a"}, {"train": "c"}, "other examples of train than"),
        ({"train": "a", "test": "b"}, {"train": "a", "test": "c"}, "examples of test"),
        ({}, {"train": "a"}, ""),  # not kept once
    ],
)
def test_a_study_does_not_mix_data(bench, trained_on, now, message):
    bench.run(digests=trained_on)
    run = checkpoints.Run(
        os.path.join(bench.workdir, "seed0/vgg16/control"),
        Config(), "DATA", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 255,
        {"data_digests": trained_on},
    )  # fmt: skip
    checkpoints.write_run(run)
    bench.calls()
    if not message:
        bench.run(digests=now, seeds=2)
        assert len(bench.calls()) > 0
        return
    with pytest.raises(ValueError, match=f"seed0/vgg16/control: .*{message}"):
        bench.run(digests=now, seeds=2)
    assert bench.calls() == []  # before anything is trained


def test_variants_may_be_added_and_stay(bench):
    bench.run()
    bench.calls()
    runs = bench.run(variants=(RATIO,))["runs"]
    assert {name for _, name in bench.calls()} == {"seed0/vgg16/ratio0.1"}
    entry = runs["seed0/vgg16/ratio0.1"]
    assert (entry["role"], entry["variant"]) == ("adversarial", "ratio0.1")
    assert entry["status"] == "done"
    told = bench.run(variants=(FIXED,))["settings"]["variants"]
    assert told == {"ratio0.1": ["--gradient_ratio=0.1"], "fixed": [*FIXED.flags]}
    assert {name for _, name in bench.calls()} == {"seed0/vgg16/fixed"}
    other = variant("fixed", "--epsilon=1.0", epsilon=1.0)
    with pytest.raises(ValueError, match="variant fixed: .*0.01 there, --epsilon=1.0"):
        bench.run(variants=(other,))


def test_only_weights_that_nobody_needs_are_pruned(bench):
    told = {"variants": (RATIO,), "placebos": True, "prune": True}
    runs = bench.run(**told)["runs"]
    for name, entry in runs.items():
        kept = {path.name for path in (bench.root / "study" / name).iterdir()}
        role = name.split("/")[-1]
        if role in ("phase1", "control", "adversarial"):
            assert {"checkpoints", "best", "guard", "export", "eval"} == kept
        else:
            assert kept == {"eval"}
        assert entry["status"] == "done"
    bench.calls()
    # Another split is asked of those that can still answer.
    runs = bench.run(**told | {"splits": ("test", "val")})["runs"]
    assert {entry["status"] for entry in runs.values()} == {"done"}
    names = {name.split("/")[-1] for _, name in bench.calls()}
    assert names == {"phase1", "control", "adversarial"}


@pytest.fixture
def weights(bench):
    """Names of the runs, without seed and backbone, that have weights."""

    def weights():
        paths = (bench.root / "study" / "seed0" / "vgg16").glob("*/checkpoints")
        return {path.parent.name for path in paths}

    return weights


KEPT = {"phase1", "control", "adversarial"}


def test_what_finished_before_pruning_was_asked_for_is_pruned_too(bench, weights):
    told = {"variants": (RATIO,), "placebos": True}
    bench.run(**told)
    assert weights() == KEPT | {"ratio0.1", "entropy", "frozen_adversary"}
    bench.calls()
    # What a new split is asked of keeps its weights until it has answered.
    told |= {"prune": True, "splits": ("test", "val")}
    bench.break_("evaluate " + bench.workdir + "/seed0/vgg16/ratio0.1")
    bench.run(**told)
    assert weights() == KEPT | {"ratio0.1"}
    bench.mend()
    runs = bench.run(**told)["runs"]
    assert weights() == KEPT
    assert "val-best" in runs["seed0/vgg16/ratio0.1"]["metrics"]


def test_pruning_that_was_cut_off_is_caught_up_with(bench, weights, monkeypatch):
    told = {"variants": (RATIO,)}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ss_gan_tf.study.shutil.rmtree", killed)
        bench.run(**told, prune=True)
    assert "ratio0.1" in weights()
    runs = bench.run(**told)["runs"]  # that the weights go has been decided
    assert weights() == KEPT
    assert runs["seed0/vgg16/ratio0.1"]["status"] == "done"


def test_a_damaged_study_is_one_line(bench):
    with pytest.raises(FileNotFoundError, match="no study here"):
        study.read_study(bench.workdir)
    bench.run()
    for text, message in (("{", "study.json: not JSON"), ("{}", "must hold settings")):
        (bench.root / "study" / "study.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            bench.run()


CONTROL = "seed0/vgg16/control"


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("settings",), [], "settings of the study is"),
        (("settings",), {}, "config of settings is"),
        (("settings", "config"), {"crop_size": "x"}, r"damaged \(crop_size='x'"),
        (("settings", "last_validations"), True, "last_validations of settings is"),
        (("settings", "variants"), ["x"], "variants must be an object"),
        (("settings", "variants"), {"x": "--y"}, "x of variants is"),
        (("settings", "variants"), {"x": [1]}, "x of variants is"),
        (("machine",), None, "machine of the study is"),
        (("runs",), [], "runs of the study is"),
        (("runs", CONTROL), "done", f"'{CONTROL}' must be an object"),
        (("runs", CONTROL), {}, f"status of '{CONTROL}' is"),
        (("runs", CONTROL, "variant"), ["x"], f"variant of '{CONTROL}' is"),
        (("runs", CONTROL, "metrics"), None, f"metrics of '{CONTROL}' is"),
        (("runs", CONTROL, "train_seconds"), "1", f"train_seconds of '{CONTROL}' is"),
    ],
)
def test_a_study_of_other_kinds_of_values_is_one_line(bench, place, value, message):
    path = bench.root / "study" / "study.json"
    path.parent.mkdir()
    entry = {"status": "done", "trained": True, "train_seconds": 1, "metrics": {}}
    told = {
        "config": json.loads(Config(**PRESETS["smoke"]).to_json()),
        "evaluate_flags": [],
        "last_validations": 3,
    }
    content = {"settings": told, "machine": {}, "runs": {CONTROL: entry}}
    path.write_text(json.dumps(content))
    assert study.read_study(bench.workdir) == content
    part = content
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        bench.run()
    assert str(error.value).startswith(f"{path}: ") and bench.calls() == []


def test_a_program_told_to_stop_saves_first(tmp_path, monkeypatch):
    saved = tmp_path / "saved"
    program = (
        "import pathlib, signal, sys, time\n"
        f"saved = pathlib.Path({str(saved)!r})\n"
        "def stop(*_):\n    saved.write_text('all'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    wait = subprocess.Popen.wait

    def interrupted(self, timeout=None):
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study._call([sys.executable, "-c", program], str(tmp_path / "log"))
    assert saved.read_text() == "all"


def test_weights_that_are_both_last_and_best_are_evaluated_once(bench, monkeypatch):
    monkeypatch.setattr(study.checkpoints, "best_is_last", lambda folder: True)
    runs = bench.run()["runs"]
    assert [kind for kind, _ in bench.calls()] == 3 * ["train", "evaluate"]
    for number, (name, entry) in enumerate(runs.items(), start=1):
        assert (
            entry["metrics"]["test"]["miou"] == 2 * number / 100
        )  # 2nd, 4th, 6th call
        assert entry["metrics"]["test-best"] == entry["metrics"]["test"]
        folder = f"{bench.workdir}/{name}/eval"
        assert sorted(os.listdir(folder)) == ["test", "test-best"]
        assert os.listdir(f"{folder}/test-best") == ["metrics.json"]
    assert bench.run()["runs"] == runs and not bench.calls()


def test_what_is_not_there_to_copy_is_evaluated(bench, monkeypatch):
    monkeypatch.setattr(study.checkpoints, "best_is_last", lambda folder: True)
    bench.run()
    bench.calls()
    path = pathlib.Path(bench.workdir, "study.json")
    content = json.loads(path.read_text())
    entry = content["runs"]["seed0/vgg16/control"]
    del entry["metrics"]["test-best"]
    path.write_text(json.dumps(content))
    shutil.rmtree(f"{bench.workdir}/seed0/vgg16/control/eval")
    runs = bench.run()["runs"]
    assert bench.calls() == [("evaluate", "seed0/vgg16/control")]
    assert {run["status"] for run in runs.values()} == {"done"}


def test_the_guard_may_come_to_a_step_twice(bench, monkeypatch):
    monkeypatch.setattr(study.checkpoints, "best_is_last", lambda folder: True)
    went_back = {"ways_back": 1, "ended": False, "last_step": 2}
    monkeypatch.setattr(study.results, "guard_outcome", lambda folder: went_back)
    bench.run()
    assert [kind for kind, _ in bench.calls()] == 3 * ["train", "evaluate", "evaluate"]
