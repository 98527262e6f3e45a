r"""Goes through a written study where there is JAX and no TensorFlow.

    python -m experiments.study --write_programs=DIR FLAGS

writes it on a machine with TensorFlow. Then, on the one with the GPU, from a checkout
of this project, uninstalled,

    pip install "jax[cuda12]" numpy opencv-python-headless absl-py
    python -m experiments.study_programs --programs=DIR --output=OUT

and, with TensorFlow and the flags from before,

    python -m experiments.study --read_programs=OUT --workdir=STUDY FLAGS

leaves STUDY as it would be had the study run there, without weights, pictures, logs.
The exit code is 1 where a run is missing.
"""

import importlib.util
import os
import sys
import time
import zipfile

from absl import app, flags

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_multi_string(
        "programs",
        None,
        "Folder of a written study; several of one data set may be given, the data are "
        "read from the first.",
        required=True,
    )
    flags.DEFINE_string("output", None, "Folder of what comes out.", required=True)
    flags.DEFINE_float("minutes", 0, "Time after which it stops; 0 is none.", 0)


def main(argv):
    """Runs the study as the flags say; exits with 1 and one line when it cannot."""
    if argv[1:]:
        sys.exit(f"error: not a flag: {' '.join(argv[1:])}")
    if importlib.util.find_spec("jax") is None:
        sys.exit('error: jax is not installed: pip install "jax[cuda12]"')
    begin = time.monotonic()

    def report(line):
        print(f"{time.monotonic() - begin:7.1f} s  {line}", flush=True)

    try:
        from experiments.programs import run

        seconds = 60 * FLAGS.minutes or float("inf")
        missing = run.run_study(FLAGS.programs, FLAGS.output, seconds, report)
    except zipfile.BadZipFile as error:
        sys.exit(f"error: {', '.join(FLAGS.programs)}: a file is not whole ({error})")
    except (OSError, EOFError, ValueError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {(str(error).splitlines() or [repr(error)])[0]}")
    if missing:
        sys.exit(f"error: {len(missing)} not finished: {'; '.join(missing)}")


if __name__ == "__main__":
    # The package asks for TensorFlow, and what is used of it here needs none.
    os.environ["SS_GAN_TF_WITHOUT_TENSORFLOW"] = "1"
    define_flags()
    app.run(main)
