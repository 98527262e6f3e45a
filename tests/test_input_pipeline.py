"""Image and label stay aligned, and example n is a function of (seed, n) alone."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep.prepare import prepare
from ss_gan_tf import augmentation, input_pipeline
from ss_gan_tf.messages import first_line

# In the drawn set colour = class: the label can be read off the image.
COLORS = np.uint8([[250, 0, 0], [0, 240, 0], [0, 0, 230], [220, 220, 0], [0, 210, 210]])
PAD_COLOR = (103, 116, 124)  # no mixture of the above
SIZES = ((40, 48), (48, 40), (40, 40), (56, 64), (33, 47))  # H, W; one is odd


def draw_label(index, size):
    """8x8 blocks of random classes; the first block's class is the index."""
    height, width = size
    blocks = np.random.default_rng(index).integers(0, 5, (8, 8)).astype(np.uint8)
    blocks[0, 0] = index
    return np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    source, data = root / "source", root / "data"
    for split, indices in {"train": range(5), "one": range(1)}.items():
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        for index in indices:
            label = draw_label(index, SIZES[index])
            image = Image.fromarray(COLORS[label])
            image.save(source / "images" / split / f"{split}{index}.png")
            label[-1, -1] = 255
            mask = Image.fromarray(label)
            mask.save(source / "labels" / split / f"{split}{index}.png")
    (source / "classes.txt").write_text("a 250 0 0\nb\nc\nd\ne\n")
    prepare("folder", str(source), str(data))
    return str(data)


@pytest.fixture(scope="module")
def prepared(data_dir):
    return input_pipeline.open_dataset("folder", data_dir)


def batches(prepared, split="train", **changes):
    arguments = dict(
        batch_size=1,
        crop_size=32,
        scale_range=(0.5, 2.0),
        pad_color=PAD_COLOR,
        seed=3,
        num_examples=10,
    )
    return input_pipeline.train_batches(prepared, split, **{**arguments, **changes})


def as_arrays(dataset):
    """All batches, joined: image, label."""
    elements = list(dataset.as_numpy_iterator())
    return tuple(np.concatenate([e[k] for e in elements]) for k in ("image", "label"))


# --- Opening -----------------------------------------------------------------


def test_facts_come_from_the_files(prepared):
    assert prepared.name == "folder"
    assert prepared.class_names == ("a", "b", "c", "d", "e")
    assert prepared.num_classes == 5
    assert prepared.class_colors[:2] == ((250, 0, 0), (128, 0, 0))
    assert prepared.ignore_label == 255
    assert prepared.split_sizes == {"one": 1, "train": 5}


def test_not_prepared_names_folder_and_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        input_pipeline.open_dataset("camvid", str(tmp_path))
    assert str(tmp_path / "camvid") in str(error.value)
    assert (
        "python -m data_prep.prepare --dataset=camvid --source_dir=SOURCE "
        f"--data_dir={tmp_path}" in str(error.value)
    )


def test_synthetic_needs_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="--dataset=synthetic --data_dir="):
        input_pipeline.open_dataset("synthetic", str(tmp_path))


