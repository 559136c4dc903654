"""Where the time of a training step goes: a trace and a table of a few steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.storage.files import make_folder, replacing, write_text

WARM_UP, RECORDED = 3, 3
"""Steps that are left out, and steps that are recorded then."""
TRACE, TABLE = "trace.json", "table.txt"
MAX_ROWS = 40
PART = "step: "
"""Begins the names of a step's parts."""


@contextmanager
def profiled(folder: Path | None) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step; a trace and a table go to `folder`, if there is one."""
    if folder is None:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        order = "self_device_time_total"

    def write(found: "profile") -> None:
        make_folder(folder)
        with replacing(folder / TRACE) as temporary:
            found.export_chrome_trace(str(temporary))
        averages = found.key_averages()
        parts = "".join(
            f"{part.key:24} {part.cpu_time_total / 1e3 / RECORDED:10.2f} ms a step on the CPU\n"
            for part in averages
            if part.key.startswith(PART)
        )
        table = averages.table(sort_by=order, row_limit=MAX_ROWS)
        write_text(folder / TABLE, f"{parts}\n{table}\n")

    steps = schedule(wait=WARM_UP - 1, warmup=1, active=RECORDED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
