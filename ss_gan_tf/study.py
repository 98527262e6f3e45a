"""Many runs, one question: what does the adversary add?

For each seed and backbone one phase 1 and, all from its weights, the control
(lambda = 0), the adversarial phase 2, the placebos, and any number of variants: the
adversarial phase 2 again with other settings of the adversary. Every run is a process
of the train program, so a crash takes one run with it and not the study:

    STUDY/study.json                   settings, machine, and each run's outcome
    STUDY/logs/seedN-BACKBONE-ROLE.txt  what its programs printed, exit codes too
    STUDY/seedN/BACKBONE/ROLE/         the run's folder; a variant's name is its ROLE

A run that fails does not stop the study; those that need its weights are left out,
and the next start tries them again. What has finished is never done twice. A study may
be told to keep only the figures of variants and placebos, whose weights nobody needs.
Where a run's last weights are its best ones too, they are evaluated once.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from ss_gan_tf import checkpoints, config_rules, results
from ss_gan_tf.config import (
    BOOKKEEPING,
    EVALUATION,
    EXECUTION,
    Config,
    differences,
)
from ss_gan_tf.machine import describe_machine
from ss_gan_tf.results import PLACEBOS, ROLES, UNUSED

CHECKPOINTS = ("last", "best")
# Of a run, what holds weights.
WEIGHTS = ("checkpoints", "best", "guard", "export")

# What is read of the settings, and of a run, in study.json; the latter has its status
# from the start, and the rest as it comes.
SETTINGS = {"config": dict, "evaluate_flags": list, "last_validations": int}
ASKED_FOR = {"seeds": int, "backbones": list, "placebos": bool, "splits": list}
ENTRY = {
    "variant": str,
    "trained": bool,
    "train_seconds": (int, float),
    "pruned": bool,
}

# Set by the study for each run, so nobody else may.
RESERVED = ("arm", "seed", "init_generator", "placebo")

# --- What there is to do -----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """The adversarial arm with other settings, from the same phase 1.

    Raises:
        ValueError: the name is no folder's or a role's, or a setting is one that the
            control, which it is held against, reads too.
    """

    name: str
    flags: tuple[str, ...]  # of the train program, over the study's
    changes: dict[str, Any]  # the same as fields of Config

    def __post_init__(self):
        if (
            not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name, re.ASCII)
            or self.name in ROLES
        ):
            raise ValueError(
                f"variant={self.name!r}: needs a name of letters, digits, '_', '-' and "
                "'.' that begins with a letter or digit and is none of "
                f"{', '.join(ROLES)}"
            )
        allowed = {*config_rules.ADVERSARY, "guard", *config_rules.GUARD}
        if shared := sorted(set(self.changes) - allowed):
            raise ValueError(
                f"variant={self.name}: may change the adversary alone, not "
                f"{', '.join(shared)}, which the control reads too"
            )
        if self.changes.get("lambda_adv") == 0:
            raise ValueError(f"variant={self.name}: lambda_adv=0 is the control")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a study is told.

    Raises:
        ValueError: a value is out of range; the message names it and the rule.
    """

    config: Config  # what all runs share; the `RESERVED` fields play no part
    flags: tuple[str, ...]  # the same as flags of the train program
    data_dir: str
    seeds: int = 3  # 0, 1, ...
    backbones: tuple[str, ...] = ("vgg16", "resnet50")
    placebos: bool = False
    variants: tuple[Variant, ...] = ()
    prune: bool = False  # variants and placebos lose their weights once evaluated
    splits: tuple[str, ...] = ("test", "val")  # that every run is evaluated on
    last_validations: int = 3  # of phase 2, whose mean is reported beside the last
    evaluate_flags: tuple[str, ...] = ()  # for the evaluate program
    digests: dict[str, str] = dataclasses.field(default_factory=dict)  # of its data

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: must be at least 1")
        if self.last_validations < 1:
            raise ValueError(
                f"last_validations={self.last_validations}: must be at least 1"
            )
        check_backbones(self.backbones)
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variant={','.join(names)}: each name once, please")
        if self.config.lambda_adv == 0:
            raise ValueError("lambda_adv=0.0: the study runs the control by itself")

    def other_splits(self, digests: dict[str, str]) -> list[str]:
        """Splits that its runs use, and whose examples are not those of its data.

        Args:
            digests: split -> digest of data of the same name; of others not known.
        """
        config = self.config
        splits = dict.fromkeys((config.train_split, config.val_split, *self.splits))
        return checkpoints.other_splits(digests, self.digests, splits)


