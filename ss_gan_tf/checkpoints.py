"""A run's folder: what it was told, what it learned, how to open it again.

RUN/run.json              config, classes, versions, weights file, parameters
RUN/checkpoints/          the newest full states, to resume from
RUN/best/PHASE/           G at its best validation mIoU of each phase; a full state in
                          phase 2 under the guard
RUN/guard/                G as a guarded phase 2 found it
RUN/export/  RUN/eval/    written by export.py and the evaluation
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from ss_gan_tf import config_rules, strict_json
from ss_gan_tf.backbones import load_imagenet
from ss_gan_tf.config import (
    BOOKKEEPING,
    EVALUATION,
    EXECUTION,
    Config,
    differences,
)
from ss_gan_tf.generator import build_generator
from ss_gan_tf.messages import first_line
from ss_gan_tf.states import UNREADABLE, numbers

PHASES = ("phase1", "phase2")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished or running training says of itself."""

    workdir: str
    config: Config
    data_dir: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]  # RGB
    ignore_label: int
    provenance: dict  # versions, weights file, parameter counts, data_digests

    @property
    def data_digests(self) -> dict[str, str]:
        """Split -> digest of its examples as the run began; of others not known."""
        return self.provenance.get("data_digests", {})

    def other_splits(
        self, digests: dict[str, str], splits: Sequence[str] | None = None
    ) -> list[str]:
        """Splits whose examples are not those that the run knows.

        Args:
            digests: split -> digest of data of the run's name.
            splits: that are looked at; default: those that the run trained on and
                was validated on.
        """
        if splits is None:
            splits = dict.fromkeys((self.config.train_split, self.config.val_split))
        return other_splits(self.data_digests, digests, splits)


def other_splits(
    first: dict[str, str], second: dict[str, str], splits: Iterable[str]
) -> list[str]:
    """Splits whose digests are known on both sides, and differ."""
    shared = [split for split in splits if split in first and split in second]
    return [split for split in shared if first[split] != second[split]]


def write_run(run: Run):
    """Writes RUN/run.json, atomically."""
    fields = dataclasses.asdict(run)
    fields.pop("workdir")
    path = os.path.join(run.workdir, "run.json")
    with open(path + ".tmp", "w") as file:
        json.dump(fields, file, indent=2)
    os.replace(path + ".tmp", path)


def read_run(workdir: str) -> Run:
    """Opens a run's folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its run.json is damaged.
    """
    path = os.path.join(workdir, "run.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{workdir}: no run here (run.json is missing)")
    try:
        fields = strict_json.read(path)
        names, colors = strict_json.class_table(fields)
        kinds = {"data_dir": str, "ignore_label": int, "provenance": dict}
        for name, kind in kinds.items():
            if type(fields[name]) is not kind:
                raise ValueError(f"{name} must be a {kind.__name__}")
        machines = fields["provenance"].get("machines", [])
        if not isinstance(machines, list) or not all(
            isinstance(machine, dict) for machine in machines
        ):
            raise ValueError("machines must be a list of objects")
        digests = fields["provenance"].get("data_digests", {})
        if not isinstance(digests, dict) or not all(
            isinstance(digest, str) for digest in digests.values()
        ):
            raise ValueError("data_digests must be an object of strings")
        return Run(
            workdir=workdir,
            config=Config.from_json(json.dumps(fields["config"])),
            class_names=names,
            class_colors=colors,
            **{name: fields[name] for name in kinds},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a run's description ({first_line(error)})"
        ) from error


def with_start(config: Config, workdir: str) -> Config:
    """The settings with the run that G starts from where it lies now.

    A study may have moved: what its runs start from is the phase 1 beside them.

    Args:
        config: of a run.
        workdir: RUN.
    """
    if not config.init_generator:
        return config
    start = os.path.realpath(config.init_generator)
    beside = os.path.join(
        os.path.dirname(os.path.realpath(workdir)), os.path.basename(start)
    )
    # STUDY/seedN/BACKBONE/phase1
    if start.split(os.sep)[-3:] == beside.split(os.sep)[-3:]:
        start = beside
    return dataclasses.replace(config, init_generator=start)


