"""All cores, one order."""

import threading
import time

import pytest

from data_prep.workers import ordered_map


def test_order_is_that_of_the_items():
    def slow_at_first(n):
        time.sleep(0.002 * (20 - n))
        return n * n

    assert list(ordered_map(slow_at_first, range(20), 4)) == [n * n for n in range(20)]


def test_several_items_are_under_way_at_once():
    both = threading.Barrier(2, timeout=20)
    assert sorted(ordered_map(lambda n: both.wait(), range(2), 2)) == [0, 1]


def test_an_error_comes_in_its_place_and_ends_it():
    begun = []

    def fail_at_3(n):
        begun.append(n)
        if n == 3:
            raise ValueError("three")
        return n

    results = ordered_map(fail_at_3, range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 20


def test_no_more_is_held_than_needed():
    begun = []
    results = ordered_map(begun.append, range(1000), 2)
    next(results)
    assert len(begun) <= 5  # twice the workers, and the one that was taken
    results.close()
    assert len(begun) < 20
