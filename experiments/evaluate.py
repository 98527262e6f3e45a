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
from ss_gan_tf import checkpoints, input_pipeline, replicas, strict_json, submission
from ss_gan_tf.backbones import normalize
from ss_gan_tf.evaluate import evaluate, write_evaluation
from ss_gan_tf.measures import METRICS, format_table
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.workers import Workers

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
    if submission_dir and distribute == "multi_worker":
        raise ValueError(
            f"submission={submission_dir}: is written by one process, which "
            "distribute=multi_worker is not; mirrored uses all GPUs of one machine"
        )
    strategy = replicas.make_strategy(distribute)
    workers = Workers(strategy)

    def prepare():
        """Refuses what cannot be evaluated; what all workers must have alike."""
        run = checkpoints.read_run(workdir)
        prepared = input_pipeline.open_dataset(
            run.config.dataset, data_dir or run.data_dir
        )
        if tuple(prepared.class_names) != tuple(run.class_names):
            raise ValueError(
                f"the run has the classes {', '.join(run.class_names)}, but the data "
                f"has {', '.join(prepared.class_names)}"
            )
        prepared.source(split)  # an unknown one is an error
        given = {"mode": mode, "overlap": overlap, "scales": scales, "flip": flip}
        changes = {f"eval_{name}": v for name, v in given.items() if v is not None}
        asked = dataclasses.replace(run.config, **changes)
        if overlap is not None and asked.eval_mode != "sliding":
            raise ValueError(
                f"eval_overlap={overlap}: is that of windows, which "
                f"eval_mode={asked.eval_mode} has not; give --eval_mode=sliding"
            )
        name = _result_name(run, asked, prepared, split, checkpoint, limit)
        path = os.path.join(workdir, "eval", name, "metrics.json")
        kind = metrics_kind or ("full" if _is_full(path) else run.config.eval_metrics)
        found = checkpoints.find_checkpoint(workdir, checkpoint)
        facts = json.loads(asked.to_json()) | {
            "result": name,
            "checkpoint": os.path.relpath(found, workdir),
            "eval_metrics": kind,
            f"digest of {split}": prepared.digests.get(split),
        }
        return (run, prepared, asked, path, kind, found), facts

    with replicas.naming_lost_workers(strategy, "it begins anew"):
        run, prepared, asked, path, metrics_kind, found = workers.agree(prepare)
        with strategy.scope():
            generator = checkpoints.build_run_generator(
                run.config, len(run.class_names)
            )
        info = workers.agree(
            lambda: (checkpoints.restore_generator(generator, found), {})
        )
        write = None
        if submission_dir:
            write = submission.make_writer(
                run.config.dataset,
                submission_dir,
                split=split,
                num_classes=len(run.class_names),
            )
        kept = []
        metrics = evaluate(
            generator,
            input_pipeline.eval_examples(
                prepared,
                split,
                limit=limit or None,
                worker=(workers.number, workers.count),
            ),
            class_names=run.class_names,
            ignore_label=prepared.ignore_label,
            normalize=normalize,
            mode=asked.eval_mode,
            window=asked.eval_window,
            overlap=asked.eval_overlap,
            scales=asked.eval_scales,
            flip=asked.eval_flip,
            batch_size=batch_size,
            progress=progress,
            on_prediction=write,
            full=metrics_kind == "full",
            on_counts=kept.append,
            devices=replicas.devices(strategy),
            join=workers.join,
        )
    info["checkpoint"] = os.path.relpath(info["checkpoint"], workdir)
    metrics |= {
        "dataset": run.config.dataset,
        "split": split,
        "partial": prepared.partial,
        "limit": limit,
        **info,
    }
    if workers.number == 0:
        write_evaluation(metrics, kept[0], os.path.dirname(path))
    return metrics, path


def _result_name(run, asked, prepared, split, checkpoint, limit):
    """The folder of a result, another one for each kind."""
    own = run.config
    name = split + ("-best" if checkpoint == "best" else "")
    name += f"-first{limit}" * bool(limit)
    if asked.eval_mode != own.eval_mode:
        name += f"-{asked.eval_mode}"
    if run.other_splits(prepared.digests, [split]):
        name += f"-data{prepared.digests[split][:8]}"
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
