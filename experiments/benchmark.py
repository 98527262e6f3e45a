r"""Measures speed on this machine; nothing else here promises any.

python -m experiments.benchmark --what=input

prints the machine, then one or more tables with the median and the range of
interleaved rounds. --json=FILE keeps all of it, from the first finished precision, size
or data set on. --what=all at full width takes tens of minutes on two cores. --show=FILE
prints such a file again, and what one holds that was stopped before its end.
"""

import importlib
import itertools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from experiments.benchmarks import machine, outputs, peers
from experiments.flags import (
    as_given,
    refuse_arguments,
    refuse_doubles,
    refuse_given,
)
from experiments.progress import show_own_messages
from ss_gan_tf import strict_json
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
    flags.DEFINE_multi_string(
        "show", [], "Print what --json wrote into this file; nothing is measured."
    )
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


def show(path: str) -> str:
    """What a measurement printed, from the file that it left.

    Args:
        path: as --json had it.

    Returns:
        Its machine and tables, Markdown.

    Raises:
        ValueError: the file cannot be read, or is not of a measurement.
    """
    try:
        found = strict_json.read(path)
        parts = [machine.format_machine(found["machine"])]
        if not found.get("finished", True):  # not always told
            parts[0] += "\nstopped before its end"
        if "flags" in found:  # not always told
            parts[0] += "\n" + " ".join(found["flags"])
        for name, result in found["results"].items():
            parts.append(f"--- {name} ---\n{MODULES[name].format(result)}")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"show={path}: was not written by --json: {error!r}"
        ) from error
    except OSError as error:
        raise ValueError(f"show={path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"show={path}: is not JSON of --json: {error}") from error
    return "\n\n".join(parts)


def check(what: str, values: flags.FlagValues):
    """Lets pass what can be measured, before the first minute is spent.

    Raises:
        ValueError: there is no such measurement, a peer is not installed, a flag is
            given that nothing of it reads, or a value twice.
    """
    modules = [MODULES[name] for name in chosen(what)]
    read = {name for module in modules for name in module.READS}
    known = itertools.chain(*(module.READS for module in MODULES.values()))
    refuse_given(values, [n for n in known if n not in read], f"with --what={what}")
    for name in read & set(values):
        if isinstance(values[name].value, list):
            refuse_doubles(name, values[name].value)
    if "write_programs" in read and values.write_programs is not None:
        if not values.write_programs:
            raise ValueError("write_programs: needs a folder")
        refuse_given(values, ["repeats"], "with --write_programs")
        if what != "step":
            raise ValueError(
                f"write_programs={values.write_programs}: only with --what=step"
            )
    for module in modules:
        if hasattr(module, "check"):
            module.check(values)


def benchmark(
    what: str,
    values: flags.FlagValues,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measures and prints.

    Args:
        what: a key of `MODULES`, or "all".
        values: the parsed flags.
        keep: called with what there is, after each measurement and the parts of it
            that are finished before.

    Returns:
        JSON-ready: "machine", "flags" as they were given, "results" with one entry for
        each measurement, and "finished": whether it is all that was asked for.

    Raises:
        ValueError: see `check`, or a setting that cannot be.
        OSError: there is no room for the files it needs.
    """
    names = chosen(what)
    check(what, values)
    described = machine.describe_machine()
    if "peer" in values and values.peer != "none":
        found = (getattr(MODULES[name], "PEERS", ()) for name in names)
        described["peers"] = peers.versions(*dict.fromkeys(itertools.chain(*found)))
    names_given = [n for n in values if values[n].present and n != "json"]
    given = [word for name in names_given for word in as_given(values, name)]
    result = {"machine": described, "flags": given, "results": {}, "finished": False}
    print(machine.format_machine(result["machine"]))
    for name in names:
        print(f"\n--- {name} ---", flush=True)

        def keep_part(part, name=name):
            result["results"][name] = part
            keep(result)

        result["results"][name] = MODULES[name].run(values, keep_part)
        result["finished"] = list(result["results"]) == names
        keep(result)
        print(MODULES[name].format(result["results"][name]), flush=True)
    return result


def main(argv):
    """Measures as the flags say; exits with 1 and one line when it cannot."""
    refuse_arguments(argv)
    show_own_messages()
    # Told to stop, leave by an exception, which ends the measured processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to stop"))

    def keep(result):
        if FLAGS.json:
            write_metrics(result, FLAGS.json)

    try:
        if FLAGS.show:
            read = itertools.chain(*(module.READS for module in MODULES.values()))
            refuse_given(FLAGS, ["what", "repeats", "json", *read], "with --show")
            print("\n\n".join(map(show, FLAGS.show)))
            return
        if FLAGS.json:
            outputs.make_room(FLAGS.json)
        benchmark(FLAGS.what, FLAGS, keep)
        if FLAGS.json:
            print(f"\n{FLAGS.json}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
