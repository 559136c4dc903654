"""`mebt fit-tokenizer`: what it begins from, discriminators, LPIPS."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.config import load_params
from stages.fit_tokenizer import range_line
from stages.tokenizer_task import FitTokenizerConfig
from tests.helpers.foreign_files import published_lpips
from tests.helpers.small import Flow, make_tokenizer
from tests.stages.test_train import RESULTS, assert_same_run, last_state
from tokenizer import identity, load_tokenizer
from tokenizer.perceptual import LPIPS
from tokenizer.weights import TRAINING_ONLY

STAGE = "fit-tokenizer"
ONE_STILL_STEP = (
    *("--set", "fit_tokenizer.max_steps=1", "--set", "fit_tokenizer.learning_rate=1.0e-9"),
    *("--set", "fit_tokenizer.restart_threshold=0.0"),
)


def given(**values: object) -> list[str]:
    return [w for k, v in values.items() for w in ("--set", f"fit_tokenizer.{k}={v}")]


ADVERSARIAL = given(image_gan_weight=0.5, video_gan_weight=1.0, discriminator_width=4)


def result(flow: Flow, run: str) -> Path:
    return flow.root / run / RESULTS[STAGE]


def test_it_begins_from_the_weights_it_is_given(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    flow.ok(STAGE, *ONE_STILL_STEP, "--init", str(init), out="begun")
    before, after = load_tokenizer(init), load_tokenizer(result(flow, "begun"))
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), parameter, rtol=0, atol=1e-7)
    # A step moves the vectors that were chosen, and no other.
    moved = (after.codebook.embeddings - before.codebook.embeddings).abs().amax(1)
    scale = float(before.codebook.embeddings.abs().amax())
    assert float(moved.max()) < 0.5 * scale
    assert 0 < int((moved > 1e-5 * scale).sum()) < len(moved)


def test_it_learns_from_windows_of_its_own(flow: Flow) -> None:
    frames = load_params(flow.root / "params.yaml")["tokenize"]["frames"]
    flow.ok(STAGE, *given(max_steps=1), out="usual")
    for out, short in (("same", frames), ("short", frames // 2)):
        flow.ok(STAGE, *given(max_steps=1, frames=short), out=out)
    learned = {out: result(flow, out).read_bytes() for out in ("usual", "same", "short")}
    assert learned["usual"] == learned["same"] != learned["short"]
    assert "nothing to do" in flow.ok(STAGE, *given(max_steps=1, frames=frames), out="usual")
    line = flow.refused(STAGE, *given(max_steps=1), out="short")
    assert f"windows.frames = {frames // 2}, not {frames}" in line
    line = flow.refused(STAGE, *given(max_steps=1, frames=frames + 1), out="odd")
    assert "sections tokenizer, fit_tokenizer and tokenize" in line
    assert "frames must be at least 1" in flow.refused(STAGE, *given(frames=0), out="none")


@pytest.mark.slow
def test_a_stop_and_a_resume_change_nothing(flow: Flow) -> None:
    more = ("--init", str(flow.root / "tokenizer.safetensors"))
    flow.ok(STAGE, *more, out="whole")
    flow.ok(STAGE, *more, "--set", "fit_tokenizer.max_steps=2", out="resumed")
    flow.ok(STAGE, *more, out="resumed")
    assert_same_run(flow.root / "resumed", flow.root / "whole", RESULTS[STAGE])
    assert "nothing to do" in flow.ok(STAGE, *more, out="resumed")


def test_the_average_of_the_weights_is_stored_with_the_codebook_as_it_is(flow: Flow) -> None:
    decay = 0.75
    flow.ok(STAGE, *given(ema_decay=decay, checkpoint_every=1, keep_checkpoints=4), out="whole")
    folders = sorted((flow.root / "whole" / "checkpoints").glob("step-*"))
    steps = [load_file(folder / "state.safetensors") for folder in folders]
    assert len(steps) == 4
    stored = load_tokenizer(result(flow, "whole"))
    for name, tensor in stored.state_dict().items():
        values = [tensors[f"model.vqgan.{name}"] for tensors in steps]
        if name == "codebook.embeddings":
            assert torch.equal(tensor, values[-1])
        elif not name.endswith(TRAINING_ONLY):
            average = values[0]
            for step, value in enumerate(values[1:], start=2):
                kept = min(decay, (1 + step) / (10 + step))  # It begins fast.
                average = kept * average + (1 - kept) * value
            torch.testing.assert_close(tensor, average, rtol=1e-5, atol=1e-6)
    flow.ok(STAGE, *given(ema_decay=decay, max_steps=2), out="resumed")
    flow.ok(STAGE, *given(ema_decay=decay), out="resumed")
    assert result(flow, "resumed").read_bytes() == result(flow, "whole").read_bytes()


def shaped(**values: object) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"tokenizer.{key}={value}")]


LEVELS = shaped(levels="[4, 3, 2]", codebook_size=24, embedding_dim=3)


@pytest.mark.slow
def test_levels_are_trained_begun_from_and_resumed_like_a_learned_codebook(flow: Flow) -> None:
    flow.ok(STAGE, *LEVELS, out="first")
    assert load_tokenizer(result(flow, "first")).config.levels == (4, 3, 2)
    more = (*LEVELS, "--init", str(result(flow, "first")))
    flow.ok(STAGE, *more, out="whole")
    flow.ok(STAGE, *more, *given(max_steps=2), out="resumed")
    flow.ok(STAGE, *more, out="resumed")
    assert_same_run(flow.root / "resumed", flow.root / "whole", RESULTS[STAGE])
    lines = (flow.root / "whole" / "metrics.jsonl").read_text().splitlines()
    validation = json.loads(lines[-1])
    assert 1 <= validation["perplexity"] <= 24 * validation["codebook_use"]
    line = flow.refused(STAGE, *shaped(levels="[4, 3, 2]"), out="other")
    assert "tokenizer: levels [4, 3, 2] make 24 vectors of 3 entries: set codebook_size" in line


def test_what_it_began_from_is_part_of_the_run(flow: Flow) -> None:
    first = flow.root / "tokenizer.safetensors"
    other = make_tokenizer(flow.root / "other.safetensors", seed=5)
    flow.ok(STAGE, *ONE_STILL_STEP, "--init", str(first), out="run-1")
    ids = [identity(load_tokenizer(path)) for path in (first, other)]
    for more, now in (("--init", str(other)), f"'{ids[1]}'"), ((), "null"):
        line = flow.refused(STAGE, *ONE_STILL_STEP, *more, out="run-1")
        assert f"init = '{ids[0]}', not {now}" in line


def test_a_tokenizer_of_another_shape_is_refused_naming_both(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    wider = ("--set", "tokenizer.width=8", "--set", "tokenizer.downsample=[2, 4, 2]")
    line = flow.refused(STAGE, "--init", str(init), *wider, out="wide")
    assert f"--init {init} has width 4, downsample [2, 4, 4]" in line
    assert "section tokenizer asks for width 8, downsample [2, 4, 2]" in line
    assert not (flow.root / "wide").exists()


@pytest.mark.parametrize("kept", [0, -9])
def test_a_damaged_file_is_one_clear_line(flow: Flow, kept: int) -> None:
    init = flow.root / "init.safetensors"
    init.write_bytes((flow.root / "tokenizer.safetensors").read_bytes()[:kept])
    line = flow.refused(STAGE, "--init", str(init), out="run-1")
    assert f"{init} is not a readable safetensors file" in line


def read_steps(flow: Flow, run: str) -> list[dict]:
    lines = (flow.root / run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] is None]


@pytest.mark.slow
def test_a_stop_resumes_discriminators_and_their_optimizer(flow: Flow) -> None:
    more = [*ADVERSARIAL, *given(gan_feat_weight=4, discriminator_start=1, accumulate=2)]
    flow.ok(STAGE, *more, out="whole")
    flow.ok(STAGE, *more, *given(max_steps=2), out="resumed")
    before = last_state(flow.root / "resumed")
    flow.ok(STAGE, *more, out="resumed")
    assert_same_run(flow.root / "resumed", flow.root / "whole", RESULTS[STAGE])
    after = last_state(flow.root / "resumed")
    for kind in ("image", "video"):
        name = f"model.discriminators.{kind}.layers.0.0.weight"
        assert not torch.equal(after[name], before[name])
    num_parameters = sum(1 for name in after if name.endswith(".exp_avg"))
    named = [n for n in after if n.startswith("model.") and n.endswith(("weight", "bias"))]
    assert num_parameters == len(named)


def test_the_log_tells_what_discriminators_do_from_their_first_step_on(flow: Flow) -> None:
    flow.ok(STAGE, *ADVERSARIAL, *given(discriminator_start=2, gan_feat_weight=1), out="run-1")
    for number, line in enumerate(read_steps(flow, "run-1")):
        for kind in ("image", "video"):
            values = [
                line[f"{kind}_{name}"]
                for name in ("generator", "feature_matching", "discriminator")
            ]
            assert all(values) if number >= 2 else not any(values)
        assert "lpips" not in line


@pytest.mark.slow
def test_two_processes_wait_for_the_discriminators_and_finish(flow: Flow) -> None:
    words = ("--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    process = flow.start(STAGE, *ADVERSARIAL, *given(discriminator_start=2), *words, out="two")
    assert process.wait(300) == 0
    load_tokenizer(result(flow, "two"))
    assert [line["step"] for line in read_steps(flow, "two")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_changes_and_what_moves_are_reduced_as_they_are_weighted(flow: Flow) -> None:
    lines = {}
    for run, weights in {"plain": (0, 0), "change": (4, 0), "motion": (0, 4)}.items():
        values = dict(zip(("change_weight", "motion_weight"), weights, strict=True))
        flow.ok(STAGE, *given(max_steps=1, **values), out=run)
        (lines[run],) = read_steps(flow, run)
    plain, change, motion = lines.values()
    # All three decode the same clips by the same weights at their one step.
    for line in lines.values():
        changes = 4 * line["change"] if line is change else 0
        assert line["loss"] == pytest.approx(line["l1"] + line["commitment"] + changes)
    assert change["l1"] == plain["l1"] != pytest.approx(motion["l1"], rel=1e-3)
    assert change["change"] > 0
    assert "change" not in plain.keys() | motion.keys()
    assert len({identity(load_tokenizer(result(flow, run))) for run in lines}) == 3


@pytest.fixture
def lpips(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that name the weights of a very small LPIPS."""
    monkeypatch.setattr("tokenizer.perceptual.STAGES", ((2, 1),) * 5)
    torch.manual_seed(0)
    words = []
    for name, part in zip(("vgg.pth", "vgg16.pth"), published_lpips(LPIPS()), strict=True):
        torch.save(part, flow.root / name)
        words += ["--lpips", str(flow.root / name)]
    return words


