r"""Trains phase 1, control, adversarial arm and placebos over seeds and backbones.

python -m experiments.study --dataset=camvid --data_dir=DATA --workdir=STUDY \
    --seeds=3 --arms=vgg16,resnet50 --placebos \
    --variant="ratio0.1: --gradient_ratio=0.1"

The same command again continues where it stopped, tries failed runs again, and may ask
for more seeds, arms, placebos or variants. A run that fails does not stop the others;
the exit code is then 1. Flags of the train program are passed on to every run that uses
them. Long lists of variants stand in a file, a flag a line: --flagfile=FILE.
"""

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence

import tensorflow as tf
from absl import app, flags

from experiments.flags import (
    config_from_flags,
    define_config_flags,
    define_memory_flag,
    parse_fields,
    refuse_arguments,
    refuse_given,
    refuse_unused,
)
from experiments.progress import show_own_messages
from ss_gan_tf import input_pipeline, study
from ss_gan_tf.config import Config
from ss_gan_tf.messages import first_line, one_line

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    define_config_flags(preset="recommended")
    flags.DEFINE_string("data_dir", None, "Prepared data.", required=True)
    flags.DEFINE_string("workdir", None, "The study's folder.", required=True)
    define_memory_flag()
    flags.DEFINE_integer("seeds", 3, "Runs the seeds 0, 1, ... of this number.")
    flags.DEFINE_list("arms", ["vgg16", "resnet50"], "Backbones.")
    flags.DEFINE_bool("placebos", False, "Both placebos too.")
    flags.DEFINE_multi_string(
        "variant",
        [],
        "NAME: FLAGS. The adversarial arm again with other flags of the adversary, "
        "against the same control; may be given any number of times.",
    )
    flags.DEFINE_bool(
        "prune",
        False,
        "Variants and placebos keep their figures alone, no weights, once evaluated: "
        "for full disks. Splits cannot be added to them afterwards.",
    )
    flags.DEFINE_list(
        "eval_splits", [], "Evaluated at the end; default: val, and test with labels."
    )
    flags.DEFINE_string(
        "write_programs",
        None,
        "Instead of running, write the runs into this folder, for "
        "experiments.study_programs on a machine with JAX and no TensorFlow.",
    )
    flags.DEFINE_string(
        "read_programs",
        None,
        "Instead of running, make the study of what experiments.study_programs left "
        "in this folder.",
    )
    flags.DEFINE_integer(
        "last_validations", 3, "Validations at the end of a run that are averaged."
    )


def settings_from_flags() -> study.Settings:
    """What the study is told.

    Raises:
        FileNotFoundError: the data are not prepared.
        ValueError: a value does not fit, or is the study's own to choose.
    """
    for name in study.RESERVED:
        if FLAGS[name].present:
            raise ValueError(f"{name}={FLAGS[name].value}: the study chooses it itself")
    backbones = study.check_backbones(FLAGS.arms)
    config = config_from_flags([f"{backbone}_g" for backbone in backbones])
    data = input_pipeline.open_dataset(config.dataset, FLAGS.data_dir)
    splits = tuple(FLAGS.eval_splits)
    if not splits:
        splits = tuple(
            split
            for split in dict.fromkeys(("test", config.val_split))
            if split in data.split_sizes and split not in data.unlabelled_splits
        )
    for split in {config.train_split, config.val_split, *splits}:
        data.source(split)  # an unknown split is an error before the long work
    given = [field.name for field in dataclasses.fields(Config)]
    return study.Settings(
        config=config,
        flags=(
            f"--preset={FLAGS.preset}",
            *(_as_given(name) for name in given if FLAGS[name].present),
        ),
        data_dir=FLAGS.data_dir,
        seeds=FLAGS.seeds,
        backbones=backbones,
        placebos=FLAGS.placebos,
        variants=tuple(_variant(text, config, backbones) for text in FLAGS.variant),
        prune=FLAGS.prune,
        splits=splits,
        last_validations=FLAGS.last_validations,
        # The report's tables of outlines and granulation; training may do without.
        evaluate_flags=("--eval_metrics=full",),
        digests=data.digests,
    )


def _variant(text: str, config: Config, backbones: Sequence[str]) -> study.Variant:
    """`NAME: FLAGS` -> the variant.

    Raises:
        ValueError: a flag is none, or does nothing in such a run, or all of them say
            what the study says already.
    """
    name, _, words = text.partition(":")
    try:
        given = shlex.split(words)
        changes = parse_fields(given)
        variant = study.Variant(name.strip(), tuple(given), changes)
        configs = [
            dataclasses.replace(config, arm=f"{backbone}_g", **changes)
            for backbone in backbones
        ]
        refuse_unused(changes, *configs)
        if dataclasses.replace(config, **changes) == config:
            raise ValueError("changes nothing")
    except ValueError as error:
        raise ValueError(f"--variant={text!r}: {error}") from error
    return variant


def _as_given(name: str) -> str:
    """A flag as a word of a command line."""
    value = FLAGS[name].value
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(value) if isinstance(value, list) else value}"


def main(argv):
    """Runs the study as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    # Told to stop, leave by an exception, which ends the running program too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to stop"))
    program = [sys.executable, "-m"]
    memory = [] if FLAGS.keep_freed_memory else ["--nokeep_freed_memory"]
    try:
        if "" in (FLAGS.write_programs, FLAGS.read_programs):
            raise ValueError("write_programs, read_programs: need a folder")
        if FLAGS.write_programs and FLAGS.read_programs:
            raise ValueError(
                f"write_programs={FLAGS.write_programs}: not together with "
                f"read_programs={FLAGS.read_programs}"
            )
        if FLAGS.write_programs or FLAGS.read_programs:
            refuse_given(FLAGS, ["keep_freed_memory"], "for steps that are programs")
        if FLAGS.write_programs:
            from experiments.programs import write

            write.write_study(
                settings_from_flags(),
                FLAGS.write_programs,
                report=lambda line: print(line, flush=True),
            )
            return
        if FLAGS.read_programs:
            from experiments.programs import read

            result = read.read_study(
                settings_from_flags(),
                FLAGS.read_programs,
                FLAGS.workdir,
                report=lambda line: print(line, flush=True),
            )
        else:
            result = study.run_study(
                settings_from_flags(),
                FLAGS.workdir,
                [*program, "experiments.train", *memory],
                [*program, "experiments.evaluate"],
                report=lambda line: print(line, flush=True),
            )
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the same command continues")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # event files that cannot be read
        sys.exit(f"error: {first_line(error)}")
    print(f"study: {os.path.join(FLAGS.workdir, 'study.json')}")
    open_runs = [
        f"{name} ({run['status']})"
        for name, run in result["runs"].items()
        if run["status"] != "done"
    ]
    if open_runs:
        sys.exit(f"error: {len(open_runs)} not finished: {'; '.join(open_runs)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
