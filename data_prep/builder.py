"""The way of every data set from its source to TFDS' files.

    plan -> room on the disk -> each split: read, check, write, keep -> links -> summary

A builder says which examples each split has (`_plan`) and how one is made
(`_make_example`).  Splits that consist of others (`COMPOSED`) cost neither time nor
room: their files are links to the files of their parts.

Until the last file is written, everything lies in folders that do not look prepared;
TFDS renames its own at the very end.  A run that is interrupted leaves its finished
splits to the next one, see `staging`.
"""

import abc
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_prep import examples, summary
from data_prep.archives import SourceError
from data_prep.staging import Staging, link
from data_prep.workers import ordered_map
from ss_gan_tf.datasets import DatasetFacts

# Called with split, examples done and examples in all.
ProgressFunction = Callable[[str, int, int], None]

GIB = 2**30
_HEADROOM = 1.05  # records and their index are a little larger than their content


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders have in common; see the module."""

    RELEASE_NOTES = {"1.0.0": "First version."}

    # Facts of a published data set; None where the source brings its own.
    FACTS: DatasetFacts | None = None
    # Split -> the splits that it consists of, which must not overlap.
    COMPOSED: Mapping[str, tuple[str, ...]] = {}
    # Splits that only serve to compose others.
    HIDDEN: tuple[str, ...] = ()
    # Splits that a complete data set may lack.
    OPTIONAL: tuple[str, ...] = ()
    # Whether it can be had without a source.
    DOWNLOADABLE = False

    def __init__(
        self,
        *,
        source_dir: str | None = None,
        allow_partial: bool = False,
        mirror: str | None = None,
        progress: ProgressFunction | None = None,
        staging: Staging | None = None,
        **kwargs,
    ):
        """Takes what `data_prep.prepare` offers besides TFDS' own arguments.

        Args:
            source_dir: Folder of the original files, or an archive; None for TFDS'
                manual folder.
            allow_partial: Whether images of the complete data set may be missing.
            mirror: Address below which the archives lie under their original names;
                None for the data set's own.
            progress: Told how far a split is.
            staging: Keeps finished splits; None to keep none.
            **kwargs: Of `tfds.core.GeneratorBasedBuilder`.
        """
        self._source_dir = source_dir
        self._allow_partial = allow_partial
        self._mirror = mirror
        self._progress = progress
        self._staging = staging
        self._planned: dict[str, Sequence[Any]] = {}
        self._counts: dict[str, summary.SplitCount] = {}
        self._notes: dict[str, list[str]] = {}
        super().__init__(**kwargs)

    @abc.abstractmethod
    def _plan(self, source: Path) -> dict[str, Sequence[Any]]:
        """What to make examples of, by split; only names and sizes are read.

        Items have a `size`, their bytes in the source.
        """

    @abc.abstractmethod
    def _make_example(self, item: Any) -> examples.Example:
        """Reads and checks one item; called from several threads."""

    def _info(self) -> tfds.core.DatasetInfo:
        facts = self.FACTS
        return self.dataset_info_from_configs(
            features=examples.features(facts.class_names if facts else None),
            metadata=tfds.core.MetadataDict(
                examples.metadata(facts.class_names, facts.class_colors)
                if facts
                else {}
            ),
            disable_shuffling=True,  # stored, and so evaluated, in order of the plan
        )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        source = self._source_dir
        if self.MANUAL_DOWNLOAD_INSTRUCTIONS:
            source = Path(source or dl_manager.manual_dir)
        plan = {split: items for split, items in self._plan(source).items() if items}
        partial = self._is_partial(source, plan)
        if not plan:
            raise SourceError(f"{source}: holds no example.")
        infos = self._restore(plan)
        missing = {name: plan[name] for name in plan if name not in infos}
        self._check_room(missing)
        for split, items in missing.items():
            self._planned = {split: items}
            super()._download_and_prepare(dl_manager, download_config)
            infos[split] = self.info.splits[split]
            self._keep(infos[split])
        for name, parts in self.COMPOSED.items():
            if set(parts) <= infos.keys():
                infos[name] = self._link(name, [infos[part] for part in parts])
                self._counts[name] = sum(
                    (self._counts[part] for part in parts), summary.SplitCount()
                )
        for name in set(self.HIDDEN) & infos.keys():
            for path in infos.pop(name).filepaths:
                path.unlink()
        order = [*(self.FACTS.counts if self.FACTS else ()), *infos]
        infos = {name: infos[name] for name in dict.fromkeys(order) if name in infos}
        self.info.set_splits(tfds.core.splits.SplitDict(list(infos.values())))
        self.info.metadata["partial"] = partial
        result = summary.summarize(
            self.name,
            self.info.metadata["class_names"],
            {name: self._counts[name] for name in infos},
            partial=partial,
            notes=[note for split in plan for note in self._notes[split]],
        )
        summary.write(result, Path(self.data_path))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._planned}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        items = self._planned[split]
        count = self._counts[split] = summary.SplitCount()
        for example in ordered_map(self._make_example, items):
            count.add(example)
            yield (
                example.name,
                {"image": example.image, "label": example.label, "name": example.name},
            )
            if self._progress:
                self._progress(split, count.examples, len(items))
        self._notes[split] = self._finish_split(split, count)

    def _is_partial(self, source: Path, plan: Mapping[str, Sequence[Any]]) -> bool:
        """Whether the source is partial, which has to be allowed."""
        if not self.FACTS:
            return False
        sizes = {split: len(items) for split, items in plan.items()}
        for name, parts in self.COMPOSED.items():
            if set(parts) <= sizes.keys():
                sizes[name] = sum(sizes[part] for part in parts)
        short = [
            f"{split} has {sizes.get(split, 0)} of {count}{self._where_short(split)}"
            for split, count in self.FACTS.counts.items()
            if sizes.get(split) != count
            and not (split in self.OPTIONAL and split not in sizes)
        ]
        if short and not self._allow_partial:
            raise SourceError(
                f"{source}: this is not the complete data set: "
                f"{'; '.join(short)}. --allow_partial prepares what is there and "
                "marks it as partial."
            )
        return bool(short)

    def _finish_split(self, split: str, count: summary.SplitCount) -> list[str]:
        """Looks at a split as a whole, before it counts as written.

        Returns:
            What the summary shall say besides its figures, a line each.

        Raises:
            SourceError: All examples together show a mistake that none shows alone.
        """
        del split, count
        return []

    def _where_short(self, split: str) -> str:
        """More about a split whose size is wrong; text for brackets or nothing."""
        del split
        return ""

    def _check_room(self, plan: Mapping[str, Sequence[Any]]) -> None:
        sizes = [sum(item.size for item in items) for items in plan.values()]
        # TFDS writes a large split a first time before it knows its shards.
        needed = int(_HEADROOM * (sum(sizes) + max(sizes, default=0)))
        free = shutil.disk_usage(self.data_path).free
        if free < needed:
            raise SourceError(
                f"{self.data_dir_root}: {free / GIB:.2f} GiB are free, about "
                f"{needed / GIB:.2f} GiB are needed."
            )

    def _keep(self, info: tfds.core.SplitInfo) -> None:
        """Leaves a finished split to the next run, should this one be interrupted."""
        if not self._staging:
            return
        facts = {
            "shard_lengths": [int(length) for length in info.shard_lengths],
            "num_bytes": int(info.num_bytes),
            "count": self._counts[info.name].to_dict(256),
            "notes": self._notes[info.name],
        }
        files = [Path(path) for path in info.filepaths]
        self._staging.keep(info.name, files, facts)

    def _restore(self, plan: Iterable[str]) -> dict[str, tfds.core.SplitInfo]:
        """The splits that an interrupted run has finished."""
        infos = {}
        for split in plan if self._staging else ():
            if facts := self._staging.restore(split, Path(self.data_path)):
                self._counts[split] = summary.SplitCount.from_dict(facts["count"])
                self._notes[split] = facts["notes"]
                infos[split] = tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=facts["shard_lengths"],
                    num_bytes=facts["num_bytes"],
                    filename_template=tfds.core.ShardedFileTemplate(
                        dataset_name=self.name,
                        data_dir=self.data_path,
                        split=split,
                        filetype_suffix=self.info.file_format.file_suffix,
                    ),
                )
        return infos

    def _link(
        self, name: str, parts: Sequence[tfds.core.SplitInfo]
    ) -> tfds.core.SplitInfo:
        """Makes a split of the files of others."""
        files = [path for part in parts for path in part.filepaths]
        template = parts[0].filename_template.replace(split=name)
        for index, file in enumerate(files):
            target = template.sharded_filepath(shard_index=index, num_shards=len(files))
            link(file, target)
        return tfds.core.SplitInfo(
            name=name,
            shard_lengths=[n for part in parts for n in part.shard_lengths],
            num_bytes=sum(part.num_bytes for part in parts),
            filename_template=template,
        )


class PairBuilder(SegmentationBuilder, skip_registration=True):
    """A builder whose items are image and label files."""

    # Whether EXIF's orientation is looked at; see `examples.read_image`.
    ORIENTED = True

    def _read_label(self, pair: examples.Pair):
        """[H, W] uint8 class ids of a pair, or None if nobody has labelled it."""
        return examples.read_label(
            pair.label, len(self.info.metadata["class_names"]), None
        )

    def _make_example(self, item: examples.Pair) -> examples.Example:
        encoded, size = examples.read_image(item.image, oriented=self.ORIENTED)
        return examples.encode_pair(item, encoded, size, self._read_label(item))
