"""All cores on one list, the results in the order of the list."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ordered_map(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    num_workers: int | None = None,
) -> Iterator[_Result]:
    """Like `map`, on threads: decoders and encoders let go of Python's lock.

    No more than twice as many results as there are workers are held at a time.

    Args:
        function: Called with one item, in any thread.
        items: What to call it with.
        num_workers: Threads; None for one per core.

    Yields:
        The results in the order of `items`; what a call raises is raised in its
        place, and what stands behind it is not begun.
    """
    num_workers = num_workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(num_workers)
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
