"""Benchmarks run, in small, and count what torch counts. Their speeds are for people to read."""

import dataclasses
import json
import re
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as bench
from benchmarks import batches, growth, measure, operations, readers, scaling
from benchmarks.cases import CASES, GROWTH
from benchmarks.work import Case, Work
from mebt import MeBT, MeBTConfig
from mebt.config import PUBLISHED_LAYERS
from mebt.linear import OneDNN
from tokenizer import VQGAN, VQGANConfig

CPU = torch.device("cpu")
CONFIG = MeBTConfig(
    layers=(*PUBLISHED_LAYERS[10:16], "dense"),
    width=24,
    num_heads=3,
    num_latents=7,
    codebook_size=13,
    grid=(2, 3, 5),
)
ALL_CASES = [*CASES, *(case for cases in GROWTH.values() for case in cases)]


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_ROUNDS", 1)
    monkeypatch.setattr(batches, "ROUNDS", 1)


def test_batches_are_measured_beside_the_memory(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["batches", "--windows", "300", "--batch-size", "7"])
    batches.main()
    limit, *speeds = capsys.readouterr().out.splitlines()
    assert re.match(r"one core copies memory at [\d.]+ GB/s", limit)
    assert len(speeds) == 3
    for line in speeds:
        assert re.match(r" *[\d,]+ windows/s, +\d+% of that  \(", line)


def test_both_readers_and_what_a_bucket_sends_stand_in_one_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases = [dataclasses.replace(case, windows=5000, grid=(2, 2, 4)) for case in readers.CASES]
    monkeypatch.setattr(readers, "CASES", tuple(cases))
    monkeypatch.setattr(readers, "FEW", 5)
    page = tmp_path / "page.md"
    page.write_text(readers.BEGIN + readers.END)
    monkeypatch.setattr("sys.argv", ["readers", "--page", str(page)])
    readers.main()
    heads, _, *rows = capsys.readouterr().out.splitlines()
    assert page.read_text().splitlines()[2:-2] == [heads, "|---|---:|---:|---:|---:|---:|", *rows]
    for case, row in zip(cases, rows, strict=True):
        name, size, zarr, ours, times, share = (cell.strip() for cell in row[2:-2].split(" | "))
        assert name.startswith(f"5,000 x 16 of {case.codebook_size:,}, ")
        assert 0.5 < float(size) < 2.1
        assert int(zarr.replace(",", "")) > 0 and int(ours.replace(",", "")) > 0
        assert float(times) > 0
        # Five chunks of 79 at least, five indices, and twice what says so in Parquet.
        assert 5 / 79 < float(share.rstrip("%")) / 100 < 0.6


def test_drawn_tokens_are_like_those_of_videos() -> None:
    drawn = readers.draw_as_of_video(np.random.default_rng(0), 100, (20_000, 2, 1, 1))[:, :, 0, 0]
    counts = np.sort(np.bincount(drawn[:, 0], minlength=100))[::-1]
    share = 1 / (1 / np.arange(1, 101)).sum()
    assert counts[0] / 20_000 == pytest.approx(share, rel=0.05)
    assert counts[1] / counts[0] == pytest.approx(0.5, rel=0.08)
    again = (drawn[:, 0] == drawn[:, 1]).mean()
    by_chance = ((1 / np.arange(1, 101)) ** 2).sum() * share**2
    assert again == pytest.approx(0.5 + 0.5 * by_chance, abs=0.02)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("context", "targets"), [(11, 19), (0, 30), (29, 1)])
def test_operations_are_those_that_torch_counts(context: int, targets: int, backward: bool) -> None:
    OneDNN.is_faster()  # Tries products of its own, once.
    model = MeBT(CONFIG)
    order = torch.randperm(CONFIG.num_tokens).expand(2, -1)
    tokens = torch.randint(13, (2, context))
    # With fused attention torch would count nothing, or what is computed again on the way back.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(tokens, order[:, :context], order[:, context:])
        if backward:
            logits.sum().backward()
    expected = 2 * 2 * operations.forward(CONFIG, context, targets)
    if backward:
        expected *= operations.TRAINING
    counted = counter.get_total_flops()
    assert counted == pytest.approx(expected, rel=1e-9 if context else 0.02)


