"""The voc_sbd builder, on drawn copies in the original layouts."""

import io
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import downloads
from data_prep.archives import SourceError
from data_prep.prepare import describe, prepare
from data_prep.voc_sbd.voc_sbd_dataset_builder import Builder
from ss_gan_tf import input_pipeline

SIZES = {"train": 3, "trainaug": 7, "val": 2, "trainval": 5}
VOC = "VOCdevkit/VOC2012"
LISTS = f"{VOC}/ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"


class VocSbdTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = SIZES
    OVERLAPPING_SPLITS = ["trainaug", "trainval"]

    @pytest.fixture(autouse=True, scope="class")
    def drawn(self, request, draw_voc, tmp_path_factory):
        source = draw_voc(tmp_path_factory.mktemp("voc"), packed=True)
        request.cls.EXAMPLE_DIR = source

    def _make_builder(self, config=None):
        return Builder(data_dir=self.tmp_dir, config=config, allow_partial=True)


@pytest.fixture
def source(draw_voc, tmp_path):
    return draw_voc(tmp_path / "source")


@pytest.fixture
def prepared(tmp_path):
    """Prepares a partial source and opens what came of it."""

    def run(source):
        data = tmp_path / f"data-{source.name}"
        builder = prepare("voc_sbd", str(source), str(data), allow_partial=True)
        return input_pipeline.open_dataset("voc_sbd", str(data)), describe(builder)

    return run


@pytest.fixture
def fails(source, tmp_path):
    """Preparing the source ends in one line with these words."""

    def run(*words, **options):
        data, options = tmp_path / "data", {"allow_partial": True, **options}
        with pytest.raises(SourceError) as error:
            prepare("voc_sbd", str(source), str(data), **options)
        text = str(error.value)
        assert "\n" not in text
        for word in words:
            assert str(word) in text, text
        assert not [path for path in data.rglob("*") if path.is_file()]

    return run


def stored(opened, split):
    """Name -> (image bytes, [H, W] ids) in stored order."""
    return {
        example["name"].decode(): (
            example["image"],
            np.asarray(Image.open(io.BytesIO(example["label"]))),
        )
        for example in opened.source(split)
    }


@pytest.mark.parametrize("packed", [False, True])
def test_splits_and_masks(draw_voc, layouts, prepared, tmp_path, packed):
    source = draw_voc(tmp_path / "source", packed=packed)
    before = {path for path in source.rglob("*")}
    opened, _ = prepared(source)
    assert before == {path for path in source.rglob("*")}, "nothing is extracted"
    assert opened.split_sizes == SIZES and opened.partial
    assert opened.class_names[:2] == ("background", "aeroplane")
    trainaug = stored(opened, "trainaug")
    # VOC's own masks, outline included, then SBD's for what VOC lists nowhere.
    assert list(trainaug) == [*layouts.VOC_TRAIN, *layouts.SBD_ONLY]
    for image_id in layouts.VOC_TRAIN:
        label = trainaug[image_id][1]
        np.testing.assert_array_equal(label, layouts.voc_ids(image_id))
        assert (label == 255).any()
    for image_id in layouts.SBD_ONLY:
        label = trainaug[image_id][1]
        np.testing.assert_array_equal(label, layouts.sbd_ids(image_id))
    assert list(stored(opened, "val")) == list(layouts.VOC_VAL)
    trainval = stored(opened, "trainval")
    assert list(trainval) == [*layouts.VOC_TRAIN, *layouts.VOC_VAL]
    if not packed:
        for image_id, (image, _) in {**trainaug, **trainval}.items():
            jpeg = source / VOC / "JPEGImages" / f"{image_id}.jpg"
            assert image == jpeg.read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_voc_test_is_optional_and_has_no_labels(draw_voc, prepared, tmp_path, packed):
    ids = ["2008_000006", "2008_000011"]
    source = draw_voc(tmp_path / "source")
    place = (tmp_path / "elsewhere" if packed else source) / VOC
    for folder in ("ImageSets/Segmentation", "JPEGImages"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "ImageSets/Segmentation/test.txt").write_text("\n".join(ids))
    drawn = next((source / VOC / "JPEGImages").iterdir())
    for image_id in ids:
        shutil.copy(drawn, place / "JPEGImages" / f"{image_id}.jpg")
    if packed:
        with tarfile.open(source / "VOC2012test.tar", "w") as archive:
            archive.add(tmp_path / "elsewhere" / "VOCdevkit", "VOCdevkit")
    opened, _ = prepared(source)
    assert opened.split_sizes == SIZES | {"test": 2}
    assert opened.unlabelled_splits == ("test",)
    test = stored(opened, "test")
    assert list(test) == ids and all((label == 255).all() for _, label in test.values())


