import numpy as np
import pytest

from ss_gan_tf import visualize

COLORS = [(10, 20, 30), (200, 0, 0), (0, 0, 250)]
WHITE = [255, 255, 255]


def test_colorize_by_hand():
    ids = np.array([[0, 1], [2, 255]])
    rgb = visualize.colorize(ids, COLORS)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(
        rgb, [[[10, 20, 30], [200, 0, 0]], [[0, 0, 250], WHITE]]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_colorize_takes_any_integers(dtype):
    rgb = visualize.colorize(np.array([[2, 255]], dtype), COLORS)
    np.testing.assert_array_equal(rgb, [[[0, 0, 250], WHITE]])


def test_what_is_no_class_is_white():
    # -1 must not count from the palette's end; 3 is one past the last class.
    rgb = visualize.colorize(np.array([[-1, 3]]), COLORS)
    np.testing.assert_array_equal(rgb, [[WHITE, WHITE]])


def test_overlay_by_hand():
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = visualize.overlay(image, np.array([[1, 255]]), COLORS, alpha=0.25)
    # 0.75 * 100 + 0.25 * (200, 0, 0) = (125, 75, 75); void shows the image itself.
    np.testing.assert_array_equal(mixed, [[[125, 75, 75], [100, 100, 100]]])


def test_error_map_by_hand():
    label = np.array([[0, 1, 255]])
    pred = np.array([[0, 2, 2]])
    np.testing.assert_array_equal(
        visualize.error_map(label, pred, 255),
        [[visualize.RIGHT_RGB, visualize.WRONG_RGB, visualize.UNLABELLED_RGB]],
    )


def test_panel_holds_the_four_pictures_in_order():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 200, 3), dtype=np.uint8)
    label = rng.choice([0, 1, 2, 255], (40, 200))
    pred = rng.integers(0, 3, (40, 200))
    picture = visualize.panel(image, label, pred, COLORS, 255)
    tiles = picture[-40:]  # below the captions
    gap = (picture.shape[1] - 4 * 200) // 3
    expected = [
        image,
        visualize.colorize(label, COLORS),
        visualize.colorize(pred, COLORS),
        visualize.error_map(label, pred, 255),
    ]
    for k, tile in enumerate(expected):
        first = k * (200 + gap)
        np.testing.assert_array_equal(tiles[:, first : first + 200], tile)


def test_small_pictures_are_enlarged_by_a_whole_factor():
    image = np.arange(4 * 50 * 3, dtype=np.uint8).reshape(4, 50, 3)
    picture = visualize.side_by_side({"image": image})
    # ceil(160 / 50) = 4
    assert picture.shape[1] == 4 * 50
    np.testing.assert_array_equal(picture[-16::4, ::4], image)


def test_caption_draws_above_and_leaves_the_picture_alone():
    picture = np.zeros((30, 160, 3), np.uint8)
    captioned = visualize.draw_caption(picture, "truth")
    np.testing.assert_array_equal(captioned[-30:], picture)
    assert captioned[:-30].max() > 200  # letters


def test_long_caption_shrinks_to_the_width():
    picture = np.zeros((30, 160, 3), np.uint8)
    bar = visualize.draw_caption(picture, "a caption that is far too long" * 2)[:-30]
    assert (bar[:, :2] == bar[0, 0]).all() and (bar[:, -2:] == bar[0, 0]).all()
    assert bar.max() > bar[0, 0].max()


def test_verdicts_tint_their_own_cells():
    image = np.full((160, 160, 3), 128, np.uint8)
    # Asymmetric: transposed or swapped verdicts must show.
    verdicts = np.array([[0.0, 0.5], [1.0, np.nan]])
    picture = visualize.verdict_overlay(image, verdicts).astype(int)
    corner = {
        (i, j): picture[80 * i + 10, 80 * j + 10] for i in range(2) for j in range(2)
    }
    red, blue = corner[0, 0][0], corner[0, 0][2]
    assert red > 128 > blue  # generated: orange
    red, blue = corner[1, 0][0], corner[1, 0][2]
    assert blue > 128 > red  # ground truth: blue
    np.testing.assert_array_equal(corner[0, 1], [128] * 3)  # undecided
    np.testing.assert_array_equal(corner[1, 1], [128] * 3)  # no verdict
    # The value is written into cells that have one.
    assert picture[90:150, 10:70].max() > 235
    assert (picture[90:150, 90:150] == 128).all()


def test_verdict_overlay_takes_any_grid():
    image = np.zeros((48, 64, 3), np.uint8)
    for shape in ((1, 1), (3, 5), (48, 64)):
        picture = visualize.verdict_overlay(image, np.full(shape, 0.9, np.float32))
        assert picture.shape == (3 * 48, 3 * 64, 3) and picture.dtype == np.uint8
    assert not image.any()  # drawn on a copy


@pytest.mark.parametrize("count", [1, 3, 17, 34])
def test_legend_shows_every_colour(count):
    colors = [(7 * k + 1, 255 - 7 * k, 3 * k) for k in range(count)]
    picture = visualize.legend([f"class {k}" for k in range(count)], colors)
    seen = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert seen >= set(colors)


def test_sizes_must_agree():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="sizes differ"):
        visualize.overlay(image, np.zeros((5, 4), int), COLORS)
    with pytest.raises(ValueError, match="sizes differ"):
        visualize.error_map(np.zeros((4, 5)), np.zeros((5, 4)), 255)


def test_confusion_picture_puts_truth_in_rows():
    # Sky: 3 right, 1 taken for car; car is not in the truth; tree all right.
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]])
    picture = visualize.confusion_picture(matrix, ("sky", "car", "tree"))
    assert picture.dtype == np.uint8
    size = 34
    corner = np.array(picture.shape[:2]) - 8 - 3 * size  # of the first cell

    def background(i, j):
        y, x = corner + size * np.array([i, j])
        return picture[y + 2, x + 2].astype(int)

    np.testing.assert_array_equal(background(2, 2), visualize.REAL_RGB)
    nothing = [245, 245, 245]
    np.testing.assert_array_equal(background(0, 2), nothing)
    np.testing.assert_array_equal(background(2, 0), nothing)
    for column in range(3):
        assert set(background(1, column)) == {225}
    # 1/4 wrong: half the way to orange, by the square root.
    expected = np.round((245 + np.array(visualize.GENERATED_RGB)) / 2)
    np.testing.assert_array_equal(background(0, 1), expected)


def test_confusion_picture_of_many_classes_keeps_their_names():
    names = [f"class {k}" for k in range(60)]
    picture = visualize.confusion_picture(np.eye(60, dtype=int), names)
    assert 60 * 18 < picture.shape[1] < 2048
    assert (picture[-100:, 8:60] < 100).any()
