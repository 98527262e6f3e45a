"""The file that --json names."""

import os


def make_room(path: str):
    """Makes the file's folder; called first, because the end would be a bad time.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the path is a folder.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.isdir(path):
        raise ValueError(f"json={path}: is a folder.")