def test_a_list_of_voc_test_without_its_images_is_no_split(source, prepared, fails):
    (source / LISTS / "test.txt").write_text("2008_000006\n2008_000011\n")
    opened, _ = prepared(source)
    assert "test" not in opened.split_sizes
    images = source / VOC / "JPEGImages"
    shutil.copy(next(images.iterdir()), images / "2008_000006.jpg")
    fails("test.txt", "2008_000011", "missing", allow_partial=False)


def test_composed_splits_take_no_room(source, prepared):
    opened, _ = prepared(source)
    files = [*pathlib.Path(opened.builder.data_dir).glob("*array_record*")]
    inodes = {path.stat().st_ino for path in files}
    # train, val and what only SBD has; trainaug and trainval are links to these.
    assert len(files) == 6 and len(inodes) == 3


def test_complete_means_the_published_counts(fails):
    fails(
        "train has 3 of 1464",
        "trainaug has 7 of 10582",
        "val has 2 of 1449",
        "trainval has 5 of 2913",
        "--allow_partial",
        allow_partial=False,
    )


def test_partial_is_not_taken_for_complete(source, tmp_path):
    data = str(tmp_path / "data")
    prepare("voc_sbd", str(source), data, allow_partial=True)
    with pytest.raises(SourceError, match="was prepared from a partial source"):
        prepare("voc_sbd", str(source), data)
    text = describe(prepare("voc_sbd", str(source), data, allow_partial=True))
    assert "PARTIAL" in text and "trainaug: 7 examples (of 10582)" in text


def test_without_sbd_there_is_no_trainaug(source, prepared):
    shutil.rmtree(source / "benchmark_RELEASE")
    opened, _ = prepared(source)
    assert opened.split_sizes == {"train": 3, "val": 2, "trainval": 5}


# --- Ready-made masks ----------------------------------------------------------


def write_ready_made(source, layouts, changed=()):
    for image_id in (*layouts.VOC_TRAIN, *layouts.VOC_VAL, *layouts.SBD_ONLY):
        ids = layouts.sbd_ids(image_id)
        if image_id in changed:
            ids[0, 0] = 7
        path = source / "SegmentationClassAug" / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(ids).save(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "inside"])
def test_ready_made_masks_stand_in_for_sbd(source, layouts, prepared, kind):
    shutil.rmtree(source / "benchmark_RELEASE")
    write_ready_made(source, layouts)
    folder = source / "SegmentationClassAug"
    if kind == "zip":
        layouts.pack_zip(folder, source / f"{folder.name}.zip", f"{folder.name}/")
    if kind == "inside":
        folder.rename(source / VOC / folder.name)
    opened, _ = prepared(source)
    assert opened.split_sizes == SIZES
    trainaug = stored(opened, "trainaug")
    assert list(trainaug) == [*layouts.VOC_TRAIN, *layouts.SBD_ONLY]
    image_id = layouts.VOC_TRAIN[0]  # still VOC's own
    np.testing.assert_array_equal(trainaug[image_id][1], layouts.voc_ids(image_id))


def test_disagreement_of_both_is_reported(source, layouts, prepared):
    changed = layouts.SBD_ONLY[1]
    write_ready_made(source, layouts, changed=[changed])
    opened, text = prepared(source)
    assert (
        "SegmentationClassAug differs from SBD's masks in 1 of 4 images, "
        f"{changed} the first; SBD's were taken" in text
    )
    label = stored(opened, "trainaug")[changed][1]
    np.testing.assert_array_equal(label, layouts.sbd_ids(changed))


# --- VOC val stays out of training ---------------------------------------------


def test_sbds_own_lists_in_place_of_vocs(source, layouts, fails):
    shutil.copy(source / SBD / "train.txt", source / LISTS / "train.txt")
    fails(source / LISTS / "train.txt", f"names {layouts.VOC_VAL[0]}", "in VOC val (1")


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
def test_a_list_with_an_image_of_voc_val(source, layouts, fails, name):
    val, other = layouts.VOC_VAL[1], layouts.SBD_ONLY[0]
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in (other, val)]
    (source / LISTS / name).write_text("\n".join(lines))
    fails(source / LISTS / name, f"names {val}, which is in VOC val")


# --- Everything else that can be wrong -----------------------------------------


def test_mask_saved_as_rgb(source, layouts, fails):
    path = source / VOC / "SegmentationClass" / f"{layouts.VOC_TRAIN[1]}.png"
    Image.open(path).convert("RGB").save(path)
    fails(f"{path}: label is saved as colours (mode RGB)")


def test_mask_of_another_size(source, layouts, fails):
    path = source / SBD / "cls" / f"{layouts.SBD_ONLY[2]}.mat"
    layouts.write_mat(path, np.zeros((5, 6), np.uint8))
    fails(f"{path}: label is 6x5 but image", "is 14x11")


