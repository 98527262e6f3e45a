r"""Exports a run's generator as a SavedModel that TensorFlow alone can load.

python -m experiments.export --workdir=RUN --output_dir=EXPORT [--format=onnx]
"""

import dataclasses
import os
import sys

import tensorflow as tf
from absl import app, flags

import ss_gan_tf
from experiments.flags import refuse_arguments
from experiments.progress import show_own_messages
from ss_gan_tf import checkpoints
from ss_gan_tf.backbones import normalize
from ss_gan_tf.export import export
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.onnx_export import add_onnx, check_installed

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("workdir", None, "The run.", required=True)
    flags.DEFINE_string(
        "output_dir", None, "A new folder, or an earlier export.", required=True
    )
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which generator.")
    flags.DEFINE_enum(
        "format", "saved_model", ["saved_model", "onnx"], "onnx: model.onnx beside it."
    )


def export_run(workdir: str, output_dir: str, checkpoint: str = "last"):
    """Exports a run's generator with the run's settings as metadata.

    Args:
        workdir: the run.
        output_dir: a new or empty folder, or an earlier export, which is replaced.
        checkpoint: "last" or "best".

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        FileExistsError: output_dir holds something else.
    """
    run = checkpoints.read_run(workdir)
    generator, info = checkpoints.load_generator(run, checkpoint)
    info["checkpoint"] = os.path.relpath(info["checkpoint"], workdir)
    export(
        generator,
        output_dir,
        class_names=run.class_names,
        class_colors=run.class_colors,
        ignore_label=run.ignore_label,
        normalize=normalize,
        metadata={
            **info,
            "ss_gan_tf": ss_gan_tf.__version__,
            "config": dataclasses.asdict(run.config),
        },
    )


def main(argv):
    """Exports as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        if FLAGS.format == "onnx":
            check_installed()  # before the long work
        export_run(FLAGS.workdir, FLAGS.output_dir, FLAGS.checkpoint)
        if FLAGS.format == "onnx":
            compared = add_onnx(FLAGS.output_dir)
            print(
                "model.onnx beside the SavedModel on drawn images: the same class in "
                f"{compared['same_class_ids']:.3%} of the pixels, largest difference "
                f"of a probability {compared['probability_difference']:.1e}"
            )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
    except tf.errors.OpError as error:  # a full disk
        sys.exit(f"error: {first_line(error)}")
    print(f"exported to {FLAGS.output_dir}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
