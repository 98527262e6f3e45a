r"""Times written training steps where there is JAX and no TensorFlow.

    python -m experiments.benchmark --what=step --write_programs=DIR --arm=vgg16_g

writes them on a machine with TensorFlow; then, on the one with the GPU,

    pip install "jax[cuda12]" torch numpy absl-py
    python -m experiments.benchmark_programs --programs=DIR --peer=torch --json=FILE

runs them from a checkout of this project, against the same networks, losses and
updates in PyTorch, in turns on the same card. float32 goes through TF32 in both.
"""

import datetime
import importlib.util
import json
import os
import platform
import sys
from typing import Any

from absl import app, flags

from experiments.benchmarks import jax_programs, outputs, peers, step_rows, workers

FLAGS = flags.FLAGS

PRODUCT_SIZE = 8192  # on a CPU `step_rows.PRODUCT_SIZE`

# Dense tera-operations a second from NVIDIA's data sheets: TF32, bfloat16.
DATA_SHEETS = {"A100": (156, 312), "H100": (495, 989), "H200": (495, 989)}

_BUILDERS = "experiments.benchmarks"


def define_flags():
    """Defines this command's flags; importing the module defines none."""
    flags.DEFINE_string("programs", None, "Folder of the written steps.", required=True)
    flags.DEFINE_integer("repeats", 20, "Rounds of each measurement.", lower_bound=1)
    flags.DEFINE_enum("peer", "none", ["none", "torch"], "What ours is compared with.")
    flags.DEFINE_bool("peer_compile", True, "torch.compile too, with --peer=torch.")
    flags.DEFINE_bool("peak_memory", True, "Each step in a process of its own.")
    flags.DEFINE_string("json", None, "File for the result; it is replaced.")


def benchmark(values: flags.FlagValues) -> dict[str, Any]:
    """Times every precision that the folder holds.

    Args:
        values: the parsed flags.

    Returns:
        "machine", "written" (on what machine and from which commit), "settings" and
        "rows" as `step.run` has them, each with "data_sheet_share" (None where the
        card is not among `DATA_SHEETS`).

    Raises:
        ValueError: JAX or the peer is missing, the folder holds no programs, or a
            step failed.
    """
    if importlib.util.find_spec("jax") is None:
        raise ValueError('jax is not installed: pip install "jax[cuda12]"')
    if values.peer == "torch":
        peers.require("torch")
    rows, machine, manifest = [], None, None
    for folder in _folders(values.programs):
        manifest = jax_programs.read_manifest(folder)
        settings = manifest["settings"] | {"programs": folder}
        ours = f"{_BUILDERS}.jax_programs:build_programs"
        with workers.Worker(ours, settings | {"phases": []}) as one:
            machine = one.call("machine")
        on_gpu = machine["platform"] in ("gpu", "cuda", "rocm")
        settings |= {"device": "cuda" if on_gpu else "cpu"}
        settings |= {"product_size": PRODUCT_SIZE} if on_gpu else {}
        libraries = ["ours, XLA"]
        libraries += ["torch"] * (values.peer == "torch")
        libraries += ["torch.compile"] * (
            values.peer == "torch" and values.peer_compile
        )
        builders = dict.fromkeys(libraries, f"{_BUILDERS}.torch_step:build_peer")
        builders["ours, XLA"] = ours
        specs = {name: settings | {"library": name} for name in libraries}
        rows += step_rows.measure(
            specs,
            builders,
            values.repeats,
            peak_memory=values.peak_memory,
            warmup=3 if on_gpu else 1,  # kernels are chosen, clocks rise
        )
    for row in rows:
        row["data_sheet_share"] = _share_of_data_sheet(machine["device"], row)
    sizes = ("arm", "crop_size", "batch_size", "num_classes", "width")
    return {
        "machine": machine
        | {"date": _now(), "python": platform.python_version()}
        | {"peers": peers.versions("torch") if values.peer == "torch" else {}},
        "written": manifest["machine"],
        "settings": {name: manifest["settings"][name] for name in sizes}
        | {"repeats": values.repeats},
        "rows": step_rows.with_ratios(rows),
    }


def _folders(programs):
    names = sorted(os.listdir(programs)) if os.path.isdir(programs) else []
    folders = [os.path.join(programs, name) for name in names]
    folders = [f for f in folders if os.path.isfile(os.path.join(f, "manifest.json"))]
    if not folders:
        raise ValueError(f"programs={programs}: holds no written steps.")
    return folders


def _share_of_data_sheet(device, row):
    for card, (tf32, bfloat16) in DATA_SHEETS.items():
        if card in device:
            peak = tf32 if row["precision"] == "float32" else bfloat16
            return row["rate"] / (peak * 1e12)
    return None


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")


def format(result: dict[str, Any]) -> str:
    """The machine and the rows, for people."""
    machine, written = result["machine"], result["written"]
    lines = [
        f"{machine['device']}, JAX {machine['jax']}, {machine['date']}",
        f"written by TensorFlow {written['tensorflow']}, Keras {written['keras']}, "
        f"commit {written['commit'] or 'unknown'}",
        step_rows.format(result),
    ]
    shares = [
        f"{row['phase']}, {row['precision']}, {row['library']}: "
        f"{row['data_sheet_share']:.0%} of the card's data sheet"
        for row in result["rows"]
        if row["data_sheet_share"] is not None
    ]
    return "\n".join([*lines, *([""] if shares else []), *shares])


def main(argv):
    """Measures as the flags say; exits with 1 and one line when it cannot."""
    if argv[1:]:
        sys.exit(f"error: not a flag: {' '.join(argv[1:])}")
    try:
        if FLAGS.json:
            outputs.make_room(FLAGS.json)
        result = benchmark(FLAGS)
        print(format(result))
        if FLAGS.json:
            with open(FLAGS.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=2)
            print(f"\n{FLAGS.json}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")


if __name__ == "__main__":
    define_flags()
    app.run(main)
