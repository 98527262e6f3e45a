"""Facts of each data set: classes, colours, ignore label, expected counts.

A prepared data set carries its own class names and colours (`input_pipeline`
reads them from there); these facts are what the builders in `data_prep` write
into it.  A user's own data (`--dataset=folder`) brings its facts along.
"""

import dataclasses

IGNORE_LABEL = 255  # pixels without a class: no loss, no metric


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """Constants of one data set.

    Attributes:
        name: Key of `DATASETS` and folder name of the prepared data.
        class_names: Name of class id 0, 1, ...
        class_colors: RGB in 0..255 of class id 0, 1, ... (pictures only).
        counts: Split -> number of images of the complete data set; empty when
            any number is right.
        ignore_label: Label value of pixels that belong to no class.
        table4_classes: The classes that the paper's Table 4 reports, in its order.
        image_size: (height, width) of every image in pixels; None if sizes differ.
        terms: Under what its images may be shown; empty where they are drawn here.
    """

    name: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    counts: dict[str, int]
    ignore_label: int = IGNORE_LABEL
    table4_classes: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    terms: str = ""

    def __post_init__(self) -> None:
        """Checks that every class has a colour."""
        if len(self.class_names) != len(self.class_colors):
            raise ValueError(
                f"{self.name}: {len(self.class_names)} class names but "
                f"{len(self.class_colors)} colours."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes C; ids are 0..C-1."""
        return len(self.class_names)


def default_colors(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes that bring none: the colour map of PASCAL VOC.

    The bits of the id are dealt out to red, green and blue in turn, from the
    highest bit of the colour downwards, so that small ids lie far apart.

    Args:
        num_classes: 1..255.

    Returns:
        RGB triples in 0..255, one per class; id 0 is black.

    Raises:
        ValueError: `num_classes` is outside 1..255.
    """
    if not 1 <= num_classes <= IGNORE_LABEL:
        raise ValueError(f"num_classes={num_classes} is outside 1..{IGNORE_LABEL}.")

    def channel(class_id: int, offset: int) -> int:
        return sum(((class_id >> (3 * i + offset)) & 1) << (7 - i) for i in range(3))

    return tuple(
        (channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes)
    )


DATASETS = {
    # Drawn by data_prep/synthetic; the classes of Table 4 and what lies behind.
    "synthetic": DatasetFacts(
        name="synthetic",
        class_names=(
            "road",
            "building",
            "plants",
            "sky",
            "pedestrian",
            "vehicle",
            "traffic_light",
        ),
        class_colors=(
            (128, 64, 128),
            (70, 70, 70),
            (107, 142, 35),
            (70, 130, 180),
            (220, 20, 60),
            (0, 0, 142),
            (250, 170, 30),
        ),
        counts={"train": 400, "val": 60, "test": 60},
        table4_classes=(
            "road",
            "traffic_light",
            "plants",
            "sky",
            "pedestrian",
            "vehicle",
        ),
    ),
    # The 11 classes, split and colours of Badrinarayanan et al., SegNet (2017).
    "camvid": DatasetFacts(
        name="camvid",
        class_names=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        class_colors=(
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ),
        counts={"train": 367, "val": 101, "test": 233},
        image_size=(360, 480),
        terms="Frames of CamVid (Brostow, Fauqueur, Cipolla 2009): CC BY-NC 4.0.",
    ),
    # PASCAL VOC 2012 with the masks of SBD; Sec. 2.1.  trainaug = VOC train and the
    # 9,118 images of SBD outside VOC train and VOC val.
    "voc_sbd": DatasetFacts(
        name="voc_sbd",
        class_names=(
            "background",
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
            "diningtable",
            "dog",
            "horse",
            "motorbike",
            "person",
            "pottedplant",
            "sheep",
            "sofa",
            "train",
            "tvmonitor",
        ),
        class_colors=default_colors(21),
        counts={
            "train": 1464,
            "trainaug": 10582,
            "val": 1449,
            "trainval": 2913,
            "test": 1456,
        },
    ),
    # Cordts et al., Cityscapes (2016); Sec. 2.1.  Ids are the trainIds of its toolbox.
    # The masks of `test` are not public; `train_coarse` and `train_extra` are its
    # coarse masks of the images of train and of 19,998 more.
    "cityscapes": DatasetFacts(
        name="cityscapes",
        class_names=(
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "pole",
            "traffic light",
            "traffic sign",
            "vegetation",
            "terrain",
            "sky",
            "person",
            "rider",
            "car",
            "truck",
            "bus",
            "train",
            "motorcycle",
            "bicycle",
        ),
        class_colors=(
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        ),
        counts={
            "train": 2975,
            "val": 500,
            "trainval": 3475,
            "test": 1525,
            "train_coarse": 2975,
            "train_extra": 19998,
        },
        table4_classes=("road", "traffic light", "vegetation", "sky", "person", "car"),
        image_size=(1024, 2048),
    ),
}

# labelId of Cityscapes' trainId 0, 1, ...; the other labelIds belong to no class.
# From cityscapesscripts/helpers/labels.py.
CITYSCAPES_LABEL_IDS = (
    *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22),
    *(23, 24, 25, 26, 27, 28, 31, 32, 33),
)

# Images of each city, which belongs to one split; of the finely labelled splits.
CITYSCAPES_CITIES = {
    "train": {
        "aachen": 174,
        "bochum": 96,
        "bremen": 316,
        "cologne": 154,
        "darmstadt": 85,
        "dusseldorf": 221,
        "erfurt": 109,
        "hamburg": 248,
        "hanover": 196,
        "jena": 119,
        "krefeld": 99,
        "monchengladbach": 94,
        "strasbourg": 365,
        "stuttgart": 196,
        "tubingen": 144,
        "ulm": 95,
        "weimar": 142,
        "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {
        "berlin": 544,
        "bielefeld": 181,
        "bonn": 46,
        "leverkusen": 58,
        "mainz": 298,
        "munich": 398,
    },
}
