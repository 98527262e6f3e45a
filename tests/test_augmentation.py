"""Check, crop, mirror, scale and fill, by hand and against TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import augmentation


def test_check_lets_known_values_through():
    image = np.zeros((1, 3, 3), np.uint8)
    augmentation.check(image, np.uint8([[0, 1, 255]]), b"x", 2, 255)
    augmentation.check(image, np.uint8([[0, 1, 7]]), b"x", 2, 7)
    augmentation.check(image, np.uint8([[0, 1, 2]]), b"x", 3, 1)
    augmentation.check(image, np.uint8([[0, 254, 255]]), b"x", 255, 255)


@pytest.mark.parametrize("num_classes, ignore_label", [(2, 255), (5, 7), (3, 1)])
def test_check_finds_every_value_wherever_it_is(num_classes, ignore_label):
    rng = np.random.default_rng(0)
    image = np.zeros((9, 35, 3), np.uint8)
    for value in range(256):
        label = np.full((9, 35), ignore_label, np.uint8)
        label[rng.integers(9), rng.integers(35)] = value
        if value < num_classes or value == ignore_label:
            augmentation.check(image, label, b"x", num_classes, ignore_label)
        else:
            with pytest.raises(ValueError, match=f"label of x holds {value}, which"):
                augmentation.check(image, label, b"x", num_classes, ignore_label)


@pytest.mark.parametrize(
    "size, value, message",
    [
        ((2, 3), 2, "label of aachen/x holds 2, which is neither in 0..1 nor 255"),
        ((2, 3), 254, "label of aachen/x holds 254"),
        ((3, 2), 0, r"aachen/x: image is \[2, 3\] but label is \[3, 2\]"),
    ],
)
def test_check_names_example_value_and_rule(size, value, message):
    image, label = np.zeros((2, 3, 3), np.uint8), np.full(size, value, np.uint8)
    with pytest.raises(ValueError, match=message) as error:
        augmentation.check(image, label, b"aachen/x", 2, 255)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint16])
def test_check_takes_bytes_alone(dtype):
    image, label = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), dtype)
    with pytest.raises(ValueError, match=f"label of x is {label.dtype}, not uint8"):
        augmentation.check(image, label, b"x", 2, 255)


def test_draws_are_uniform_and_a_function_of_seed_and_number():
    numbers = np.array([augmentation.draw(3, n) for n in range(2000)])
    assert numbers.shape == (2000, 4) and 0 <= numbers.min() and numbers.max() < 1
    # Means and correlations of 2,000 are off by 1 / sqrt(12 x 2000) = 0.0065 and 0.022.
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.1)
    neighbours = np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]
    assert abs(neighbours) < 0.1
    assert augmentation.draw(3, 7) == tuple(numbers[7])
    assert not set(augmentation.draw(4, 7)) & set(numbers.flat)
    # A block of 256 examples is one stream of NumPy's: 513 is the second of the third.
    raw = np.random.Philox(key=[3, 2]).random_raw(8)[4:]
    assert augmentation.draw(3, 513) == tuple((raw >> np.uint64(11)) * 2.0**-53)
    # Runs of other NumPy versions meet the same crops.
    assert augmentation.draw(3, 7) == pytest.approx(
        [
            0.48910648042181615,
            0.2087447380071802,
            0.5017349522844516,
            0.05593065066909497,
        ],
        abs=1e-15,
    )


def test_window_is_crop_over_factor():
    # 32 pixels at factors from 0.5 to 2 are 64 to 16 source pixels; a quarter of the
    # way is 0.875: 36.6 pixels.
    scale_range = (0.5, 2.0)
    sides = [augmentation.window_size(32, scale_range, x) for x in (0, 0.25, 1)]
    assert sides == [64, 37, 16]
    assert augmentation.window_size(32, (1.0, 1.0), 0.7) == 32
    assert augmentation.window_size(1, (10.0, 10.0), 0.7) == 1


def test_crop_cuts_one_window_out_of_both():
    label = np.arange(42, dtype=np.uint8).reshape(6, 7)
    image = np.stack([label, label + 100, label + 200], -1)
    rng, corners = np.random.default_rng(0), set()
    last = np.nextafter(1.0, 0.0)
    for corner in [*rng.random((100, 2)), (last, last)]:
        cut = augmentation.crop(image, label, 4, corner)
        top, left = divmod(int(cut[1][0, 0]), 7)
        corners.add((top, left))
        np.testing.assert_array_equal(cut[1], label[top : top + 4, left : left + 4])
        np.testing.assert_array_equal(cut[0], image[top : top + 4, left : left + 4])
    # 6 - 4 + 1 = 3 rows times 7 - 4 + 1 = 4 columns, the last ones included.
    assert corners == {(top, left) for top in range(3) for left in range(4)}
    assert (top, left) == (2, 3)


def test_crop_keeps_what_is_smaller():
    label = np.arange(18, dtype=np.uint8).reshape(2, 9)
    image = np.stack([label] * 3, -1)
    cut = augmentation.crop(image, label, 4, (0.9, 0.9))
    assert cut[0].shape == (2, 4, 3)
    np.testing.assert_array_equal(cut[1], label[:, 5:9])


def scaled(image, label, factor):
    """What `scale` writes into the first part of a larger array."""
    height, width = augmentation.scaled_size(label.shape, factor)
    image_out = np.zeros([height + 2, width + 3, 3], image.dtype)
    label_out = np.zeros([height + 2, width + 3], label.dtype)
    inside = slice(height), slice(width)
    augmentation.scale(image, label, image_out[inside], label_out[inside])
    for out in (image_out, label_out):
        assert not out[height:].any() and not out[:, width:].any()
    return image_out[inside], label_out[inside]


def test_scale_by_hand():
    label = np.uint8([[0, 1], [2, 3]])
    image = np.float32([[[0] * 3, [8] * 3], [[0] * 3, [8] * 3]])
    large = scaled(image, label, 2.0)
    # New centres 0.25, 0.75, 1.25, 1.75 in old pixels: nearest gives each id twice;
    # linear between the old centres 0.5 and 1.5: 0, 0.25, 0.75, 1 times 8.
    np.testing.assert_array_equal(
        large[1], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    )
    np.testing.assert_allclose(large[0][0, :, 0], [0, 2, 6, 8])


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.3, 2.0])
def test_scale_is_tensorflows_resize(factor):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    label = rng.integers(0, 256, (31, 45)).astype(np.uint8)
    size = [round(31 * factor), round(45 * factor)]
    out = scaled(image, label, factor)
    expected = tf.image.resize(label[..., None], size, method="nearest")[..., 0]
    np.testing.assert_array_equal(out[1], expected)
    np.testing.assert_allclose(out[0], tf.image.resize(image, size), atol=1)


@pytest.mark.parametrize("old", [(1, 1), (1, 5), (5, 1), (2, 3)])
@pytest.mark.parametrize("new", [(1, 1), (1, 4), (4, 1), (3, 3)])
def test_scale_writes_any_size_in_its_place(old, new):
    image = np.full([*old, 3], 7, np.uint8)
    out = np.zeros([6, 6, 3], np.uint8), np.zeros([6, 6], np.uint8)
    inside = slice(new[0]), slice(new[1])
    augmentation.scale(image, image[..., 0], out[0][inside], out[1][inside])
    for written in out:
        assert (written[inside] == 7).all() and np.sum(written > 0) == (
            np.prod(new) * written[0, 0].size
        )


def test_scale_leaves_at_least_one_pixel():
    assert augmentation.scaled_size((3, 1), 0.1) == (1, 1)


def test_fill_by_hand():
    image, label = np.zeros([3, 3, 3], np.uint8), np.zeros([3, 3], np.uint8)
    c = np.uint8([10, 20, 30])
    augmentation.fill(image, label, 2, 1, np.stack([c, c, c]), 255)
    z = [0, 0, 0]
    np.testing.assert_array_equal(image, [[z, c, c], [z, c, c], [c, c, c]])
    np.testing.assert_array_equal(label, [[0, 255, 255], [0, 255, 255], 3 * [255]])


def test_fill_has_nothing_to_do():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    filled = image.copy()
    augmentation.fill(filled, filled[..., 0], 2, 2, np.uint8(2 * [[1, 2, 3]]), 255)
    np.testing.assert_array_equal(filled, image)


def test_mirror_is_left_to_right():
    label = np.uint8([[0, 1, 2], [3, 4, 5]])
    out = augmentation.mirror(np.stack([label] * 3, -1), label)
    np.testing.assert_array_equal(out[1], [[2, 1, 0], [5, 4, 3]])
    np.testing.assert_array_equal(out[0], np.stack([out[1]] * 3, -1))


def test_augment_is_its_steps_in_their_order():
    """A window of the image, mirrored where that is drawn, scaled, the rest filled."""
    label = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = np.stack([label, label + 50, label + 100], -1)
    colors = augmentation.padding_row((1.2, 2.5, 250.4), 10)
    np.testing.assert_array_equal(colors, np.tile(np.uint8([1, 2, 250]), (10, 1)))
    mirrored = set()
    for n in range(40):
        out = np.empty((10, 10, 3), np.uint8), np.empty((10, 10), np.uint8)
        augmentation.augment(
            5,
            n,
            image,
            label,
            *out,
            scale_range=(1.0, 1.0),
            flip=True,
            colors=colors,
            ignore_label=255,
        )
        # Larger than the image: all of it is inside, at the top left.
        is_mirrored = augmentation.draw(5, n)[3] < 0.5
        shown = label[:, ::-1] if is_mirrored else label
        np.testing.assert_array_equal(out[1][:6, :8], shown)
        np.testing.assert_array_equal(out[0][:6, :8, 1], shown + 50)
        assert (out[1][6:] == 255).all() and (out[1][:, 8:] == 255).all()
        assert (out[0][6:] == colors[0]).all()
        mirrored.add(is_mirrored)
    assert mirrored == {True, False}
