"""What TensorBoard shows of a run.

    loss/mce, loss/adversarial, loss/loss_g, loss/loss_d      eq. 4, 3, 3, 6
    adversary/accuracy_{real,fake,paired}                     shares of cells
    gradient/{segmentation,adversarial,lambda,ratio}          norms at G's logits
    learning_rate/{generator,adversary}   steps_per_second
    finite/{generator,adversary}          0 where an update was not finite
    guard/{strength,adversary_rate}       at an alarm, with a text `guard`
    val/miou  val/miou_{small,large}_classes  val/pixel_accuracy  val_iou/CLASS
    val_boundary/, val_granulation/, val_calibration/         with full metrics
    confusion  panel/N  verdicts/N                            pictures, text: config

loss_d = 2 ln 2 = 1.386 belongs to an adversary that cannot tell; see README.
Scalars of A's warm-up carry the prefix `warmup/`: G's step stands still meanwhile.
"""

import contextlib
import glob
import json
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.util.tensor_util import make_ndarray

from ss_gan_tf import strict_json, visualize
from ss_gan_tf.states import one_line

GUARD_FILE = "guard.jsonl"  # one alarm a line
MAX_WIDTH = 2048  # px, wider pictures are reduced


class Summaries:
    """Writes one run's event file.

    Args:
        logdir: folder of the event file.
    """

    def __init__(self, logdir: str):
        self._logdir = logdir
        self._writer = tf.summary.create_file_writer(logdir)

    @contextlib.contextmanager
    def _at(self, step):
        """Points written within belong to the step, and are on disk afterwards."""
        try:
            with self._writer.as_default(step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(
                f"{self._logdir}: TensorBoard's file could not be written "
                f"({one_line(error)}); make room or mend the disk, then give the same "
                "command again"
            ) from error

    def scalars(self, step: int, values: dict[str, float], prefix: str = ""):
        """One point of each curve."""
        with self._at(step):
            for name, value in values.items():
                tf.summary.scalar(prefix + name, value)

    def text(self, name: str, body: str, step: int = 0):
        """A text as a fixed-width block."""
        block = "\n".join("    " + line for line in body.splitlines())
        with self._at(step):
            tf.summary.text(name, block)

    def hparams(self, values: dict[str, Any]):
        """The run's settings, for TensorBoard's table of runs."""
        shown = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in values.items()
        }
        with self._at(0):
            hparams_api.hparams(shown)

    def validation(self, step: int, metrics: dict):
        """The overall figures, the IoU of each class and the confusion matrix.

        Args:
            step: where on the curves.
            metrics: what `measures.summarize` returns; what is None has no point.
        """
        names = ("miou", "miou_small_classes", "miou_large_classes", "pixel_accuracy")
        values = {f"val/{name}": metrics[name] for name in names}
        values |= {f"val_iou/{name}": iou for name, iou in metrics["iou"].items()}
        for kind in ("boundary", "granulation", "calibration"):
            for name, value in metrics.get(kind, {}).items():
                if isinstance(value, float):
                    values[f"val_{kind}/{name}"] = value
        self.scalars(step, {k: v for k, v in values.items() if v is not None})
        picture = visualize.confusion_picture(
            np.array(metrics["confusion_matrix"]), list(metrics["iou"])
        )
        self.pictures(step, {"confusion": picture})

    def pictures(self, step: int, pictures: dict[str, np.ndarray]):
        """Pictures, name -> [H, W, 3] uint8 RGB."""
        with self._at(step):
            for name, picture in pictures.items():
                tf.summary.image(name, _fit(picture)[np.newaxis])

    def alarm(self, step: int, alarm: dict, factors: dict[str, float], prefix: str):
        """An alarm of the guard: a text, the factors' curves, a line of GUARD_FILE.

        Args:
            step: of the curves.
            alarm: what happened; JSON values.
            factors: by which the adversary is held back.
            prefix: of the tags.
        """
        self.text(f"{prefix}guard", json.dumps(alarm, indent=2), step)
        self.scalars(step, {f"guard/{k}": v for k, v in factors.items()}, prefix)
        path = os.path.join(self._logdir, GUARD_FILE)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(alarm | factors) + "\n")

    def close(self):
        """Ends the event file."""
        self._writer.close()


