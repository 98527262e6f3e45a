"""Order, bounds and ends of work by several threads."""

import threading

import pytest

from ss_gan_tf.overlap import in_order

LONG = 60  # seconds that only a wrong program waits


def test_results_come_in_the_order_of_the_items():
    later = threading.Event()

    def work(item):
        if item == 0:
            assert later.wait(LONG)  # the first is done last
        if item == 2:
            later.set()
        return item * item

    assert list(in_order(work, range(3), 2)) == [0, 1, 4]
    assert list(in_order(work, range(1, 20), 1)) == [n * n for n in range(1, 20)]
    assert list(in_order(work, [], 4)) == []


def test_as_many_work_at_once_as_there_are_threads():
    meeting, inside, most = threading.Barrier(3, timeout=LONG), set(), []

    def work(item):
        inside.add(item)
        if item < 3:
            meeting.wait()
        most.append(len(inside))
        inside.remove(item)

    assert len(list(in_order(work, range(30), 3))) == 30
    assert max(most) == 3


def test_items_are_taken_as_they_are_needed():
    taken, given = [], 0

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    for _ in in_order(lambda item: item, items(), 3):
        given += 1
        assert len(taken) - given <= 3
    assert given == 50


def test_an_error_comes_in_its_place_and_ends_the_work():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError(f"item {item}")
        return item

    results = []
    with pytest.raises(ValueError, match="item 3"):
        for result in in_order(work, range(100), 2):
            results.append(result)
    assert results == [0, 1, 2] and max(begun) <= 6


def test_an_error_of_the_items_comes_as_it_is():
    def items():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(in_order(lambda item: item, items(), 2))


def test_nothing_is_begun_after_the_end():
    before = threading.active_count()
    begun, second, gate = [], threading.Event(), threading.Event()

    def work(item):
        begun.append(item)
        if item == 0:
            assert second.wait(LONG)
        else:
            second.set()
            assert gate.wait(LONG)

    results = in_order(work, range(100), 2)
    next(results)  # the second is at work, and stays there
    threading.Timer(0.2, gate.set).start()
    results.close()
    assert gate.is_set(), "it waits for those at work"
    # The timer's own thread may just be ending.
    assert threading.active_count() <= before + 1 and len(begun) <= 3
