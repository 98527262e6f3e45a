r"""Holds bfloat16 and XLA against float32: every loss of every step, and the mIoU.

python -m experiments.numerics --data_dir=DATA --workdir=RUNS/numerics --arm=vgg16_g \
    --dataset=camvid --phase1_steps=50 --phase2_steps=50 --dropout=0

Takes the flags of `experiments.train`, without those that it sets itself: precision,
jit_compile, log_every. Dropout has to be 0: XLA may draw other masks. The guard has to
be off: it leaves out losses that are not finite.

Some of ours are yardsticks, of which nothing is asked: float32-rounded is float32 from
weights of G that were rounded to bfloat16 once, float32-rounded-drawn-1 to -7 from ones
moved as far as rounding leads, each by what is drawn, float32-nudged and
float32-nudged-down from the next larger and smaller numbers of float32 (one unit in the
last place), float32-nudged-drawn-1 to -6 from one of the two, drawn for each number.
They run where they are needed: XLA and PyTorch's float32, other orders of sums, may be
off, in each step, by one and a half times the most that any nudge was off up to there,
bfloat16 by one and a half times the most that any yardstick was off, where that is
beyond their own tolerance. Two nudges and one rounding say little where the last bit
decides what becomes of a run: --num_nudges=8 and --num_roundings=8 run all, and tell
which of them the others would refuse. Choose before the run: more can only allow more.

torch-float32 and torch-bfloat16 (extra `peers`) are the same run with steps in PyTorch:
whether a second implementation has the same losses, and what its bfloat16 does to them.
That is a yardstick of our bfloat16 too. Their times are not compared:
`experiments.benchmark`.

bfloat16-rejoined and float32-xla-rejoined are arithmetic without what a run makes of
it: every second step they go on from the float32 run's weights and optimizers, so that
no loss is more than one update of G and two of A away from that run. They may be off by
2 % and 0.2 %; the first always runs beside bfloat16.

A run may be longer than the steps whose losses are compared (--compared_steps): the
mIoU is that of its end.

The same command again goes on with what is missing. Exit code 2: something is outside
its tolerance.
"""

# ruff: noqa: E402
import contextlib
import signal
import sys

# PyTorch's wheels for Linux bring Triton along, and load it with an optimizer. Behind
# TensorFlow that ends the process (TensorFlow 2.21, Triton 3.8).
if "tensorflow" not in sys.modules:
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401

import tensorflow as tf
from absl import app, flags

from experiments.benchmarks import outputs, peers
from experiments.flags import (
    config_from_flags,
    define_config_flags,
    refuse_arguments,
)
from experiments.progress import show_own_messages
from ss_gan_tf import config_rules
from ss_gan_tf.allocation import keep_freed_memory
from ss_gan_tf.evaluate import write_metrics
from ss_gan_tf.messages import first_line, one_line
from ss_gan_tf.numerics import (
    CHOSEN,
    NUDGES,
    ROUNDINGS,
    VARIANTS,
    format_table,
    run_variants,
)

FLAGS = flags.FLAGS


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    define_config_flags()
    flags.DEFINE_string("data_dir", None, "Prepared data.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
    flags.DEFINE_list(
        "variants",
        ["float32-rounded", "bfloat16", "float32-xla"],
        f"Which, of {', '.join(VARIANTS)}.",
    )
    flags.DEFINE_integer("num_seeds", 3, "float32 runs.", lower_bound=2)
    flags.DEFINE_integer(
        "num_nudges",
        2,
        "Yardsticks whose first weights are others in the last bit.",
        lower_bound=2,
        upper_bound=len(NUDGES),
    )
    flags.DEFINE_integer(
        "num_roundings",
        1,
        "Yardsticks of bfloat16 whose first weights are as far off as it rounds.",
        lower_bound=1,
        upper_bound=len(ROUNDINGS),
    )
    flags.DEFINE_integer(
        "compared_steps",
        None,
        "Of each stage, how many losses are compared, from the first step; later ones "
        "are not judged. All where it is not given.",
        lower_bound=1,
    )


def _config_from_flags():
    """The run; refuses what cannot be compared, or is set here."""
    for name in CHOSEN:
        if FLAGS[name].present:
            value = FLAGS[name].value
            raise ValueError(f"{name}={value}: the comparison chooses it itself")
    config = config_from_flags()
    if config.dropout and "dropout" not in config_rules.unused(config):
        raise ValueError(f"dropout={config.dropout}: must be 0 for a comparison.")
    return config


def main(argv):
    """Runs and compares; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    keep_freed_memory()
    stopped = "error: told to stop; the same command goes on with the runs missing"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stopped))
    try:
        config = _config_from_flags()
        make_torch_stages = None
        if any(variant.startswith("torch") for variant in FLAGS.variants):
            peers.require("torch")
            from experiments.benchmarks import torch_run

            torch_run.check(config)
            make_torch_stages = torch_run.make_stages
        outputs.check_folder("workdir", FLAGS.workdir)
        result = run_variants(
            config,
            FLAGS.data_dir,
            FLAGS.workdir,
            FLAGS.variants,
            FLAGS.num_seeds,
            report=lambda line: print(line, file=sys.stderr, flush=True),
            make_torch_stages=make_torch_stages,
            compared_steps=FLAGS.compared_steps,
            num_nudges=FLAGS.num_nudges,
            num_roundings=FLAGS.num_roundings,
        )
        write_metrics(result, f"{FLAGS.workdir}/numerics.json")
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(stopped)
    except tf.errors.OpError as error:  # XLA, or data that cannot be read
        sys.exit(f"error: {first_line(error)}")
    print(format_table(result))
    if any(row["within"] is False for row in result["rows"] + result["miou"]):
        sys.exit(2)


if __name__ == "__main__":
    define_flags()
    app.run(main)
