"""A whole training step: forward, backward, update, of each phase.

Ours is `ss_gan_tf.train_step` as `stages` puts it together from a `Config`, the peer
the same networks and losses in PyTorch. Each framework has a process of its own, in
which its steps run on one batch in memory; the rounds are interleaved.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.benchmarks import outputs, peers, step_rows
from experiments.benchmarks.step_rows import KEEPS, PHASES, PRODUCT_SIZE, drawn_batch
from experiments.flags import refuse_given
from ss_gan_tf import allocation
from ss_gan_tf import config as config_lib

flags.disclaim_key_flags()  # they are the program's: --help lists them

READS = (
    "arm", "crop_size", "batch_size", "num_classes", "width", "precision",
    "jit_compile", "phase", "peer", "peer_compile", "peak_memory", "write_programs",
    "keep_freed_memory",
)  # fmt: skip
PEERS = ("torch",)
# Written programs are for XLA, and measured elsewhere.
NOT_FOR_PROGRAMS = (
    "jit_compile", "peer", "peer_compile", "peak_memory", "keep_freed_memory"
)  # fmt: skip


def define_flags():
    """The flags of this measurement; the sizes are the paper's."""
    flags.DEFINE_integer("crop_size", 500, "step: side of the images, pixels.", 64)
    flags.DEFINE_integer("batch_size", 2, "step: images in a step.", 1)
    flags.DEFINE_integer("num_classes", 21, "Classes of the networks.", 2, 255)
    flags.DEFINE_float("width", 1.0, "Factor on all filter counts.", 0.03125, 1.0)
    flags.DEFINE_multi_enum(
        "precision",
        ["float32"],
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "step: each is measured; mixed_float16 of ours alone.",
    )
    flags.DEFINE_multi_enum(
        "jit_compile",
        ["auto"],
        ["auto", "on", "off"],
        "step: each is measured; auto is what a run has on this device.",
    )
    flags.DEFINE_multi_enum("phase", list(PHASES), PHASES, "step: each is measured.")
    flags.DEFINE_enum("peer", "none", ["none", "torch"], "What ours is compared with.")
    flags.DEFINE_bool("peer_compile", False, "step: torch.compile too.")
    flags.DEFINE_bool(
        "keep_freed_memory", True, "step: ours, as experiments.train's flag."
    )
    flags.DEFINE_bool("peak_memory", True, "step: each step in a process of its own.")
    flags.DEFINE_string(
        "write_programs",
        None,
        "step: instead of measuring, write the steps into this folder, for "
        "experiments.benchmark_programs on a machine without TensorFlow.",
    )


# --- Measuring ---------------------------------------------------------------


def check(values: flags.FlagValues):
    """Lets pass what can be measured.

    Raises:
        ValueError: the peer is not installed, there is a GPU, what belongs to the peer
            is asked for without it, or what is measured where nothing is; or the
            programs' folder is none.
    """
    if "mixed_float16" in values.precision and (
        values.write_programs or values.peer == "torch"
    ):
        raise ValueError(
            "precision=mixed_float16: is measured of ours alone, without --peer=torch "
            "and --write_programs"
        )
    if values.write_programs:
        refuse_given(values, NOT_FOR_PROGRAMS, "for steps that --write_programs writes")
        outputs.check_folder("write_programs", values.write_programs)
    elif values.peer == "torch":
        peers.require(*PEERS)
        peers.require_cpu()
        if list(values.phase) == ["control"]:
            raise ValueError(
                "phase=control: PyTorch has its phase1 for it; add --phase=phase1"
            )
    else:
        refuse_given(values, ["peer_compile"], "without --peer=torch")


def run(
    values: flags.FlagValues, keep: Callable[[dict[str, Any]], None] = lambda part: None
) -> dict[str, Any]:
    """Times the steps, or writes them.

    Args:
        values: the parsed flags.
        keep: called with the result up to then, after each precision.

    Returns:
        "settings", and "written" (folders) or "rows" with seconds, images_per_second,
        flops, rate (flops a second), product_rate (that of a product of matrices of
        product_size a side), share (of that rate), peak_memory (bytes), to_phase1,
        to_peer and to_fastest (ratios of medians; None where there is no partner).

    Raises:
        ValueError: the peer is not installed, or a step failed.
        OSError: the programs could not be written.
    """
    check(values)
    if values.write_programs:
        return write(values)
    settings = _sizes(values) | {"keep_freed_memory": values.keep_freed_memory}
    result = {"settings": settings | {"repeats": values.repeats}, "rows": []}
    for precision in values.precision:
        libraries = list(dict.fromkeys(map(_ours, values.jit_compile)))
        if values.peer == "torch":
            keeps = KEEPS if allocation.can_keep_freed_memory() else ""
            libraries += dict.fromkeys(["torch", f"torch{keeps}"])
            libraries += [f"torch.compile{keeps}"] * values.peer_compile
        specs = {
            library: {
                **settings,
                "precision": precision,
                "library": library,
                "phases": list(values.phase),
            }
            for library in libraries
        }
        builders = {
            library: f"experiments.benchmarks.{_builder(library)}" for library in specs
        }
        rows = step_rows.measure(
            specs, builders, values.repeats, peak_memory=values.peak_memory
        )
        result["rows"] += step_rows.with_ratios(rows)
        keep(result)
    return result


