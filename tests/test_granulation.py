"""Specks, holes, borders and large areas by hand, against slow loops, under ignore."""

import numpy as np
import pytest

from ss_gan_tf import granulation

NAMES = ("road", "sky", "tree")


def noisy_maps(seed, size=(19, 23), num_classes=3, ignored=0.1):
    """A truth of blocks with ignored pixels, and a prediction that is partly right."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, num_classes, (-(-size[0] // 6), -(-size[1] // 6)))
    label = blocks.repeat(6, axis=0).repeat(6, axis=1)[: size[0], : size[1]]
    pred = np.roll(label, rng.integers(-2, 3, 2), axis=(0, 1))
    pred = np.where(rng.random(size) < 0.05, rng.integers(0, num_classes, size), pred)
    return np.where(rng.random(size) < ignored, 255, label), pred


def counts_of(label, pred, **shares):
    return granulation.count(np.asarray(label), np.asarray(pred), 3, 255, **shares)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_one_speck_by_hand():
    label = np.zeros((8, 8), int)
    pred = label.copy()
    pred[2, 2] = 1
    counts = counts_of(label, pred, speck_share=0.02)  # 1 of 64 pixels is below 2 %
    np.testing.assert_array_equal(counts["components_truth"], [1, 0, 0])
    np.testing.assert_array_equal(counts["components_pred"], [1, 1, 0])
    np.testing.assert_array_equal(counts["component_surplus"], [0, 1, 0])
    np.testing.assert_array_equal(counts["holes_pred"], [1, 0, 0])
    np.testing.assert_array_equal(counts["hole_surplus"], [1, 0, 0])
    np.testing.assert_array_equal(counts["specks"], [0, 1, 0])
    np.testing.assert_array_equal(counts["speck_pixels"], [0, 1, 0])
    np.testing.assert_array_equal(counts["pixels_pred"], [63, 1, 0])
    # The pixel's four sides, of sky and of road; the frame is no border.
    np.testing.assert_array_equal(counts["border_pred"], [4, 4, 0])
    np.testing.assert_array_equal(counts["border_truth"], [0, 0, 0])
    summary = granulation.summarize(counts, NAMES)
    assert summary["surplus"] == 1 and summary["component_ratio"] == 2
    assert summary["speck_share"] == pytest.approx(1 / 64)
    assert summary["border_ratio"] is None  # the truth has no border
    assert summary["per_class"]["speck_share"] == {"road": 0, "sky": 1, "tree": None}
    assert summary["per_class"]["surplus"] == {"road": 0, "sky": 1, "tree": None}


def test_a_speck_is_small_and_mostly_wrong():
    # 10x10, share 5 %: below 5 pixels.  Sky is true in the first row's columns 0-1.
    label = np.zeros((10, 10), int)
    label[0, :2] = 1
    pred = np.zeros((10, 10), int)
    pred[0, :4] = 1  # 2 of 4 right: half, so no speck
    assert counts_of(label, pred, speck_share=0.05)["specks"][1] == 0
    pred[0, 0] = 0  # 1 of 3 right
    assert counts_of(label, pred, speck_share=0.05)["specks"][1] == 1
    assert counts_of(label, pred, speck_share=0.05)["speck_pixels"][1] == 3
    pred = np.zeros((10, 10), int)
    pred[5, :5] = 1  # all wrong, but 5 pixels are not below 5
    assert counts_of(label, pred, speck_share=0.05)["specks"][1] == 0
    # A small true object that is met is none either.
    assert counts_of(label, label, speck_share=0.05)["specks"].sum() == 0


def test_corners_join_a_component_and_do_not_open_a_hole():
    label = np.zeros((6, 6), int)
    pred = label.copy()
    pred[1, 2] = pred[2, 1] = pred[2, 3] = pred[3, 2] = 1  # a ring over corners
    counts = counts_of(label, pred)
    # Sky is one component, and so is road: its middle hangs on over corners too.  The
    # middle is a hole in sky, and each of the four pixels of sky one in road.
    np.testing.assert_array_equal(counts["components_pred"], [1, 1, 0])
    np.testing.assert_array_equal(counts["holes_pred"], [4, 1, 0])
    # At the frame the same ring encloses nothing.
    pred = label.copy()
    pred[0, 1] = pred[1, 0] = 1
    np.testing.assert_array_equal(counts_of(label, pred)["holes_pred"], [0, 0, 0])


def test_an_ignored_strip_parts_nothing():
    label = np.zeros((7, 9), int)
    label[:, 6] = 1  # a pole
    label[3:5] = 255  # cuts road on both sides and the pole
    pred = np.where(label == 255, 2, label)
    counts = counts_of(label, pred)
    np.testing.assert_array_equal(counts["components_truth"], [2, 1, 0])
    np.testing.assert_array_equal(counts["components_pred"], [2, 1, 0])
    assert counts["pixels_pred"].sum() == 45  # 7 x 9 less 2 x 9
    # A wrong speck on either side of the strip stays one, and one behind it another.
    pred[2, 1] = pred[6, 3] = 2
    counts = counts_of(label, pred, speck_share=0.03)
    assert counts["components_pred"][2] == counts["specks"][2] == 2
    assert counts["speck_pixels"][2] == 2


def test_holes_and_components_of_ignored_pixels_alone_do_not_count():
    label = np.zeros((7, 7), int)
    label[2:5, 2:5] = 255
    counts = counts_of(label, np.where(label == 255, 1, label))
    np.testing.assert_array_equal(counts["components_pred"], [1, 0, 0])
    np.testing.assert_array_equal(counts["holes_pred"], [0, 0, 0])
    label[3, 3] = 1  # one labelled pixel makes both
    counts = counts_of(label, label)
    np.testing.assert_array_equal(counts["components_truth"], [1, 1, 0])
    np.testing.assert_array_equal(counts["holes_truth"], [1, 0, 0])


def test_parts_that_no_labelled_pixel_belongs_to_do_not_count():
    # Taking over classes can leave such a part where pixels are equally near to two.
    mask = np.zeros((5, 9), bool)
    mask[1:4, 1:4] = mask[1:4, 5:8] = True
    mask[2, 2] = mask[2, 6] = False  # two rings, each around a hole
    valid = np.ones((5, 9), bool)
    valid[1:4, 5:8] = False  # nothing of the second one is labelled
    areas, right = granulation._components(mask, valid, valid)
    assert areas.tolist() == right.tolist() == [8]
    assert granulation._holes(mask, valid) == 1


def test_large_areas_by_hand():
    # 10x10: sky in columns 0-5 (60 pixels), road in 6-9 (40), share 50 %: sky alone.
    label = np.zeros((10, 10), int)
    label[:, :6] = 1
    pred = label.copy()
    pred[:4, :6] = 0  # 24 of sky's 60 are missed
    pred[:, 9] = 1
    counts = counts_of(label, pred, large_share=0.5)
    np.testing.assert_array_equal(counts["large_regions"], [0, 1, 0])
    np.testing.assert_array_equal(counts["large_pixels"], [0, 60, 0])
    np.testing.assert_array_equal(counts["large_missed"], [0, 24, 0])
    np.testing.assert_array_equal(counts["large_lost"], [0, 0, 0])
    assert granulation.summarize(counts, NAMES)["large_missed"] == pytest.approx(0.4)
    # With 40 % road is large too, exactly; 10 of its 40 are missed.
    counts = counts_of(label, pred, large_share=0.4)
    np.testing.assert_array_equal(counts["large_missed"], [10, 24, 0])
    pred[:6, :6] = 0  # 36 of 60: more than half
    counts = counts_of(label, pred, large_share=0.4)
    np.testing.assert_array_equal(counts["large_lost"], [0, 1, 0])
    summary = granulation.summarize(counts, NAMES)
    assert summary["large_lost"] == pytest.approx(1 / 2)
    assert summary["per_class"]["large_lost"] == {"road": 0, "sky": 1, "tree": None}


def test_missing_objects_do_not_pay_for_specks():
    # One image lacks a tree, another has one too many: the surplus is 1 in 2 images.
    road = np.zeros((6, 6), int)
    tree = road.copy()
    tree[3, 3] = 2
    pairs = ((tree, road), (road, tree))
    counts = [counts_of(*pair) for pair in pairs]
    total = {name: sum(c[name] for c in counts) for name in counts[0]}
    summary = granulation.summarize(total, NAMES)
    assert summary["per_class"]["surplus"] == {"road": 0, "sky": None, "tree": 0.5}
    assert summary["per_class"]["component_ratio"]["tree"] == 1
    assert summary["surplus"] == 0.5 and summary["hole_surplus"] == 0.5


# Slow reference: flood fill over lists of pixels.


def pieces(pixels, corners):
    """The connected parts of a set of pixels."""
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    if corners:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    rest = set(pixels)
    while rest:
        piece, todo = set(), [rest.pop()]
        while todo:
            y, x = todo.pop()
            piece.add((y, x))
            found = {(y + dy, x + dx) for dy, dx in steps} & rest
            rest -= found
            todo += found
        yield piece


def slow_counts(label, pred, num_classes, speck_share, large_share):
    labelled = {p for p in np.ndindex(label.shape) if label[p] != 255}
    truth, guess = granulation._fill(label, pred, label != 255)
    maps = {"truth": truth, "pred": guess}
    counts = {name: [0] * num_classes for name in granulation._PER_CLASS}
    height, width = label.shape
    everywhere = set(np.ndindex(label.shape))
    outside = {(y, x) for y in (-1, height) for x in range(-1, width + 1)}
    outside |= {(y, x) for y in range(-1, height + 1) for x in (-1, width)}
    for c in range(num_classes):
        for kind, ids in maps.items():
            own = {p for p in everywhere if ids[p] == c}
            for piece in pieces(own, corners=True):
                piece &= labelled
                if not piece:
                    continue
                counts[f"components_{kind}"][c] += 1
                other = maps["truth" if kind == "pred" else "pred"]
                right = sum(other[p] == c for p in piece)
                if kind == "truth" and len(piece) >= large_share * len(labelled):
                    counts["large_regions"][c] += 1
                    counts["large_pixels"][c] += len(piece)
                    counts["large_missed"][c] += len(piece) - right
                    counts["large_lost"][c] += right < len(piece) / 2
                if kind == "pred" and len(piece) < speck_share * len(labelled):
                    if right < len(piece) / 2:
                        counts["specks"][c] += 1
                        counts["speck_pixels"][c] += len(piece)
            for piece in pieces((everywhere - own) | outside, corners=False):
                if not piece & outside and piece & labelled:
                    counts[f"holes_{kind}"][c] += 1
            for y, x in labelled:
                if ids[y, x] == c:
                    for q in ((y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)):
                        if q in labelled and ids[q] != c:
                            counts[f"border_{kind}"][c] += 1
        counts["pixels_pred"][c] = sum(pred[p] == c for p in labelled)
        for what in ("component", "hole"):
            more = counts[f"{what}s_pred"][c] - counts[f"{what}s_truth"][c]
            counts[f"{what}_surplus"][c] = max(more, 0)
    return {**counts, "images": int(bool(labelled))}


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_agree_with_flood_fill(seed):
    label, pred = noisy_maps(seed, size=(25, 31), ignored=0.05 * seed)
    shares = {"speck_share": 0.01, "large_share": 0.05}
    counts = granulation.count(label, pred, 3, 255, **shares)
    assert_equal(counts, slow_counts(label, pred, 3, **shares))
    assert counts["specks"].sum() and counts["large_missed"].sum()


def test_ignored_pixels_take_over_a_nearest_class():
    label, pred = noisy_maps(5, ignored=0.6)
    valid = label != 255
    filled = granulation._fill(label, pred, valid)
    places = np.argwhere(valid)
    for place in np.ndindex(label.shape):
        far = ((places - place) ** 2).sum(axis=1)
        nearest = places[far == far.min()]
        here = filled[0][place], filled[1][place]
        assert here in {(label[tuple(p)], pred[tuple(p)]) for p in nearest}


def test_what_must_not_matter():
    label, pred = noisy_maps(7)
    counts = counts_of(label, pred)
    for guess in (0, 2, 255):  # what is predicted where nothing is labelled
        assert_equal(counts, counts_of(label, np.where(label == 255, guess, pred)))
    framed = np.pad(label, 5, constant_values=255), np.pad(pred, 5)
    assert_equal(counts, counts_of(*framed))
    new = np.array([2, 0, 1])
    renamed = np.where(label == 255, 255, new[np.minimum(label, 2)]), new[pred]
    again = counts_of(*renamed)
    assert_equal(counts, {k: v[new] if np.ndim(v) else v for k, v in again.items()})


def test_an_image_without_a_labelled_pixel_has_no_figure():
    counts = counts_of(np.full((4, 5), 255), np.zeros((4, 5), int))
    assert all(np.all(values == 0) for values in counts.values())
    summary = granulation.summarize(counts, NAMES)
    per_class = summary.pop("per_class")
    assert set(summary.values()) == {None}
    assert all(values == dict.fromkeys(NAMES) for values in per_class.values())


def test_a_perfect_prediction():
    label, _ = noisy_maps(2)
    summary = granulation.summarize(counts_of(label, label), NAMES)
    assert summary["component_ratio"] == summary["border_ratio"] == 1
    for name in ("surplus", "hole_surplus", "specks", "speck_share", "large_missed"):
        assert summary[name] == 0
