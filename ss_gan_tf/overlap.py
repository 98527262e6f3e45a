"""Work on one item after the other, by several threads, given back in order."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """`map(work, items)` by several threads; what comes out does not depend on them.

    The items are taken by the calling thread, at most `num_threads` + 1 of them before
    the result of the first is given back.

    Args:
        work: called for several items at once.
        items: in order.
        num_threads: threads that work.

    Yields:
        work(item) for each item, in order. Where one raised, that error; none is
        given back after it, and none is begun after the iterator is closed.
    """
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                while waiting and (len(waiting) > num_threads or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
