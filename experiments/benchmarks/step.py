"""A whole training step: forward, backward, update, of each phase.

Ours is `ss_gan_tf.train_step` as `stages` puts it together from a `Config`, the peer
the same networks and losses in PyTorch. Each framework has a process of its own, in
which its steps run on one batch in memory; the rounds are interleaved.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks import peers, timing, workers
from ss_gan_tf import config as config_lib

PHASES = ("phase1", "control", "adversarial")
PRODUCT_SIZE = 2048  # side of the matrices that measure the machine's rate


def define_flags():
    """The flags of this measurement; the sizes are the paper's."""
    flags.DEFINE_integer("crop_size", 500, "step: side of the images, pixels.", 32)
    flags.DEFINE_integer("batch_size", 2, "step: images in a step.", 1)
    flags.DEFINE_integer("num_classes", 21, "Classes of the networks.", 2, 255)
    flags.DEFINE_float("width", 1.0, "Factor on all filter counts.", 0.03125, 1.0)
    flags.DEFINE_multi_enum(
        "precision",
        ["float32"],
        ["float32", "mixed_bfloat16"],
        "step: each is measured.",
    )
    flags.DEFINE_multi_enum(
        "jit_compile", ["off"], ["auto", "on", "off"], "step: each is measured."
    )
    flags.DEFINE_multi_enum("phase", list(PHASES), PHASES, "step: each is measured.")
    flags.DEFINE_enum("peer", "none", ["none", "torch"], "What ours is compared with.")
    flags.DEFINE_bool("peer_compile", False, "step: torch.compile too.")
    flags.DEFINE_bool("peak_memory", True, "step: each step in a process of its own.")


