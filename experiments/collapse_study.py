r"""Provokes collapses of phase 2 with the guard and without, and tabulates the ends.

python -m experiments.collapse_study --data_dir=DATA --workdir=RUNS/collapse

DATA needs the synthetic set. The same command again goes on with what is missing.
"""

import sys

import tensorflow as tf
from absl import app, flags

from experiments.flags import parse_numbers, refuse_arguments
from experiments.progress import show_own_messages
from ss_gan_tf.collapse import PROVOCATIONS, format_table, run_study
from ss_gan_tf.messages import first_line, one_line

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("data_dir", None, "Prepared data.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_list("provocations", list(PROVOCATIONS), "Which, of these.")


def main(argv):
    """Runs the study; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        unknown = set(FLAGS.provocations) - set(PROVOCATIONS)
        if unknown:
            raise ValueError(
                f"provocations={','.join(sorted(unknown))}: must be among "
                f"{', '.join(PROVOCATIONS)}"
            )
        table = run_study(
            FLAGS.data_dir,
            FLAGS.workdir,
            seeds=parse_numbers("seeds", FLAGS.seeds, int),
            provocations=FLAGS.provocations,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # a damaged record, no memory left
        sys.exit(f"error: {first_line(error)}")
    print(format_table(table))


if __name__ == "__main__":
    define_flags()
    app.run(main)
