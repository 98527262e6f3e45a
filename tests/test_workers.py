"""Shares of several workers become one result; a stop or an error is everybody's."""

import concurrent.futures
import json
import queue
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import per_image, strict_json
from ss_gan_tf.workers import Workers
from tests.processes import cluster, fail, finish, start

CLASSES = ("sky", "road")
LONG = 60  # seconds that only a wrong program waits


def image(number):
    collector = per_image.Collector()
    collector.add(f"image{number}", {"confusion": np.full((2, 2), number)})
    return collector.result(CLASSES)


class Hall:
    """Where the made-up workers meet; a thread is a process here."""

    def __init__(self, count):
        self.count = count
        self.barrier = threading.Barrier(count, timeout=LONG)
        self.messages = {}

    def worker(self, number):
        workers = Workers(tf.distribute.get_strategy())
        workers.number, workers.count = number, self.count

        def exchange(message):
            self.messages[number] = message
            self.barrier.wait()
            answers = [self.messages[k] for k in range(self.count)]
            self.barrier.wait()
            return answers

        workers.exchange = exchange
        return workers

    def agree(self, prepares):
        """What each worker gets, or the error that it ends with."""

        def work(number):
            try:
                return self.worker(number).agree(prepares[number])
            except (ValueError, OSError) as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(work, range(self.count)))

    def run(self, shares):
        """What each worker yields, as names, or the error that it ends with."""

        def work(number):
            found = []
            try:
                for part in self.worker(number).join(iter(shares[number])):
                    found.append(part.names)
            except (ValueError, OSError) as error:
                return found, error
            return found, None

        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(work, range(self.count)))


def test_rounds_hold_a_part_of_each_worker_until_all_have_ended():
    shares = [[image(0), image(3), image(6)], [image(1), image(4)], []]
    for found, error in Hall(3).run(shares):
        assert error is None
        assert found == [("image0", "image1"), ("image3", "image4"), ("image6",)]


def test_nothing_at_all_ends_at_once():
    assert Hall(2).run([[], []]) == [([], None), ([], None)]


def test_an_own_error_is_told_where_the_others_are_out_of_reach(monkeypatch):
    workers = Hall(2).worker(0)

    def out_of_reach(message):
        raise tf.errors.InternalError(None, None, "Collective ops is aborted")

    def prepare():
        raise OSError("the disk is gone")

    monkeypatch.setattr(workers, "exchange", out_of_reach)
    with pytest.raises(OSError, match="the disk is gone"):
        workers.agree(prepare)
    with pytest.raises(tf.errors.InternalError):
        workers.agree(lambda: (None, {}))


def test_an_error_ends_all_of_them_in_one_round():
    def failing():
        yield image(1)
        raise OSError("the disk\nis gone")

    results = Hall(3).run([[image(n) for n in range(9)], failing(), [image(2)]])
    assert [found for found, _ in results] == [[("image0", "image1", "image2")]] * 3
    errors = [error for _, error in results]
    assert isinstance(errors[1], OSError) and str(errors[1]) == "the disk\nis gone"
    for other in (errors[0], errors[2]):
        assert isinstance(other, ValueError)
        assert str(other) == "worker 1: the disk"


def test_workers_that_are_alike_go_on():
    facts = {"rate": 0.1, "scales": [1.0, 2.0]}
    digests = {"a": None, "b": "x", "c": "y"}  # the first does not know its own
    prepares = [lambda k=k: (k, facts | {"digest": digests[k]}) for k in digests]
    assert Hall(3).agree(prepares) == ["a", "b", "c"]


def test_a_worker_that_is_not_alike_ends_all_of_them():
    values = [
        {"rate": 0.1, "seed": 1},
        {"rate": 0.1, "seed": 1},
        {"rate": 0.1, "seed": 2},
    ]
    found = Hall(3).agree([lambda own=own: ("x", own) for own in values])
    assert len(set(map(str, found))) == 1 and isinstance(found[0], ValueError)
    assert str(found[0]).startswith("seed=2: on worker 2, worker 0 has 1; all workers")


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_cannot_begin_ends_all_of_them(number):
    def refuses():
        raise OSError("no room\nat all")

    prepares = [lambda: ("x", {})] * 2
    prepares[number] = refuses
    found = Hall(2).agree(prepares)
    assert isinstance(found[number], OSError)
    assert str(found[1 - number]) == f"worker {number}: no room"


