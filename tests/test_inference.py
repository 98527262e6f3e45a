import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import tracemalloc

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import inference
from ss_gan_tf.config import EVALUATION, Config

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
    ).probabilities


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
        predict.probabilities(np.zeros(shape, np.uint8))
        predict.predict(np.zeros(shape, np.uint8), False)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "sliding", "window": 34}, {"scales": (0.5, 1.0)}]
)
def test_a_prediction_is_the_argmax_and_maximum_of_the_probabilities(settings):
    images = np.random.default_rng(7).integers(0, 256, (2, 40, 51, 3), dtype=np.uint8)
    predict = inference.make_predictor(
        small_generator(3), num_classes=4, normalize=normalize, **settings
    )
    probs, found = predict.probabilities(images), predict.predict(images, True)
    assert found.class_ids.dtype == np.uint8 and found.confidence.dtype == np.float32
    np.testing.assert_array_equal(found.class_ids, probs.argmax(axis=-1))
    np.testing.assert_array_equal(found.confidence, probs.max(axis=-1))
    assert len(np.unique(found.class_ids)) > 1
    ids, nothing = predict.predict(images, False)
    np.testing.assert_array_equal(ids, found.class_ids)
    assert nothing is None


def test_of_equally_probable_classes_the_first_is_predicted():
    generator = small_generator(1)
    generator.set_weights([np.zeros((1, 1, 3, 4)), np.array([0, 9, 0, 9])])
    predict = inference.make_predictor(generator, num_classes=4, normalize=normalize)
    assert (
        predict.predict(np.zeros((1, 40, 51, 3), np.uint8), False).class_ids == 1
    ).all()


def test_more_classes_than_a_byte_holds():
    generator = small_generator(1, num_classes=300)
    generator.set_weights([np.zeros((1, 1, 3, 300)), np.eye(300)[299]])
    predict = inference.make_predictor(generator, num_classes=300, normalize=normalize)
    assert (
        predict.predict(np.zeros((1, 5, 6, 3), np.uint8), False).class_ids == 299
    ).all()


def test_each_device_does_one_pass_at_a_time():
    """Two devices: two passes meet, and a third waits until one of them is done."""
    meeting, inside, most = threading.Barrier(2, timeout=60), [], []

    @contextlib.contextmanager
    def device(name):
        assert name not in inside
        inside.append(name)
        most.append(len(inside))
        if not meeting.broken and len(most) <= 2:
            meeting.wait()
        yield
        inside.remove(name)

    predict = inference.make_predictor(
        small_generator(1),
        num_classes=4,
        normalize=normalize,
        devices=[functools.partial(device, name) for name in "ab"],
    )
    assert predict.num_devices == 2
    images = np.zeros((1, 40, 50, 3), np.uint8)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        passes = [pool.submit(predict.predict, images, True) for _ in range(12)]
        results = [one.result() for one in passes]
    assert len(most) == 12 and max(most) == 2 and not inside
    for result in results[1:]:
        np.testing.assert_array_equal(result.confidence, results[0].confidence)


def test_settings_are_checked_before_the_work():
    with pytest.raises(ValueError, match="4 classes, not 5"):
        inference.make_predictor(small_generator(1), num_classes=5, normalize=normalize)
    with pytest.raises(ValueError, match="'whole' or 'sliding', not 'tiles'"):
        predictor(small_generator(1), mode="tiles")
    with pytest.raises(ValueError, match="overlap"):
        predictor(small_generator(1), mode="sliding", overlap=1.0)


# Scales and mirror images


def brightness(images):
    """A "network" whose first class has the red value as its probability."""
    return images[..., :1].astype(np.float32) / 255


def left_neighbour(images):
    """The red value of the pixel to the left; 0 at the border."""
    probs = brightness(images)
    return np.concatenate([np.zeros_like(probs[:, :, :1]), probs[:, :, :-1]], axis=2)


def rows_of(values, height):
    image = np.tile(np.uint8(values)[:, None], (height, 1, 3))
    return image[None]


def test_one_view_is_the_plain_prediction_to_the_last_bit():
    generator = small_generator(5)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 51, 3), dtype=np.uint8)
    network = tf.function(inference.make_network(generator, normalize))
    expected = network(tf.constant(images)).numpy()
    views = inference.average_views(predictor(generator), images, (1.0,), False)
    np.testing.assert_array_equal(views, expected)
    np.testing.assert_array_equal(predictor(generator)(images), expected)


