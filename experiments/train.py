r"""Trains one arm, validates it and exports it; the same command again resumes.

python -m experiments.train --arm=vgg16_g --dataset=camvid --data_dir=DATA \
    --workdir=RUN --preset=recommended
"""

import sys

import tensorflow as tf
from absl import app, flags

from experiments.flags import (
    config_from_flags,
    define_config_flags,
    refuse_arguments,
)
from experiments.progress import StepProgress, show_own_messages
from ss_gan_tf.measures import format_table
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.train import train

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    define_config_flags()
    flags.DEFINE_string("data_dir", None, "Prepared data.", required=True)
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)


def main(argv):
    """Trains as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        config = config_from_flags()
        metrics = train(config, FLAGS.data_dir, FLAGS.workdir, StepProgress())
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # a damaged record, no memory left
        sys.exit(f"error: {first_line(error)}")
    print(format_table(metrics))
    print(f"{config.val_split}: {FLAGS.workdir}/eval/{config.val_split}/metrics.json")
    print(f"SavedModel: {FLAGS.workdir}/export")


if __name__ == "__main__":
    define_flags()
    app.run(main)