def check_backbones(names: Sequence[str]) -> tuple[str, ...]:
    """The backbones of a study.

    Raises:
        ValueError: there is none, one that does not exist, or one twice.
    """
    for name in names:
        if name not in ("vgg16", "resnet50"):
            raise ValueError(f"arms={name}: must be vgg16, resnet50 or both")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"arms={','.join(names)}: each once, please")
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One process of the train program."""

    name: str  # seedN/BACKBONE/ROLE, its folder in the study
    role: str  # key of ROLES: a variant's is "adversarial", in a comparison its name
    config: Config
    needs: str | None  # name of the run whose G it starts from
    variant: Variant | None = None


def plan(settings: Settings, workdir: str) -> list[PlannedRun]:
    """The runs in the order in which they are made, seed by seed.

    Args:
        settings: of the study.
        workdir: STUDY.

    Returns:
        For each seed and backbone: phase1, control, adversarial, placebos, variants.

    Raises:
        ValueError: a setting fits none of the arms.
    """
    runs = []
    roles = [
        (role, None) for role in ROLES if settings.placebos or role not in PLACEBOS
    ]
    roles += [("adversarial", variant) for variant in settings.variants]
    for seed in range(settings.seeds):
        for backbone in settings.backbones:
            start = _name(seed, backbone, "phase1")
            for role, variant in roles:
                changes: dict[str, Any] = {"arm": backbone}
                if role != "phase1":
                    path = os.path.join(workdir, start)
                    changes = {"arm": f"{backbone}_g", "init_generator": path}
                if role == "control":
                    changes["lambda_on"] = "generator"  # its flag is not passed on
                changes |= ROLES[role] | (variant.changes if variant else {})
                config = dataclasses.replace(settings.config, seed=seed, **changes)
                name = _name(seed, backbone, variant.name if variant else role)
                needs = None if role == "phase1" else start
                runs.append(PlannedRun(name, role, config, needs, variant))
    return runs


def not_begun(study: dict[str, Any]) -> list[str]:
    """Names of runs that STUDY/study.json's settings ask for and its runs lack."""
    settings = study["settings"]
    roles = [r for r in ROLES if settings.get("placebos") or r not in PLACEBOS]
    names = [
        _name(seed, backbone, role)
        for seed in range(settings.get("seeds", 0))
        for backbone in settings.get("backbones", ())
        for role in (*roles, *settings.get("variants", ()))
    ]
    return [name for name in names if name not in study["runs"]]


def _name(seed: int, backbone: str, role: str) -> str:
    return f"seed{seed}/{backbone}/{role}"


# --- Doing it ----------------------------------------------------------------


