"""Comparing speeds on a machine that may have other work to do.

What is compared is measured in turns, so that a slow minute hits all of it, and is
reported as a median with its range.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def tell(number: int, total: int):
    """A line for those who wait."""
    print(f"round {number} of {total}", file=sys.stderr, flush=True)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int, int], None] = tell,
) -> dict[str, list[float]]:
    """Measures variants in turns: forth, back, forth, ...

    Every second round is reversed: a machine that becomes steadily slower, or a cache
    that the one before leaves warm, then favours nobody.

    Args:
        variants: Name -> the work; it must return only when the work is done.
        repeats: Rounds that count.
        warmup: Rounds before them, which compile and fill caches.
        clock: Seconds.
        report: Called after each round with its number and how many there are, those
            of the warm-up included.

    Returns:
        Name -> seconds of each counted round, in order.

    Raises:
        ValueError: There is no round, or nothing to measure.
    """
    if repeats < 1 or not variants:
        raise ValueError(f"repeats={repeats}: must be at least 1, of something.")
    seconds = {name: [] for name in variants}
    for number in range(-warmup, repeats):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            start = clock()
            variants[name]()
            elapsed = clock() - start
            if number >= 0:
                seconds[name].append(elapsed)
        report(number + warmup + 1, warmup + repeats)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Median, lowest and highest of measured values, and the values by round."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "rounds": list(values),
    }


def table(rows: Sequence[Sequence[object]]) -> str:
    """Markdown, aligned: the first row is the header, the first column to the left."""
    header, *body = ([str(cell) for cell in row] for row in rows)
    columns = zip(header, *body, strict=True)
    widths = [max(3, *map(len, column)) for column in columns]

    def line(cells):
        return f"| {' | '.join(cells)} |"

    def padded(cells):
        first, *others = zip(cells, widths, strict=True)
        return [first[0].ljust(first[1]), *(c.rjust(width) for c, width in others)]

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        line(cells) for cells in (padded(header), rule, *map(padded, body))
    )
