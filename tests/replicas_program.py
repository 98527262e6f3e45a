"""Steps of small networks on the devices that the arguments ask for; see test_replicas.

    python -m tests.replicas_program FILE VARIANT ... DEVICES ...

with VARIANT plain, clip, scale or parts and DEVICES none, mirrored or multi_worker
writes scalars and weights after the steps to FILE-DEVICES-WORKER.json. VARIANT from=RUN
makes no steps: what each device has once networks have started from the G of a run.
guarded=DATA trains a phase 2 behind the runs of from=RUN into FILE-DEVICES, in which
every validation is a collapse, and writes nothing else.
"""

import dataclasses
import itertools
import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ss_gan_tf import checkpoints, replicas, stages, train, train_step
from ss_gan_tf.adversary import build_adversary

C, SIZE, VOID = 3, 32, 255


def batch(seed):
    """Four images, the last without a label: the replicas' shares differ."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
    label = rng.integers(0, C, (4, SIZE, SIZE)).astype(np.int32)
    label[1, 16:] = label[3] = VOID
    return image, label


def generator(dropout=0.0):
    regularizer = keras.regularizers.L2(0.01)
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, padding="same", kernel_regularizer=regularizer)(image)
    x = layers.Dropout(dropout)(layers.ReLU()(x))
    return keras.Model(image, layers.Conv2D(C, 1)(x))


def run(strategy, *, clip=None, scale=None, parts=1):
    """Scalars of the last step of each kind, and all weights in the end."""
    number, num_workers = replicas.worker(strategy)
    with strategy.scope():
        keras.utils.set_random_seed(1)
        g, a = generator(), build_adversary(C, None, grid_size=2, width=1 / 32)
        clip = clip and clip / strategy.num_replicas_in_sync
        optimizers = [
            keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=norm)
            for rate, norm in ((0.3, clip), (0.1, None))
        ]
        if scale:
            optimizers = [
                keras.optimizers.LossScaleOptimizer(o, scale) for o in optimizers
            ]
        common = {"accumulate_steps": parts}
        steps = [
            train_step.make_segmentation_step(g, optimizers[0], **common),
            train_step.make_warmup_step(g, a, optimizers[1], **common),
            train_step.make_adversarial_step(
                g, a, *optimizers, gradient_ratio=0.5, lambda_max=1e6, **common
            ),
        ]
    scalars = {}
    for kind, step in enumerate(steps):
        for seed in range(2):
            share = [np.split(x, num_workers)[number] for x in batch(10 * kind + seed)]
            values = step(*map(tf.constant, share))
            scalars |= {f"{kind}/{k}": float(v) for k, v in values.items()}
    state = [*g.weights, *a.weights, *(v for o in optimizers for v in o.variables)]
    return {
        "scalars": scalars,
        "weights": [np.asarray(v).tolist() for v in state],
        "replicas": strategy.num_replicas_in_sync,
    }


def overflow(strategy):
    """The scale and the weights' movement when one replica alone overflows."""
    with strategy.scope():
        keras.utils.set_random_seed(1)
        g = generator()
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 8.0)
        step = train_step.make_segmentation_step(g, optimizer)
    before = [np.asarray(w).copy() for w in g.trainable_variables]
    image, label = batch(0)
    image[3, 0, 0], label[3] = np.inf, 1  # the second replica's
    step(tf.constant(image), tf.constant(label))
    moved = [
        np.abs(np.asarray(w) - b).max()
        for w, b in zip(g.trainable_variables, before, strict=True)
    ]
    return {
        "scale": float(np.asarray(optimizer.dynamic_scale)),
        "moved": float(max(moved)),
    }


def masks(strategy):
    """Which units two equal images keep under dropout, one on each replica."""
    with strategy.scope():
        keras.utils.set_random_seed(1)
        g = generator(dropout=0.5)
        probe = keras.Model(g.input, g.layers[3].output)

        def step(image, label):
            mask = tf.cast(probe(image, training=True)[..., 0] > 0, tf.float32)
            return {"kept": replicas.joined(mask)}

        function = replicas.make_function(step, g, False)
    image = tf.ones([2, SIZE, SIZE, 3])
    return function(image, tf.zeros([2, SIZE, SIZE], tf.int32))["kept"].numpy().tolist()


def first_weights(strategy, run):
    """Sums of G's and its average's weights on each device, before and after."""
    origin = checkpoints.read_run(run)
    config = dataclasses.replace(origin.config, init_generator=run, ema_decay=0.5)
    with strategy.scope():
        networks = stages.create_networks(config, origin.class_names)

    def sums():
        kernels = [
            weight.value
            for model in (networks.generator, networks.average)
            for weight in model.trainable_weights
        ]
        copies = zip(*map(strategy.experimental_local_results, kernels), strict=True)
        return [[float(tf.reduce_sum(w)) for w in copy] for copy in copies]

    before = sums()
    stages.load_first_weights(networks, config, origin.class_names)
    return before, sums()


def train_guarded(kind, run, data_dir, workdir):
    """A phase 2 that starts at 60 % mIoU and has 10 % whenever it is looked at."""
    config = dataclasses.replace(
        checkpoints.read_run(run).config,
        **{"init_generator": run, "dropout": 0.0, "distribute": kind, "guard": True},
        **{"phase2_steps": 5, "adversary_warmup_steps": 0, "eval_every": 2},
    )
    given = iter([0.6])

    def metrics(*args, **kwargs):
        return real(*args, **kwargs) | {"miou": next(given, 0.1)}

    real, train.Validation.metrics = train.Validation.metrics, metrics
    train.train(config, data_dir, workdir)
    train.Validation.metrics = real


VARIANTS = {
    "plain": {},
    "clip": {"clip": 0.01},
    "scale": {"scale": 8.0},
    "parts": {"parts": 2},
}


def main(path, words):
    variants = [word for word in words if word in VARIANTS]
    runs = [word[5:] for word in words if word.startswith("from=")]
    kinds = [word for word in words if word in ("none", "mirrored", "multi_worker")]
    if "mirrored" in kinds:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    for data_dir in (word[8:] for word in words if word.startswith("guarded=")):
        for kind, origin in itertools.product(kinds, runs):
            train_guarded(kind, origin, data_dir, f"{path}-{kind}")
        return
    for kind in kinds:
        strategy = replicas.make_strategy(kind)
        found = {name: run(strategy, **VARIANTS[name]) for name in variants}
        for path_of_run in runs:
            found["from"] = first_weights(strategy, path_of_run)
        if kind == "mirrored" and variants:
            found["masks"] = masks(strategy)
        if kind == "mirrored" and "scale" in variants:
            found["overflow"] = overflow(strategy)
        found["worker"] = replicas.worker(strategy)
        with open(f"{path}-{kind}-{found['worker'][0]}.json", "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