def test_an_unfinished_folder_is_not_prepared(tmp_path):
    (tmp_path / "camvid" / "incomplete.ABC_1.0.0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        input_pipeline.open_dataset("camvid", str(tmp_path))


def test_unknown_split_lists_the_splits(prepared):
    with pytest.raises(ValueError, match="no split 'dev'; it has one, train"):
        batches(prepared, "dev")


def test_empty_split(prepared):
    empty = dataclasses.replace(prepared, split_sizes={"train": 0})
    with pytest.raises(ValueError, match="'train' of 'folder' holds no example"):
        batches(empty)


def test_foreign_tfds_folder(data_dir, tmp_path):
    other = tmp_path / "other" / "1.0.0"
    original = input_pipeline.open_dataset("folder", data_dir).builder.data_path
    tf.io.gfile.makedirs(other)
    for name in tf.io.gfile.listdir(original):
        tf.io.gfile.copy(original / name, other / name)
    (other / "metadata.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="names no classes"):
        input_pipeline.open_dataset("other", str(tmp_path))


# --- Order -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 367])
def test_an_epoch_shows_every_example_once(size):
    for epoch in range(2):
        n = tf.range(epoch * size, (epoch + 1) * size, dtype=tf.int64)
        indices = [int(input_pipeline.shuffled_index(i, size, 3)) for i in n]
        assert sorted(indices) == list(range(size))


def test_epochs_and_seeds_differ_in_order():
    def order(epoch, seed):
        n = tf.range(epoch * 50, (epoch + 1) * 50, dtype=tf.int64)
        return [int(input_pipeline.shuffled_index(i, 50, seed)) for i in n]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != list(range(50))


def test_stream_shows_every_example_once_per_epoch(prepared):
    # The whole image fits and is not mirrored: its first block tells which it is.
    _, label = as_arrays(
        batches(prepared, crop_size=64, scale_range=(1.0, 1.0), flip=False)
    )
    shown = label[:, 0, 0].tolist()
    assert sorted(shown[:5]) == sorted(shown[5:]) == [0, 1, 2, 3, 4]
    assert shown[:5] != shown[5:]


def test_resuming_gives_the_tail_of_the_stream(prepared):
    whole = as_arrays(batches(prepared, num_examples=12))
    # 7 lies inside the second epoch of 5.
    tail = as_arrays(batches(prepared, first_example=7, num_examples=5))
    np.testing.assert_array_equal(whole[0][7:], tail[0])
    np.testing.assert_array_equal(whole[1][7:], tail[1])


@pytest.mark.parametrize("batch_size", [2, 4, 5, 6, 8])
def test_batches_hold_consecutive_examples(prepared, batch_size):
    """Made by one call, by several, or one by one (a prime above 4)."""
    num_examples = 2 * batch_size
    single = as_arrays(batches(prepared, num_examples=num_examples))
    whole = as_arrays(
        batches(prepared, num_examples=num_examples + 1, batch_size=batch_size)
    )
    for one, other in zip(single, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_do_not_matter(prepared):
    def stream(threads):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        return as_arrays(batches(prepared, num_examples=60).with_options(options))

    one, many = stream(1), stream(16)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])


def test_seeds_differ(prepared):
    assert np.any(
        as_arrays(batches(prepared))[0] != as_arrays(batches(prepared, seed=4))[0]
    )


def test_an_example_looks_different_in_every_epoch(prepared):
    image, _ = as_arrays(batches(prepared, "one", num_examples=6))
    assert len(np.unique(image.reshape(6, -1), axis=0)) == 6


def test_the_end_of_an_iteration_waits_for_no_thread_of_tf_data(prepared):
    # That it may wait is a race inside TensorFlow: what can be held is that the thread
    # is not started.
    datasets = {
        "train": batches(prepared),
        "evaluation": input_pipeline.eval_examples(prepared, "train"),
    }
    for name, dataset in datasets.items():
        assert dataset.options().autotune.enabled is False, name


def test_stream_is_endless(prepared):
    endless = batches(prepared, num_examples=None)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    # Far out, where a 32-bit counter would have wrapped.
    image, _ = as_arrays(batches(prepared, first_example=2**40, num_examples=2))
    assert len(image) == 2


# --- The batches -------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5, 6])
def test_shapes_are_static(prepared, size):
    spec = batches(prepared, batch_size=size).element_spec
    assert spec["image"] == tf.TensorSpec([size, 32, 32, 3], tf.uint8)
    assert spec["label"] == tf.TensorSpec([size, 32, 32], tf.uint8)


@pytest.mark.parametrize("size", [0, -4])
def test_a_batch_has_an_example(prepared, size):
    with pytest.raises(ValueError, match=f"batch_size={size}: must be at least 1"):
        batches(prepared, batch_size=size)


def test_a_batch_that_is_not_full_is_dropped(prepared):
    assert len(list(batches(prepared, batch_size=4, num_examples=10))) == 2


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.4, 0.6), (0.5, 2.0)])
def test_image_and_label_move_together(prepared, scale_range):
    image, label = as_arrays(
        batches(prepared, num_examples=40, scale_range=scale_range)
    )
    # Resizing mixes colours along edges; every pure pixel must have its class.
    pure = (image[..., None, :] == COLORS).all(-1)
    outside = (image == PAD_COLOR).all(-1)
    assert pure.any(-1).mean() > 0.3
    marked = label == 255
    compared = pure.any(-1) & ~marked
    np.testing.assert_array_equal(pure.argmax(-1)[compared], label[compared])
    # Void outside the image, and inside only around the one marked pixel.
    assert marked[outside].all()
    assert (marked & ~outside).sum(axis=(1, 2)).max() <= 4
    assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 255}