def test_lpips_is_reduced_and_part_of_the_run(flow: Flow, lpips: list[str]) -> None:
    one = given(max_steps=1)
    flow.ok(STAGE, *one, *lpips, *given(perceptual_weight=4), out="run-1")
    (line,) = read_steps(flow, "run-1")
    assert line["lpips"] > 0
    assert line["loss"] == pytest.approx(line["l1"] + line["commitment"] + 4 * line["lpips"])
    flow.ok(STAGE, *one, out="plain")
    assert len({identity(load_tokenizer(result(flow, run))) for run in ("run-1", "plain")}) == 2
    whole = {}
    for path in lpips[1::2]:
        whole |= torch.load(path, weights_only=True)
    torch.save(whole, flow.root / "whole.pth")
    words = ["--lpips", str(flow.root / "whole.pth")]
    line = flow.refused(STAGE, *one, *words, *given(perceptual_weight=4), out="run-1")
    assert "was made with lpips = [" in line


def test_lpips_its_weight_and_frames_go_together(flow: Flow, lpips: list[str]) -> None:
    line = flow.refused(STAGE, *lpips, out="run-1")
    assert "--lpips is of no use while fit_tokenizer.perceptual_weight is 0." in line
    line = flow.refused(STAGE, *given(perceptual_weight=4), out="run-1")
    assert "perceptual_weight is 4.0, which needs --lpips: give vgg.pth" in line
    small = (*lpips, *given(perceptual_weight=4), "--set", "tokenize.size=8")
    line = flow.refused(STAGE, *small, out="run-1")
    assert "LPIPS needs frames of 16 pixels, tokenize.size is 8." in line
    assert not (flow.root / "run-1").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l1_weight": -1.0}, "l1_weight must not be negative, got -1.0"),
        ({"perceptual_weight": -1.0}, "perceptual_weight must not be negative"),
        ({"image_gan_weight": -0.5}, "image_gan_weight must not be negative"),
        ({"video_gan_weight": -0.5}, "video_gan_weight must not be negative"),
        ({"gan_feat_weight": -0.5}, "gan_feat_weight must not be negative"),
        ({"discriminator_start": -1}, "discriminator_start must not be negative"),
        ({"discriminator_width": 0}, "discriminator_width must be 1 … 512: 0"),
        ({"gan_feat_weight": 4.0}, "but there is no discriminator; set image_gan_weight"),
    ],
)
def test_impossible_values_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitTokenizerConfig(**fields)


