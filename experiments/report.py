r"""Compares finished runs on one page, as a single HTML file and as Markdown.

python -m experiments.report --study=STUDY --output_dir=REPORT
python -m experiments.report --runs=RUNS/vgg16,RUNS/vgg16_g --output_dir=REPORT
"""

import os
import sys

import tensorflow as tf
from absl import app, flags

from experiments.flags import refuse_arguments
from experiments.progress import show_own_messages
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.report import write_report

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_list("runs", [], "Folders of runs.")
    flags.DEFINE_string("study", None, "A study's folder.")
    flags.DEFINE_string("output_dir", None, "Gets the page.", required=True)
    flags.DEFINE_string(
        "split", None, "That the tables are about; default: test, else val."
    )
    flags.DEFINE_string("data_dir", None, "Prepared data; default: the runs' own.")
    flags.DEFINE_bool("panels", True, "Pictures, which need checkpoints and data.")


def main(argv):
    """Reports as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    if not FLAGS.runs and not FLAGS.study:
        sys.exit("error: name runs (--runs=RUN,RUN) or a study (--study=STUDY)")
    try:
        write_report(
            FLAGS.output_dir,
            runs=FLAGS.runs,
            study_dir=FLAGS.study,
            split=FLAGS.split,
            data_dir=FLAGS.data_dir,
            draw_panels=FLAGS.panels,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # damaged data or event files
        sys.exit(f"error: {first_line(error)}")
    print(f"report: {os.path.join(FLAGS.output_dir, 'report.html')}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
