"""A run's view of its validation split: the numbers, and pictures for TensorBoard."""

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import summaries
from ss_gan_tf.backbones import normalize
from ss_gan_tf.config import Config
from ss_gan_tf.evaluate import evaluate
from ss_gan_tf.inference import make_predictor
from ss_gan_tf.input_pipeline import PreparedDataset, eval_examples
from ss_gan_tf.stages import Networks


class Validation:
    """Evaluates and draws with one predictor, which is traced once for the run.

    Args:
        config: the run.
        data: the prepared data set.
        networks: the run's; `evaluated` is what is validated.
    """

    def __init__(self, config: Config, data: PreparedDataset, networks: Networks):
        self.config, self.data, self.networks = config, data, networks
        self.per_image = None  # the counts of single images behind the newest metrics
        self._datasets: dict[int, tf.data.Dataset] = {}
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
            **self._settings,
        )

    def metrics(self, limit: int = 0, progress=None) -> dict:
        """What `evaluate` says of the split.

        Args:
            limit: images, 0 is all.
            progress: as for `evaluate`.
        """
        return evaluate(
            self._generator,
            self._examples(limit),
            class_names=self.data.class_names,
            ignore_label=self.data.ignore_label,
            normalize=normalize,
            predictor=self._predictor,
            progress=progress,
            full=self.config.eval_metrics == "full",
            on_counts=lambda images: setattr(self, "per_image", images),
            **self._settings,
        )

    def pictures(self) -> dict[str, np.ndarray]:
        """Panels and verdict maps of the first images, name -> [H, W, 3] uint8."""
        pictures = {}
        if not self.config.panels:
            return pictures
        examples = self._examples(self.config.panels).as_numpy_iterator()
        for number, example in enumerate(examples):
            probs = self._predictor(example["image"][np.newaxis])
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

    def _examples(self, limit):
        """The first images, 0 is all; the same dataset each time.

        TensorFlow keeps a dataset's functions for the rest of the process, and these
        the file that they read: a new one for each validation would add up.
        """
        if limit not in self._datasets:
            self._datasets[limit] = eval_examples(
                self.data, self.config.val_split, limit=limit or None
            )
        return self._datasets[limit]

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
