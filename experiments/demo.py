r"""Opens a page on this computer: drop a photograph, see what a model makes of it.

python -m experiments.demo --model=EXPORT
python -m experiments.demo --model=RUNS/vgg16/export --model=RUNS/vgg16_g/export

Two models are shown side by side. The page is for this computer alone, photographs stay
in memory, and Ctrl-C ends it.
"""

import logging
import sys

from absl import app, flags

from experiments.flags import refuse_arguments
from experiments.progress import show_own_messages
from ss_gan_tf import demo, predict
from ss_gan_tf.messages import one_line

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_multi_string(
        "model", None, "An export; given twice, two are compared.", required=True
    )
    flags.DEFINE_integer(
        "port", 8600, "Of the address; 0 takes a free one.", 0, 2**16 - 1
    )
    flags.DEFINE_integer(
        "max_side",
        demo.MAX_SIDE,
        "px; larger photographs are reduced to this, 0 leaves them.",
        lower_bound=0,
    )


def main(argv):
    """Serves as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    try:
        demo.check_installed()
        named = zip(demo.name_models(FLAGS.model), FLAGS.model, strict=True)
        models = {name: predict.load_model(path) for name, path in named}
        page = demo.create_app(models, max_side=FLAGS.max_side)
        demo.serve(
            page,
            FLAGS.port,
            lambda address: print(
                f"open {address} in a browser; Ctrl-C ends it", flush=True
            ),
        )
    except KeyboardInterrupt:
        pass  # while a model was loading
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
