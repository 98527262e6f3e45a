import copy
import json

import numpy as np
import pytest
from PIL import Image

from ss_gan_tf import metrics
from ss_gan_tf.submission import CITYSCAPES_LABEL_IDS

NAMES = ("road", "sky", "tree")


def brute_force_iou(label, pred, c, ignore):
    """Eq. 8 as sets of pixels, without a matrix."""
    truth = (label == c) & (label != ignore)
    guess = (pred == c) & (label != ignore)
    union = np.sum(truth | guess)
    return np.sum(truth & guess) / union if union else np.nan


def test_confusion_matrix_by_hand():
    # Asymmetric on purpose: swapped rows and columns, or ids off by one, must show.
    # Pixel by pixel (truth -> prediction): 0->0, 0->1, 0->1, 1->1, 2->0, void.
    label = np.array([[0, 0, 0], [1, 2, 255]])
    pred = np.array([[0, 1, 1], [1, 0, 2]])
    matrix = metrics.confusion_matrix(label, pred, 3, 255)
    np.testing.assert_array_equal(matrix, [[1, 2, 0], [0, 1, 0], [1, 0, 0]])
    assert matrix.dtype == np.int64


def test_iou_by_hand():
    # p = [[1, 2, 0], [0, 1, 0], [1, 0, 0]]: row sums 3, 1, 1; column sums 2, 3, 0.
    # IoU(0) = 1 / (3 + 2 - 1) = 1/4; IoU(1) = 1 / (1 + 3 - 1) = 1/3; IoU(2) = 0 / 1.
    matrix = np.array([[1, 2, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(metrics.iou_per_class(matrix), [1 / 4, 1 / 3, 0])
    assert metrics.mean_iou(matrix) == pytest.approx((1 / 4 + 1 / 3 + 0) / 3)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(2 / 5)


def test_the_mean_over_true_classes_by_hand():
    # 8 of 9 and 3 of 4 right; class 2 is predicted once and never true.
    matrix = np.array([[8, 0, 1], [1, 3, 0], [0, 0, 0]])
    iou = 8 / 10, 3 / 4
    assert metrics.mean_iou(matrix) == pytest.approx(sum(iou) / 3)
    assert metrics.mean_iou_of_true(matrix) == pytest.approx(sum(iou) / 2)
    both = np.stack([matrix, np.zeros((3, 3), int)])
    np.testing.assert_allclose(metrics.mean_iou_of_true(both), [sum(iou) / 2, np.nan])


def test_random_maps_agree_with_sets_of_pixels():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 2, 3, 4, 255], size=(37, 53))
    pred = np.where(rng.random(label.shape) < 0.6, label % 5, rng.integers(0, 5))
    matrix = metrics.confusion_matrix(label, pred, 5, 255)
    expected = [brute_force_iou(label, pred, c, 255) for c in range(5)]
    np.testing.assert_allclose(metrics.iou_per_class(matrix), expected)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(
        np.mean((label == pred)[label != 255])
    )


def test_matrices_of_parts_add_up():
    rng = np.random.default_rng(1)
    label, pred = rng.integers(0, 4, (2, 6, 20, 20))
    whole = metrics.confusion_matrix(label, pred, 4, 255)
    parts = sum(
        metrics.confusion_matrix(*pair, 4, 255)
        for pair in zip(label, pred, strict=True)
    )
    np.testing.assert_array_equal(whole, parts)


def test_uint8_ids_of_many_classes_do_not_overflow():
    label = np.full((2, 2), 200, np.uint8)
    matrix = metrics.confusion_matrix(label, label, 201, 255)
    assert matrix[200, 200] == 4 == matrix.sum()


@pytest.fixture
def peer(tmp_path):
    """The benchmark's own program: [(labelIds of truth, of prediction)] -> results."""
    module = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="needs the extra dev: cityscapesscripts",
    )
    args = copy.copy(module.args)
    args.quiet, args.JSONOutput = True, False
    # Both fail on NumPy 2.4 and later, and eq. 8 needs neither.
    args.evalInstLevelScore = args.evalPixelAccuracy = False

    def evaluate(pairs):
        paths = [], []
        for number, pair in enumerate(pairs):
            for kind, label_ids in enumerate(pair):
                paths[kind].append(str(tmp_path / f"{number}_{kind}.png"))
                Image.fromarray(np.uint8(label_ids)).save(paths[kind][-1])
        truths, preds = paths
        result = module.evaluateImgLists(preds, truths, args)
        matrix = np.array(result["confMatrix"])[np.ix_(*[CITYSCAPES_LABEL_IDS] * 2)]
        names = [module.id2label[label_id].name for label_id in CITYSCAPES_LABEL_IDS]
        iou = np.array([result["classScores"][name] for name in names])
        return matrix, iou, result["averageScoreClasses"]

    return evaluate