def check_same_run(
    workdir: str,
    config: Config,
    class_names: tuple[str, ...],
    may_differ: Sequence[str] = BOOKKEEPING + EXECUTION,
    digests: dict[str, str] | None = None,
):
    """Refuses to continue another run in its folder.

    Args:
        workdir: RUN.
        config: of the run that is to go on there.
        class_names: of its data set.
        may_differ: fields that do not count.
        digests: split -> digest of its data set's examples.

    Raises:
        ValueError: the folder holds a run of other classes, other settings or other
            data; the message names each with both values.
    """
    old = read_run(workdir)
    if old.class_names != tuple(class_names):
        raise ValueError(
            f"{workdir}: holds a run with {len(old.class_names)} classes "
            f"{list(old.class_names)}, the data set has {len(class_names)} "
            f"{list(class_names)}; choose another --workdir"
        )
    # What neither reads may differ: it was not refused once.
    unread = set(config_rules.unused(old.config)) & set(config_rules.unused(config))
    pair = (with_start(each, workdir) for each in (old.config, config))
    found = differences(*pair, ignored={*may_differ, *unread})
    if found:
        told = "; ".join(found.values())
        hint = "choose another --workdir"
        if set(found) <= set(EVALUATION):
            hint += ", or evaluate its end with experiments.evaluate"
        raise ValueError(f"{workdir}: holds a run with other settings ({told}); {hint}")
    if other := old.other_splits(digests or {}):
        raise ValueError(
            f"{workdir}: holds a run on {config.dataset} whose examples of "
            f"{' and '.join(other)} were others than those prepared now; choose "
            "another --workdir, or prepare the data as they were"
        )


def make_way(
    workdir: str,
    config: Config,
    class_names: tuple[str, ...],
    digests: dict[str, str] | None = None,
):
    """Prepares a folder without a state for a run from the start.

    What this very run left there before its first state is removed: its `best` would
    stand beside the new one's.

    Raises:
        ValueError: the folder holds results of a run whose states are gone.
    """
    left = [
        name
        for name in ("best", "guard", "eval", "export")
        if os.path.isdir(os.path.join(workdir, name))
    ]
    if {"eval", "export"} & set(left):
        raise ValueError(
            f"{workdir}: holds results ({', '.join(left)}) of a run whose states are "
            "gone; remove the folder, or choose another --workdir"
        )
    if left:
        may_differ = BOOKKEEPING + EXECUTION + EVALUATION  # nothing to compare with yet
        check_same_run(workdir, config, class_names, may_differ, digests)
    for name in left:
        shutil.rmtree(os.path.join(workdir, name))


def build_run_generator(config: Config, num_classes: int) -> keras.Model:
    """G of a run, with random weights."""
    return build_generator(
        config.backbone,
        num_classes,
        width=config.width,
        fc_filters=config.fc_filters,
        dropout=config.dropout,
        aspp_rates=config.aspp_rates,
        head_norm=config.head_norm,
        freeze_backbone_norm=config.backbone_weights != "none",
    )


def load_generator(run: Run, checkpoint: str = "last") -> tuple[keras.Model, dict]:
    """G of a run with its trained weights, in float32.

    Args:
        run: from `read_run`.
        checkpoint: `last`, or `best` by validation mIoU in the run's last phase
            that has one.

    Returns:
        The model, and {"checkpoint": path prefix, "phase": name, "step": steps
        within that phase}.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint does not fit the network.
    """
    path = find_checkpoint(run.workdir, checkpoint)
    generator = build_run_generator(run.config, len(run.class_names))
    return generator, restore_generator(generator, path)


def has_checkpoint(workdir: str) -> bool:
    """Whether the folder holds a state to resume from, whole or damaged."""
    return bool(numbers(os.path.join(workdir, "checkpoints")))


def find_checkpoint(workdir: str, which: str) -> str:
    """Path prefix of a run's `last` or `best` checkpoint.

    Raises:
        FileNotFoundError: there is none yet.
    """
    folders = {
        "last": [os.path.join(workdir, "checkpoints")],
        "best": [os.path.join(workdir, "best", phase) for phase in PHASES[::-1]],
    }[which]
    for folder in folders:
        path = tf.train.latest_checkpoint(folder)
        if path:
            return path
    raise FileNotFoundError(f"{workdir}: no {which} checkpoint yet in {folders[0]}")


def best_is_last(workdir: str) -> bool:
    """Whether a run's `best` and `last` checkpoints are of the same step.

    Without the guard the weights are then the same; with it a run may come to a step
    twice.
    """
    try:
        positions = [
            tuple(
                tf.train.load_variable(
                    find_checkpoint(workdir, which),
                    f"position/{name}/.ATTRIBUTES/VARIABLE_VALUE",
                )
                for name in ("stage", "step")
            )
            for which in ("last", "best")
        ]
    except (FileNotFoundError, *UNREADABLE):
        return False
    return positions[0] == positions[1]