@pytest.mark.parametrize("downsample", [(4, 8, 8), (2, 4, 2)])
def test_operations_of_the_tokenizer_are_those_that_torch_counts(
    downsample: tuple[int, int, int],
) -> None:
    config = VQGANConfig(
        width=16, codebook_size=11, embedding_dim=5, downsample=downsample, norm="batch"
    )
    with torch.device("meta"):
        model = VQGAN(config).eval()
        video = torch.empty(1, 3, 8, 16, 16)
        tokens = torch.empty(1, *config.grid(8, 16, 16), dtype=torch.int64)
    for run, count in (
        (lambda: model.encode(video), operations.encode),
        (lambda: model.decode(tokens), operations.decode),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == 2 * count(config, 8, 16)


def test_the_published_tokenizer_takes_what_is_said_of_it() -> None:
    config = VQGANConfig(norm="batch")
    assert 2 * operations.encode(config, 16, 128) / 1e9 == pytest.approx(56.3, abs=0.05)
    assert 2 * operations.decode(config, 16, 128) / 1e9 == pytest.approx(734, abs=0.5)


def test_passes_are_those_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft begins with nothing and skips steps; a revision sees all other groups."""
    assert operations.bootstrap_passes(9, 2) == [(0, 9), (1, 8)]
    assert operations.draft_passes(4, 2) == [(0, 4), (1, 3)]  # cos(pi / 4) * 4 is 2.8.
    assert operations.draft_passes(4, 2, done=2) == [(2, 2)]
    assert operations.revise_passes(8, 4) == [(6, 2)] * 4


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_every_case_can_be_measured(case: Case, half: bool) -> None:
    row = measure.measure(case, CPU, small=True, half=half)
    assert row["name"] == case.name
    assert (row["target"], row["extra_gb_target"]) == (case.target, case.extra_gb_target)
    assert all(row[key] > 0 for key in ("factor", "seconds", "limit_seconds"))
    assert isfinite(row["extra_gb"])
    assert row["gflops"] > 0


def test_the_factor_is_the_time_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"run": 6.0, "beside": 4.0}
    monkeypatch.setattr(measure, "seconds_of", lambda action, device: seconds[action()])
    monkeypatch.setattr(
        measure, "product_rates", lambda *_, **__: {"slow": [1e9], "fast": [5e9, 2.5e9]}
    )
    monkeypatch.setattr(measure, "copy_rate", lambda device, size: 2e9)

    def row(in_seconds: bool = False, **limit: object) -> dict[str, Any]:
        work = Work(run=lambda: "run", **limit)  # type: ignore[arg-type]
        case = Case(name="x", prepare=lambda setting: work, in_seconds=in_seconds)
        return measure.measure(case, CPU, small=True)

    assert row(beside=lambda: "beside")["factor"] == 1.5
    assert row(bytes=10_000_000_000)["factor"] == 1.2
    assert row(bytes=10_000_000_000, in_seconds=True)["factor"] == 6.0
    of_products = row(operations=10_000_000_000)
    assert (of_products["factor"], of_products["steady"]) == (3.0, 2.0)


def test_memory_is_what_the_work_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []

    def grow() -> None:
        held.append(torch.ones(100_000_000))  # Larger than what is kept of freed memory.
        held.append(torch.ones(100_000_000))

    case = Case(name="x", prepare=lambda setting: Work(run=grow, beside=list))
    monkeypatch.setattr(measure, "best_seconds", lambda *_: 1.0)
    extra = measure.measure(case, CPU, small=True)["extra_gb"]
    held.clear()
    assert extra == pytest.approx(0.8, abs=0.1)


@pytest.mark.slow
def test_the_table_has_one_row_for_each_case_and_marks_what_is_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "results.json"
    words = ["bench", "--small", "--only", "VQGAN encode", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    bench.main()
    _, line, machine, kernels = capsys.readouterr().out.splitlines()
    assert "torch's choice" in kernels
    (row,) = json.loads(out.read_text())
    assert line.startswith("VQGAN encode, 16 frames  ")
    assert row["machine"] in machine
    assert {"name", "factor", "target", "extra_gb", "extra_gb_target"} <= set(row)
    reached = {**row, "factor": 1.25, "target": 1.5, "extra_gb": 0.7, "extra_gb_target": 0.8}
    assert "1.250     1.5" in bench.show(reached)
    assert "!" not in bench.show(reached)
    assert "1.250     1.5   1.125" in bench.show({**reached, "steady": 1.125})
    missed = {**reached, "factor": 1.75, "extra_gb": 0.9}
    assert "1.750!    1.5" in bench.show(missed)
    assert "0.90!    0.8" in bench.show(missed)


def test_builds_are_compared_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    turns = []

    def run(case: Case, device: str, *, build: Path, half: bool, **_: object) -> dict[str, Any]:
        turns.append((build, half))
        row = {"name": case.name, "kernels": {}, "machine": "m", "load": 1, "precision": "p"}
        return {**row, "seconds": 6.0 if build == tmp_path else 2.0 + len(turns), "extra_gb": 1.5}

    monkeypatch.setattr(bench, "in_own_process", run)
    words = ["bench", "--only", "VQGAN encode", "--against", str(tmp_path), "--half"]
    monkeypatch.setattr("sys.argv", [*words, "--rounds", "2"])
    bench.main()
    assert turns == [(tmp_path, False), (bench.ROOT, True)] * 2
    _, line, *_ = capsys.readouterr().out.splitlines()
    assert "  1.25 (1.00-1.50)     1.50     1.50" in line


def test_growth_is_told_from_a_line() -> None:
    tokens = [1, 2, 4, 8]
    window, token, away = growth.line_through(tokens, [10 + 3.0 * n for n in tokens])
    assert (window, token, away) == pytest.approx((10, 3, 0))
    *_, away = growth.line_through(tokens, [float(n * n) for n in tokens])
    assert away > growth.TOLERANCE


def test_growth_is_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / growth.PICTURES).mkdir(parents=True)
    (tmp_path / growth.RESULTS).parent.mkdir()
    monkeypatch.setattr(
        growth,
        "in_own_process",
        lambda case, device, small, keep_mb=None: {
            "seconds": float(re.findall(r"(\d+) frames", case.name)[0]) / 1e3,
            "extra_gb": 0.1 if keep_mb else 0.3,
        },
    )
    monkeypatch.setattr("sys.argv", ["growth", "--small", "--out", str(tmp_path)])
    growth.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines[1:]] == ["linear", "linear", "top"] * 2
    assert lines[3].split()[1:6] == ["0.20"] * 5
    rows = json.loads((tmp_path / growth.RESULTS).read_text())
    assert {(row["extra_gb"], row["needed_gb"]) for row in rows} == {(0.3, 0.1)}
    for name in ("growth-time.svg", "growth-memory.svg"):
        picture = (tmp_path / growth.PICTURES / name).read_text()
        assert picture.count("<svg ") == picture.count("</svg>") == 1
        assert picture.count("<circle ") == 2 * 5


@pytest.mark.parametrize("name", scaling.EXPERIMENTS)
def test_weights_are_counted(name: str) -> None:
    config = scaling.load(name).model
    with torch.device("meta"):
        model = MeBT(config)
    assert scaling.parameters(config) == sum(p.numel() for p in model.parameters())


def test_gradients_travel_as_far_as_they_must() -> None:
    one = scaling.all_reduce_seconds(10**9, 1)
    eight = scaling.all_reduce_seconds(10**9, 8)
    many = scaling.all_reduce_seconds(10**9, 64)
    assert one == 0
    assert eight == pytest.approx(2 * 7 / 8 * 1e9 / (450e9 * 0.8))
    assert many == pytest.approx(eight + 2 * 7 / 8 * 1e9 / 8 / (50e9 * 0.8))


def test_the_page_has_the_tables_of_today() -> None:
    assert f"{scaling.BEGIN}\n{scaling.tables()}\n{scaling.END}" in scaling.PAGE.read_text()
