"""CamVid: driving scenes with 11 classes, in the layout of the SegNet tutorial.

SOURCE/{train,val,test}/ID.png|jpg
SOURCE/{train,val,test}annot/ID.png    ids 0..10, and 11 for unlabelled
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep import examples
from ss_gan_tf.datasets import DATASETS

FACTS = DATASETS["camvid"]
UNLABELLED = 11  # in the files


class Builder(tfds.core.GeneratorBasedBuilder):
    """Reads an extracted copy; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put {train,val,test}/ID.png|jpg and {train,val,test}annot/ID.png there."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=examples.features(FACTS.class_names),
            metadata=tfds.core.MetadataDict(
                examples.metadata(FACTS.class_names, FACTS.class_colors)
            ),
            disable_shuffling=True,  # stored, and so evaluated, in order of names
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        source = Path(dl_manager.manual_dir)
        pairs = {
            split: examples.find_pairs(source / split, source / f"{split}annot")
            for split in FACTS.counts
        }
        return {split: self._generate_examples(pairs[split]) for split in pairs}

    def _generate_examples(
        self, pairs: Sequence[examples.Pair]
    ) -> Iterator[tuple[str, dict]]:
        remap = {UNLABELLED: FACTS.ignore_label}
        return examples.read_pairs(pairs, FACTS.num_classes, remap)