def test_a_run_remembers_that_frames_are_read_as_stored(flow: Flow) -> None:
    for path in (flow.root / "frames").rglob("*.png"):
        exif = Image.Exif()
        exif[0x0112] = 3
        with Image.open(path) as image:
            image.load()
        image.save(path, exif=exif)
    assert "such are read as stored" in flow.ok("fit-tokenizer", "--as-stored")
    assert "as_stored" in flow.refused("fit-tokenizer")
    assert "such are shown upright" in flow.ok("fit-tokenizer", out="shown")
    stored, shown = (
        (flow.root / out / "metrics.jsonl").read_text("utf-8") for out in ("tokenizer-run", "shown")
    )
    assert stored != shown


def test_another_range_is_no_other_shape(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    flow.ok(STAGE, *shaped(pixel_range="[0, 240]"), "--init", str(init), out="cut")
    assert load_tokenizer(result(flow, "cut")).config.pixel_range == (0, 240)


def test_pixels_beyond_the_range_are_counted_once_a_run(flow: Flow) -> None:
    words = (*shaped(pixel_range="[100, 101]"), *given(max_steps=1))
    said = flow.ok(STAGE, *words, out="cut")
    found = re.search(r"fit-tokenizer: ([\d.]+)% of the values of held-out windows lie", said)
    assert found and 90 < float(found[1]) <= 100
    assert "lie beyond tokenizer.pixel_range [100, 101]; they will be cut off." in said
    assert "will be cut off" not in flow.ok(STAGE, *words, out="cut")
    assert "cut off" not in flow.ok(STAGE, *given(max_steps=1), out="whole")


@pytest.mark.parametrize(
    ("counts", "pixel_range", "says"),
    [
        ({16: 30, 100: 60, 235: 10}, (), "30% at grey level 16 and 10% at grey level 235"),
        ({16: 30, 100: 60, 235: 10}, (), "With tokenizer.pixel_range=[16,235] such ground"),
        ({3: 1, 100: 2, 239: 97}, (), "of their values lie 97% at grey level 239, and none beyond"),
        ({3: 1, 100: 2, 239: 97}, (), "tokenizer.pixel_range=[0,239]"),
        ({16: 97, 239: 3}, (), "tokenizer.pixel_range=[16,255]"),
        ({3: 1, 100: 2, 239: 97}, (0, 239), None),
        ({3: 4, 100: 92, 239: 4}, (), None),
        ({0: 50, 255: 50}, (), None),
        ({239: 100}, (), None),
        ({3: 1, 100: 2, 239: 97}, (3, 238), "97.00% of the values of held-out windows lie beyond"),
    ],
)
def test_a_range_that_footage_seems_cut_off_at_is_named(counts, pixel_range, says) -> None:
    levels = torch.zeros(256, dtype=torch.int64)
    for level, count in counts.items():
        levels[level] = count
    line = range_line(levels, pixel_range)
    assert line is None if says is None else says in str(line)


@pytest.mark.slow
def test_frames_on_white_paper_are_told_from_others(flow: Flow) -> None:
    for path in (flow.root / "frames" / "test").rglob("*.png"):
        with Image.open(path) as image:
            cut = np.asarray(image.convert("RGB")).clip(max=200)
        cut[:, :9] = 200
        Image.fromarray(cut).save(path)
    said = flow.ok(STAGE, *given(max_steps=1), out="cut")
    assert said.count("held-out windows seem to be cut off") == 1
    assert "200]" in said and "such ground flickers less" in said
