"""Where flags say that results go, found out before the work begins."""

import os
import tempfile


def make_room(path: str):
    """Makes the file's folder; called first, because the end would be a bad time.

    Raises:
        ValueError: the folder cannot be made, or takes no file, or the path is a
            folder.
    """
    if os.path.isdir(path):
        raise ValueError(f"json={path}: is a folder.")
    # Written first under this name by `ss_gan_tf.evaluate.write_metrics`.
    partial = f"{path}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(partial, "w", encoding="utf-8"):
            pass
        os.remove(partial)
    except OSError as error:
        raise ValueError(
            f"json={path}: cannot be written, {error.strerror}: {error.filename}"
        ) from error


def make_folder(flag: str, path: str):
    """Makes the folder that the flag of this name gives.

    Raises:
        ValueError: it cannot be made, or takes no file.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"{flag}={path}: is no folder that can be written into, {error.strerror}"
        ) from error
