"""Benchmarks run, in small. What they measure is for people to read."""

import re

import pytest

from benchmarks import batches


def test_batches_are_measured_beside_the_memory(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["batches", "--windows", "300", "--batch-size", "7"])
    monkeypatch.setattr(batches, "ROUNDS", 1)
    batches.main()
    limit, *speeds = capsys.readouterr().out.splitlines()
    assert re.match(r"one core copies memory at [\d.]+ GB/s", limit)
    assert len(speeds) == 3
    for line in speeds:
        assert re.match(r" *[\d,]+ windows/s, +\d+% of that  \(", line)