def test_small_scales_are_padded_with_colour_and_void(prepared):
    # At most 64 pixels times 0.5: every crop of 40 has at least 8 columns of padding.
    image, label = as_arrays(
        batches(prepared, num_examples=5, crop_size=40, scale_range=(0.5, 0.5))
    )
    np.testing.assert_array_equal(label[:, :, 32:], 255)
    np.testing.assert_array_equal(image[:, :, 32:] - PAD_COLOR, 0)
    np.testing.assert_array_equal(label[:, 28:], 255)
    # Padding lies at the bottom and right: the corner belongs to the image.
    assert (label[:, 0, 0] != 255).all()


def test_flip_mirrors_about_half_and_can_be_off(prepared):
    whole = dict(crop_size=64, scale_range=(1.0, 1.0), num_examples=40)
    _, plain = as_arrays(batches(prepared, flip=False, **whole))
    _, flipped = as_arrays(batches(prepared, flip=True, **whole))
    mirrored = 0
    for a, b in zip(plain, flipped, strict=True):
        height, width = SIZES[a[0, 0]]
        if np.array_equal(b[:height, :width], a[:height, :width][:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(a, b)
    # Binomial(40, 1/2): outside 8..32 once in 10,000 seeds.
    assert 8 <= mirrored <= 32


def test_to_model_normalizes_colours_and_keeps_ids(prepared):
    batch = next(iter(batches(prepared, batch_size=2)))
    image, label = input_pipeline.to_model(batch, lambda image: image - PAD_COLOR)
    assert (image.dtype, label.dtype) == (tf.float32, tf.int32)
    expected = np.float32(batch["image"]) - np.float32(PAD_COLOR)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(label, batch["label"])


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_share_each_batch(prepared, num_workers):
    whole = as_arrays(batches(prepared, batch_size=4, first_example=8))
    shares = [
        as_arrays(
            batches(
                prepared, batch_size=4, first_example=8, worker=(number, num_workers)
            )
        )
        for number in range(num_workers)
    ]
    for array, parts in zip(whole, zip(*shares, strict=True), strict=True):
        # [workers, batches, B / W, ...] -> [batches, workers, B / W, ...]
        parts = np.stack([p.reshape(2, 4 // num_workers, *p.shape[1:]) for p in parts])
        np.testing.assert_array_equal(
            array, np.moveaxis(parts, 0, 1).reshape(array.shape)
        )


def test_workers_that_do_not_divide_the_batch(prepared):
    with pytest.raises(ValueError, match="batch_size=4 is not a multiple of 3"):
        batches(prepared, batch_size=4, worker=(0, 3))


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seed_out_of_range(prepared, seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        batches(prepared, seed=seed)


@pytest.mark.parametrize("scale_range", [(0.0, 1.0), (2.0, 1.0)])
def test_scale_range_out_of_order(prepared, scale_range):
    with pytest.raises(ValueError, match="scale_range="):
        batches(prepared, scale_range=scale_range)


@pytest.mark.parametrize("path", ["train", "eval"])
def test_unknown_ids_name_the_example_in_the_first_line(prepared, path):
    fewer = dataclasses.replace(prepared, class_names=("a", "b", "c", "d"))
    # The crop of one pixel shows that the whole label is checked.
    examples = {
        "train": batches(fewer, crop_size=1, scale_range=(1.0, 1.0)),
        "eval": input_pipeline.eval_examples(fewer, "train"),
    }[path]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        list(examples)
    line = first_line(error.value)
    assert "label of train" in line
    assert line.endswith("holds 4, which is neither in 0..3 nor 255")


def test_eval_examples_come_once_in_stored_order(prepared):
    examples = list(input_pipeline.eval_examples(prepared, "train").as_numpy_iterator())
    assert [e["name"] for e in examples] == [b"train%d" % i for i in range(5)]
    for index, example in enumerate(examples):
        label = draw_label(index, SIZES[index])
        assert example["image"].dtype == np.uint8
        assert example["label"].dtype == np.int32
        np.testing.assert_array_equal(example["image"], COLORS[label])
        label[-1, -1] = 255
        np.testing.assert_array_equal(example["label"], label)


@pytest.mark.parametrize("limit, count", [(2, 2), (5, 5), (99, 5), (None, 5)])
def test_eval_limit(prepared, limit, count):
    assert len(input_pipeline.eval_examples(prepared, "train", limit=limit)) == count


@pytest.mark.parametrize("limit", [None, 4, 1])
def test_workers_share_the_eval_examples(prepared, limit):
    def names(**worker):
        examples = input_pipeline.eval_examples(
            prepared, "train", limit=limit, **worker
        )
        return [e["name"] for e in examples.as_numpy_iterator()]

    whole = names()
    for count in (1, 2, 3, 7):  # of five images; some workers get none
        for number in range(count):
            assert names(worker=(number, count)) == whole[number::count]


# --- The steps ---------------------------------------------------------------


@pytest.mark.parametrize("suffix, tolerance", [("png", 0), ("jpeg", 2)])
def test_decode_makes_grey_rgb(suffix, tolerance):
    grey = np.full((4, 6, 1), 77, np.uint8)
    encode = {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[suffix]
    label = tf.io.encode_png(np.arange(24, dtype=np.uint8).reshape(4, 6, 1))
    image, label, name = input_pipeline.decode(encode(grey), label, tf.constant("x"))
    assert image.shape == (4, 6, 3) and image.dtype == tf.uint8 and name == b"x"
    np.testing.assert_allclose(image, 77, atol=tolerance)
    np.testing.assert_array_equal(label, np.arange(24).reshape(4, 6))


@pytest.mark.parametrize("side", [1, 7, 8])
def test_a_batch_is_taken_over_without_a_copy(side):
    images, labels = input_pipeline._empty_batch(3, side)
    assert images.shape == (3, side, side, 3) and labels.shape == (3, side, side)
    assert images.flags.c_contiguous and labels.flags.c_contiguous
    assert not np.shares_memory(images, labels)
    for array in (images, labels):
        assert array.ctypes.data % input_pipeline.ALIGNMENT == 0

    def addresses(array):
        def where(n):
            tensor = tf.numpy_function(lambda _: array, [n], tf.uint8)
            return tf.numpy_function(lambda x: x.ctypes.data, [tensor], tf.int64)

        (there,) = tf.data.Dataset.range(1).map(where)
        return array.ctypes.data, int(there)

    ours, theirs = addresses(labels)
    assert ours == theirs
    shifted = np.empty(4 * 64 + 65, np.uint8)
    shifted = shifted[1 - shifted.ctypes.data % 64 + 64 :][: 3 * 64]
    ours, theirs = addresses(shifted)
    assert ours != theirs  # what the alignment is for


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.5, 2.0)])
def test_an_example_is_what_tensorflow_makes_of_the_same_draws(prepared, scale_range):
    """The n-th example in TensorFlow's own operations."""
    images, labels = as_arrays(
        batches(prepared, scale_range=scale_range, num_examples=12)
    )
    stored = list(input_pipeline.eval_examples(prepared, "train").as_numpy_iterator())
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        for_scale, *corner, for_mirror = augmentation.draw(3, n)
        index = int(input_pipeline.shuffled_index(tf.constant(n, tf.int64), 5, 3))
        pair = tf.constant(
            np.dstack([stored[index]["image"], stored[index]["label"]]), tf.float32
        )
        size = augmentation.window_size(32, scale_range, for_scale)
        room = np.maximum(pair.shape[:2] - np.int64(size), 0) + 1
        top, left = (int(part) for part in corner * room)
        pair = pair[top : top + size, left : left + size]
        if for_mirror < 0.5:
            pair = pair[:, ::-1]
        new = [max(round(side * 32 / size), 1) for side in pair.shape[:2]]
        height, width = new
        smooth = tf.image.resize(pair[..., :3], new)
        ids = tf.image.resize(pair[..., 3:], new, method="nearest")[..., 0]
        np.testing.assert_allclose(image[:height, :width], smooth, atol=1)
        # A centre on the edge between two old pixels may fall to either.
        clear = [
            (2 * np.arange(length) + 1) * old % (2 * length) > 0
            for length, old in zip(new, pair.shape[:2], strict=True)
        ]
        cells = np.ix_(*map(np.flatnonzero, clear))
        assert cells[0].size > height / 2 and cells[1].size > width / 2
        np.testing.assert_array_equal(label[:height, :width][cells], ids.numpy()[cells])
        assert (label[height:] == 255).all() and (label[:, width:] == 255).all()