def run_study(
    settings: Settings,
    workdir: str,
    train: Sequence[str],
    evaluate: Sequence[str],
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Makes the runs that are not finished yet, and evaluates them.

    Args:
        settings: of the study; a later start may ask for more seeds, backbones,
            placebos, variants or splits.
        workdir: STUDY.
        train: the command of the train program, without flags.
        evaluate: that of the evaluate program.
        report: called with a line when a run starts or ends.

    Returns:
        What STUDY/study.json holds.

    Raises:
        ValueError: the folder holds a study with other settings or runs on other
            data, or its study.json is damaged.
    """
    runs = plan(settings, workdir)
    report = report or (lambda line: None)
    study = open_study(settings, workdir)
    for run in runs:
        variant = {"variant": run.variant.name} if run.variant else {}
        waiting = {"role": run.role, **variant, "status": "waiting"}
        entry = study["runs"].setdefault(run.name, waiting)
        if _is_finished(entry, settings):  # before the others need the room
            _prune(run, entry, settings, workdir, study)
    for number, run in enumerate(runs, start=1):
        entry = study["runs"][run.name]
        position = f"{number} of {len(runs)}, {run.name}"
        if _is_finished(entry, settings):
            entry["status"] = "done"  # stopped before it could say so
            continue
        if run.needs and not study["runs"][run.needs].get("trained"):
            entry["status"] = "left out: its phase 1 failed"
        else:
            report(f"{position}: starts")
            _make(run, entry, settings, workdir, train, evaluate, study)
        write_study(study, workdir)
        report(f"{position}: {entry['status']}")
    write_study(study, workdir)
    return study


def _make(run, entry, settings, workdir, train, evaluate, study):
    """Trains and evaluates one run, and notes what came of it."""
    folder = os.path.join(workdir, run.name)
    log = os.path.join("logs", run.name.replace("/", "-") + ".txt")
    entry |= {"log": log, "status": "running"}
    write_study(study, workdir)

    def call(program, *flags):
        code = _call([*program, *flags], os.path.join(workdir, log))
        entry["exit_code"] = code
        entry["status"] = "running" if code == 0 else f"failed: exit code {code}"
        return code == 0

    data = f"--data_dir={settings.data_dir}"
    if not entry.get("trained"):
        flags = [*train_flags(run, settings), data, f"--workdir={folder}"]
        start = time.monotonic()
        try:
            trained = call(train, *flags)
        finally:  # a run that was stopped or failed, and was continued, took the sum
            seconds = round(time.monotonic() - start, 3)
            entry["train_seconds"] = entry.get("train_seconds", 0.0) + seconds
            write_study(study, workdir)
        if not trained:
            return
        entry["trained"] = True
        entry["metrics"] = {}
        entry["validations"] = results.last_validations(
            folder, run.config, settings.last_validations
        )
        write_study(study, workdir)
    for split in settings.splits:
        for checkpoint in CHECKPOINTS:
            key = split if checkpoint == "last" else f"{split}-best"
            if key in entry["metrics"]:
                continue
            flags = [f"--workdir={folder}", f"--split={split}", data]
            flags += [f"--checkpoint={checkpoint}", *settings.evaluate_flags]
            same = checkpoint == "best" and _best_is_last(folder)
            if not (same and _copy_evaluation(folder, split, key)):
                if not call(evaluate, *flags):
                    return
            entry["metrics"][key] = results.read_metrics(folder, key)
            write_study(study, workdir)
    entry["status"] = "done"
    _prune(run, entry, settings, workdir, study)


def _best_is_last(folder) -> bool:
    """Whether a second evaluation would see the same weights."""
    guard = results.guard_outcome(folder)
    untouched = not (guard["ways_back"] or guard["ended"])
    return untouched and checkpoints.best_is_last(folder)


def _copy_evaluation(folder, split, key) -> bool:
    """RUN/eval/SPLIT as RUN/eval/KEY; False where there is nothing to copy."""
    source, target = (os.path.join(folder, "eval", name) for name in (split, key))
    if not os.path.isfile(os.path.join(source, "metrics.json")):
        return False
    os.makedirs(target, exist_ok=True)
    # Last what says that there is an evaluation.
    for name in sorted(os.listdir(source), key=lambda name: name == "metrics.json"):
        path = os.path.join(target, name)
        shutil.copyfile(os.path.join(source, name), path + ".tmp")
        os.replace(path + ".tmp", path)
    return True


def _prune(run, entry, settings, workdir, study):
    """Removes a finished run's weights if it is to lose them; safe to repeat."""
    if not entry.get("pruned"):
        if not (settings.prune and (run.variant or run.role in PLACEBOS)):
            return
        entry["pruned"] = True
        write_study(
            study, workdir
        )  # first: a run without weights must be known as such
    for name in WEIGHTS:
        path = os.path.join(workdir, run.name, name)
        shutil.rmtree(path, ignore_errors=True)


def train_flags(run: PlannedRun, settings: Settings) -> list[str]:
    """Flags of the train program for one run, its folder and data aside.

    Flags that only other runs of the study read are left out, because the train program
    refuses what an arm does not use.
    """
    unused = {*UNUSED[run.role], *config_rules.unused(run.config)}
    flags = [flag for flag in settings.flags if _field(flag) not in unused]
    flags += [f"--arm={run.config.arm}", f"--seed={run.config.seed}"]
    if run.needs:
        flags.append(f"--init_generator={run.config.init_generator}")
    flags += [f"--{name}={value}" for name, value in ROLES[run.role].items()]
    return flags + [*(run.variant.flags if run.variant else ())]


def _field(flag: str) -> str:
    """`--flip` and `--noflip` -> flip; `--crop_size=64` -> crop_size."""
    name = flag.lstrip("-").split("=")[0]
    fields = {field.name for field in dataclasses.fields(Config)}
    if name not in fields and name.removeprefix("no") in fields:
        return name.removeprefix("no")
    return name


def _is_finished(entry, settings) -> bool:
    if entry.get("pruned"):
        return True  # no other split can be asked for
    wanted = {*settings.splits} | {f"{split}-best" for split in settings.splits}
    return bool(entry.get("trained")) and wanted <= set(entry["metrics"])


def _call(command: Sequence[str], log_path: str) -> int:
    """Runs a program to its end; its exit code. What it prints is kept."""
    os.makedirs(os.path.dirname(log_path), exist_ok=True)
    with open(log_path, "a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = program.wait()
        except BaseException:  # told to stop: the program may save its state first
            program.terminate()
            program.wait()
            raise
        log.write(f"exit code {code}\n\n")
    return code


# --- What came of it ---------------------------------------------------------


def read_study(workdir: str) -> dict[str, Any]:
    """STUDY/study.json.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: the file is damaged.
    """
    path = os.path.join(workdir, "study.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{workdir}: no study here (study.json is missing)")
    study = results.read_json(path, ("settings", "machine", "runs"))
    kinds = {"settings": dict, "machine": dict, "runs": dict}
    results.check_fields(path, "the study", study, kinds)
    settings = study["settings"]
    results.check_fields(path, "settings", settings, SETTINGS)
    results.check_fields(path, "settings", settings, ASKED_FOR, optional=True)
    variants = settings.get("variants", {})  # there were none once
    kinds = dict.fromkeys(variants, list) if isinstance(variants, dict) else {}
    results.check_fields(path, "variants", variants, kinds)
    for name, words in variants.items():
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path}: {name} of variants is missing or damaged")
    for name, entry in study["runs"].items():
        results.check_fields(path, repr(name), entry, {"status": str})
        results.check_fields(path, repr(name), entry, ENTRY, optional=True)
        if entry.get("trained"):
            results.check_fields(path, repr(name), entry, {"metrics": dict})
    return study


def open_study(settings, workdir) -> dict[str, Any]:
    """The study so far, if it is the same one."""
    told = {
        "config": json.loads(settings.config.to_json()),
        "flags": list(settings.flags),
        "data_dir": os.path.abspath(settings.data_dir),
        "seeds": settings.seeds,
        "backbones": list(settings.backbones),
        "placebos": settings.placebos,
        "variants": {v.name: list(v.flags) for v in settings.variants},
        "splits": list(settings.splits),
        "last_validations": settings.last_validations,
        "evaluate_flags": list(settings.evaluate_flags),
    }
    study = {"settings": told, "machine": describe_machine(), "runs": {}}
    try:
        old = read_study(workdir)
    except FileNotFoundError:
        return study
    try:
        before = Config.from_json(json.dumps(old["settings"]["config"]))
    except ValueError as error:
        path = os.path.join(workdir, "study.json")
        raise ValueError(f"{path}: settings are damaged ({error})") from error
    ignored = {*BOOKKEEPING, *EXECUTION, *RESERVED}
    # What neither evaluation reads may differ: it was not refused once.
    unread = (set(config_rules.unused(each)) for each in (before, settings.config))
    ignored |= set(EVALUATION).intersection(*unread)
    found = [*differences(before, settings.config, ignored).values()]
    found += [
        f"{name}={old['settings'][name]!r} there, {told[name]!r} now"
        for name in ("evaluate_flags", "last_validations")
        if old["settings"][name] != told[name]
    ]
    variants = old["settings"].get("variants", {})
    found += [
        f"variant {name}: {' '.join(variants[name])} there, {' '.join(flags)} now"
        for name, flags in told["variants"].items()
        if variants.get(name, flags) != flags
    ]
    # What an earlier start asked for stays in the comparison.
    told["variants"] = variants | told["variants"]
    asked = {name: old["settings"].get(name, told[name]) for name in ASKED_FOR}
    told["seeds"] = max(asked["seeds"], told["seeds"])
    told["placebos"] |= asked["placebos"]
    for name in ("backbones", "splits"):
        told[name] = list(dict.fromkeys([*map(str, asked[name]), *told[name]]))
    if found:
        raise ValueError(
            f"{workdir}: holds a study with other settings ({'; '.join(found)}); "
            "choose another --workdir"
        )
    _check_data(settings, workdir, old["runs"])
    return study | {"runs": old["runs"]}


def _check_data(settings, workdir, names):
    """Refuses to mix runs on other data: their comparison would be none."""
    for name in names:
        folder = os.path.join(workdir, name)
        if not os.path.isfile(os.path.join(folder, "run.json")):
            continue
        try:
            run = checkpoints.read_run(folder)
        except ValueError:  # fails by itself, if it is needed
            continue
        if other := settings.other_splits(run.data_digests):
            raise ValueError(
                f"{folder}: its {settings.config.dataset} had other examples of "
                f"{' and '.join(other)} than those prepared now; choose another "
                "--workdir, or prepare the data as they were"
            )


def write_study(study, workdir):
    """Writes STUDY/study.json, whole or not at all."""
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "study.json")
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(study, file, indent=2)
    os.replace(path + ".tmp", path)
