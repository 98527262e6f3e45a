"""Counts of each image, written and read again."""

import dataclasses
import os

import numpy as np
import pytest

from ss_gan_tf import per_image

CLASSES = ("sky", "tree")


def collected(names=("b", "a", "ü")):
    rng = np.random.default_rng(0)
    collector = per_image.Collector()
    for name in names:
        collector.add(
            name,
            {
                "confusion": rng.integers(0, 9, (2, 2)),
                "specks": rng.integers(0, 9, 2),
                "confidence_sum": rng.random((2, 3)),
                "images": np.int64(1),
            },
        )
    assert len(collector) == len(names)
    return collector.result(CLASSES)


def test_written_and_read_again(tmp_path):
    images = collected()
    path = str(tmp_path / "eval" / "val" / "per_image.npz")
    per_image.write_per_image(images, path)
    per_image.write_per_image(images, path)  # replaces
    assert os.listdir(os.path.dirname(path)) == ["per_image.npz"]
    again = per_image.read_per_image(path)
    assert again.names == ("a", "b", "ü") and again.class_names == CLASSES
    assert again.counts.keys() == images.counts.keys()
    for name, values in images.counts.items():
        np.testing.assert_array_equal(again.counts[name], values)
        assert again.counts[name].dtype == values.dtype
    assert again.counts["images"].shape == (3,)


def test_the_order_of_arrival_does_not_matter():
    one, other = per_image.Collector(), per_image.Collector()
    images = [(name, {"confusion": np.eye(2) * k}) for k, name in enumerate("dacb")]
    for image in images:
        one.add(*image)
    for image in reversed(images):
        other.add(*image)
    first, second = one.result(CLASSES), other.result(CLASSES)
    assert first.names == second.names == tuple("abcd")
    np.testing.assert_array_equal(first.counts["confusion"], second.counts["confusion"])
    np.testing.assert_array_equal(first.counts["confusion"][:, 0, 0], [1, 3, 2, 0])


def test_parts_joined_are_those_of_one_collector():
    names = [f"image{k}" for k in (3, 0, 4, 1, 2)]
    whole = collected(names)
    rng = np.random.default_rng(0)
    parts = []
    for name in names:
        part, at = per_image.Collector(), whole.names.index(name)
        part.add(name, {key: values[at] for key, values in whole.counts.items()})
        parts.append(part.result(CLASSES))
    for order in (range(5), rng.permutation(5)):
        joined = per_image.join([parts[k] for k in order])
        assert joined.names == whole.names and joined.class_names == CLASSES
        assert joined.counts.keys() == whole.counts.keys()
        for name, values in whole.counts.items():
            np.testing.assert_array_equal(joined.counts[name], values)
            assert joined.counts[name].dtype == values.dtype


def test_counts_for_another_process():
    images = collected()
    data = per_image.to_bytes(images)
    again = per_image.from_bytes(data)
    assert (again.names, again.class_names) == (images.names, images.class_names)
    assert again.counts.keys() == images.counts.keys()
    for name, values in images.counts.items():
        np.testing.assert_array_equal(again.counts[name], values)
        assert again.counts[name].dtype == values.dtype
    with pytest.raises(ValueError, match="counts of another process: not a file of"):
        per_image.from_bytes(data[:-30])


def test_the_total_is_the_sum_over_images():
    images = collected()
    total = images.total()
    assert total["images"] == 3
    expected = sum(images.counts["confusion"][k] for k in range(3))
    np.testing.assert_array_equal(total["confusion"], expected)


def test_what_is_no_such_file_is_one_line(tmp_path):
    path = str(tmp_path / "per_image.npz")
    with pytest.raises(FileNotFoundError):
        per_image.read_per_image(path)
    for content in (b"", b"no archive", b"PK\x03\x04 cut off"):
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match="per_image.npz: not a file of counts"):
            per_image.read_per_image(path)
    np.save(str(tmp_path / "one.npy"), np.eye(2))
    with pytest.raises(ValueError, match="one.npy: not a file of counts"):
        per_image.read_per_image(str(tmp_path / "one.npy"))


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "per_image.npz"
    per_image.write_per_image(collected(), str(path))
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 5):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        )
        try:  # a date or a comment of the archive may differ
            per_image.read_per_image(str(path))
        except ValueError:
            refused += 1
    assert refused > len(content) / 5 / 2
    for length in range(0, len(content), len(content) // 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a file of counts"):
            per_image.read_per_image(str(path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": None}, "no array 'names'"),
        ({"confusion": None}, "no array 'confusion'"),
        ({"names": np.arange(3)}, "names must be a list of words"),
        ({"names": np.array(["a", "b"])}, r"confusion must be integers \(2, 2, 2\)"),
        ({"class_names": np.array(["a"])}, r"confusion must be integers \(3, 1, 1\)"),
        ({"confusion": np.zeros((3, 2, 2))}, "must be integers .* is float64"),
        ({"confusion": -np.ones((3, 2, 2), int)}, "confusion holds a value below 0"),
        ({"specks": np.zeros((2, 2), int)}, "specks must have a number for each image"),
        ({"specks": np.array(["x"] * 3)}, "specks must have a number for each image"),
        ({"confidence_sum": np.full((3, 1), np.nan)}, "confidence_sum holds .* no num"),
        ({"names": np.array([{}, {}, {}], object)}, "not a file of counts"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, change, message):
    images = collected()
    arrays = {
        "names": np.array(images.names),
        "class_names": np.array(CLASSES),
        **images.counts,
        **change,
    }
    path = tmp_path / "per_image.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        per_image.read_per_image(str(path))


def test_only_the_same_images_and_truth_are_compared():
    images = collected()
    per_image.check_same_images(images, collected())
    counts = {"confusion": images.counts["confusion"].copy()}
    # Another prediction of the same truth: the row keeps its sum.
    counts["confusion"][1] += [[1, -1], [0, 0]]
    per_image.check_same_images(images, dataclasses.replace(images, counts=counts))
    counts["confusion"][1, 0, 0] += 1
    for change, message in (
        ({"counts": counts}, "b: the truth differs"),
        ({"class_names": ("sky", "car")}, "classes differ: sky, tree and sky, car"),
        ({"names": ("a", "b", "d")}, "images differ: 3 and 3, only in one: d, ü$"),
    ):
        other = dataclasses.replace(images, **change)
        with pytest.raises(ValueError, match=message):
            per_image.check_same_images(images, other)
