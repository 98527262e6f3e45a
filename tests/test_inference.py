import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import inference

MEAN = 120.0


def normalize(image):
    return (image - MEAN) / 50.0


def small_generator(kernel_size, num_classes=4, seed=0):
    """One convolution: 1 sees single pixels, 3 and more also the border."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(num_classes, kernel_size, padding="same")(image)
    return keras.Model(image, logits)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def predictor(generator, **kwargs):
    return inference.make_predictor(
        generator, num_classes=4, normalize=normalize, **kwargs
    )


@pytest.mark.parametrize(
    "size, window, overlap, offsets",
    [
        # Stride round(500 * 2/3) = 333; the last one ends at the border: 1024 - 500.
        (1024, 500, 1 / 3, [0, 333, 524]),
        (2048, 500, 1 / 3, [0, 333, 666, 999, 1332, 1548]),
        (500, 500, 1 / 3, [0]),  # fits exactly
        (499, 500, 1 / 3, [0]),  # smaller than a window
        (501, 500, 1 / 3, [0, 1]),  # one pixel more
        (12, 4, 0.0, [0, 4, 8]),  # tiles without overlap
        (10, 4, 0.5, [0, 2, 4, 6]),  # stride 2, the last regular one ends at 10
        (9, 4, 0.5, [0, 2, 4, 5]),  # stride 2, the last one moved back to 9 - 4
        (5, 3, 0.99, [0, 1, 2]),  # the stride is never 0
    ],
)
def test_sliding_windows_by_hand(size, window, overlap, offsets):
    assert inference.sliding_windows(size, window, overlap) == offsets


def test_sliding_windows_cover_every_pixel_and_keep_the_overlap():
    for size in range(1, 60):
        offsets = inference.sliding_windows(size, 12, 1 / 3)
        covered = {p for o in offsets for p in range(o, min(o + 12, size))}
        assert covered == set(range(size))
        assert all(b - a <= 8 for a, b in zip(offsets, offsets[1:], strict=False))
        assert offsets == sorted(set(offsets))


def test_nonsense_windows_are_refused():
    with pytest.raises(ValueError, match="overlap must be in"):
        inference.sliding_windows(100, 50, 1.0)
    with pytest.raises(ValueError, match="overlap must be in"):
        inference.sliding_windows(100, 50, -0.1)
    with pytest.raises(ValueError, match="window must be at least 1"):
        inference.sliding_windows(100, 0, 0.5)


def test_whole_image_equals_numpy():
    generator = small_generator(1)
    kernel, bias = generator.get_weights()
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 51, 3), dtype=np.uint8)
    expected = softmax(normalize(images.astype(np.float32)) @ kernel[0, 0] + bias)
    probs = predictor(generator)(images)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 97), (33, 200), (20, 90), (7, 5), (1, 1)])
def test_sliding_equals_whole_for_a_model_of_single_pixels(size):
    generator = small_generator(1)
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    whole = predictor(generator)(images)
    for overlap in (0.0, 1 / 3, 0.8):
        slide = predictor(generator, mode="sliding", window=40, overlap=overlap)
        probs = slide(images)
        assert probs.shape == (2, *size, 4) and probs.dtype == np.float32
        # Averages of equal float32 numbers: only the last digit may differ.
        np.testing.assert_allclose(probs, whole, rtol=1e-6)
        np.testing.assert_array_equal(probs.argmax(-1), whole.argmax(-1))


def test_sliding_averages_the_windows():
    # With a 5x5 kernel windows differ near their borders: average them one by one.
    generator = small_generator(5)
    image = np.random.default_rng(2).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    total, count = np.zeros((50, 75, 4)), np.zeros((50, 75, 1))
    for top in (0, 18):  # 50 - 32; the stride is 21
        for left in (0, 21, 42, 43):  # 75 - 32 = 43
            area = slice(top, top + 32), slice(left, left + 32)
            x = normalize(image[area].astype(np.float32))[None]
            total[area] += softmax(generator(x).numpy())[0]
            count[area] += 1
    for window_batch in (1, 3, 8):
        probs = predictor(
            generator,
            mode="sliding",
            window=32,
            overlap=1 / 3,
            window_batch=window_batch,
        )(image[None])
        np.testing.assert_allclose(probs[0], total / count, rtol=1e-5, atol=1e-6)


def test_small_images_are_padded_with_the_mean_colour():
    generator = small_generator(3)
    images = np.random.default_rng(3).integers(0, 256, (1, 10, 50, 3), dtype=np.uint8)
    padded = np.full((1, 32, 50, 3), MEAN, np.float32)
    padded[:, :10] = images
    expected = softmax(generator(normalize(padded)).numpy())[:, :10]
    np.testing.assert_allclose(predictor(generator)(images), expected, rtol=1e-5)
    # A window of 60: both sides are padded to it, and border pixels see the mean
    # colour, which is the zero that the convolution pads with.
    slide = predictor(generator, mode="sliding", window=60)
    np.testing.assert_allclose(slide(images), expected, rtol=1e-5)


def test_generator_never_sees_less_than_32_pixels_or_than_a_window():
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            tf.py_function(lambda y: seen.append(tuple(y.shape)), [x], [])
            return x[..., :1] * tf.ones([4])

    image = keras.Input((None, None, 3))
    generator = keras.Model(image, Spy()(image))
    images = np.zeros((1, 5, 40, 3), np.uint8)
    predictor(generator)(images)
    predictor(generator, mode="sliding", window=48)(images)
    assert seen == [(1, 32, 40, 3), (1, 48, 48, 3)]


def test_one_trace_for_all_sizes():
    traces = []

    def counting(image):
        traces.append(1)
        return normalize(image)

    predict = inference.make_predictor(
        small_generator(3), num_classes=4, normalize=counting
    )
    for shape in ((1, 32, 32, 3), (3, 45, 60, 3), (2, 100, 33, 3)):
        predict(np.zeros(shape, np.uint8))
    assert len(traces) == 1


def test_settings_are_checked_before_the_work():
    with pytest.raises(ValueError, match="4 classes, not 5"):
        inference.make_predictor(small_generator(1), num_classes=5, normalize=normalize)
    with pytest.raises(ValueError, match="'whole' or 'sliding', not 'tiles'"):
        predictor(small_generator(1), mode="tiles")
    with pytest.raises(ValueError, match="overlap"):
        predictor(small_generator(1), mode="sliding", overlap=1.0)
