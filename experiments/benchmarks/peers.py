"""Whether what ours is compared with is installed."""

import importlib.metadata
import importlib.util


def require(*modules: str):
    """Lets pass where all the modules are there.

    Raises:
        ValueError: one is missing; the line names the extra that brings it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} is not installed: pip install 'ss_gan_tf[peers]'"
        )


def require_cpu():
    """Lets pass where TensorFlow computes on the CPU, as these peers do.

    Raises:
        ValueError: it sees a GPU; the line says what compares there.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        raise ValueError(
            "peer=torch: compares on a CPU, and TensorFlow sees a GPU here. Hide it "
            "(an NVIDIA card with CUDA_VISIBLE_DEVICES=-1), or time steps on it with "
            "--write_programs and experiments.benchmark_programs"
        )


def versions(*modules: str) -> dict[str, str]:
    """Version of each module's package that is installed; it is not loaded."""
    found = {}
    for name in modules:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
