import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import evaluate, metrics

NAMES = ("road", "sky", "tree", "car")
MEAN = 120.0


def normalize(image):
    return (image - MEAN) / 50.0


def small_generator(kernel_size, num_classes=4, seed=0):
    """One convolution: 1 sees single pixels, 3 and more also the border."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(num_classes, kernel_size, padding="same")(image)
    return keras.Model(image, logits)


def random_examples(sizes, seed=0, num_classes=4):
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (h, w, 3), dtype=np.uint8),
            "label": rng.choice([*range(num_classes), 255], (h, w)).astype(np.int32),
            "name": f"image{k}".encode(),
        }
        for k, (h, w) in enumerate(sizes)
    ]


def as_dataset(examples):
    return tf.data.Dataset.from_generator(
        lambda: iter(examples),
        output_signature={
            "image": tf.TensorSpec([None, None, 3], tf.uint8),
            "label": tf.TensorSpec([None, None], tf.int32),
            "name": tf.TensorSpec([], tf.string),
        },
    )


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def predictor(generator, **kwargs):
    return evaluate.make_predictor(
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
    assert evaluate.sliding_windows(size, window, overlap) == offsets


def test_sliding_windows_cover_every_pixel_and_keep_the_overlap():
    for size in range(1, 60):
        offsets = evaluate.sliding_windows(size, 12, 1 / 3)
        covered = {p for o in offsets for p in range(o, min(o + 12, size))}
        assert covered == set(range(size))
        assert all(b - a <= 8 for a, b in zip(offsets, offsets[1:], strict=False))
        assert offsets == sorted(set(offsets))


def test_nonsense_windows_are_refused():
    with pytest.raises(ValueError, match="overlap must be in"):
        evaluate.sliding_windows(100, 50, 1.0)
    with pytest.raises(ValueError, match="overlap must be in"):
        evaluate.sliding_windows(100, 50, -0.1)
    with pytest.raises(ValueError, match="window must be at least 1"):
        evaluate.sliding_windows(100, 0, 0.5)


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

    predict = evaluate.make_predictor(
        small_generator(3), num_classes=4, normalize=counting
    )
    for shape in ((1, 32, 32, 3), (3, 45, 60, 3), (2, 100, 33, 3)):
        predict(np.zeros(shape, np.uint8))
    assert len(traces) == 1


def test_settings_are_checked_before_the_work():
    with pytest.raises(ValueError, match="4 classes, not 5"):
        evaluate.make_predictor(small_generator(1), num_classes=5, normalize=normalize)
    with pytest.raises(ValueError, match="'whole' or 'sliding', not 'tiles'"):
        predictor(small_generator(1), mode="tiles")
    with pytest.raises(ValueError, match="overlap"):
        predictor(small_generator(1), mode="sliding", overlap=1.0)


SIZES = [(40, 48)] * 3 + [(33, 60)] + [(40, 48)] * 2 + [(20, 30)] * 2 + [(70, 33)]


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_result_does_not_depend_on_the_batch_size(mode):
    examples = random_examples(SIZES)
    generator = small_generator(3)
    # The reference goes image by image, without any of evaluate's batching.
    predict = predictor(generator, mode=mode, window=36)
    matrix = sum(
        metrics.confusion_matrix(
            e["label"], predict(e["image"][None])[0].argmax(-1), 4, 255
        )
        for e in examples
    )
    for batch_size in (1, 2, 4, 100):  # 6 images of one size: the last batch is uneven
        result = evaluate.evaluate(
            generator,
            as_dataset(examples),
            class_names=NAMES,
            ignore_label=255,
            normalize=normalize,
            mode=mode,
            window=36,
            batch_size=batch_size,
        )
        assert result["num_images"] == len(SIZES)
        assert result["confusion_matrix"] == matrix.tolist()
        assert result["mode"] == mode
    assert result["num_pixels"] == sum((e["label"] != 255).sum() for e in examples)
    assert ("window" in result) == (mode == "sliding")


def test_truth_and_prediction_keep_their_places():
    # Every pixel is class 1 and predicted 2: p[1, 2], not p[2, 1], holds them all.
    generator = small_generator(1)
    generator.set_weights([np.zeros((1, 1, 3, 4)), np.array([0, 0, 9, 0])])
    example = random_examples([(8, 8)])[0] | {"label": np.ones((8, 8), np.int32)}
    result = evaluate.evaluate(
        generator,
        as_dataset([example]),
        class_names=NAMES,
        ignore_label=255,
        normalize=normalize,
    )
    expected = np.zeros((4, 4), int)
    expected[1, 2] = 64
    assert result["confusion_matrix"] == expected.tolist()
    assert result["iou"] == {"road": None, "sky": 0.0, "tree": 0.0, "car": None}


def test_batches_hold_one_size_and_wait_in_bounded_memory():
    sizes = [(4 + k % 7, 5) for k in range(100)]
    examples, taken = random_examples(sizes), []

    def source():
        for example in examples:
            taken.append(1)
            yield example

    class Stream:
        def as_numpy_iterator(self):
            return source()

    given = []
    for batch in evaluate._same_size_batches(Stream(), batch_size=3):
        assert len({example["image"].shape for example in batch}) == 1
        assert len(batch) <= 3
        given += [example["name"] for example in batch]
        assert len(taken) - len(given) <= 12
    assert sorted(given) == sorted(example["name"] for example in examples)


def test_progress_counts_images_and_a_predictor_is_reused():
    counts, calls = [], []

    def predict(images):
        calls.append(len(images))
        return np.tile(np.float32([1, 0, 0, 0]), (*images.shape[:3], 1))

    evaluate.evaluate(
        None,
        as_dataset(random_examples([(5, 5)] * 5)).apply(
            tf.data.experimental.assert_cardinality(5)
        ),
        class_names=NAMES,
        ignore_label=255,
        normalize=normalize,
        batch_size=2,
        progress=lambda done, total: counts.append((done, total)),
        predictor=predict,
    )
    assert calls == [2, 2, 1]
    assert counts == [(2, 5), (4, 5), (5, 5)]


def test_a_label_out_of_range_names_the_image():
    examples = random_examples([(8, 8)] * 2)
    examples[1]["label"][3, 3] = 4
    with pytest.raises(ValueError, match=r"image1: label .* 4: must be 0..3 or 255"):
        evaluate.evaluate(
            small_generator(1),
            as_dataset(examples),
            class_names=NAMES,
            ignore_label=255,
            normalize=normalize,
        )


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate.evaluate(
            small_generator(1),
            as_dataset(random_examples([(8, 8)])).take(0),
            class_names=NAMES,
            ignore_label=255,
            normalize=normalize,
        )


def test_write_metrics_is_strict_json_and_atomic(tmp_path):
    path = tmp_path / "eval" / "val" / "metrics.json"
    evaluate.write_metrics({"miou": 0.5}, str(path))
    evaluate.write_metrics(
        {"miou": float("nan"), "iou": {"sky": np.float32(0.25)}, "n": [np.int64(3)]},
        str(path),
    )
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "miou": None,
        "iou": {"sky": 0.25},
        "n": [3],
    }
    with pytest.raises(TypeError):
        evaluate.write_metrics({"miou": object()}, str(path))
    assert json.loads(path.read_text())["n"] == [3]  # the whole file is still there
    assert os.listdir(path.parent) == ["metrics.json"]
