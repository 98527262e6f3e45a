r"""Evaluates a run's generator: eq. 8, a table of named classes and metrics.json.

python -m experiments.evaluate --workdir=RUN --split=test

The result goes to RUN/eval/SPLIT/metrics.json, with the counts of every image in
per_image.npz beside it; of the best checkpoint to SPLIT-best, of
the first N images to SPLIT-firstN, of other examples than the run knows under that
name to SPLIT-dataDIGEST, and with another mode, overlap or other scales than the run's
own to SPLIT-sliding, SPLIT-overlapX, SPLIT-xSCALE-xSCALE, mirrored or not to SPLIT-flip
or SPLIT-noflip, so that no result replaces one of another kind.

--submission=DIR also writes the predictions as the benchmark's server takes them; a
split without labels then has no figures.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags

from experiments.flags import parse_numbers, refuse_arguments
from experiments.progress import Progress, show_own_messages
from ss_gan_tf import (
    __version__,
    checkpoints,
    input_pipeline,
    replicas,
    strict_json,
    submission,
)
from ss_gan_tf.backbones import normalize
from ss_gan_tf.evaluate import evaluate, write_evaluation
from ss_gan_tf.measures import METRICS, format_table
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.workers import Workers, digest

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("workdir", None, "The run.", required=True)
    flags.DEFINE_string("split", "val", "Split of the run's data set.")
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which generator.")
    flags.DEFINE_string("data_dir", None, "Prepared data; default: the run's own.")
    flags.DEFINE_enum(
        "eval_mode", None, ["whole", "sliding"], "Default: the run's own."
    )
    flags.DEFINE_float("eval_overlap", None, "Window overlap; default: the run's own.")
    flags.DEFINE_list(
        "eval_scales", None, "Such as 0.75,1,1.25, averaged; default: the run's own."
    )
    flags.DEFINE_bool(
        "eval_flip", None, "Average with mirror images; default: the run's own."
    )
    flags.DEFINE_enum(
        "eval_metrics",
        None,
        METRICS,
        "Default: the run's own, or that of a full result which is replaced; full adds "
        "outlines, granulation, large areas and calibration.",
    )
    flags.DEFINE_enum(
        "distribute",
        "none",
        ["none", "mirrored", "multi_worker"],
        "Images to one GPU, to all GPUs here, or to those of the workers in TF_CONFIG.",
    )
    flags.DEFINE_integer("batch_size", 1, "Images of one size at once.", lower_bound=1)
    flags.DEFINE_string("submission", None, "Gets PNGs for the benchmark's server.")
    flags.DEFINE_integer("limit", 0, "First images only; 0 is all.", lower_bound=0)


def evaluate_run(
    workdir: str,
    *,
    split: str = "val",
    checkpoint: str = "last",
    data_dir: str | None = None,
    mode: str | None = None,
    overlap: float | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    metrics_kind: str | None = None,
    batch_size: int = 1,
    limit: int = 0,
    submission_dir: str | None = None,
    distribute: str = "none",
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[dict[str, Any], str]:
    """Evaluates and writes metrics.json and per_image.npz.

    Args:
        workdir: the run.
        split: a split of the run's data set.
        checkpoint: "last" or "best".
        data_dir: prepared data; None for the run's own.
        mode: "whole" or "sliding"; None for the run's own.
        overlap: of sliding windows, in [0, 1); None for the run's own.
        scales: at which each image is seen; None for the run's own.
        flip: whether mirror images are averaged too; None for the run's own.
        metrics_kind: "basic" or "full"; None for the run's own, or for full where the
            result that will be replaced is.
        batch_size: images of one size in one forward pass.
        limit: first images only; 0 is all.
        submission_dir: gets the predictions for the benchmark's server; None writes
            none.
        distribute: "none", or the images are shared out: "mirrored" to all GPUs of
            this machine, "multi_worker" to those of the workers in TF_CONFIG, of which
            the first writes the result.
        progress: called with the number of images done and of all images.

    Returns:
        The metrics and the path of their file.

    Raises:
        FileNotFoundError: no run, no checkpoint or no data there.
        FileExistsError: another submission is in its folder.
        ValueError: no such split, data of other classes than the run's, a setting
            that cannot be, or no server for the data set; or workers differ.
        ConnectionError: another worker is gone.
    """
    strategy = replicas.make_strategy(distribute)
    workers = Workers(strategy)

    def prepare():
        if submission_dir and distribute == "multi_worker":
            raise ValueError(
                f"submission={submission_dir}: is written by one process, which "
                "distribute=multi_worker is not; mirrored uses all GPUs of one machine"
            )
        asked = {"mode": mode, "overlap": overlap, "scales": scales, "flip": flip}
        task = _Task(workdir, data_dir, split, checkpoint, limit, metrics_kind, asked)
        return task, task.facts() | {"batch_size": batch_size}

    with replicas.naming_lost_workers(strategy, "it begins anew"):
        task = workers.agree(prepare)
        with strategy.scope():
            generator = task.build_generator()
        info = workers.agree(lambda: task.restore(generator, workers.count > 1))
        write = None
        if submission_dir:
            write = submission.make_writer(
                task.config.dataset,
                submission_dir,
                split=split,
                num_classes=len(task.data.class_names),
            )
        kept = []
        metrics = evaluate(
            generator,
            task.examples((workers.number, workers.count)),
            class_names=task.data.class_names,
            ignore_label=task.data.ignore_label,
            normalize=normalize,
            mode=task.config.eval_mode,
            window=task.config.eval_window,
            overlap=task.config.eval_overlap,
            scales=task.config.eval_scales,
            flip=task.config.eval_flip,
            batch_size=batch_size,
            progress=progress and (lambda done, _: progress(done, task.num_examples)),
            on_prediction=write,
            full=task.metrics_kind == "full",
            on_counts=kept.append,
            devices=replicas.devices(strategy),
            join=workers.join,
        )
        metrics |= {
            "dataset": task.config.dataset,
            "split": split,
            "partial": task.data.partial,
            "limit": limit,
            **info,
        }

        def write_result():
            """Worker 0 writes; all end well where it could."""
            if workers.number == 0:
                write_evaluation(metrics, kept[0], os.path.dirname(task.path))
            return None, {}

        workers.agree(write_result)
    return metrics, task.path


class _Task:
    """What is evaluated, and where the result goes.

    Args:
        workdir, data_dir, split, checkpoint, limit, metrics_kind: as for
            `evaluate_run`.
        asked: mode, overlap, scales and flip, as for `evaluate_run`.

    Attributes:
        config: the run's, with the settings of evaluation that were asked for.
        data: the prepared data set.
        path: of the result.
        num_examples: how many of the split are evaluated.
    """

    def __init__(
        self, workdir, data_dir, split, checkpoint, limit, metrics_kind, asked
    ):
        self.run = checkpoints.read_run(workdir)
        self.split, self.checkpoint, self.limit = split, checkpoint, limit
        self.data = input_pipeline.open_dataset(
            self.run.config.dataset, data_dir or self.run.data_dir
        )
        if tuple(self.data.class_names) != tuple(self.run.class_names):
            raise ValueError(
                f"the run has the classes {', '.join(self.run.class_names)}, but the "
                f"data has {', '.join(self.data.class_names)}"
            )
        self.data.source(split)  # an unknown one is an error
        size = self.data.split_sizes[split]
        self.num_examples = min(limit or size, size)
        self._weights = checkpoints.find_checkpoint(workdir, checkpoint)
        changes = {f"eval_{name}": v for name, v in asked.items() if v is not None}
        self.config = dataclasses.replace(self.run.config, **changes)
        overlap, mode = asked["overlap"], self.config.eval_mode
        if overlap is not None and mode != "sliding":
            raise ValueError(
                f"eval_overlap={overlap}: is that of windows, which eval_mode={mode} "
                "has not; give --eval_mode=sliding"
            )
        self._name = self._name_result()
        self.path = os.path.join(workdir, "eval", self._name, "metrics.json")
        own = "full" if _is_full(self.path) else self.config.eval_metrics
        self.metrics_kind = metrics_kind or own

    def facts(self) -> dict:
        """What all workers must have alike."""
        return json.loads(self.config.to_json()) | {
            "version": __version__,
            "result": self._name,
            "checkpoint": os.path.relpath(self._weights, self.run.workdir),
            "eval_metrics": self.metrics_kind,
            f"examples of {self.split}": self.num_examples,
            f"digest of {self.split}": self.data.digests.get(self.split),
        }

    def build_generator(self):
        return checkpoints.build_run_generator(
            self.run.config, len(self.run.class_names)
        )

    def restore(self, generator, has_partners):
        """Which weights it has then, and what all workers must have alike."""
        info = checkpoints.restore_generator(generator, self._weights)
        info["checkpoint"] = os.path.relpath(self._weights, self.run.workdir)
        if not has_partners:
            return info, {}
        return info, {"digest of the weights": digest(generator.variables)}

    def examples(self, worker):
        """A worker's share; see `input_pipeline.eval_examples`."""
        return input_pipeline.eval_examples(
            self.data, self.split, limit=self.limit or None, worker=worker
        )

    def _name_result(self):
        """The folder of the result, another one for each kind."""
        own, asked = self.run.config, self.config
        name = self.split + ("-best" if self.checkpoint == "best" else "")
        name += f"-first{self.limit}" * bool(self.limit)
        if asked.eval_mode != own.eval_mode:
            name += f"-{asked.eval_mode}"
        if self.run.other_splits(self.data.digests, [self.split]):
            name += f"-data{self.data.digests[self.split][:8]}"
        if asked.eval_overlap != own.eval_overlap:
            name += f"-overlap{asked.eval_overlap:g}"
        if asked.eval_scales != own.eval_scales:
            name += "".join(f"-x{scale:g}" for scale in asked.eval_scales)
        if asked.eval_flip != own.eval_flip:
            name += "-flip" if asked.eval_flip else "-noflip"
        return name


