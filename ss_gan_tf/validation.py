"""A run's view of its validation split: the numbers, and pictures for TensorBoard."""

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import replicas, summaries
from ss_gan_tf.backbones import normalize
from ss_gan_tf.config import Config
from ss_gan_tf.evaluate import evaluate
from ss_gan_tf.inference import make_predictor
from ss_gan_tf.input_pipeline import PreparedDataset, eval_examples
from ss_gan_tf.stages import Networks
from ss_gan_tf.workers import Workers


class Validation:
    """Evaluates and draws with one predictor, traced once for each device of the run.

    The split is shared out among devices and workers; all workers get the same numbers.

    Args:
        config: the run.
        data: the prepared data set.
        networks: the run's; `evaluated` is what is validated.
        strategy: the run's; the networks were made in its scope.
    """

    def __init__(
        self,
        config: Config,
        data: PreparedDataset,
        networks: Networks,
        strategy: tf.distribute.Strategy,
    ):
        self.config, self.data, self.networks = config, data, networks
        self._workers = Workers(strategy)
        self.per_image = None  # the counts of single images behind the newest metrics
        self._datasets: dict[tuple, tf.data.Dataset] = {}
        self._generator: keras.Model = networks.evaluated
        self._settings = {
            "mode": config.eval_mode,
            "window": config.eval_window,
            "overlap": config.eval_overlap,
            "scales": config.eval_scales,
            "flip": config.eval_flip,
        }
        self._predictor = make_predictor(
            self._generator,
            num_classes=data.num_classes,
            normalize=normalize,
            devices=replicas.devices(strategy),
            **self._settings,
        )

    def metrics(self, limit: int = 0, progress=None) -> dict:
        """What `evaluate` says of the split.

        Args:
            limit: images, 0 is all.
            progress: called after some images of each worker, equally often on all.
        """
        workers = self._workers
        return evaluate(
            self._generator,
            self._examples(limit, (workers.number, workers.count)),
            class_names=self.data.class_names,
            ignore_label=self.data.ignore_label,
            normalize=normalize,
            predictor=self._predictor,
            progress=progress,
            full=self.config.eval_metrics == "full",
            on_counts=lambda images: setattr(self, "per_image", images),
            join=workers.join,
            **self._settings,
        )

    def pictures(self) -> dict[str, np.ndarray]:
        """Panels and verdict maps of the first images, name -> [H, W, 3] uint8."""
        pictures = {}
        if not self.config.panels:
            return pictures
        examples = self._examples(self.config.panels).as_numpy_iterator()
        for number, example in enumerate(examples):
            probs = self._predictor.probabilities(example["image"][np.newaxis])
            pictures[f"panel/{number}"] = summaries.validation_panel(
                example,
                probs[0].argmax(-1),
                self.data.class_colors,
                self.data.ignore_label,
            )
            if self.networks.adversary is not None and _fits_verdicts(example):
                real, fake = self._verdicts(example, probs)
                pictures[f"verdicts/{number}"] = summaries.verdict_panel(
                    example["image"], real, fake
                )
        return pictures

    def _examples(self, limit, worker=(0, 1)):
        """A worker's share of the first images, 0 is all; the same dataset each time.

        TensorFlow keeps a dataset's functions for the rest of the process, and these
        the file that they read: a new one for each validation would add up.
        """
        key = limit, worker
        if key not in self._datasets:
            self._datasets[key] = eval_examples(
                self.data, self.config.val_split, limit=limit or None, worker=worker
            )
        return self._datasets[key]

    def _verdicts(self, example, probs):
        """A's verdicts on one image: d(real map), d(fake map), [S, S] each."""
        ignore_label = self.data.ignore_label
        label = tf.constant(example["label"][np.newaxis], tf.int32)
        features = None
        if self.networks.extractor is not None:
            image = tf.constant(example["image"][np.newaxis], tf.float32)
            features = self.networks.extractor(normalize(image), training=False)
        maps = (
            adversary_lib.real_map(probs, label, self.config.epsilon, ignore_label),
            adversary_lib.fake_map(probs, label, ignore_label),
        )
        real, fake = (
            tf.sigmoid(adversary_lib.judge(self.networks.adversary, shown, features))
            for shown in maps
        )
        return real[0].numpy(), fake[0].numpy()


def _fits_verdicts(example) -> bool:
    """Whether A's last feature map, a sixteenth of the image, has a cell."""
    return min(example["label"].shape) >= 32