def test_scale_by_hand():
    # 4 pixels become 2, whose centres lie between pixels 0, 1 and 2, 3:
    #   (0 + 100) / 2 = 50, (200 + 60) / 2 = 130.
    # Back at 4 pixels, the centres lie at -1/4 (clamped), 1/4, 3/4 and 5/4 (clamped):
    #   50, 50 + 80 / 4 = 70, 50 + 3 * 80 / 4 = 110, 130.
    images = rows_of([0, 100, 200, 60], height=2)
    half = inference.average_views(brightness, images, (0.5,), False)
    expected = np.tile(np.float32([50, 70, 110, 130])[:, None] / 255, (1, 2, 1, 1))
    np.testing.assert_allclose(half, expected, rtol=1e-6)
    # The mean with scale 1: (50 + 0) / 2, (70 + 100) / 2, ...
    both = inference.average_views(brightness, images, (0.5, 1.0), False)
    expected = np.tile(np.float32([25, 85, 155, 95])[:, None] / 255, (1, 2, 1, 1))
    np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_flip_by_hand():
    # Plain: 0, 10, 100.  The mirror image 200, 100, 10 gives 0, 200, 100, which is
    # 100, 200, 0 mirrored back.  The means: 50, 105, 50.
    images = rows_of([10, 100, 200], height=1)
    probs = inference.average_views(left_neighbour, images, (1.0,), True)
    np.testing.assert_allclose(255 * probs[0, 0, :, 0], [50, 105, 50], rtol=1e-6)


def test_flip_changes_nothing_for_a_model_of_single_pixels():
    generator = small_generator(1)
    images = np.random.default_rng(4).integers(0, 256, (2, 40, 51, 3), dtype=np.uint8)
    for mode in ("whole", "sliding"):
        plain = predictor(generator, mode=mode, window=34)(images)
        both = predictor(generator, mode=mode, window=34, flip=True)(images)
        np.testing.assert_allclose(both, plain, rtol=1e-5)


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_views_equal_a_mean_of_plain_predictions(mode):
    generator = small_generator(5)
    images = np.random.default_rng(5).integers(0, 256, (2, 45, 60, 3), dtype=np.uint8)
    plain = predictor(generator, mode=mode, window=36)
    expected = []
    for image in images:
        views = []
        for height, width in ((34, 45), (45, 60), (56, 75)):  # 56.25 is rounded
            # cv2.resize takes width first.
            seen = cv2.resize(image.astype(np.float32), (width, height))
            seen = np.rint(seen).astype(np.uint8)
            for step in (1, -1):
                probs = plain(seen[None, :, ::step])[0][:, ::step]
                views.append(cv2.resize(probs, (60, 45)))
        expected.append(np.mean(views, axis=0))
    settings = dict(mode=mode, window=36, scales=(0.75, 1.0, 1.25), flip=True)
    probs = predictor(generator, **settings)(images)
    assert probs.dtype == np.float32 and probs.shape == (2, 45, 60, 4)
    # The two libraries' resized pixels may be rounded to neighbouring levels.
    np.testing.assert_allclose(probs, expected, atol=4e-3)
    np.testing.assert_allclose(probs.mean(), np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-5)


def test_views_of_a_batch_are_those_of_its_images():
    images = np.random.default_rng(6).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for mode in ("whole", "sliding"):
        settings = dict(mode=mode, window=33, scales=(0.5, 1.5), flip=True)
        predict = predictor(small_generator(3), **settings)
        one_by_one = np.concatenate([predict(image[None]) for image in images])
        np.testing.assert_allclose(predict(images), one_by_one, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (64, 64)])
def test_views_of_any_size(size):
    images = np.zeros((1, *size, 3), np.uint8)
    probs = predictor(small_generator(3), scales=(0.1, 2.0), flip=True)(images)
    assert probs.shape == (1, *size, 4)


def test_memory_does_not_grow_with_the_number_of_views():
    images = np.zeros((1, 200, 200, 3), np.uint8)

    def predict(view):
        return np.zeros((*view.shape[:3], 30), np.float32)

    def peak(scales):
        inference.average_views(predict, images, scales, True)  # warm
        tracemalloc.start()
        inference.average_views(predict, images, scales, True)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak((0.7, 0.8, 0.9, 1.0, 1.1, 1.2)) < 1.1 * peak((1.0, 1.2))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 1.0), (11.0,), (float("nan"),)])
def test_nonsense_scales_are_refused(scales):
    with pytest.raises(ValueError, match="eval scales must be different numbers"):
        predictor(small_generator(1), scales=scales)
    with pytest.raises(ValueError, match="^eval_scales="):
        Config(eval_scales=scales)


def test_views_belong_to_a_runs_validations_and_survive_json():
    assert {"eval_scales", "eval_flip"} <= set(EVALUATION)
    config = Config(eval_scales=[1, 1.5], eval_flip=True)
    assert config.eval_scales == (1.0, 1.5)
    assert Config.from_json(config.to_json()) == config
    assert dataclasses.replace(config, eval_scales=(1,), eval_flip=False) == Config()
