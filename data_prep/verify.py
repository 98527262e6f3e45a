"""Reads a prepared data set again and checks every example."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_prep import examples, summary
from data_prep.archives import File, SourceError
from data_prep.builder import ProgressFunction
from data_prep.summary import SplitCount
from data_prep.workers import ordered_map


def verify(
    folder: Path, progress: ProgressFunction | None = None
) -> dict[str, SplitCount]:
    """Decodes every image and label and holds the totals against the summary.

    Args:
        folder: DATA/NAME/VERSION.
        progress: Told split, examples done and examples in all.

    Returns:
        The totals of each split.

    Raises:
        SourceError: A record is damaged, an example breaks a rule that held when it
            was written, a name occurs twice, or totals differ from the summary.
    """
    builder = tfds.builder_from_directory(folder)
    num_classes = len(builder.info.metadata["class_names"])
    stored = summary.read(folder)
    known = stored["splits"] if stored else {}
    totals = {}
    for split in builder.info.splits:
        totals[split] = _verify_split(builder, split, num_classes, progress)
        found = totals[split].to_dict(num_classes)
        told = known.get(split, found)  # of digests there were none once
        expected = {key: told.get(key, found[key]) for key in found}
        for key in found:
            if found[key] != expected[key]:
                raise SourceError(
                    f"{folder}: {split} has {key} {found[key]}, but the summary says "
                    f"{expected[key]}; prepare it again."
                )
    return totals


def add_digests(folder: Path, totals: Mapping[str, SplitCount]) -> list[str]:
    """Adds to the summary what data prepared by earlier versions lack in it.

    Args:
        folder: DATA/NAME/VERSION.
        totals: What `verify` returned for it.

    Returns:
        The splits that had no digest and have one now.

    Raises:
        OSError: The summary cannot be written; it stays as it was.
    """
    stored = summary.read(folder)
    known = stored["splits"] if stored else {}
    lacking = [s for s in totals if s in known and "digest" not in known[s]]
    for split in lacking:
        num_classes = len(known[split]["class_pixels"])
        known[split]["digest"] = totals[split].to_dict(num_classes)["digest"]
    if lacking:
        summary.write_json(stored, folder)  # the text holds none
    return lacking


def _verify_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    num_classes: int,
    progress: ProgressFunction | None,
) -> SplitCount:
    skip = tfds.decode.SkipDecoding()
    source = builder.as_data_source(split, decoders={"image": skip, "label": skip})

    def check(index: int) -> examples.Example:
        where = f"{builder.data_dir}: {split}[{index}]"
        try:
            record = source[index]
        except Exception as error:  # readers of records have errors of their own
            reason = str(error).split("\n")[0]
            raise SourceError(f"{where}: record is damaged ({reason}).") from error
        return _check(where, record, num_classes)

    total, names = SplitCount(), set()
    for index, example in enumerate(ordered_map(check, range(len(source)))):
        if example.name in names:
            raise SourceError(
                f"{builder.data_dir}: {split}[{index}] repeats the name {example.name}."
            )
        names.add(example.name)
        total.add(example)
        if progress:
            progress(split, index + 1, len(source))
    return total


def _check(where: str, record: dict[str, Any], num_classes: int) -> examples.Example:
    name = record["name"].decode()
    image, label = (
        File(f"{where} {name} {part}", len(content), lambda content=content: content)
        for part, content in ((part, record[part]) for part in ("image", "label"))
    )
    pair = examples.Pair(name, image, label)
    encoded, size = examples.read_image(image, oriented=False)
    ids = examples.read_label(label, num_classes)
    return examples.encode_pair(pair, encoded, size, ids)