def test_a_message_that_is_too_large_ends_all_of_them(monkeypatch):
    workers = Workers(tf.distribute.get_strategy())
    with pytest.raises(ValueError, match="has 16777216 bytes, it must be below 1677"):
        workers.exchange(bytes(2**24))
    small, large = image(1), per_image.join([image(n) for n in range(2, 99)])
    limit = len(per_image.to_bytes(large)) + 1  # with its letter, just as long
    assert len(per_image.to_bytes(small)) + 1 < limit
    monkeypatch.setattr("ss_gan_tf.workers.MAX_MESSAGE", limit)
    (_, other), (_, own) = Hall(2).run([[small], [large]])
    assert str(own).startswith(f"a worker's message has {limit} bytes")
    assert str(other) == f"worker 1: {own}"


def test_alone_nothing_is_asked():
    workers = Workers(tf.distribute.get_strategy())
    assert (workers.number, workers.count) == (0, 1)
    assert workers.any(True) is True and workers.any(False) is False
    assert workers.agree(lambda: (5, {"rate": 0.1})) == 5
    parts = queue.SimpleQueue()
    parts.put(image(3))
    joined = workers.join(iter(parts.get, None))
    assert next(joined).names == ("image3",)


# --- Devices and processes ---------------------------------------------------


def results(path, kind, number=0):
    with open(f"{path}-{kind}-{number}.json") as file:
        return json.load(file)


def test_two_devices_evaluate_as_one(tiny_data, tmp_path):
    path = str(tmp_path / "figures")
    module = "tests.validation_program"
    finish(start(module, tiny_data, path, "uneven", "none", "mirrored"))
    one, two = results(path, "none"), results(path, "mirrored")
    assert (one.pop("devices"), two.pop("devices")) == (1, 2)
    assert one == two  # to the last bit: JSON holds every digit of a float
    assert len(one["uneven"]["names"]) == one["uneven"]["metrics"]["num_images"] == 5
    assert one["uneven"]["metrics"]["calibration"]["ece"] > 0


def test_two_processes_evaluate_as_one_stop_and_fail_together(tiny_data, tmp_path):
    path = str(tmp_path / "figures")
    module, tasks = "tests.validation_program", ["uneven", "one", "stop", "trouble"]
    group = [
        start(module, tiny_data, path, *tasks, "multi_worker", TF_CONFIG=text)
        for text in cluster(2)
    ]
    finish(*group, start(module, tiny_data, path, "uneven", "one", "trouble", "none"))
    one = results(path, "none")
    assert "\n" in one["trouble"] and ": a broken label" in one["trouble"]
    for number in range(2):
        two = results(path, "multi_worker", number)
        assert two["uneven"] == one["uneven"] and two["one"] == one["one"]
        # Rounds of two images; the second worker wanted to stop after two of them.
        assert two["stop"] == [2, 4]
        # Images 1, 3, 5 are the first worker's: it heard of the other's.
        first_line = one["trouble"].splitlines()[0]
        expected = (f"worker 1: {first_line}", one["trouble"])[number]
        assert two["trouble"] == expected


@pytest.mark.slow
def test_the_command_evaluates_with_two_processes_as_with_one(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    metrics = run / "eval" / "val" / "metrics.json"
    counts = metrics.with_name("per_image.npz")
    arguments = ["experiments.evaluate", f"--workdir={run}", "--eval_metrics=full"]
    finish(start(*arguments))
    alone = strict_json.read(metrics), counts.read_bytes()
    shutil.rmtree(metrics.parent)
    arguments.append("--distribute=multi_worker")
    finish(*(start(*arguments, TF_CONFIG=text) for text in cluster(2)))
    assert (strict_json.read(metrics), counts.read_bytes()) == alone
    # One of them is asked for another thing: neither evaluates, nothing is lost.
    first, second = cluster(2)
    outputs = fail(
        start(*arguments, TF_CONFIG=first),
        start(*arguments, "--limit=1", TF_CONFIG=second),
    )
    for output in outputs:
        assert output.splitlines()[-1] == (
            "error: result=val-first1: on worker 1, worker 0 has val; all workers of a "
            "run need the same flags, data and files"
        )
    assert (strict_json.read(metrics), counts.read_bytes()) == alone
