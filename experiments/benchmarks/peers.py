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


def versions(*modules: str) -> dict[str, str]:
    """Version of each module's package that is installed; it is not loaded."""
    found = {}
    for name in modules:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