def write(values: flags.FlagValues) -> dict[str, Any]:
    """Writes the steps of each precision as programs; see `write_programs`."""
    from experiments.benchmarks.write_programs import write_programs

    written = []
    for precision in values.precision:
        settings = _sizes(values) | {
            "precision": precision,
            "library": "ours, jit on",
            "phases": list(values.phase),
        }
        steps, networks = make_steps(settings)
        written.append(
            write_programs(values.write_programs, settings, steps, networks.variables)
        )
    return {"settings": _sizes(values), "written": written}


def _sizes(values):
    names = ("arm", "crop_size", "batch_size", "num_classes", "width")
    return {name: getattr(values, name) for name in names}


def _ours(jit_compile):
    """The name of our library in a row; `make_steps` reads it."""
    if jit_compile == "auto":
        from ss_gan_tf import stages

        _share_gpus()
        compiled = stages.compiles(config_lib.Config(jit_compile="auto"))
        jit_compile = "on" if compiled else "off"
    return f"ours, jit {jit_compile}"


def _share_gpus():
    """Lets TensorFlow take of a GPU what it needs: others are measured beside it."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def _builder(library):
    ours = library.startswith("ours")
    return "step:build_ours" if ours else "torch_step:build_peer"


# --- Our steps ---------------------------------------------------------------


def build_ours(settings: dict[str, Any]) -> dict[str, Callable]:
    """Our steps by phase, "product" (a matrix product) and "flops"; in a worker.

    On a GPU "peak_memory" too: the most bytes of it that TensorFlow has had in use.
    """
    import tensorflow as tf

    from experiments.benchmarks.flops import count_flops
    from ss_gan_tf import convolution

    _share_gpus()
    if settings.get("keep_freed_memory", True):  # as experiments.train does
        allocation.keep_freed_memory()
    else:
        allocation.give_freed_memory_back()
    steps, _ = make_steps(settings)
    image, label = map(tf.constant, drawn_batch(settings))

    def work(step):
        return {name: float(value) for name, value in step(image, label).items()}

    def flops():
        counts = {}
        for phase, step in steps.items():
            # Traced anew, so that a dilated convolution counts the same on each device.
            with convolution.on_another_device():
                anew = tf.function(step.python_function)
                traced = anew.get_concrete_function(image, label)
            counts[phase] = count_flops(traced)
        return counts

    product = tf.function(lambda matrix: tf.matmul(matrix, matrix)[0, 0])

    @functools.cache  # made when it is asked for, because it would count as memory
    def matrix():
        dtype = settings["precision"].removeprefix("mixed_")
        return tf.ones([PRODUCT_SIZE, PRODUCT_SIZE], dtype)

    offered = {
        **{phase: lambda step=step: work(step) for phase, step in steps.items()},
        "product": lambda: float(product(matrix())),
        "flops": flops,
    }
    if tf.config.list_logical_devices("GPU"):
        memory = tf.config.experimental.get_memory_info
        offered["peak_memory"] = lambda: memory("GPU:0")["peak"]
    return offered


def make_steps(settings: dict[str, Any]) -> tuple[dict[str, Callable], Any]:
    """The step functions as a run has them, from random weights, and its networks."""
    from ss_gan_tf import backbones, stages

    jit = settings["library"].rpartition(" ")[2]
    config = config_lib.Config(
        arm=f"{settings['arm'].removesuffix('_g')}_g",
        backbone_weights="none",
        dropout=settings.get("dropout", 0.5),
        jit_compile=jit,
        **{
            name: settings[name]
            for name in ("crop_size", "batch_size", "width", "precision")
        },
    )
    names = tuple(map(str, range(settings["num_classes"])))
    if "adversarial" not in settings["phases"]:
        config = dataclasses.replace(config, lambda_adv=0.0)
    networks = stages.create_networks(config, names)
    # From ImageNet weights it is frozen, and that is the run which is measured.
    backbones.freeze_batch_norm(networks.generator)
    steps = {}
    for phase in settings["phases"]:
        control = phase == "control"
        of_phase = dataclasses.replace(config, lambda_adv=0.0) if control else config
        made = {s.name: s.step for s in stages.make_stages(of_phase, networks, 255)}
        steps[phase] = made["phase1" if phase == "phase1" else "phase2"]
    return steps, networks


# --- Printing ----------------------------------------------------------------


def format(result: dict[str, Any]) -> str:
    """The rows as a table, or where the programs lie."""
    if "written" in result:
        return "\n".join(result["written"])
    return step_rows.format(result)
