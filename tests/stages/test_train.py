"""`mebt train` and `fit-tokenizer`: exact resume, the log, stops, refusals."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mebt import load_model, model_metadata
from mebt.loss import summed_cross_entropy
from mebt.objective import objective
from pipeline import precision
from pipeline.config import load_section
from pipeline.errors import CheckpointError
from pipeline.frames.scan import scan_frames
from pipeline.storage.files import read_json
from pipeline.store.batches import Batches
from pipeline.store.reader import TokenStore
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows
from pipeline.windows.source import WindowSource
from tests.helpers.small import ROOT, Flow, content, make_tokenizer
from tests.test_readme import run_section, sections
from tokenizer import load_tokenizer
from tokenizer.objective import measure_reconstruction

RESULTS = {"train": "model.safetensors", "fit-tokenizer": "tokenizer.safetensors"}


# Muon multiplies in bfloat16, so rounding grows. And a bias of all keys changes nothing: its
# gradient is rounding alone, from small weights below AdamW's epsilon.
SMOOTH = ("--set", "train.optimizer=adamw", "--set", "train.init_std=0.02")
SMOOTH += ("--set", "train.position_init=sines")


def last_state(run: Path) -> dict[str, torch.Tensor]:
    step = (run / "checkpoints" / "last").read_text().strip()
    return load_file(run / "checkpoints" / step / "state.safetensors")


def assert_same_run(one: Path, two: Path, result: str) -> None:
    assert (one / result).read_bytes() == (two / result).read_bytes()
    first, second = last_state(one), last_state(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", RESULTS)
def test_killed_at_any_moment_it_ends_bit_for_bit_the_same(flow: Flow, stage: str) -> None:
    section = stage.replace("-", "_")
    more = ["--set", f"{section}.max_steps=40", "--set", f"{section}.cosine=true"]
    flow.ok(stage, *more, out="whole")
    killed = flow.root / "killed"
    for checkpoints in (1, 4):
        process = flow.fork(stage, *more, out="killed")
        deadline = time.monotonic() + 60
        folder = killed / "checkpoints"
        while time.monotonic() < deadline and process.is_alive():
            names = [path.name for path in folder.glob("step-*")]
            if names and int(max(names)[5:]) >= 2 * checkpoints:
                break
            time.sleep(0.002)
        process.kill()
        process.join()
    flow.ok(stage, *more, out="killed")
    assert_same_run(killed, flow.root / "whole", RESULTS[stage])
    assert "nothing to do" in flow.ok(stage, *more, out="killed")
    # A write that failed at the very end left the last checkpoint without result and pointer.
    (killed / RESULTS[stage]).unlink()
    (killed / "checkpoints" / "last").unlink()
    flow.ok(stage, *more, out="killed")
    assert (killed / "checkpoints" / "last").read_text() == "step-00000040\n"
    assert_same_run(killed, flow.root / "whole", RESULTS[stage])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_run_me_again(flow: Flow, number: int) -> None:
    process = flow.fork("train", "--set", "train.max_steps=100000", out="stopped")
    log = flow.root / "stopped" / "metrics.jsonl"
    while process.is_alive() and not (log.exists() and log.stat().st_size > 500):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 75
    assert (flow.root / "stopped" / "model.safetensors").exists()
    assert last_state(flow.root / "stopped")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which signals are handled")
@pytest.mark.parametrize("stage", RESULTS)
def test_a_signal_while_it_starts_says_the_same(flow: Flow, stage: str) -> None:
    process = flow.start(stage, out="begun")
    handled = 0
    while process.poll() is None and not handled >> (signal.SIGUSR1 - 1) & 1:
        status = Path(f"/proc/{process.pid}/status").read_text()
        handled = int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert not (flow.root / "begun").exists()


def test_the_log_has_what_one_wants_to_see(made: Flow) -> None:
    lines = [
        json.loads(line) for line in (made.root / "run/metrics.jsonl").read_text().split("\n")[:-1]
    ]
    steps = [line for line in lines if line["split"] is None]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        assert {"loss", "grad_norm", "learning_rate", "tokens_per_second"} <= set(line)
        assert {"data_wait", "memory_gb"} <= set(line)
        assert any(line[key] is not None for key in line if key.startswith("loss/mask_"))
        assert any(line[key] is not None for key in line if key.startswith("accuracy/mask_"))
    held_out = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in held_out] == [3, 6]
    assert not (made.root / "run" / "tensorboard").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", RESULTS)
def test_a_log_goes_to_tables_and_loggers(flow: Flow, stage: str) -> None:
    plots = flow.root / "plots"
    more = ("--plots", str(plots), "--logger", "csv", "--logger", "tensorboard")
    flow.ok(stage, *more, out="logged")
    steps = [row.split(",")[0] for row in (plots / "training.csv").read_text().splitlines()]
    last = 6 if stage == "train" else 4
    assert steps == ["step", *map(str, range(1, last + 1))]
    assert (flow.root / "logged/csv/metrics.csv").exists()
    assert list((flow.root / "logged/tensorboard").iterdir())
    shutil.rmtree(plots)
    assert "nothing to do" in flow.ok(stage, *more, out="logged")
    assert len((plots / "validation.csv").read_text().splitlines()) > 1


def test_the_commands_of_the_page_about_logs_run(
    made: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").symlink_to(made.root / "tokens")
    shutil.copy(made.root / "params.yaml", tmp_path)
    page = dict(sections(ROOT / "docs/experiments.md"))
    for title, table in (
        ("Curves", "plots/train/training"),
        ("Other loggers", "logged/csv/metrics"),
    ):
        assert len(run_section(page[title], tmp_path, monkeypatch)) == 1
        assert (tmp_path / f"{table}.csv").exists()


def test_a_logger_that_is_not_installed_is_one_line(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    line = flow.refused("train", "--logger", "wandb", out="logged")
    assert line == "Error: --logger wandb needs the extra `wandb`: pip install 'mebt[wandb]'."
    assert not (flow.root / "logged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", RESULTS)
def test_each_line_of_a_log_has_the_same_keys(flow: Flow, stage: str) -> None:
    """Readers that learn the columns from the first lines would drop those that come later."""
    more = ("--set", "fit_tokenizer.image_gan_weight=1", "--set", "fit_tokenizer.noise=0")
    late = ("--set", "fit_tokenizer.discriminator_start=2")
    flow.ok(stage, *(more + late if stage == "fit-tokenizer" else ()), out="logged")
    lines = (flow.root / "logged" / "metrics.jsonl").read_text().splitlines()
    keys = [list(json.loads(line)) for line in lines]
    assert all(found == keys[0] for found in keys)
    unused = {key for key in keys[0] if all(json.loads(line)[key] is None for line in lines)}
    assert {key for key in unused if "/mask_" not in key} == set()  # Few steps draw few masks.


@pytest.mark.slow
def test_training_learns(flow: Flow) -> None:
    flow.ok(
        *("train", "--set", "train.max_steps=150", "--set", "train.learning_rate=0.01"),
        *("--set", "train.validate_every=50", "--set", "train.log_every=50"),
        out="learned",
    )
    lines = [
        json.loads(x) for x in (flow.root / "learned/metrics.jsonl").read_text().split("\n")[:-1]
    ]
    held_out = [line["val_loss/mask_50"] for line in lines if line["split"]]
    counts = TokenStore(flow.root / "tokens").read("test").flatten()
    shares = torch.bincount(torch.from_numpy(counts), minlength=24) / len(counts)
    entropy = -float((shares[shares > 0] * shares[shares > 0].log()).sum())
    assert held_out[-1] < 0.95 * entropy  # More than how frequent each token is.


@pytest.mark.slow
def test_accumulated_micro_batches_are_the_same_step(flow: Flow) -> None:
    more = ["--set", "model.residual_dropout=0.0", "--set", "train.clip_norm=1.0"]
    more += [*SMOOTH, "--set", "train.context_noise=0.5"]
    flow.ok("train", *more, out="one")
    flow.ok("train", *more, "--set", "train.accumulate=2", out="two")
    one, two = last_state(flow.root / "one"), last_state(flow.root / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_second_half_of_the_steps_is_masked_by_its_own_schedule(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_steps = []

    def spy(*args: Any, late: bool, **options: Any) -> Any:
        if late:
            late_steps.append(options["step"])
        return objective(*args, late=late, **options)

    monkeypatch.setattr("stages.mebt_task.objective", spy)
    words = ("train", "--set", "train.max_steps=5")
    pair = ("--set", "train.schedule=[linear, root]")
    flow.ok(*words, *pair, out="halves")
    assert late_steps == [3, 4]
    flow.ok(*words, *pair, out="halves")  # The record of the run knows the pair again.
    line = flow.refused(*words, "--set", "train.schedule=linear", out="halves")
    assert "config.schedule = ['linear', 'root'], not 'linear'" in line


@pytest.mark.slow
def test_layers_may_be_computed_again_from_some_step_on(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.ok("train", "--set", "train.max_steps=4", out="again")
    run_again = []

    def spy(layer: Callable, *streams: torch.Tensor, **options: bool) -> torch.Tensor:
        run_again.append(layer)
        return checkpoint(layer, *streams, **options)

    monkeypatch.setattr("mebt.model.checkpoint", spy)
    flow.ok("train", "--set", "train.activation_checkpointing=true", out="again")
    assert run_again
    assert_same_run(flow.root / "again", flow.root / "run", RESULTS["train"])


@pytest.mark.slow
def test_bfloat16_computes_layers_and_keeps_loss_and_state_in_float32(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def spy(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, *rest: float):
        output = summed_cross_entropy(hidden, weight, tokens, *rest)
        logits = functional.linear(hidden, weight).flatten(0, 1)
        exact = functional.cross_entropy(logits.float(), tokens.flatten(), reduction="sum")
        seen.add((logits.dtype, output.total.dtype, torch.allclose(output.total, exact, rtol=1e-6)))
        return output

    monkeypatch.setattr("mebt.model.summed_cross_entropy", spy)
    flow.ok("train", "--set", "train.precision=bf16-mixed", out="half")
    half = (torch.bfloat16, torch.float32, True)
    assert seen == {half, (torch.float32, torch.float32, True)}  # The second of validation.
    assert {tensor.dtype for tensor in last_state(flow.root / "half").values()} == {torch.float32}


@pytest.mark.slow
def test_auto_is_what_the_processor_is_fast_in_and_then_what_the_run_began_with(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auto = ("--set", "train.precision=auto", "--set", "train.max_steps=2")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : avx512f avx512_bf16", "utf-8")
    said = flow.ok("train", *auto, "--accelerator", "cpu", out="auto")
    assert "train.precision auto: bf16-mixed, which this cpu multiplies in" in said
    assert (
        read_json(flow.root / "auto" / "run.json", CheckpointError, "run")["config"]["precision"]
        == "bf16-mixed"
    )
    (tmp_path / "cpuinfo").write_text("flags : avx512f", "utf-8")
    said = flow.ok("train", *auto, "--accelerator", "cpu", out="auto")
    assert "train.precision auto: bf16-mixed, as it was begun" in said
    assert "nothing to do" in said
    refused = flow.refused("train", *auto, "--set", "train.precision=32-true", out="auto")
    assert "config.precision = 'bf16-mixed', not '32-true'" in refused


ONE_LAYER = ("--set", "model.layers=[dense]", "--set", "model.num_latents=0")
ONE_LAYER += ("--set", "model.residual_dropout=0.0", "--set", "train.max_steps=3", *SMOOTH)


@pytest.mark.slow
def test_compiled_layers_train_the_same_weights(flow: Flow) -> None:
    flow.ok("train", *ONE_LAYER, out="plain")
    cache = flow.root / "cache"
    more = (*ONE_LAYER, "--set", "train.compile=true")
    more += ("--set", "train.activation_checkpointing=true")  # The two must know of each other.
    here = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    assert flow.start("train", *more, out="compiled", **here).wait(300) == 0
    assert list(cache.rglob("*.cpp"))  # Compiled, and not just run as it is.
    plain, compiled = last_state(flow.root / "plain"), last_state(flow.root / "compiled")
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_missing_compiler_is_one_clear_line(flow: Flow) -> None:
    missing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(flow.root / "cache")}
    more = (*ONE_LAYER, "--set", "train.compile=true")
    assert flow.start("train", *more, out="compiled", **missing).wait(300) == 1
    line = (flow.root / "errors.txt").read_text().splitlines()[-1]
    assert line.startswith("Error: torch.compile does not work here: ")
    assert line.endswith("Set train.compile=false.")


@pytest.mark.slow
def test_two_experiments_read_one_store_at_the_same_time(flow: Flow) -> None:
    tokens = content(flow.root / "tokens")
    one = flow.start("train", out="one")
    other = flow.start("train", "--set", "model.layers=[dense]", "--set", "train.seed=7", out="two")
    assert (one.wait(), other.wait()) == (0, 0)
    assert_same_run(flow.root / "one", flow.root / "run", RESULTS["train"])
    assert load_model(flow.root / "two" / "model.safetensors").config.layers == ("dense",)
    assert content(flow.root / "tokens") == tokens


def test_checkpoints_are_few_and_whole(made: Flow) -> None:
    folder = made.root / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "last",
        "step-00000004",
        "step-00000006",
    ]


def test_a_damaged_checkpoint_is_refused_by_name(flow: Flow) -> None:
    state = flow.root / "run" / "checkpoints" / "step-00000006" / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(bytes(data))
    line = flow.refused("train", "--set", "train.max_steps=8")
    assert str(state) in line
    for name in (b"../../../etc\n", b"step-1/../x", b"step-\xff"):
        (state.parents[1] / "last").write_bytes(name)
        assert "no checkpoint of this folder" in flow.refused("train", "--set", "train.max_steps=8")


def test_a_run_of_other_values_is_refused_by_name(flow: Flow) -> None:
    line = flow.refused("train", "--set", "train.learning_rate=0.5")
    assert "config.learning_rate = 0.001, not 0.5" in line
    flow.ok("train", "--set", "train.log_every=2")
    flow.ok("train", "--set", "train.learning_rate=0.5", "--overwrite")


def test_a_run_without_noise_says_none(flow: Flow) -> None:
    record = json.loads((flow.root / "run" / "run.json").read_text())
    assert "context_noise" not in record["config"]  # As in runs of earlier versions.
    line = flow.refused("train", "--set", "train.context_noise=0.1")
    assert "config.context_noise = 0.0, not 0.1" in line


def test_a_model_that_cannot_see_is_not_trained(flow: Flow) -> None:
    line = flow.refused("train", "--set", "model.layers=[decode]", out="blind")
    assert "section model: no prediction would depend on the context" in line


def test_another_store_is_not_the_same_run(flow: Flow) -> None:
    make_tokenizer(flow.root / "tokenizer.safetensors", seed=5)
    flow.ok("tokenize", "--overwrite")
    assert "tokens" in flow.refused("train")


def test_a_loss_that_is_no_number_stops_the_run(flow: Flow) -> None:
    line = flow.refused("train", "--set", "train.learning_rate=1.0e+30", out="wild")
    (step, windows) = re.search(r"at step (\d+), on (.*); the last checkpoint", line).groups()
    stream = Batches(TokenStore(flow.root / "tokens"), "train", batch_size=4, seed=0)
    plan = stream.store.plan("train").take(stream.rows(int(step) - 1)).to_pylist()
    assert windows == ", ".join(f"{row['video']} from frame {row['first_frame']}" for row in plan)
    assert "Lower the learning rate" in line


def test_the_model_file_says_what_it_was_made_of(made: Flow) -> None:
    path = made.root / "run" / "model.safetensors"
    metadata = model_metadata(path)
    store = TokenStore(made.root / "tokens")
    assert metadata["step"] == "6"
    assert metadata["tokens"] == store.fingerprint
    assert metadata["tokenizer"] == store.info.tokenizer
    assert load_model(path).config.grid == store.grid


def test_the_saved_weights_are_the_moving_average(made: Flow) -> None:
    state = last_state(made.root / "run")
    saved = load_file(made.root / "run" / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[f"average.{name}"])
    assert any(not torch.equal(saved[name], state[f"model.{name}"]) for name in saved)


def test_a_fitted_tokenizer_is_ready_for_use(flow: Flow) -> None:
    flow.ok("fit-tokenizer")
    model = load_tokenizer(flow.root / "tokenizer-run" / "tokenizer.safetensors")
    assert model.config.grid(4, 16, 16) == (2, 4, 4)
    lines = (flow.root / "tokenizer-run" / "metrics.jsonl").read_text().splitlines()
    held_out = json.loads(lines[-1])
    assert {"psnr", "psnr_mean_frame", "codebook_use", "perplexity"} <= set(held_out)
    flow.ok(
        "tokenize", "--tokenizer", str(flow.root / "tokenizer-run/tokenizer.safetensors"), out="t2"
    )


@pytest.mark.parametrize("value", ["half=true", "ema_decay=0.9"])
def test_what_is_measured_is_the_tokenizer_that_is_stored(flow: Flow, value: str) -> None:
    flow.ok("fit-tokenizer", "--set", f"fit_tokenizer.{value}")
    run, params = flow.root / "tokenizer-run", flow.root / "params.yaml"
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    windows = load_section(params, "tokenize", TokenizeConfig)
    videos = scan_frames(flow.root / "frames").videos
    held_out = WindowSource(plan_windows(videos, windows), "test", WindowReader(videos, windows))
    model = load_tokenizer(run / "tokenizer.safetensors")
    clips = (held_out.read([row]) for row in held_out.spread(4))
    found = measure_reconstruction(model, clips)
    assert logged["psnr"] == pytest.approx(found["psnr"], abs=1e-6)


def test_the_shipped_tokenizer_is_what_its_readme_says() -> None:
    path = ROOT / "models" / "fish-64.safetensors"
    assert path.stat().st_size < 3_000_000
    model = load_tokenizer(path)
    last = json.loads((ROOT / "models" / "fish-64.jsonl").read_text().splitlines()[-1])
    assert last["psnr"] > last["psnr_mean_frame"] + 5
    assert last["codebook_use"] > 1 / 2
    readme = (ROOT / "models" / "README.md").read_text()
    assert f"{model.config.codebook_size} codes" in readme
    assert f"{last['psnr']:.1f} dB" in readme


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = 0

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved > 1:
            raise SafetensorError("Error: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr("pipeline.training.checkpoint.save_file", full)
    line = flow.refused("train", out="full")
    assert "No space left on device. Free some space" in line
    monkeypatch.undo()
    flow.ok("train", out="full")
    assert_same_run(flow.root / "full", flow.root / "run", RESULTS["train"])


@pytest.mark.slow
def test_a_profile_says_where_the_time_goes_and_changes_nothing(flow: Flow) -> None:
    said = flow.ok("train", "--profile", out="profiled")
    folder = flow.root / "profiled" / "profile"
    assert str(folder) in said
    flow.ok("train", out="plain")
    assert_same_run(flow.root / "profiled", flow.root / "plain", RESULTS["train"])
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    table = (folder / "table.txt").read_text()
    for part in ("wait for data", "forward", "backward", "optimizer"):
        assert re.search(rf"^step: {part} +\d+\.\d\d ms", table, re.MULTILINE)
        times = [event for event in events if event["name"] == f"step: {part}"]
        assert len([event for event in times if event["cat"] == "user_annotation"]) == 3


def test_too_few_steps_to_profile_are_refused(flow: Flow) -> None:
    words = ["--profile", "--set", "train.max_steps=5"]
    assert "records 3 steps after the first 3, but only 5 are left" in flow.refused(
        "train", *words, out="short"
    )
