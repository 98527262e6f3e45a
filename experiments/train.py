r"""Trains one arm, validates it and exports it; the same command again resumes.

python -m experiments.train --arm=vgg16_g --dataset=camvid --data_dir=DATA \
    --workdir=RUN --preset=recommended

SIGTERM and SIGINT (Ctrl-C) save and stop: exit code 143 or 130. The same command again
goes on, after those as after any other end.
"""

import signal
import sys

import tensorflow as tf
from absl import app, flags

from experiments.flags import (
    config_from_flags,
    define_config_flags,
    define_memory_flag,
    refuse_arguments,
)
from experiments.progress import StepProgress, show_own_messages
from ss_gan_tf.allocation import give_freed_memory_back, keep_freed_memory
from ss_gan_tf.measures import format_table
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.train import Stopped, train

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    define_config_flags()
    flags.DEFINE_string("data_dir", None, "Prepared data.", required=True)
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    define_memory_flag()


def listen() -> list[int]:
    """Collects the first signal that asks to stop; a second one ends the program."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return received


def main(argv):
    """Trains as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    if FLAGS.keep_freed_memory:
        keep_freed_memory()
    else:
        give_freed_memory_back()
    received = listen()
    try:
        config = config_from_flags()
        metrics = train(
            config,
            FLAGS.data_dir,
            FLAGS.workdir,
            StepProgress(),
            stop=lambda: bool(received),
        )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        # Nothing was received where another worker was asked to stop.
        sys.exit(128 + (received[0] if received else signal.SIGTERM))
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
