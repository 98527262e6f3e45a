"""Variants are measured in turns, and reported as what they took."""

import pytest

from experiments.benchmarks.timing import interleave, spread, table


class FakeClock:
    """Time passes only where somebody works."""

    def __init__(self):
        self.now = 100.0
        self.order = []

    def __call__(self):
        return self.now

    def work(self, name, *seconds):
        """A variant that takes as long as listed, round by round."""
        left = list(seconds)

        def run():
            self.order.append(name)
            self.now += left.pop(0)

        return run


def test_rounds_go_forth_and_back_and_the_warm_up_does_not_count():
    clock = FakeClock()
    variants = {
        "a": clock.work("a", 50, 1, 2, 3),
        "b": clock.work("b", 60, 10, 20, 30),
        "c": clock.work("c", 70, 0.5, 0.25, 0.125),
    }
    told = []
    seconds = interleave(
        variants, 3, clock=clock, report=lambda *number: told.append(number)
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # Round -1 is the warm-up; rounds of odd number run backwards.
    assert "".join(clock.order) == "cba" + "abc" + "cba" + "abc"
    assert seconds == {"a": [1, 2, 3], "b": [10, 20, 30], "c": [0.5, 0.25, 0.125]}


def test_warm_up_can_be_longer_or_absent():
    clock = FakeClock()
    variants = {"a": clock.work("a", 9, 8, 1), "b": clock.work("b", 9, 8, 2)}
    assert interleave(variants, 1, warmup=2, clock=clock) == {"a": [1], "b": [2]}
    assert "".join(clock.order) == "ab" + "ba" + "ab"
    variants = {"a": clock.work("a", 4)}
    assert interleave(variants, 1, warmup=0, clock=clock) == {"a": [4]}


@pytest.mark.parametrize("variants, repeats", [({}, 1), ({"a": print}, 0)])
def test_nothing_to_measure(variants, repeats):
    with pytest.raises(ValueError, match=f"repeats={repeats}"):
        interleave(variants, repeats)


def test_spread():
    # Sorted 1, 2, 4, 9: the median lies between 2 and 4.
    expected = {"median": 3, "lowest": 1, "highest": 9, "rounds": [4, 1, 9, 2]}
    assert spread([4, 1, 9, 2]) == expected


def test_table_is_aligned():
    rows = [("what", "s"), ("a step", 12.5), ("b", "3")]
    assert table(rows).splitlines() == [
        "| what   |    s |",
        "| ------ | ---: |",
        "| a step | 12.5 |",
        "| b      |    3 |",
    ]