def restore_generator(generator: keras.Model, path: str) -> dict:
    """Loads G's weights from one checkpoint, its average where it holds one.

    Args:
        generator: of the same architecture and class count.
        path: checkpoint prefix.

    Returns:
        {"checkpoint", "phase", "step"}.

    Raises:
        ValueError: the checkpoint does not fit the network, or cannot be read.
    """
    position = Position()
    try:
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        averages = any(name.startswith("average/") for name in names)
        part = {"average" if averages else "generator": generator}
        status = tf.train.Checkpoint(position=position, **part)
        status = status.read(path)
        status.assert_existing_objects_matched().expect_partial()
    except UNREADABLE as error:
        raise ValueError(
            f"{path}: not a checkpoint of this generator "
            f"({generator.output_shape[-1]} classes): {first_line(error)}"
        ) from error
    return {"checkpoint": path, **position.describe()}


class Position(tf.Module):
    """Where a run stands, as variables that a checkpoint saves."""

    def __init__(self):
        super().__init__()
        self.stage = tf.Variable("", trainable=False, name="stage")
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")

    def describe(self) -> dict:
        """{"phase", "step"}: the stage, and the steps done within it."""
        return {
            "phase": self.stage.numpy().decode(),
            "step": int(self.step.numpy()),
        }


def initialize_generator(
    generator: keras.Model, config: Config, class_names: tuple[str, ...]
) -> dict:
    """Gives a new run's G its first weights: ImageNet's, or another run's G.

    Args:
        generator: from `build_run_generator`.
        config: the new run's.
        class_names: of the data set.

    Returns:
        Where the weights come from.

    Raises:
        FileNotFoundError: no weights file, or no run or checkpoint to start from.
        ValueError: they do not fit.
    """
    if not config.init_generator:
        return load_imagenet(generator, config.backbone, config.backbone_weights)
    path = check_start(config, class_names)
    return {"init_generator": restore_generator(generator, path)}


def check_start(config: Config, class_names: tuple[str, ...]) -> str:
    """Refuses to start from the G of another network or of other classes.

    Args:
        config: the new run's, with init_generator.
        class_names: of the data set.

    Returns:
        Prefix of the checkpoint to start from.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: it does not fit.
    """
    path = _starting_checkpoint(config.init_generator)
    origin = _run_around(path)
    if origin:
        _check_same_network(origin, config, class_names)
    return path


def _starting_checkpoint(path: str) -> str:
    """Checkpoint prefix behind --init_generator: a run, its best/PHASE, or a prefix."""
    if os.path.isfile(os.path.join(path, "run.json")):
        return find_checkpoint(path, "last")
    prefix = tf.train.latest_checkpoint(path) if os.path.isdir(path) else path
    if not prefix or not os.path.isfile(prefix + ".index"):
        raise FileNotFoundError(
            f"init_generator={path}: neither a run's folder nor a checkpoint"
        )
    return prefix


def _run_around(checkpoint: str) -> Run | None:
    """The run that a checkpoint lies in: RUN/checkpoints/X or RUN/best/PHASE/X."""
    folder = os.path.dirname(os.path.abspath(checkpoint))
    for _ in range(2):
        folder = os.path.dirname(folder)
        if os.path.isfile(os.path.join(folder, "run.json")):
            return read_run(folder)
    return None


def _check_same_network(origin: Run, config: Config, class_names: tuple[str, ...]):
    """Refuses another architecture whose weights happen to have the same shapes."""
    if origin.class_names != tuple(class_names):
        raise ValueError(
            f"init_generator={config.init_generator}: its classes "
            f"{list(origin.class_names)} are not the data set's {list(class_names)}"
        )
    names = ["backbone", "width"]
    if config.backbone == "resnet50":
        names += ["aspp_rates", "head_norm"]
    else:
        names += ["fc_filters"]
    for name in names:
        there, here = getattr(origin.config, name), getattr(config, name)
        if there != here:
            raise ValueError(
                f"init_generator={config.init_generator}: its {name} is {there!r}, "
                f"this run's is {here!r}"
            )
    weights = [each.backbone_weights for each in (origin.config, config)]
    if config.backbone == "resnet50" and "none" in weights and len(set(weights)) > 1:
        raise ValueError(
            f"init_generator={config.init_generator}: its backbone_weights is "
            f"{weights[0]!r}, this run's is {weights[1]!r}; batch normalisation trains "
            "with none and is frozen otherwise, so both have to be none or neither"
        )
