import json
import os
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import evaluate, inference, measures, metrics
from ss_gan_tf.per_image import PerImage

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


def predictor(generator, **kwargs):
    return inference.make_predictor(
        generator, num_classes=4, normalize=normalize, **kwargs
    )


SIZES = [(40, 48)] * 3 + [(33, 60)] + [(40, 48)] * 2 + [(20, 30)] * 2 + [(70, 33)]


@pytest.mark.parametrize("views", [{}, {"scales": (0.75, 1.0), "flip": True}])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_result_does_not_depend_on_the_batch_size(mode, views):
    examples = random_examples(SIZES)
    generator = small_generator(3)
    # The reference goes image by image, without any of evaluate's batching.
    predict = predictor(generator, mode=mode, window=36, **views)
    matrix = sum(
        metrics.confusion_matrix(
            e["label"],
            predict.probabilities(e["image"][None])[0].argmax(-1),
            4,
            255,
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
            **views,
        )
        assert result["num_images"] == len(SIZES)
        assert result["confusion_matrix"] == matrix.tolist()
        assert result["mode"] == mode
        assert result["scales"] == list(views.get("scales", (1.0,)))
        assert result["flip"] == views.get("flip", False)
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

    def predict(images, with_confidence):
        assert not with_confidence
        calls.append(len(images))
        return inference.Prediction(np.zeros(images.shape[:3], np.uint8), None)

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
        predictor=inference.Predictor(None, predict),
    )
    assert sorted(calls) == [1, 2, 2]  # threads ask for them
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


def evaluated(examples, **kwargs):
    kept = []
    result = evaluate.evaluate(
        small_generator(3),
        as_dataset(examples),
        class_names=NAMES,
        ignore_label=255,
        normalize=normalize,
        on_counts=kept.append,
        **kwargs,
    )
    (images,) = kept
    return result, images


@pytest.mark.parametrize("full", [False, True])
def test_all_figures_come_from_the_counts_of_the_images(full):
    examples = random_examples([(20, 30)] * 4 + [(33, 21)] * 2)
    examples[1]["label"][:] = 255
    result, images = evaluated(examples, full=full)
    assert images.names == tuple(f"image{k}" for k in range(6))
    assert images.class_names == NAMES
    matrices = images.counts["confusion"]
    assert matrices.dtype == np.int64 and matrices.shape == (6, 4, 4)
    assert matrices.sum(axis=0).tolist() == result["confusion_matrix"]
    assert matrices[1].sum() == 0 < matrices[0].sum()
    assert ("granulation" in result) == full
    # Recomputed from the parts: exactly the figures of the result.
    figures = measures.summarize(images.total(), NAMES)
    assert {name: result[name] for name in figures} == figures
    # The counts of an image do not depend on its company.
    _, alone = evaluated(examples[4:5], full=full)
    for name, values in alone.counts.items():
        np.testing.assert_array_equal(values[0], images.counts[name][4])


def test_full_figures_do_not_depend_on_order_and_batch():
    examples = random_examples([(20, 30)] * 5)
    result, images = evaluated(examples, full=True)
    again, others = evaluated(examples[::-1], full=True, batch_size=3)
    assert again == result and others.names == images.names


# --- Overlap -----------------------------------------------------------------


LONG = 60  # seconds that only a wrong program waits


def test_the_next_prediction_begins_before_the_last_one_is_counted(monkeypatch):
    """Counting image k waits until image k + 1 is being predicted."""
    begun = [threading.Event() for _ in range(5)]
    begun[0].set()
    begun.append(begun[0])  # nothing comes after the last one
    counted, count = [], measures.count

    def predict(images, _):
        begun[images[0, 0, 0, 0]].set()
        return inference.Prediction(np.zeros(images.shape[:3], np.uint8), None)

    def waiting_count(label, *args, **kwargs):
        number = label[0, 0]
        assert begun[number + 1].wait(LONG), "predicting waited for counting"
        counted.append(number)
        return count(np.zeros_like(label), *args, **kwargs)

    monkeypatch.setattr(measures, "count", waiting_count)
    examples = random_examples([(8, 8)] * 5)
    for number, example in enumerate(examples):
        example["image"][:], example["label"][:] = number, number
    heard = []
    result = evaluate.evaluate(
        None,
        as_dataset(examples),
        class_names=NAMES,
        ignore_label=255,
        normalize=normalize,
        predictor=inference.Predictor(None, predict),
        progress=lambda done, _: heard.append(done),
    )
    assert sorted(counted) == [0, 1, 2, 3, 4] and heard == [1, 2, 3, 4, 5]
    assert result["confusion_matrix"][0][0] == 5 * 64