def read_scalars(
    logdir: str, names: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run, read again from its event files.

    A run that was continued has several files; where a step stands in two of them,
    the newest point counts.

    Args:
        logdir: folder of the event files.
        names: of the wanted scalars.

    Returns:
        name -> [(step, value)] by step; a name that never occurs has none.
    """
    return {
        name: [(step, float(tensor)) for step, tensor in points]
        for name, points in _read(logdir, names).items()
    }


def read_pictures(
    logdir: str, names: Sequence[str]
) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The pictures of a run, read again from its event files.

    Args:
        logdir: folder of the event files.
        names: of the wanted pictures.

    Returns:
        name -> [(step, [H, W, 3] uint8 RGB)] by step; a name that never occurs has
        none.
    """
    # What an event holds is width, height and a file for each picture of a batch.
    return {
        name: [(step, _decode(tensor[2])) for step, tensor in points]
        for name, points in _read(logdir, names).items()
    }


def _decode(file: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def _read(logdir, names) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Name -> [(step, tensor)] by step; of two at one step the newest."""
    points: dict[str, dict[int, tuple[float, np.ndarray]]] = {n: {} for n in names}
    files = [name for name in os.listdir(logdir) if "tfevents" in name]
    for file in files:
        for event in EventFileLoader(os.path.join(logdir, file)).Load():
            for value in event.summary.value:
                if value.tag not in points:
                    continue
                known = points[value.tag].get(event.step)
                if known is None or event.wall_time >= known[0]:
                    tensor = make_ndarray(value.tensor)
                    points[value.tag][event.step] = event.wall_time, tensor
    return {
        name: [(step, tensor) for step, (_, tensor) in sorted(curve.items())]
        for name, curve in points.items()
    }


def read_alarms(logdir: str) -> list[dict]:
    """The alarms of the guard in a run's folder, in their order.

    Returns:
        What `Summaries.alarm` was told each time; none where there is no file.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = os.path.join(logdir, GUARD_FILE)
    if not os.path.isfile(path):
        return []
    try:
        with open(path, encoding="utf-8") as file:
            alarms = [strict_json.loads(line) for line in file]
        for alarm in alarms:
            if not (type(alarm["step"]) is int and isinstance(alarm["action"], str)):
                raise ValueError("step must be a number and action a word")
        return alarms
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a list of alarms ({error})") from error


def log_sizes(logdir: str) -> dict[str, int]:
    """The event files and the guard's file in a folder, with their sizes in bytes."""
    found = []
    for pattern in ("events.out.tfevents.*", GUARD_FILE):
        found += glob.glob(os.path.join(glob.escape(logdir), pattern))
    return {os.path.basename(path): os.path.getsize(path) for path in found}


def cut_back(logdir: str, sizes: dict[str, int]):
    """Takes out of a folder's logs what was written after a certain moment.

    A run that continues writes those points again; without this every reader that
    looks at all files would meet them twice.

    Args:
        logdir: folder of the logs; no writer may be open.
        sizes: what `log_sizes` said at that moment.
    """
    for name, size in log_sizes(logdir).items():
        path = os.path.join(logdir, name)
        if name not in sizes:
            os.remove(path)
        elif size > sizes[name]:
            os.truncate(path, sizes[name])


def validation_panel(
    example: dict[str, np.ndarray],
    pred: np.ndarray,
    colors,
    ignore_label: int,
) -> np.ndarray:
    """Image | truth | prediction | error.

    Args:
        example: `image` [H, W, 3] uint8 and `label` [H, W].
        pred: [H, W] class ids.
        colors: C RGB triples.
        ignore_label: id of unlabelled pixels.

    Returns:
        [h, w, 3] uint8 RGB.
    """
    return visualize.panel(
        example["image"], example["label"], pred, colors, ignore_label
    )


def verdict_panel(image: np.ndarray, real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """A's verdicts on the truth and on the prediction, drawn over the image.

    Args:
        image: [H, W, 3] uint8 RGB.
        real: [S, S] probabilities of "ground truth" for the real map.
        fake: [S, S] the same for the generated map.

    Returns:
        [h, w, 3] uint8 RGB.
    """
    return visualize.side_by_side(
        {
            "d(truth), 1 is right": visualize.verdict_overlay(image, real),
            "d(prediction), 0 is right": visualize.verdict_overlay(image, fake),
        }
    )


def _fit(picture: np.ndarray) -> np.ndarray:
    """The picture at MAX_WIDTH or less, its proportions kept."""
    height, width = picture.shape[:2]
    if width <= MAX_WIDTH:
        return picture
    size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
