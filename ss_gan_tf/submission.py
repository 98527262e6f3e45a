"""Predictions as the files that the benchmarks' evaluation servers take.

cityscapes  DIR/CITY_SEQUENCE_FRAME_leftImg8bit.png
            labelIds, 1024 x 2048, one channel; zip the files
voc_sbd     DIR/results/VOC2012/Segmentation/comp6_SPLIT_cls/NAME.png
            class ids with VOC's palette; pack the folder `results`
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ss_gan_tf.datasets import CITYSCAPES_LABEL_IDS, default_colors


@dataclasses.dataclass(frozen=True)
class ServerFormat:
    """What one server takes.

    Attributes:
        path: of a prediction, below the submission's folder; {split} and {name} stand
            for themselves.
        name: regular expression of an image's name, found anywhere in an example's.
        names_are: the same for people.
        num_classes: C.
        has_palette: whether the PNG is indexed, with VOC's colours.
        size: (H, W) of every image; None where sizes vary.
    """

    path: str
    name: str
    names_are: str
    num_classes: int
    has_palette: bool = False
    size: tuple[int, int] | None = None


FORMATS = {
    # The server finds a file by CITY_SEQUENCE_FRAME*.png.
    "cityscapes": ServerFormat(
        path="{name}_leftImg8bit.png",
        name=r"[A-Za-z-]+_\d{6}_\d{6}(?!\d)",
        names_are="CITY_SEQUENCE_FRAME",
        num_classes=19,
        size=(1024, 2048),
    ),
    # comp6: segmentation, trained on more than VOC's own images.
    "voc_sbd": ServerFormat(
        path="results/VOC2012/Segmentation/comp6_{split}_cls/{name}.png",
        name=r"(?<!\d)\d{4}_\d{6}(?!\d)",
        names_are="YEAR_NUMBER, such as 2008_000006",
        num_classes=21,
        has_palette=True,
    ),
}


def make_writer(
    dataset: str,
    directory: str,
    *,
    split: str,
    num_classes: int,
    label_ids: Sequence[int] = CITYSCAPES_LABEL_IDS,
) -> Callable[[str, np.ndarray], None]:
    """A function that writes one prediction as the data set's server takes it.

    Args:
        dataset: a key of `FORMATS`.
        directory: of the submission; what it holds for this split must be empty, so
            that no two runs get mixed up in it.
        split: the split, which VOC's server wants in the path.
        num_classes: C of the predictions.
        label_ids: [C] what is written for class 0, 1, ... of cityscapes.

    Returns:
        write(name, pred): name of the example, pred [H, W] int in 0..C-1.  It raises
        ValueError for a name or a size that the server would not know, and for a
        name that comes twice.

    Raises:
        ValueError: no server takes this data set, or not with so many classes.
        FileExistsError: there are PNG files already.
    """
    if dataset not in FORMATS:
        raise ValueError(
            f"no evaluation server takes {dataset}; a submission can be made for "
            f"{', '.join(FORMATS)}"
        )
    form = FORMATS[dataset]
    if num_classes != form.num_classes:
        raise ValueError(
            f"the server of {dataset} takes {form.num_classes} classes, the run has "
            f"{num_classes}"
        )
    folder = os.path.dirname(
        os.path.join(directory, form.path.format(split=split, name=""))
    )
    if os.path.isdir(folder) and any(n.endswith(".png") for n in os.listdir(folder)):
        raise FileExistsError(
            f"{folder} holds PNG files already: choose another folder"
        )
    os.makedirs(folder, exist_ok=True)
    written = np.arange(num_classes) if form.has_palette else np.array(label_ids)

    def write(name: str, pred: np.ndarray):
        found = re.search(form.name, name)
        if not found:
            raise ValueError(f"{name}: names of {dataset} are {form.names_are}")
        if form.size and pred.shape != form.size:
            raise ValueError(
                f"{name}: is {pred.shape[0]} x {pred.shape[1]} pixels, the server of "
                f"{dataset} takes {form.size[0]} x {form.size[1]}"
            )
        picture = Image.fromarray(written[pred].astype(np.uint8))
        if form.has_palette:
            picture.putpalette(np.uint8(default_colors(255)).tobytes())
        path = os.path.join(directory, form.path.format(split=split, name=found[0]))
        if os.path.exists(path):
            raise ValueError(f"{name}: another image was written to {path}")
        picture.save(f"{path}.partial", "PNG")
        os.replace(f"{path}.partial", path)

    return write
