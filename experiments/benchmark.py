r"""Measures speed on this machine; nothing else here promises any.

python -m experiments.benchmark --what=input

prints the machine, then one or more tables with the median and the range of
interleaved rounds. --json=FILE keeps all of it.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments.benchmarks import machine
from experiments.flags import refuse_arguments
from experiments.progress import show_own_messages
from ss_gan_tf.config import ARMS
from ss_gan_tf.evaluate import write_metrics
from ss_gan_tf.messages import one_line

FLAGS = flags.FLAGS

# value of --what -> its module
MODULES = {
    what: importlib.import_module(f"experiments.benchmarks.{what}")
    for what in ("input", "step", "inference", "evaluate")
}


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("what", "all", f"{', '.join(MODULES)} or all.")
    flags.DEFINE_enum("arm", "vgg16_g", list(ARMS), "Whose networks are measured.")
    flags.DEFINE_integer("repeats", 5, "Rounds of each measurement.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the result; it is replaced.")
    for module in MODULES.values():
        module.define_flags()


def chosen(what: str) -> Sequence[str]:
    """What --what=WHAT measures.

    Raises:
        ValueError: there is no such measurement.
    """
    if what == "all":
        return list(MODULES)
    if what not in MODULES:
        raise ValueError(f"what={what}: must be one of {', '.join(MODULES)}, all.")
    return [what]


def benchmark(what: str, values: flags.FlagValues) -> dict[str, Any]:
    """Measures and prints.

    Args:
        what: a key of `MODULES`, or "all".
        values: the parsed flags.

    Returns:
        JSON-ready: "machine", and "results" with one entry for each measurement.

    Raises:
        ValueError: there is no such measurement, or a setting that cannot be.
        OSError: there is no room for the files it needs.
    """
    names = chosen(what)
    result = {"machine": machine.describe_machine(), "results": {}}
    print(machine.format_machine(result["machine"]))
    for name in names:
        print(f"\n--- {name} ---", flush=True)
        result["results"][name] = MODULES[name].run(values)
        print(MODULES[name].format(result["results"][name]), flush=True)
    return result


def main(argv):
    """Measures as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    try:
        if FLAGS.json:  # minutes later would be a bad time to find this out
            os.makedirs(os.path.dirname(os.path.abspath(FLAGS.json)), exist_ok=True)
            if os.path.isdir(FLAGS.json):
                raise ValueError(f"json={FLAGS.json}: is a folder.")
        result = benchmark(FLAGS.what, FLAGS)
        if FLAGS.json:
            write_metrics(result, FLAGS.json)
            print(f"\n{FLAGS.json}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
