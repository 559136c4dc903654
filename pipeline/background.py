"""Writes in the background, so that a model need not wait for files."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


@contextmanager
def background_writer(
    write: Callable[Arguments, None], *, at_most: int
) -> Iterator[Callable[Arguments, None]]:
    """Yields what calls `write` in a thread: in order, and at most so many calls behind.

    All is written when the block is left. What a call raises is raised by a later one, or then.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def later(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            waiting.append(pool.submit(write, *args, **kwargs))
            while len(waiting) > at_most:
                waiting.popleft().result()

        try:
            yield later
            while waiting:
                waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # After an error: what comes next is of no use.