def test_the_first_image_that_fails_is_named_and_nothing_is_begun_after_it():
    examples = random_examples([(8, 8)] * 40)
    for number in (3, 4, 5):
        examples[number]["label"][:] = 9
    taken = []

    def source():
        for number, example in enumerate(examples):
            taken.append(number)
            yield example

    class Stream:
        as_numpy_iterator = staticmethod(source)
        cardinality = staticmethod(lambda: 40)

    heard = []
    with pytest.raises(ValueError, match="image3: label holds the value 9"):
        evaluate.evaluate(
            small_generator(1),
            Stream(),
            class_names=NAMES,
            ignore_label=255,
            normalize=normalize,
            progress=lambda *counts: heard.append(counts),
        )
    assert heard == [(1, 40), (2, 40), (3, 40)]
    assert len(taken) <= 4 + 2 * evaluate._num_threads(1)


def test_progress_can_end_it_between_two_images():
    class Enough(Exception):
        pass

    def progress(done, total):
        heard.append(done)
        if done == 2:
            raise Enough

    heard, before = [], threading.active_count()
    with pytest.raises(Enough):
        evaluate.evaluate(
            small_generator(1),
            as_dataset(random_examples([(8, 8)] * 30)),
            class_names=NAMES,
            ignore_label=255,
            normalize=normalize,
            progress=progress,
        )
    assert heard == [1, 2] and threading.active_count() <= before


def test_predictions_come_in_order_and_are_those_that_were_counted():
    examples = random_examples([(20, 30)] * 7)
    predictions = {}
    result, images = evaluated(examples, on_prediction=predictions.__setitem__)
    assert list(predictions) == [f"image{k}" for k in range(7)]
    for example, matrix in zip(examples, images.counts["confusion"], strict=True):
        pred = predictions[example["name"].decode()]
        assert pred.dtype == np.uint8
        expected = metrics.confusion_matrix(example["label"], pred, 4, 255)
        np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "sliding", "window": 34}, {"flip": True}]
)
def test_counts_are_those_of_the_probabilities_bit_for_bit(settings):
    """What the threads, the device's own argmax and the bytes come to."""
    examples = random_examples([(40, 52)] * 3 + [(20, 30)] * 2)
    _, images = evaluated(examples, full=True, **settings)
    predict = predictor(small_generator(3), **settings)
    for number, example in enumerate(examples):
        (probs,) = predict.probabilities(example["image"][None])
        label, pred = example["label"], probs.argmax(axis=-1)
        confidence = probs.max(axis=-1)
        expected = measures.count(label, pred, confidence, 4, 255, full=True)
        assert expected.keys() == images.counts.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(images.counts[name][number], values)


def test_threads_follow_devices_and_cores(monkeypatch):
    for cores, devices, threads in ((2, 1, 2), (None, 1, 2), (16, 1, 4), (64, 8, 32)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert evaluate._num_threads(devices) == threads


def test_figures_never_stand_beside_counts_of_another_evaluation(tmp_path, monkeypatch):
    images = PerImage(("a",), ("x", "y"), {"confusion": np.ones((1, 2, 2), int)})
    evaluate.write_evaluation({"miou": 0.5}, images, str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "per_image.npz"]
    write = evaluate.write_metrics
    monkeypatch.setattr(evaluate, "write_metrics", lambda *_: 1 / 0)  # is stopped
    with pytest.raises(ZeroDivisionError):
        evaluate.write_evaluation({"miou": 0.6}, images, str(tmp_path))
    left = ["metrics.json", "per_image.npz", "per_image.npz.new"]
    assert sorted(os.listdir(tmp_path)) == left  # what stood there stands
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.5}
    replace, done = os.replace, []

    def stopped(source, target):  # after the counts, before the metrics
        if target == str(tmp_path / "metrics.json"):
            raise ZeroDivisionError
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(evaluate, "write_metrics", write)
    monkeypatch.setattr(evaluate.os, "replace", stopped)
    with pytest.raises(ZeroDivisionError):
        evaluate.write_evaluation({"miou": 0.6}, images, str(tmp_path))
    monkeypatch.setattr(evaluate.os, "replace", replace)
    assert str(tmp_path / "per_image.npz") in done
    assert not (tmp_path / "metrics.json").exists()  # new counts, no old figures
    monkeypatch.setattr(evaluate, "write_metrics", write)
    evaluate.write_evaluation({"miou": 0.6}, images, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou": 0.6}
