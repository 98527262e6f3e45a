"""Facts of the data sets."""

import pytest

from ss_gan_tf.datasets import (
    CITYSCAPES_CITIES,
    CITYSCAPES_LABEL_IDS,
    DATASETS,
    DatasetFacts,
    default_colors,
)


def test_keys_are_names_and_facts_are_consistent():
    for key, facts in DATASETS.items():
        assert facts.name == key
        assert facts.num_classes == len(facts.class_names) == len(facts.class_colors)
        assert facts.ignore_label == 255 >= facts.num_classes
        assert len(set(facts.class_names)) == facts.num_classes
        # Two classes of one colour could not be told apart in a picture.
        assert len(set(facts.class_colors)) == facts.num_classes
        assert all(0 <= v <= 255 for color in facts.class_colors for v in color)


def test_camvid_is_segnets():
    facts = DATASETS["camvid"]
    assert facts.num_classes == 11
    assert facts.counts == {"train": 367, "val": 101, "test": 233}
    assert facts.class_names[0] == "sky" and facts.class_names[10] == "bicyclist"
    assert facts.class_colors[facts.class_names.index("car")] == (64, 0, 128)


def test_table_4_names_classes_of_the_data_set():
    for facts in DATASETS.values():
        assert set(facts.table4_classes) <= set(facts.class_names)


def test_synthetic_has_the_classes_of_table_4():
    assert set(DATASETS["synthetic"].table4_classes) == {
        "road",
        "traffic_light",
        "plants",
        "sky",
        "pedestrian",
        "vehicle",
    }


def test_voc_is_the_papers():
    facts = DATASETS["voc_sbd"]
    assert facts.num_classes == 21  # 20 and background
    assert facts.class_names[0] == "background" and facts.class_names[15] == "person"
    assert facts.counts["trainaug"] == facts.counts["train"] + 9118 == 10582
    assert facts.counts["trainaug"] + facts.counts["val"] == 12031
    assert facts.counts["trainval"] == facts.counts["train"] + facts.counts["val"]


def test_cityscapes_is_its_toolboxs():
    facts = DATASETS["cityscapes"]
    assert facts.num_classes == len(CITYSCAPES_LABEL_IDS) == 19
    ids = dict(zip(facts.class_names, CITYSCAPES_LABEL_IDS, strict=True))
    # The six of Table 4 and the one behind the gap of caravan and trailer.
    assert [ids[name] for name in facts.table4_classes] == [7, 19, 21, 23, 24, 26]
    assert ids["train"] == 31 and sorted(ids.values()) == [*CITYSCAPES_LABEL_IDS]
    # cars, as every figure of Cityscapes shows them
    assert facts.class_colors[13] == (0, 0, 142)


def test_cities_add_up_to_the_splits():
    counts = DATASETS["cityscapes"].counts
    for split, cities in CITYSCAPES_CITIES.items():
        assert sum(cities.values()) == counts[split]
    assert counts["train"] + counts["val"] == counts["trainval"] == 3475


def test_every_class_needs_a_colour():
    with pytest.raises(ValueError, match="x: 2 class names but 1 colours"):
        DatasetFacts("x", ("a", "b"), ((0, 0, 0),), {})


def test_default_colors_are_vocs():
    # The first five and the last of VOC's 21: background, aeroplane, bicycle,
    # bird, boat ... tv monitor.
    colors = default_colors(21)
    assert colors[:5] == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
    )
    assert colors[20] == (0, 64, 128)
    assert len(set(default_colors(255))) == 255


@pytest.mark.parametrize("num_classes", [0, 256])
def test_default_colors_wants_1_to_255_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes={num_classes}"):
        default_colors(num_classes)