@pytest.mark.parametrize("kind", ["png", "mat"])
def test_id_out_of_range(source, layouts, fails, kind):
    ids = np.full(layouts.VOC_SIZE, 21, np.uint8)
    if kind == "png":
        path = source / VOC / "SegmentationClass" / f"{layouts.VOC_VAL[0]}.png"
        layouts.write_palette(path, ids)
    else:
        path = source / SBD / "cls" / f"{layouts.SBD_ONLY[0]}.mat"
        layouts.write_mat(path, ids)
    fails(f"{path}: label holds id 21; ids must be in 0..20 or 255")


@pytest.mark.parametrize("content", [b"", b"no mat file", b"MATLAB 5.0" + bytes(200)])
def test_faulty_mat(source, layouts, fails, content):
    path = source / SBD / "cls" / f"{layouts.SBD_ONLY[0]}.mat"
    path.write_bytes(content)
    fails(f"{path}: GTcls.Segmentation cannot be read")


def test_mat_of_another_kind(source, layouts, fails):
    path = source / SBD / "cls" / f"{layouts.SBD_ONLY[0]}.mat"
    layouts.scipy.io.savemat(path, {"GTinst": np.zeros(3)})
    fails(f"{path}: GTcls.Segmentation cannot be read")
    layouts.write_mat(path, np.zeros(layouts.VOC_SIZE))
    fails(f"{path}: GTcls", "float64 [11, 14], not uint8 [H, W]")


def test_truncated_jpeg(source, layouts, fails):
    path = source / VOC / "JPEGImages" / f"{layouts.SBD_ONLY[3]}.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    fails(f"{path}: is not a readable image (")


@pytest.mark.parametrize("lost", ["mask", "image"])
def test_missing_half_of_a_pair(source, layouts, fails, lost):
    image_id = layouts.VOC_TRAIN[0]
    image = source / VOC / "JPEGImages" / f"{image_id}.jpg"
    mask = source / VOC / "SegmentationClass" / f"{image_id}.png"
    gone, there = (mask, image) if lost == "mask" else (image, mask)
    gone.unlink()
    fails(f"{there}: {lost} of {image_id} is missing")
    there.unlink()
    fails(f"image of {image_id} is missing", allow_partial=False)


@pytest.mark.parametrize("name", ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"])
def test_truncated_archive(draw_voc, source, fails, name):
    shutil.rmtree(source)
    path = draw_voc(source, packed=True) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(path, "cut short")


def test_member_that_climbs_out(draw_voc, layouts, source, fails):
    shutil.rmtree(source)
    path = draw_voc(source, packed=True) / "VOCtrainval_11-May-2012.tar"
    layouts.add_member(path, "VOCdevkit/../../out.txt")
    fails(f"{path}: member 'VOCdevkit/../../out.txt' leads out of the archive")


def test_empty_folder(source, fails):
    shutil.rmtree(source)
    source.mkdir()
    fails(f"{source}: holds neither VOCdevkit/VOC2012", "VOCtrainval_11-May-2012.tar")


@pytest.mark.parametrize(
    "text, message",
    [("", "the list is empty"), ("2007_000032\ncat\n", "'cat' is not the name of a")],
)
def test_faulty_list(source, fails, text, message):
    path = source / LISTS / "train.txt"
    path.write_text(text)
    fails(f"{path}: {message}")


def test_missing_lists(source, fails):
    (source / SBD / "val.txt").unlink()
    fails("val.txt of SBD is missing beside cls/")
    (source / LISTS / "val.txt").unlink()
    fails(f"{source}: ImageSets/Segmentation/val.txt is missing")


# --- Downloading ---------------------------------------------------------------


def test_missing_archives_are_fetched(draw_voc, monkeypatch, tmp_path):
    packed = draw_voc(tmp_path / "packed", packed=True)
    asked = []

    def fetch(archive, folder, mirror, put_at):
        asked.append((archive.name, folder, mirror, put_at))
        return packed / archive.name

    monkeypatch.setattr(downloads, "fetch", fetch)
    data, mirror = tmp_path / "data", "http://mirror"
    with pytest.raises(SourceError, match="train has 3 of 1464"):
        prepare("voc_sbd", None, str(data), mirror=mirror)
    folder = data / "downloads"
    assert asked == [
        (name, folder, mirror, folder / name)
        for name in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")
    ]


def test_what_cannot_be_fetched_is_asked_for(source, fails, monkeypatch):
    monkeypatch.setattr(downloads, "PROBE_SECONDS", 1.0)
    shutil.rmtree(source / "benchmark_RELEASE")
    fails(
        "benchmark.tgz is missing, and http://127.0.0.1:9/x/benchmark.tgz does not",
        f"put it at {source / 'benchmark.tgz'}",
        allow_partial=False,
        mirror="http://127.0.0.1:9/x/",
    )
