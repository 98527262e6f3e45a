"""Rows of a comparison of training steps; all of it works without TensorFlow."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.benchmarks import timing, workers

PHASES = ("phase1", "control", "adversarial")
KEEPS = ", keeps memory"  # of a peer with the allocator's settings of ours
PRODUCT_SIZE = 4000  # side of the matrices that measure the machine's rate

# What a worker offers besides its steps.
_NOT_TIMED = {"flops", "machine", "peak_memory"}


# --- Measuring ---------------------------------------------------------------


def drawn_batch(settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, 3] float32 as normalised, labels [B, H, W] with some ignored."""
    rng = np.random.default_rng(0)
    shape = (settings["batch_size"], settings["crop_size"], settings["crop_size"])
    image = rng.normal(0, 60, (*shape, 3)).astype(np.float32)
    label = rng.integers(0, settings["num_classes"], shape).astype(np.int32)
    label[:, : shape[1] // 10] = 255
    return image, label


def measure(
    specs: Mapping[str, Mapping[str, Any]],
    builders: Mapping[str, str],
    repeats: int,
    *,
    peak_memory: bool = True,
    warmup: int = 1,
) -> list[dict[str, Any]]:
    """Rows of one precision: libraries and phases in turns.

    Args:
        specs: library -> the settings of its worker. The first library also has the
            work "product" (a matrix product, with its size as "product_size" in its
            settings) and "flops".
        builders: library -> "module:function" for `workers.Worker`.
        repeats: rounds that count.
        peak_memory: measure it too, each step in a process of its own. A worker that
            offers "peak_memory" counts by itself.
        warmup: rounds before them.

    Returns:
        One row for each library and phase; see `step.run`.

    Raises:
        ValueError: a worker failed.
    """
    with contextlib.ExitStack() as stack:
        running = {
            library: stack.enter_context(workers.Worker(builders[library], spec))
            for library, spec in specs.items()
        }
        variants = {
            (library, name): lambda worker=worker, name=name: worker.call(name)
            for library, worker in running.items()
            for name in worker.names
            if name not in _NOT_TIMED
        }
        ours = next(iter(running))
        flops = running[ours].call("flops")  # first: what cannot be counted fails now
        seconds = timing.interleave(variants, repeats, warmup=warmup)
    size = specs[ours].get("product_size", PRODUCT_SIZE)
    product = 2 * size**3 / min(seconds[ours, "product"])
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
            "product_size": size,
            "share": flops[phase] / spread["median"] / product,
        }
        if peak_memory:
            alone = {**spec, "phases": [phase]}
            with workers.Worker(builders[library], alone) as one:
                for _ in range(3):
                    one.call(phase)
                counts = "peak_memory" in one.names
                row["peak_memory"] = (
                    one.call("peak_memory") if counts else one.peak_memory()
                )
        rows.append(row)
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to_phase1, to_peer and to_fastest: ratios of medians.

    None without a partner. to_peer is to PyTorch as it comes, to_fastest to the fastest
    of its rows.
    """
    by_key = {(r["library"], r["precision"], r["phase"]): r for r in rows}
    for (library, precision, phase), row in by_key.items():
        # The peer has one step for both: phase 2 without A is phase 1.
        peer_phase = "phase1" if phase == "control" else phase
        partners = {
            "to_phase1": (library, precision, "phase1"),
            "to_peer": ("torch", precision, peer_phase),
        }
        of_peer = [
            (name, precision, peer_phase)
            for name, *rest in by_key
            if name.startswith("torch") and rest == [precision, peer_phase]
        ]
        partners["to_fastest"] = min(
            of_peer, key=lambda key: by_key[key]["seconds"]["median"], default=None
        )
        for name, key in partners.items():
            other = by_key.get(key)
            row[name] = other and row["seconds"]["median"] / other["seconds"]["median"]
    return rows


# --- Printing ----------------------------------------------------------------


def format(result: dict[str, Any]) -> str:
    """The rows as a table; "share" is of the machine's own matrix product."""
    settings = result["settings"]
    gives_back = not settings.get("keep_freed_memory", True)
    lines = [
        f"{settings['arm']}, {settings['batch_size']} images of "
        f"{settings['crop_size']} x {settings['crop_size']}, "
        f"{settings['num_classes']} classes, width {settings['width']:g}, "
        f"{settings['repeats']} rounds"
        + (", ours gives freed memory back" if gives_back else "")
    ]
    head = ["step", "precision", "library", "s", "lowest", "highest", "images/s"]
    head += ["TFLOP", "GFLOP/s", "share", "peak GB"]
    head += ["/ phase 1", "/ torch", "/ fastest"]
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
                    "-" if row.get(name) is None else f"{row[name]:.2f}"
                    for name in ("to_phase1", "to_peer", "to_fastest")
                ),
            ]
        )
    # Older results do not have its size.
    products = dict.fromkeys(
        f"share: of {row['product_rate'] / 1e9:.0f} GFLOP/s, a product of "
        f"{row['precision'].removeprefix('mixed_')} matrices of "
        f"{row['product_size']} a side"
        for row in result["rows"]
        if "product_size" in row
    )
    if products:
        products = ["", *products]
    return "\n".join([*lines, "", timing.table(table), *products])
