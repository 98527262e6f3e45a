"""Street scenes drawn with OpenCV: needs no download and no licence."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_prep import examples
from data_prep.synthetic.scene import draw_scene
from ss_gan_tf.datasets import DATASETS

FACTS = DATASETS["synthetic"]
SEED = 20180


class Builder(tfds.core.GeneratorBasedBuilder):
    """Scene `index` of a split depends on nothing but split and index."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def __init__(self, *, num_examples: int | None = None, **kwargs):
        """Takes the number of training scenes besides TFDS' own arguments.

        Args:
            num_examples: Training scenes; the other splits keep their proportion
                to it.  None for the usual counts.
            **kwargs: Of `tfds.core.GeneratorBasedBuilder`.
        """
        self.counts = split_counts(num_examples)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=examples.features(FACTS.class_names),
            metadata=tfds.core.MetadataDict(
                examples.metadata(FACTS.class_names, FACTS.class_colors)
            ),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        return {
            split: self._generate_examples(split, count)
            for split, count in self.counts.items()
        }

    def _generate_examples(
        self, split: str, count: int
    ) -> Iterator[tuple[str, dict[str, object]]]:
        stream = list(FACTS.counts).index(split)
        for index in range(count):
            image, label = draw_scene(np.random.default_rng([SEED, stream, index]))
            name = f"{split}_{index:05d}"
            yield name, {"image": image, "label": label[..., None], "name": name}


def split_counts(num_examples: int | None) -> dict[str, int]:
    """Scenes per split for a number of training scenes.

    Raises:
        SourceError: Fewer than one scene.
    """
    if num_examples is None:
        return dict(FACTS.counts)
    if num_examples < 1:
        raise examples.SourceError(f"num_examples={num_examples} is less than 1.")
    share = num_examples / FACTS.counts["train"]
    return {split: math.ceil(share * count) for split, count in FACTS.counts.items()}