def _is_full(path):
    """Whether a result has the full metrics, which a basic one would lose."""
    try:
        return "granulation" in strict_json.read(path)
    except (OSError, ValueError):
        return False


def main(argv):
    """Evaluates as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        scales = FLAGS.eval_scales
        if scales is not None:
            scales = parse_numbers("eval_scales", scales, float)
        metrics, path = evaluate_run(
            FLAGS.workdir,
            split=FLAGS.split,
            checkpoint=FLAGS.checkpoint,
            data_dir=FLAGS.data_dir,
            mode=FLAGS.eval_mode,
            overlap=FLAGS.eval_overlap,
            scales=scales,
            flip=FLAGS.eval_flip,
            metrics_kind=FLAGS.eval_metrics,
            batch_size=FLAGS.batch_size,
            limit=FLAGS.limit,
            submission_dir=FLAGS.submission,
            distribute=FLAGS.distribute,
            progress=Progress("images"),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # a damaged record, no memory left
        sys.exit(f"error: {first_line(error)}")
    if metrics["num_pixels"]:
        print(format_table(metrics))
    else:
        print(f"{FLAGS.split} has no labels: nothing to score")
    if FLAGS.submission:
        print(f"submission: {FLAGS.submission}")
    if metrics["partial"]:
        print(f"{metrics['dataset']} was prepared from a partial source")
    print(f"{metrics['num_images']} images, {metrics['mode']}: {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
