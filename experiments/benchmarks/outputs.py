"""The file that --json names."""

import os


def make_room(path: str):
    """Makes the file's folder; called first, because the end would be a bad time.

    Raises:
        OSError: the folder cannot be made, or takes no file.
        ValueError: the path is a folder.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.isdir(path):
        raise ValueError(f"json={path}: is a folder.")
    # Written first under this name by `ss_gan_tf.evaluate.write_metrics`.
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8"):
        pass
    os.remove(partial)
