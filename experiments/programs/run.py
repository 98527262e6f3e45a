"""The runs of a written study, with JAX; TensorFlow is not needed.

What a run does is what `ss_gan_tf.train` does: the same examples in the same order with
the same augmentation, the same rates, the same guard, validations at the same steps.
What differs: large random weights and dropout are drawn from other generators, a JPEG
may be decoded with other rounding, the guard is not asked where only a state would be
saved, the last evaluation is done in the run's precision as validations are (that of
`experiments.evaluate` in float32), and no weights are kept.

OUT gets, for each run that was finished, NAME.json (curves, validations, alarms,
times), NAME--KEY.npz (the counts of each image, KEY as in RUN/eval) and, of the images
of the first split, NAME--KEY.ids.npz (class ids as PNG).
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from experiments.programs.data import batches, read_split, wait_for
from experiments.programs.device import Programs
from ss_gan_tf import guard, measures, per_image, strict_json
from ss_gan_tf.config import Config

STACK_BYTES = 2**29  # of a thread that compiles
PLAN = (
    *("runs", "splits", "machine", "versions", "class_names", "ignore_label"),
    *("pad_color", "evaluation_batch"),
)
ROLES = ("phase1", "control", "adversarial")  # these first, of all backbones and seeds


def run_study(
    folders: list[str],
    output: str,
    seconds: float = math.inf,
    report: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Goes through the runs of written studies of one data set.

    Args:
        folders: of `write.write_study`; data are read from the first.
        output: OUT.
        seconds: after which no step is done any more; what is not finished is lost.
        report: called with a line.

    Returns:
        Names of the runs that were not finished.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, or the studies do not go together.
    """
    deadline = time.monotonic() + seconds
    os.makedirs(output, exist_ok=True)
    plans = [read_plan(folder) for folder in folders]
    _check_plans(folders, plans)
    threads = max(2, (os.cpu_count() or 2) - 4)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        threads, context, _load_labels, (folders[0], plans[0])
    ) as counters:
        study = _Study(folders, plans, output, deadline, counters, report)
        return study.run()


def read_plan(folder: str) -> dict[str, Any]:
    """FOLDER/plan.json.

    Raises:
        FileNotFoundError: there is none: the study was not written to its end.
        ValueError: it is damaged.
    """
    path = os.path.join(folder, "plan.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path}: is missing; experiments.study --write_programs={folder} writes it"
        )
    try:
        plan = strict_json.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if missing := [name for name in PLAN if name not in plan]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return plan


def _check_plans(folders, plans):
    """Refuses studies that cannot share data or an output folder."""
    seen = {}
    for folder, plan in zip(folders, plans, strict=True):
        for name in ("class_names", "ignore_label", "splits", "pad_color"):
            if plan[name] != plans[0][name]:
                raise ValueError(
                    f"programs={folder}: {name} is {plan[name]}, in {folders[0]} it is "
                    f"{plans[0][name]}"
                )
        for run in plan["runs"]:
            other = seen.setdefault(run["name"], folder)
            if other != folder or folders.count(folder) > 1:
                raise ValueError(f"programs={folder}: {run['name']} is in {other} too")


def in_order(plans: list[dict]) -> list[tuple[int, dict]]:
    """(number of the plan, run): first what every comparison needs.

    The ways from phase 1 to the adversarial arm of every backbone and seed, then the
    placebos, then the variants: a study that runs out of time is whole as far as it
    got.
    """
    found = [(number, run) for number, plan in enumerate(plans) for run in plan["runs"]]

    def rank(item):
        number, run = item
        if run["variant"]:
            return 2, number, run["config"]["seed"]
        return (0 if run["role"] in ROLES else 1), number, run["config"]["seed"]

    return sorted(found, key=rank)


# --- Counting, in processes of their own -------------------------------------

_LABELS: dict[str, list] = {}


def _load_labels(folder, plan):
    cv2.setNumThreads(1)
    _LABELS.update(folder=folder, plan=plan)


def _count(split, first, ids, confidence, full):
    """[(name, counts)] of some images of a split that lie behind each other."""
    if split not in _LABELS:
        names, _, labels = read_split(_LABELS["folder"], split, with_images=False)
        labels = [np.int32(label) for label in labels]
        _LABELS[split] = list(zip(names, labels, strict=True))
    plan = _LABELS["plan"]
    counted = []
    for number, pred in enumerate(ids):
        name, label = _LABELS[split][first + number]
        sure = confidence[number] if full else None
        counts = measures.count(
            label, pred, sure, len(plan["class_names"]), plan["ignore_label"], full=full
        )
        counted.append((name, counts))
    return counted