def from_label_ids(label_ids):
    train_ids = np.full(256, 255)
    train_ids[list(CITYSCAPES_LABEL_IDS)] = range(19)
    return train_ids[label_ids]


def test_the_peers_numbers_by_hand(peer):
    # labelIds: 7 road, 8 sidewalk, 23 sky, 26 car; 0 and 1 are not evaluated.
    truth = np.array([[7, 7, 8], [23, 0, 1]])
    pred = np.array([[7, 8, 8], [7, 26, 23]])
    ours = metrics.confusion_matrix(
        from_label_ids(truth), from_label_ids(pred), 19, 255
    )
    # Road: 1 of (2 true + 2 predicted - 1); sidewalk: 1 of (1 + 2 - 1); sky: 0 of 1;
    # car stands on an ignored pixel only, so it is absent.  (1/3 + 1/2 + 0) / 3.
    iou = np.full(19, np.nan)
    iou[[0, 1, 10]] = 1 / 3, 1 / 2, 0
    matrix, peers_iou, peers_mean = peer([(truth, pred)])
    np.testing.assert_array_equal(ours, matrix)
    for value in (metrics.iou_per_class(ours), peers_iou):
        np.testing.assert_allclose(value, iou, rtol=1e-15)
    for value in (metrics.mean_iou(ours), peers_mean):
        assert value == pytest.approx(5 / 18, rel=1e-15)


def test_the_peers_numbers_on_random_maps(peer):
    rng = np.random.default_rng(3)
    pairs, ours = [], np.zeros((19, 19), np.int64)
    for size in ((37, 53), (64, 41), (90, 120)):
        truth = rng.integers(0, 34, size)  # every labelId, the ignored ones too
        guess = rng.choice(CITYSCAPES_LABEL_IDS, size)
        right = (rng.random(size) < 0.5) & np.isin(truth, CITYSCAPES_LABEL_IDS)
        pred = np.where(right, truth, guess)
        pairs.append((truth, pred))
        ours += metrics.confusion_matrix(
            from_label_ids(truth), from_label_ids(pred), 19, 255
        )
    matrix, iou, mean = peer(pairs)
    np.testing.assert_array_equal(ours, matrix)
    np.testing.assert_allclose(metrics.iou_per_class(ours), iou, rtol=1e-15)
    assert metrics.mean_iou(ours) == pytest.approx(mean, rel=1e-14)
    assert 0.2 < mean < 0.9


def test_absent_class_has_no_iou_and_a_false_alarm_has_zero():
    label = np.array([0, 0, 1])
    # Class 2 is in neither; the mean is over 0 and 1 only: (1/2 + 1/2) / 2.
    matrix = metrics.confusion_matrix(label, np.array([0, 1, 1]), 3, 255)
    assert np.isnan(metrics.iou_per_class(matrix)[2])
    assert metrics.mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 2) / 2)
    # Class 2 is predicted once and never true: union 1, IoU 0, and it counts.
    matrix = metrics.confusion_matrix(label, np.array([0, 2, 1]), 3, 255)
    assert metrics.iou_per_class(matrix)[2] == 0
    assert metrics.mean_iou(matrix) == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_ignored_pixels_count_nowhere():
    label = np.array([255, 255, 1])
    # Whatever is predicted there, a class id or not, changes nothing.
    for guess in ([0, 1, 1], [1, 0, 1], [255, 9, 1]):
        matrix = metrics.confusion_matrix(label, np.array(guess), 2, 255)
        np.testing.assert_array_equal(matrix, [[0, 0], [0, 1]])


def test_ignore_label_may_be_a_class_id():
    matrix = metrics.confusion_matrix(np.array([0, 1]), np.array([1, 1]), 2, 0)
    np.testing.assert_array_equal(matrix, [[0, 0], [0, 1]])


