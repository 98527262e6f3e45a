"""What the runs of a written study read: its splits, and batches of them."""

import os
import queue
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from ss_gan_tf import augmentation
from ss_gan_tf.config import Config

COPYING_SECONDS = 60  # for a file of a written study that is not there yet
CHUNKS_AHEAD = 3  # calls whose batches are made while the device is busy


def wait_for(path: str, seconds: float = COPYING_SECONDS):
    """Returns once there is a file, which may still be on its way to the machine.

    Raises:
        FileNotFoundError: it did not come.
    """
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{path}: is missing; was the whole folder copied?")
        time.sleep(0.2)


def read_split(
    folder: str, split: str, with_images: bool = True
) -> tuple[list[str], list, list]:
    """Names, images [H, W, 3] uint8 RGB, labels [H, W] uint8 of a written split."""
    path = os.path.join(folder, "data", f"{split}.npz")
    wait_for(path)
    with np.load(path) as stored:
        names = stored["names"].tolist()
        encoded = _files(stored, "image") if with_images else []
        images = [cv2.imdecode(x, cv2.IMREAD_COLOR_RGB) for x in encoded]
        labels = [
            cv2.imdecode(x, cv2.IMREAD_GRAYSCALE) for x in _files(stored, "label")
        ]
    return names, images, labels


def _files(stored, kind) -> list[np.ndarray]:
    ends = stored[f"{kind}_ends"]
    return np.split(stored[kind], ends[:-1])


def batches(
    images: list,
    labels: list,
    config: Config,
    stage: dict,
    numbers: np.ndarray,
    plan: dict,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image [K, B, S, S, 3] and label [K, B, S, S], uint8, for each call of a stage."""
    side, batch, count = config.crop_size, config.batch_size, stage["steps_a_call"]
    colors = augmentation.padding_row(plan["pad_color"], side)
    ready: queue.Queue = queue.Queue(CHUNKS_AHEAD)
    over = threading.Event()

    def put(item):
        while not over.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make():
        try:
            make_all()
        except Exception as error:  # raised where it is waited for
            put(error)

    def make_all():
        for first in range(0, stage["steps"], count):
            shape = (count * batch, side, side)
            image, label = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
            for k in range(count * batch):
                n = first * batch + k
                augmentation.augment(
                    stage["seed"],
                    n,
                    images[numbers[n]],
                    labels[numbers[n]],
                    image[k],
                    label[k],
                    scale_range=(config.scale_min, config.scale_max),
                    flip=config.flip,
                    colors=colors,
                    ignore_label=plan["ignore_label"],
                )
            put(
                (
                    image.reshape(count, batch, side, side, 3),
                    label.reshape(count, batch, side, side),
                )
            )
            if over.is_set():
                return

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    try:
        for _ in range(0, stage["steps"], count):
            parts = ready.get()
            if isinstance(parts, Exception):
                raise parts
            yield parts
    finally:
        over.set()
        maker.join()  # a process that ends while OpenCV is at work is aborted