# --- A run -------------------------------------------------------------------


class OutOfTime(Exception):
    """The time for the study is over."""


class _Study:
    def __init__(self, folders, plans, output, deadline, counters, report):
        self.plans, self.output, self.deadline = plans, output, deadline
        self.counters, self.report = counters, report
        self.folders = folders
        self._splits: dict[str, tuple] = {}
        self._programs: dict[tuple, Programs] = {}
        self.orders = [self._order(folder) for folder in folders]
        self.after_phase1: dict[tuple, dict] = {}
        self._writing: list = []

    def _order(self, folder):
        with np.load(os.path.join(folder, "order.npz")) as stored:
            return dict(stored)

    def split(self, name):
        if name not in self._splits:
            self._splits[name] = read_split(self.folders[0], name)
        return self._splits[name]

    def run(self) -> list[str]:
        self._describe_machine()
        finished = []
        for number, run in in_order(self.plans):
            if run["needs"] and (number, run["needs"]) not in self.after_phase1:
                self.report(f"{run['name']}: left out, its phase 1 is missing")
                continue
            begin = time.monotonic()
            try:
                _Run(self, number, run).go()
            except OutOfTime:
                self.report(f"{run['name']}: out of time")
                break
            except FloatingPointError as error:
                self.report(f"{run['name']}: {error}")
                continue
            finished.append(run["name"])
            self.report(f"{run['name']}: {time.monotonic() - begin:.1f} s")
        for writing in self._writing:
            writing.result()
        wanted = [run["name"] for plan in self.plans for run in plan["runs"]]
        return [name for name in wanted if name not in finished]

    def _describe_machine(self):
        import jax

        device = jax.devices()[0]
        facts = {
            "device": device.device_kind,
            "platform": device.platform,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "cores": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "written": self.plans[0]["machine"]
            | {
                "versions": self.plans[0]["versions"],
                "data_digests": self.plans[0].get("data_digests", {}),  # none once
            },
        }
        path = os.path.join(self.output, "machine.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)

    def programs(self, number, backbone) -> Programs:
        """Those of a backbone, opened when they are first wanted."""
        key = number, backbone
        if key not in self._programs:
            folder = os.path.join(self.folders[number], backbone)
            wait_for(os.path.join(folder, "complete"))
            self._programs[key] = Programs(folder, self.report)
        return self._programs[key]

    def later(self, function, *arguments):
        """Does it in a thread; the error of an earlier one is raised."""
        for writing in self._writing:
            if writing.done():
                writing.result()
        if not self._writing:
            self._thread = concurrent.futures.ThreadPoolExecutor(4)
        self._writing.append(self._thread.submit(function, *arguments))


CLOCK = "weakening/lost_steps"  # what a guarded phase 2 is told when it goes back


class _Run:
    def __init__(self, study: _Study, number: int, run: dict):
        self.study, self.number, self.run = study, number, run
        self.plan = study.plans[number]
        self.config = Config.from_json(json.dumps(run["config"]))
        self.programs = study.programs(number, run["backbone"])
        self.variables = self.programs.first_values(self.config.seed)
        if run["needs"]:
            start = study.after_phase1[number, run["needs"]]
            self.variables |= self.programs.copy(start)
        config = self.config
        self.guarded = config.can_go_back
        if self.guarded:
            self._check_goes_back()
        self.guard = guard.Guard(
            config.guard_retries,
            config.guard_miou_drop,
            ratio_limit=max(1.0, 2 * config.gradient_ratio),
        )
        self.best = {"miou": -1.0, "step": None}
        self.best_values: dict | None = None
        self.before_phase2: dict | None = None
        self.record: dict[str, Any] = {"config": run["config"]}
        self.record |= {"scalars": [], "validations": [], "alarms": []}
        self.begin = time.monotonic()

    def go(self):
        for stage in self.run["stages"]:
            self._stage(stage)
        self.record["seconds"] = time.monotonic() - self.begin
        if not self.run["needs"]:
            self.study.after_phase1[self.number, self.run["name"]] = self.programs.copy(
                self._of("generator/", self.variables)
            )
        self._conclude()

    def _of(self, part, variables):
        return {n: v for n, v in variables.items() if n.startswith(part)}

    # --- Steps ---

    def _stage(self, stage):
        config, name = self.config, stage["stage"]
        _, images, labels = self.study.split(config.train_split)
        numbers = self.study.orders[self.number][stage["order"]]
        if name == "phase2":
            self._enter_phase2(stage)
        begin = time.monotonic()
        made = batches(images, labels, config, stage, numbers, self.plan)
        with contextlib.closing(made):
            step, evaluating = self._steps(stage, made)
        spent = time.monotonic() - begin - evaluating
        self.study.report(
            f"{self.run['name']}, {name}: {1000 * spent / step:.2f} ms a step, "
            f"{evaluating:.1f} s of validation"
        )

    def _steps(self, stage, made) -> tuple[int, float]:
        """Does the steps of a stage; the last one, and seconds of validation."""
        gives = self.programs.manifest["programs"][stage["program"]]["gives"]
        count, waiting, evaluating = stage["steps_a_call"], [], 0.0
        for step, parts in zip(
            range(count, stage["steps"] + 1, count), made, strict=True
        ):
            if time.monotonic() > self.study.deadline:
                raise OutOfTime
            self._seed_dropout(stage, step - count + 1)
            rows = self.programs.call(stage["program"], self.variables, *parts)[0]
            waiting.append((step, rows))
            evaluates = stage["stage"] != "warmup" and (
                step % self.config.eval_every == 0 or step == stage["steps"]
            )
            # Reading waits for the device, so it is done as seldom as can be.
            if self.guarded or evaluates or len(waiting) > 4:
                self._read(stage, waiting, gives)
                waiting = []
            at = time.monotonic()
            over = self._end_step(stage, step, evaluates)
            evaluating += time.monotonic() - at
            if over:
                break
        self._read(stage, waiting, gives)
        return step, evaluating

    def _seed_dropout(self, stage, step):
        for number, name in enumerate(self.programs.manifest["dropout_states"]):
            value = [(stage["seed"] + number) % 2**32, step]
            value = np.array(value, self.variables[name].dtype)
            self.variables[name] = self.programs.put(value)

    def _read(self, stage, waiting, gives):
        """Scalars of the steps behind which nothing was read yet."""
        for last, rows in waiting:
            rows = np.asarray(rows)
            for number, row in enumerate(rows, start=last - len(rows) + 1):
                values = dict(zip(gives, row.tolist(), strict=True))
                self.guard.see(values)
                # A guarded run is asked when it can act, in `_end_step`.
                if not self.guarded and number % guard.CHECK_EVERY == 0:
                    self._heed_guard(stage, number, None)
                if number % self.config.log_every and number != stage["steps"]:
                    continue
                broken = [k for k, v in values.items() if not math.isfinite(v)]
                if broken and not self.config.guard:
                    at = f"{stage['stage']} step {number}"
                    raise FloatingPointError(f"{at}: {', '.join(broken)} not finite")
                kept = {k: v for k, v in values.items() if k not in broken}
                self.record["scalars"].append([stage["stage"], number, kept])

    def _enter_phase2(self, stage):
        miou = self._validate(stage, 0)
        self.best = {"miou": miou, "step": 0}
        self.guard.enter_phase2(miou)
        if self.guarded:
            self.before_phase2 = self.programs.copy(
                self._of("generator/", self.variables)
            )
        self._keep_best()

    def _keep_best(self):
        kept = (
            self.variables if self.guarded else self._of("generator/", self.variables)
        )
        self.best_values = self.programs.copy(kept)

    def _end_step(self, stage, step, evaluates) -> bool:
        """Validates and heeds the guard, as `train` does; whether the stage is over.

        Raises:
            FloatingPointError: a variable is not finite.
        """
        if evaluates:
            self._check_variables(stage, step)
        miou = self._validate(stage, step) if evaluates else None
        if evaluates and miou > self.best["miou"]:
            self.best = {"miou": miou, "step": step}
            self._keep_best()
            return False
        due = step % guard.CHECK_EVERY == 0 or step == stage["steps"]
        due &= self.guarded
        return (evaluates or due) and self._heed_guard(stage, step, miou)

    def _check_variables(self, stage, step):
        for name, value in self.variables.items():
            if not self.programs.is_finite(value):
                at = f"{stage['stage']} step {step}"
                raise FloatingPointError(f"{at}: {name} is not finite")

    def _heed_guard(self, stage, step, miou) -> bool:
        adversarial = stage["stage"] == "phase2" and self.guarded
        decision = self.guard.decide(adversarial, miou if adversarial else None)
        if decision is None:
            return False
        if decision.action == "end" and not adversarial:
            raise FloatingPointError(f"{decision.alarm}: {decision.why}")
        if decision.action == "back":
            self.guard.go_back(decision)
            self._load(self.best_values, step)
        elif decision.action == "end":
            self.guard.state["ended"] = True
            self._load(self.before_phase2, stage["steps"])
        alarm = {"phase": stage["stage"], "step": step}
        alarm |= dataclasses.asdict(decision) | {"remedy": decision.remedy}
        factors = {k: self.guard.state[k] for k in ("strength", "adversary_rate")}
        self.record["alarms"].append([stage["stage"], step, alarm, factors])
        self.study.report(f"{self.run['name']}: {json.dumps(alarm)}")
        return decision.action == "end"

    def _load(self, values, step):
        self.variables |= self.programs.copy(values)
        age = int(self.variables["generator_optimizer/0"])
        self.guard.state["lost_steps"] = step - age
        for name in ("strength", "adversary_rate", "lost_steps"):
            value = np.float32(self.guard.state[name])
            self.variables[f"weakening/{name}"] = self.programs.put(value)

    def _check_goes_back(self):
        """Refuses programs that know nothing of a way back."""
        for stage in self.run["stages"]:
            program = self.programs.manifest["programs"][stage["program"]]
            if stage["stage"] == "phase2" and CLOCK not in program["takes"]:
                raise ValueError(
                    f"{stage['program']}: takes no {CLOCK}, so it was written by an "
                    "earlier version; write the programs again"
                )

    # --- Figures ---

    def _validate(self, stage, step) -> float:
        """Mean IoU of the first images of the validation split."""
        split, limit = self.config.val_split, self.config.eval_limit
        images = self._join(self._evaluate(self.variables, split, limit))
        figures = measures.summarize(images.total(), self.plan["class_names"])
        self.record["validations"].append([stage["stage"], step, figures])
        miou = figures["miou"] or 0.0
        self.study.report(
            f"{self.run['name']}, {stage['stage']} step {step}: {100 * miou:.2f} %"
        )
        return miou

    def _evaluate(self, variables, split, limit=0, full=False, kept=None) -> list:
        """Counts of each batch of a split, still being made; `kept` gets class ids."""
        names, images, _ = self.study.split(split)
        images = images[: limit or None]
        size, waiting = self.plan["evaluation_batch"], []
        for first in range(0, len(images), size):
            group = images[first : first + size]
            batch = np.stack([*group, *([group[-1]] * (size - len(group)))])
            ids, sure = self.programs.call("evaluate", variables, batch)[:2]
            ids = np.asarray(ids)[: len(group)]
            sure = np.asarray(sure)[: len(group)] if full else None
            if kept is not None:
                kept |= zip(names[first:], ids, strict=False)
            job = _count, split, first, ids, sure, full
            waiting.append(self.study.counters.submit(*job))
        return waiting

    def _join(self, waiting):
        collector = per_image.Collector()
        for future in waiting:
            for name, counts in future.result():
                collector.add(name, counts)
        return collector.result(self.plan["class_names"])

    def _conclude(self):
        """Evaluates the last weights and the best; counting and writing go on alone."""
        last = self.run["stages"][-1]["steps"]
        untouched = not [a for a in self.record["alarms"] if a[2]["action"] != "note"]
        same = self.best["step"] == last and untouched
        self.record["best"] = self.best | {"is_last": same}
        place = os.path.join(self.study.output, self.run["name"].replace("/", "--"))
        states = {"": self.variables}
        if not same:
            states["-best"] = self.variables | self.best_values
        jobs = []
        for split in self.plan["splits"]:
            for suffix, values in states.items():
                is_shown = split + suffix == self.plan["splits"][0]
                is_shown &= self.run["role"] in ROLES and not self.run["variant"]
                kept = {} if is_shown else None
                waiting = self._evaluate(values, split, full=True, kept=kept)
                jobs.append((split + suffix, waiting, kept))
        self.study.later(self._write, place, jobs)

    def _write(self, place, jobs):
        for key, waiting, kept in jobs:
            images = self._join(waiting)
            per_image.write_per_image(images, f"{place}--{key}.npz")
            if kept:
                pictures = {
                    name: cv2.imencode(".png", ids, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
                    for name, ids in kept.items()
                }
                np.savez(f"{place}--{key}.ids.npz", **pictures)
            figures = measures.summarize(images.total(), self.plan["class_names"])
            self.study.report(
                f"{self.run['name']}, {key}: {100 * (figures['miou'] or 0):.2f} %"
            )
        with open(f"{place}.json.tmp", "w", encoding="utf-8") as file:
            json.dump(self.record, file)
        os.replace(f"{place}.json.tmp", f"{place}.json")