@pytest.mark.parametrize("bad", [3, -1, 254])
def test_ids_out_of_range_are_named(bad):
    good = np.array([0, 1])
    with pytest.raises(ValueError, match=rf"label .* {bad}: must be 0..2 or 255"):
        metrics.confusion_matrix(np.array([0, bad]), good, 3, 255)
    with pytest.raises(ValueError, match=rf"prediction .* {bad}: must be 0..2"):
        metrics.confusion_matrix(good, np.array([0, bad]), 3, 255)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        metrics.confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2, 255)


def test_summary_is_json_without_nan():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    summary = metrics.summarize(matrix, NAMES)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    # IoU(road) = 3 / (4 + 3 - 3), IoU(sky) = 4 / (4 + 5 - 4), tree absent.
    assert summary["iou"] == {"road": 3 / 4, "sky": 4 / 5, "tree": None}
    assert summary["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert summary["pixel_accuracy"] == pytest.approx(7 / 8)
    assert summary["absent_classes"] == ["tree"]
    assert summary["num_pixels"] == 8
    assert summary["confusion_matrix"] == matrix.tolist()


def test_summary_of_nothing():
    summary = metrics.summarize(np.zeros((3, 3), np.int64), NAMES)
    assert summary["miou"] is None and summary["pixel_accuracy"] is None
    assert summary["absent_classes"] == list(NAMES)
    assert "-" in metrics.format_table(summary)


def test_summary_needs_one_name_a_class():
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        metrics.summarize(np.eye(3, dtype=int), NAMES[:2])
    with pytest.raises(ValueError, match="differ"):
        metrics.summarize(np.eye(2, dtype=int), ("road", "road"))


def test_table_names_classes_in_per_cent_and_what_is_left_out():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    lines = metrics.format_table(metrics.summarize(matrix, NAMES)).splitlines()
    cells = dict(line.rsplit(maxsplit=1) for line in lines if "." in line)
    assert cells == {
        "road": "75.00",
        "sky": "80.00",
        "mIoU of 2 classes": "77.50",  # (75 + 80) / 2
        "pixel accuracy": "87.50",
    }
    assert lines[-1].endswith("neither truth nor prediction: tree")
    full = metrics.format_table(metrics.summarize(np.eye(3, dtype=int), NAMES))
    assert "left out" not in full and "mIoU  " in full


def test_many_matrices_at_once():
    rng = np.random.default_rng(4)
    many = rng.integers(0, 9, (2, 3, 4, 4)) * (rng.random((2, 3, 4, 4)) < 0.4)
    many[0, 0] = 0
    iou, mean = metrics.iou_per_class(many), metrics.mean_iou(many)
    assert iou.shape == (2, 3, 4) and mean.shape == (2, 3)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(iou[place], metrics.iou_per_class(many[place]))
        np.testing.assert_array_equal(mean[place], metrics.mean_iou(many[place]))
    assert isinstance(metrics.mean_iou(many[0, 1]), float)


def test_small_and_large_classes_by_hand():
    # Pixels of the truth: 10, 4, 0, 6, 90.  The median of those that are there, 4, 6,
    # 10, 90, is 8: small are 1 and 3, large 0 and 4; 2 is not there.
    matrix = np.diag([10, 2, 0, 6, 60])
    matrix[1, 0], matrix[4, 3] = 2, 30
    small, large = metrics.classes_by_size(matrix)
    assert (small.tolist(), large.tolist()) == ([1, 3], [0, 4])
    summary = metrics.summarize(matrix, tuple("abcde"))
    # IoU: 10 / 12; 2 / 4; -; 6 / 36; 60 / 90.
    assert summary["miou_small_classes"] == pytest.approx((2 / 4 + 6 / 36) / 2)
    assert summary["miou_large_classes"] == pytest.approx((10 / 12 + 60 / 90) / 2)
    assert (summary["small_classes"], summary["large_classes"]) == (
        ["b", "d"],
        ["a", "e"],
    )
    # Of an odd number the middle one belongs to neither.
    small, large = metrics.classes_by_size(np.diag([5, 9, 7]))
    assert (small.tolist(), large.tolist()) == ([0], [1])
    for matrix in (np.zeros((3, 3), int), np.diag([0, 4, 0])):
        summary = metrics.summarize(matrix, NAMES)
        assert summary["miou_small_classes"] is summary["miou_large_classes"] is None
