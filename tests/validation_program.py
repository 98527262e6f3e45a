"""A validation on the devices that the arguments ask for; see test_workers.

    python -m tests.validation_program DATA_DIR FILE TASK ... DEVICES ...

with DEVICES none, mirrored or multi_worker. What each TASK came to on a worker is in
FILE-DEVICES-WORKER.json:

uneven     figures and counts of 5 images
one        of 1 image: a second worker has none
stop       the images counted until the last worker was heard to want a stop
trouble    the error where the fourth image is broken
"""

import json
import sys

import numpy as np
import tensorflow as tf

from ss_gan_tf import measures, replicas, stages
from ss_gan_tf.config import PRESETS, Config
from ss_gan_tf.input_pipeline import eval_examples, open_dataset
from ss_gan_tf.validation import Validation
from ss_gan_tf.workers import Workers

CONFIG = Config(
    arm="vgg16",
    **PRESETS["smoke"]
    | {"width": 0.03125, "val_split": "train", "eval_metrics": "full", "panels": 0},
)


class Stop(Exception):
    """The workers have agreed to stop."""


def figures(validation, limit):
    metrics = validation.metrics(limit)
    images = validation.per_image
    counts = {name: values.tolist() for name, values in images.counts.items()}
    return {"metrics": metrics, "names": images.names, "counts": counts}


def stop(validation, strategy):
    """The last worker is asked to stop when it has counted two rounds."""
    workers, heard = Workers(strategy), []

    def progress(done, _):
        heard.append(done)
        asked = workers.number == workers.count - 1 and len(heard) >= 2
        if workers.any(asked):
            raise Stop

    try:
        validation.metrics(12, progress)
    except Stop:
        return heard
    return "was not stopped"


def trouble(validation, broken):
    count = measures.count

    def count_or_fail(label, *args, **kwargs):
        if np.array_equal(label, broken):
            raise ValueError("a broken label\nof many lines")
        return count(label, *args, **kwargs)

    measures.count = count_or_fail
    try:
        validation.metrics(5)
    except ValueError as error:
        return str(error)
    finally:
        measures.count = count
    return "nothing went wrong"


def main(data_dir, path, *words):
    kinds = [w for w in words if w in ("none", "mirrored", "multi_worker")]
    if "mirrored" in kinds:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    for kind in kinds:
        strategy = replicas.make_strategy(kind)
        data = open_dataset("synthetic", data_dir)
        with strategy.scope():
            networks = stages.create_networks(CONFIG, data.class_names)
        validation = Validation(CONFIG, data, networks, strategy)
        fourth = list(eval_examples(data, "train", limit=4).as_numpy_iterator())[3]
        tasks = {
            "uneven": lambda v=validation: figures(v, 5),
            "one": lambda v=validation: figures(v, 1),
            "stop": lambda v=validation, s=strategy: stop(v, s),
            "trouble": lambda v=validation, f=fourth: trouble(v, f["label"]),
        }
        found = {word: tasks[word]() for word in words if word in tasks}
        found["devices"] = len(replicas.devices(strategy))
        number, _ = replicas.worker(strategy)
        with open(f"{path}-{kind}-{number}.json", "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
