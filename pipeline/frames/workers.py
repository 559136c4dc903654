"""Processes that decode frames ahead. They import this file, so it imports little: no torch."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from pipeline.errors import PipelineError


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for more work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer.
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def decoders(workers: int) -> Iterator[Executor]:
    """Yields what decodes frames: so many processes, or for 0 a thread of this one."""
    pool: Executor
    if workers:
        # Not forked: the parent has threads, and a GPU perhaps, that a fork does not survive.
        context = get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    else:
        pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BrokenProcessPool:
        raise PipelineError(
            f"a process that decodes frames was killed, perhaps for its memory; give fewer than "
            f"--workers {workers}, and run it again: what was finished is kept."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