# --- Measuring ---------------------------------------------------------------


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Times the steps.

    Args:
        values: the parsed flags.

    Returns:
        "settings", and "rows" with seconds, images_per_second, flops, rate (flops a
        second), share (of the measured matrix product's rate), peak_memory (bytes),
        to_phase1 and to_peer (ratios of medians; None where there is no partner).

    Raises:
        ValueError: the peer is not installed, or a step failed.
    """
    if values.peer == "torch":
        peers.require("torch")
    settings = {
        name: getattr(values, name)
        for name in ("arm", "crop_size", "batch_size", "num_classes", "width")
    }
    rows = []
    for precision in values.precision:
        libraries = [f"ours, jit {mode}" for mode in values.jit_compile]
        libraries += ["torch"] * (values.peer == "torch")
        libraries += ["torch.compile"] * (
            values.peer == "torch" and values.peer_compile
        )
        specs = {
            library: {
                **settings,
                "precision": precision,
                "library": library,
                "phases": list(values.phase),
            }
            for library in libraries
        }
        rows += _measure(specs, values.repeats, values.peak_memory)
    return {
        "settings": settings | {"repeats": values.repeats},
        "rows": _with_ratios(rows),
    }


def _measure(specs, repeats, peak_memory):
    """Rows of one precision: libraries and phases in turns."""
    with contextlib.ExitStack() as stack:
        running = {
            library: stack.enter_context(workers.Worker(_builder(library), spec))
            for library, spec in specs.items()
        }
        variants = {
            (library, name): lambda worker=worker, name=name: worker.call(name)
            for library, worker in running.items()
            for name in worker.names
            if name != "flops"
        }
        seconds = timing.interleave(variants, repeats)
        ours = next(iter(running))
        flops = running[ours].call("flops")
    product = 2 * PRODUCT_SIZE**3 / min(seconds[ours, "product"])
    rows = []
    for (library, phase), times in seconds.items():
        if phase == "product":
            continue
        spec, spread = specs[library], timing.spread(times)
        row = {
            "library": library,
            "precision": spec["precision"],
            "phase": phase,
            "seconds": spread,
            "images_per_second": spec["batch_size"] / spread["median"],
            "flops": flops[phase],
            "rate": flops[phase] / spread["median"],
            "product_rate": product,
            "share": flops[phase] / spread["median"] / product,
        }
        if peak_memory:
            with workers.Worker(_builder(library), spec | {"phases": [phase]}) as one:
                for _ in range(3):
                    one.call(phase)
                row["peak_memory"] = one.peak_memory()
        rows.append(row)
    return rows


def _builder(library):
    ours = library.startswith("ours")
    place = "step:build_ours" if ours else "torch_step:build_peer"
    return f"experiments.benchmarks.{place}"


def _with_ratios(rows):
    by_key = {(r["library"], r["precision"], r["phase"]): r for r in rows}
    for (library, precision, phase), row in by_key.items():
        # The peer has one step for both: phase 2 without A is phase 1.
        peer_phase = "phase1" if phase == "control" else phase
        partners = {
            "to_phase1": (library, precision, "phase1"),
            "to_peer": ("torch", precision, peer_phase),
        }
        for name, key in partners.items():
            other = by_key.get(key)
            row[name] = other and row["seconds"]["median"] / other["seconds"]["median"]
    return rows


# --- Our steps ---------------------------------------------------------------


def drawn_batch(settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, 3] float32 as normalised, labels [B, H, W] with some ignored."""
    rng = np.random.default_rng(0)
    shape = (settings["batch_size"], settings["crop_size"], settings["crop_size"])
    image = rng.normal(0, 60, (*shape, 3)).astype(np.float32)
    label = rng.integers(0, settings["num_classes"], shape).astype(np.int32)
    label[:, : shape[1] // 10] = 255
    return image, label


def build_ours(settings: dict[str, Any]) -> dict[str, Callable]:
    """Our steps by phase, "product" (a matrix product) and "flops"; in a worker."""
    import tensorflow as tf

    from experiments.benchmarks.flops import count_flops
    from ss_gan_tf.allocation import keep_freed_memory

    keep_freed_memory()  # as experiments.train does
    steps = make_steps(settings)
    image, label = map(tf.constant, drawn_batch(settings))

    def work(step):
        return {name: float(value) for name, value in step(image, label).items()}

    def flops():
        return {
            phase: count_flops(step.get_concrete_function(image, label))
            for phase, step in steps.items()
        }

    bfloat16 = settings["precision"] == "mixed_bfloat16"
    matrix = tf.ones(
        [PRODUCT_SIZE, PRODUCT_SIZE], tf.bfloat16 if bfloat16 else tf.float32
    )
    product = tf.function(lambda: tf.matmul(matrix, matrix)[0, 0])
    return {
        **{phase: lambda step=step: work(step) for phase, step in steps.items()},
        "product": lambda: float(product()),
        "flops": flops,
    }


def make_steps(settings: dict[str, Any]) -> dict[str, Callable]:
    """The step functions as a run has them, from random weights."""
    from ss_gan_tf import backbones, stages

    jit = settings["library"].rpartition(" ")[2]
    config = config_lib.Config(
        arm=f"{settings['arm'].removesuffix('_g')}_g",
        backbone_weights="none",
        jit_compile=jit,
        **{
            name: settings[name]
            for name in ("crop_size", "batch_size", "width", "precision")
        },
    )
    names = tuple(map(str, range(settings["num_classes"])))
    if "adversarial" not in settings["phases"]:
        config = dataclasses.replace(config, lambda_adv=0.0)
    networks, _ = stages.create_networks(config, names)
    # From ImageNet weights it is frozen, and that is the run which is measured.
    backbones.freeze_batch_norm(networks.generator)
    steps = {}
    for phase in settings["phases"]:
        control = phase == "control"
        of_phase = dataclasses.replace(config, lambda_adv=0.0) if control else config
        made = {s.name: s.step for s in stages.make_stages(of_phase, networks, 255)}
        steps[phase] = made["phase1" if phase == "phase1" else "phase2"]
    return steps


# --- Printing ----------------------------------------------------------------


def format(result: dict[str, Any]) -> str:
    """The rows as a table; "share" is of the machine's own matrix product."""
    settings = result["settings"]
    lines = [
        f"{settings['arm']}, {settings['batch_size']} images of "
        f"{settings['crop_size']} x {settings['crop_size']}, "
        f"{settings['num_classes']} classes, width {settings['width']:g}, "
        f"{settings['repeats']} rounds"
    ]
    head = ["step", "precision", "library", "s", "lowest", "highest", "images/s"]
    head += ["TFLOP", "GFLOP/s", "share", "peak GB", "/ phase 1", "/ torch"]
    table = [head]
    for row in result["rows"]:
        seconds = row["seconds"]
        table.append(
            [
                row["phase"],
                row["precision"],
                row["library"],
                *(f"{seconds[name]:.3g}" for name in ("median", "lowest", "highest")),
                f"{row['images_per_second']:.3g}",
                f"{row['flops'] / 1e12:.3g}",
                f"{row['rate'] / 1e9:.0f}",
                f"{row['share']:.0%}",
                f"{row['peak_memory'] / 1e9:.2f}" if "peak_memory" in row else "-",
                *(
                    "-" if row[name] is None else f"{row[name]:.2f}"
                    for name in ("to_phase1", "to_peer")
                ),
            ]
        )
    return "\n".join([*lines, "", timing.table(table)])
