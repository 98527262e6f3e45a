r"""Segments photographs with an exported model: ids, colours, overlays, a legend.

python -m experiments.predict --model=EXPORT --input=PHOTO_OR_FOLDER --output_dir=OUT

Files that cannot be read are listed at the end, and the exit code is then 1.
"""

import sys

from absl import app, flags

from experiments.flags import refuse_arguments
from experiments.progress import Progress, show_own_messages
from ss_gan_tf import predict
from ss_gan_tf.messages import one_line

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("model", None, "An export.", required=True)
    flags.DEFINE_string(
        "input", None, "A photograph, or a folder of JPEG and PNG.", required=True
    )
    flags.DEFINE_string("output_dir", None, "Gets the pictures.", required=True)
    flags.DEFINE_float("alpha", 0.5, "Weight of the colours in the overlay.", 0.0, 1.0)
    flags.DEFINE_integer(
        "max_pixels", predict.MAX_PIXELS, "Larger images are refused.", lower_bound=1
    )


def main(argv):
    """Predicts as the flags say; exits with 1 when any input has no result."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        failures = predict.predict(
            FLAGS.model,
            FLAGS.input,
            FLAGS.output_dir,
            alpha=FLAGS.alpha,
            max_pixels=FLAGS.max_pixels,
            progress=Progress("images"),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
    print(f"results in {one_line(FLAGS.output_dir)}")
    if failures:
        lines = [f"  {f.path!r}: {one_line(f.reason)}" for f in failures]
        sys.exit("\n".join([f"{len(failures)} without a result:", *lines]))


if __name__ == "__main__":
    define_flags()
    app.run(main)
