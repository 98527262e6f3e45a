import copy

import numpy as np
import pytest
from PIL import Image

from ss_gan_tf import submission


def make_writer(dataset, directory, split="test", **options):
    options = {"num_classes": 19 if dataset == "cityscapes" else 21} | options
    return submission.make_writer(dataset, str(directory), split=split, **options)


def files_under(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def test_cityscapes_round_trip(tmp_path):
    pred = np.random.default_rng(0).integers(0, 19, (1024, 2048))
    write = make_writer("cityscapes", tmp_path / "new" / "folder")
    write("berlin/berlin_000007_000019_leftImg8bit", pred)
    folder = tmp_path / "new" / "folder"
    assert files_under(folder) == ["berlin_000007_000019_leftImg8bit.png"]
    with Image.open(folder / "berlin_000007_000019_leftImg8bit.png") as file:
        assert (file.format, file.mode, file.size) == ("PNG", "L", (2048, 1024))
        label_ids = np.asarray(file)
    # Road, car and bicycle, whose ids the benchmark's table gives as 7, 26 and 33.
    for train_id, label_id in ((0, 7), (13, 26), (18, 33)):
        np.testing.assert_array_equal(label_ids == label_id, pred == train_id)
    train_ids = np.full(256, 255)
    train_ids[list(submission.CITYSCAPES_LABEL_IDS)] = range(19)
    np.testing.assert_array_equal(train_ids[label_ids], pred)


def test_voc_round_trip(tmp_path):
    pred = np.random.default_rng(1).integers(0, 21, (37, 50))
    pred.flat[:21] = range(21)
    make_writer("voc_sbd", tmp_path)("2008_000006", pred)
    path = "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"
    assert files_under(tmp_path) == [path]
    with Image.open(tmp_path / path) as file:
        assert (file.format, file.mode, file.size) == ("PNG", "P", (50, 37))
        np.testing.assert_array_equal(np.asarray(file), pred)
        rgb = np.asarray(file.convert("RGB"))
    # VOC's colours of background, aeroplane, person and TV set.
    for class_id, color in (
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
    ):
        assert (rgb[pred == class_id] == color).all()


def test_the_split_is_in_vocs_path(tmp_path):
    for split in ("val", "test"):  # beside each other in one folder
        make_writer("voc_sbd", tmp_path, split)("2007_000033", np.zeros((4, 5), int))
    results = "results/VOC2012/Segmentation"
    assert files_under(tmp_path) == [
        f"{results}/comp6_test_cls/2007_000033.png",
        f"{results}/comp6_val_cls/2007_000033.png",
    ]


def test_another_table_of_label_ids(tmp_path):
    write = make_writer("cityscapes", tmp_path, label_ids=range(100, 119))
    write("ulm_000000_000019", np.full((1024, 2048), 3))
    with Image.open(tmp_path / "ulm_000000_000019_leftImg8bit.png") as file:
        assert file.getextrema() == (103, 103)


def test_what_no_server_takes_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="camvid; .* made for cityscapes, voc_sbd$"):
        make_writer("camvid", tmp_path, num_classes=11)
    with pytest.raises(ValueError, match="takes 19 classes, the run has 20"):
        make_writer("cityscapes", tmp_path, num_classes=20)
    assert not files_under(tmp_path)


def test_what_the_server_would_not_know_names_the_image(tmp_path):
    write = make_writer("cityscapes", tmp_path)
    with pytest.raises(ValueError, match="^b_000_1: names of cityscapes are CITY_SEQ"):
        write("b_000_1", np.zeros((1024, 2048), int))
    with pytest.raises(ValueError, match="^ulm_.* 512 x 1024 .* takes 1024 x 2048"):
        write("ulm_000000_000019", np.zeros((512, 1024), int))
    with pytest.raises(ValueError, match="^holiday: names of voc_sbd are YEAR_NUMBER"):
        make_writer("voc_sbd", tmp_path)("holiday", np.zeros((4, 5), int))
    assert not files_under(tmp_path)


def test_submissions_do_not_mix(tmp_path):
    write = make_writer("voc_sbd", tmp_path)
    write("2008_000006", np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="^a/2008_000006: another image was written"):
        write("a/2008_000006", np.ones((4, 5), int))
    with pytest.raises(FileExistsError, match="holds PNG files already: choose"):
        make_writer("voc_sbd", tmp_path)


def test_cityscapes_own_programs_know_table_and_names(tmp_path, monkeypatch):
    reason = "needs the extra dev: cityscapesscripts"
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason=reason)
    server = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason=reason
    )
    ids = {x.trainId: x.id for x in labels.labels if 0 <= x.trainId < 255}
    assert submission.CITYSCAPES_LABEL_IDS == tuple(ids[k] for k in range(19))
    write = make_writer("cityscapes", tmp_path)
    for frame in ("000019", "000190"):
        write(f"ulm_000000_{frame}", np.zeros((1024, 2048), int))
    args = copy.copy(server.args)
    args.predictionPath, args.predictionWalk = str(tmp_path), None
    found = server.getPrediction(args, "ulm_000000_000019_gtFine_labelIds.png")
    assert found == str(tmp_path / "ulm_000000_000019_leftImg8bit.png")
