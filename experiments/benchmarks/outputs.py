"""Where flags say that results go, found out before the work begins."""

import os


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


def check_folder(flag: str, path: str):
    """Lets pass a folder that is there, or can be made; it is not made yet.

    Args:
        flag: name of the flag that gives it.
        path: its value.

    Raises:
        ValueError: it is a file, lies in one, or nothing can be written there.
    """
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ValueError(f"{flag}={path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}={path}: nothing can be written into {there}")
