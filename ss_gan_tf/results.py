"""What a run left behind, read for comparison: its role, metrics, last validations."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ss_gan_tf import config_rules, strict_json, summaries
from ss_gan_tf.config import Config

# What a run is to a comparison -> what sets it apart from the adversarial arm.
ROLES = {
    "phase1": {},
    "control": {"lambda_adv": 0.0},
    "adversarial": {},
    "entropy": {"placebo": "entropy"},
    "frozen_adversary": {"placebo": "frozen_adversary"},
}
PLACEBOS = ("entropy", "frozen_adversary")

# Fields of Config that the control does not read.
ADVERSARY_FIELDS = set(config_rules.ADVERSARY)

# Fields that a role does not read, so that a study does not pass them on.
_PHASE1 = set(config_rules.PHASE1)
UNUSED = {
    "phase1": {*config_rules.PHASE2, *ADVERSARY_FIELDS},
    "control": _PHASE1 | ADVERSARY_FIELDS,
    "adversarial": _PHASE1,
    "entropy": _PHASE1,
    "frozen_adversary": _PHASE1 | {"adversary_lr", "adversary_warmup_steps"},
}


def role_of(config: Config) -> str:
    """What a run is to a comparison: a key of ROLES."""
    if not config.uses_phase2:
        return "phase1"
    if config.is_control:
        return "control"
    return "adversarial" if config.placebo == "none" else config.placebo


def in_words(role: str) -> str:
    """A role as a page names it; a variant keeps its name."""
    return role.replace("_", " ") if role in ROLES else role


def unread_fields(config: Config) -> set[str]:
    """Fields of Config that a run did not read, whatever they say."""
    unread = {*UNUSED[role_of(config)], *config_rules.unused(config)}
    if config.is_control:
        unread -= {"lambda_adv"}  # that makes it one
    return unread if config.init_generator else unread - _PHASE1


def read_metrics(run_dir: str, kind: str) -> dict[str, Any]:
    """A metrics.json that evaluation left in RUN/eval/KIND.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged; the message names the file.
    """
    path = os.path.join(run_dir, "eval", kind, "metrics.json")
    figures = read_json(path, ("miou", "iou", "num_images"))
    matrix = figures.get("confusion_matrix", [])
    if not isinstance(matrix, list) or not all(
        isinstance(row, list)
        and len(row) == len(matrix)
        and all(type(count) is int for count in row)
        for row in matrix
    ):
        raise ValueError(f"{path}: confusion_matrix must be a square of numbers")
    return figures


def last_validations(run_dir: str, config: Config, count: int) -> dict[str, Any]:
    """Mean of a run's last validations: one checkpoint's luck weighs less in it.

    What was validated before the guard went back led nowhere, so it does not count;
    and nothing does where the guard ended the run, whose G is phase 1's.

    Args:
        run_dir: RUN.
        config: of the run.
        count: how many; the state that phase 2 starts from is none of them.

    Returns:
        {"mean": fraction or None, "count": how many there were, "steps": at which,
        "guard": what `guard_outcome` says}.

    Raises:
        ValueError: the guard's file is damaged.
    """
    outcome = guard_outcome(run_dir)
    # Curves count G's steps over both phases, the guard those of phase 2.
    has_both = config.uses_phase2 and not config.init_generator
    begin = (config.phase1_steps if has_both else 0) + (outcome["last_step"] or 0)
    curve = summaries.read_scalars(run_dir, ["val/miou"])["val/miou"]
    points = [(step, value) for step, value in curve if step > begin][-count:]
    if outcome["ended"]:
        points = []
    values = [value for _, value in points]
    return {
        "mean": sum(values) / len(values) if values else None,
        "count": len(values),
        "steps": [step for step, _ in points],
        "guard": outcome,
    }


def guard_outcome(run_dir: str) -> dict[str, Any]:
    """What the guard did to a run, from its own file: evaluations know nothing of it.

    Returns:
        {"ways_back": how often it went back, "ended": whether it ended the run with
        phase 1's weights, "last_step": of phase 2, when it last did either, or None}.

    Raises:
        ValueError: the guard's file is damaged.
    """
    alarms = summaries.read_alarms(run_dir)
    done = [alarm for alarm in alarms if alarm["action"] in ("back", "end")]
    return {
        "ways_back": sum(alarm["action"] == "back" for alarm in done),
        "ended": any(alarm["action"] == "end" for alarm in done),
        "last_step": done[-1]["step"] if done else None,
    }


def check_fields(
    path: str,
    place: str,
    content: Any,
    kinds: Mapping[str, Any],
    optional: bool = False,
):
    """Checks a part of a JSON file: an object whose fields are of these kinds.

    Args:
        path: of the file, for the message.
        place: of the part in it, for the message.
        content: of the part.
        kinds: name -> type or types, a bool being no number.
        optional: whether fields may be missing.

    Raises:
        ValueError: it is something else; the message names file and part.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {place} must be an object")
    for name, kind in kinds.items():
        if optional and name not in content:
            continue
        value = content.get(name)
        is_number = not isinstance(value, bool) or kind is bool
        if not (isinstance(value, kind) and is_number):
            raise ValueError(f"{path}: {name} of {place} is missing or damaged")


def read_json(path: str, needed: Sequence[str]) -> dict[str, Any]:
    """A JSON object with the fields that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; the message names the file.
    """
    try:
        content = strict_json.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if set(needed) - set(content):
        raise ValueError(f"{path}: must hold {', '.join(needed)}")
    return content
