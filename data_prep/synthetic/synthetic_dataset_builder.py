"""Street scenes drawn with OpenCV: needs no download and no licence."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_prep import examples
from data_prep.archives import SourceError
from data_prep.builder import SegmentationBuilder
from data_prep.synthetic.scene import HEIGHT, WIDTH, draw_scene
from ss_gan_tf.datasets import DATASETS

FACTS = DATASETS["synthetic"]
SEED = 20180


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene that is still to be drawn.

    Attributes:
        split: Its split.
        index: Its place in the split, from 0.
    """

    split: str
    index: int

    @property
    def size(self) -> int:
        """Bytes of its pixels, which no compression exceeds."""
        return HEIGHT * WIDTH * 4


class Builder(SegmentationBuilder):
    """Scene `index` of a split depends on nothing but split and index."""

    VERSION = tfds.core.Version("1.0.0")
    FACTS = FACTS

    def __init__(self, *, num_examples: int | None = None, **kwargs):
        """Takes the number of training scenes besides the base class's arguments.

        Args:
            num_examples: Training scenes; the other splits keep their proportion
                to it.  None for the usual counts.
            **kwargs: Of `SegmentationBuilder`.
        """
        self.counts = split_counts(num_examples)
        super().__init__(**kwargs)

    def _plan(self, source: Path | None) -> dict[str, Sequence[Scene]]:
        del source
        return {
            split: [Scene(split, index) for index in range(count)]
            for split, count in self.counts.items()
        }

    def _is_partial(self, source, plan) -> bool:
        del source, plan
        return False  # any number of scenes is right

    def _make_example(self, item: Scene) -> examples.Example:
        stream = list(FACTS.counts).index(item.split)
        image, label = draw_scene(np.random.default_rng([SEED, stream, item.index]))
        name = f"{item.split}_{item.index:05d}"
        return examples.encode(name, examples.png(image), label)


def split_counts(num_examples: int | None) -> dict[str, int]:
    """Scenes per split for a number of training scenes.

    Raises:
        SourceError: Fewer than one scene.
    """
    if num_examples is None:
        return dict(FACTS.counts)
    if num_examples < 1:
        raise SourceError(f"num_examples={num_examples} is less than 1.")
    share = num_examples / FACTS.counts["train"]
    return {split: math.ceil(share * count) for split, count in FACTS.counts.items()}
