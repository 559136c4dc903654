import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mebt import MeBT, MeBTConfig, load_model, save_model
from pipeline.config import build
from pipeline.errors import CheckpointError, ConfigError, FrameError, TokenStoreError
from pipeline.evaluation.c2st import C2ST_KEYS
from pipeline.evaluation.config import PROTOCOLS, EvaluateConfig, Protocol
from pipeline.evaluation.copying import COPYING_KEYS, PIXELS
from pipeline.evaluation.distances import DISTANCE_KEYS, RECONSTRUCTION_KEYS
from pipeline.evaluation.sets import COMPARED, choose_windows, real_halves
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_bytes, to_model
from pipeline.report.meanings import AT_MASK, MEANINGS
from pipeline.report.meanings import DISTANCES as SHOWN_AS_BARS
from pipeline.storage.files import sha256_file
from pipeline.windows.plan import WindowReader
from stages.__main__ import cli
from stages.evaluate import Artefacts, evaluate
from tests.helpers.foreign_files import published_lpips
from tests.helpers.memory_store import MemoryStore
from tests.helpers.project import WINDOW, K, Project, make_project
from tokenizer import VQGAN, load_tokenizer, save_tokenizer
from tokenizer.perceptual import LPIPS, load_lpips

CONFIG = EvaluateConfig(num_videos=7, batch_size=3, mask_ratios=(0.25, 1.0))
OF_PICTURES = {*RECONSTRUCTION_KEYS, *(f"{key}_{who}" for key in DISTANCE_KEYS for who in COMPARED)}
OF_MODEL = {f"token_{kind}_mask_{p}" for kind in ("loss", "accuracy") for p in (25, 100)}
OF_SAMPLES = {"token_distance_samples", *C2ST_KEYS, *COPYING_KEYS} - {*PIXELS}
"""What is measured of the samples' tokens."""
OF_PAIRS, EQUAL = PIXELS
"""What is measured of nearest pairs; held-out windows have the very tokens of training windows, as
the tokenizer is untrained."""
OF_TOKENS = {
    *("codebook_use", "codebook_dead", "codebook_perplexity", "bits_per_token"),
    *("token_loss_uniform", "token_loss_frequency", "token_distance_real"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(made, monkeypatch) -> Project:
    made.use(monkeypatch, "evaluate")
    monkeypatch.setattr("pipeline.evaluation.c2st.MIN_WINDOWS", 1)
    monkeypatch.setattr("pipeline.evaluation.c2st.STEPS", 2)
    return made


def measure(project, *names, config=CONFIG, **replaced):
    rounding = replaced.pop("published_rounding", False)
    given = Artefacts(**{**(project.paths(*names) if names else {}), **replaced})
    return evaluate(project.root / "tokens", given, config, published_rounding=rounding)


def everything(project, **replaced):
    return measure(project, "frames", "samples", "run", "tokenizer", **replaced)


def test_all_numbers_are_made_of_all_artefacts(project):
    found = everything(project)
    expected = OF_PICTURES | OF_MODEL | OF_TOKENS | OF_SAMPLES | {OF_PAIRS}
    assert set(found.metrics) == expected
    assert set(found.not_computed) == {"fvd", "kvd", "lpips", EQUAL}
    assert found.not_computed[EQUAL] == "is infinite: the pictures are equal"
    assert all(map(math.isfinite, found.metrics.values()))


def test_every_number_can_be_explained(project):
    bars = {f"{key}_{who}" for key in SHOWN_AS_BARS for who in COMPARED}
    for key in [*everything(project).metrics, "lpips"]:
        assert key in MEANINGS or key in bars or AT_MASK.fullmatch(key)


@pytest.mark.parametrize(
    ("names", "made_of", "reason"),
    [
        ((), OF_TOKENS, "no --tokenizer was given"),
        (("run",), OF_TOKENS | OF_MODEL, "no --tokenizer was given"),
        (("tokenizer",), OF_TOKENS, "no --frames was given"),
        (("samples",), OF_TOKENS | OF_SAMPLES, "no --tokenizer was given"),
    ],
)
def test_what_is_given_is_measured_and_the_rest_named(project, names, made_of, reason):
    found = measure(project, *names)
    whole = OF_PICTURES | OF_MODEL | OF_TOKENS | OF_SAMPLES | {*PIXELS, "fvd", "kvd", "lpips"}
    assert set(found.metrics) == made_of
    assert set(found.not_computed) == whole - made_of
    assert found.not_computed["psnr"] == reason


def test_protocol_says_what_was_compared(project):
    found = everything(project)
    protocol = found.protocol
    assert protocol["split"] == "test"
    assert protocol["num_videos"] == 7
    assert protocol["num_real_windows"] == 14
    assert protocol["num_source_videos"] == 6
    assert protocol["window"] == {"frames": 4, "stride": 1, "size": 16, "grid": [2, 4, 4]}
    assert protocol["c2st"]["num_windows"] == 6
    assert protocol["identities"]["tokens"] == project.tokens.fingerprint
    assert protocol["identities"]["samples"] == project.samples.fingerprint
    assert protocol["identities"]["tokenizer"] == project.tokens.tokenizer
    assert len(protocol["identities"]["model"]) == 64


def test_fewer_samples_than_asked_for_are_not_repeated(project):
    config = EvaluateConfig(num_videos=99, mask_ratios=(1.0,))
    assert everything(project, config=config).protocol["num_videos"] == 9
    assert everything(project, config=config).protocol["num_videos_asked"] == 99


def test_batch_size_does_not_change_a_number(project):
    found = [
        everything(
            project, config=EvaluateConfig(num_videos=7, batch_size=size, mask_ratios=(0.25, 1.0))
        ).metrics
        for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def test_seed_and_split_choose_other_windows(project):
    frechet = {
        everything(
            project, config=EvaluateConfig(num_videos=3, mask_ratios=(1.0,), seed=seed, split=split)
        ).metrics["frechet_real"]
        for seed, split in ((0, "test"), (1, "test"), (0, "train"))
    }
    assert len(frechet) == 3


def test_a_model_without_context_knows_one_distribution_per_place(project):
    """With everything hidden, the loss can be computed from one forward pass."""
    found = measure(project, "run", config=CONFIG)
    model = load_model(project.paths()["run"] / "model.safetensors")
    places = torch.arange(32)[None]
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    logits = model(nothing, nothing, places)[0].log_softmax(-1)
    rows = [row for half in halves(project) for row in half]
    tokens = torch.from_numpy(project.tokens.tokens["test"][rows].astype(np.int64)).flatten(1)
    expected = -np.mean([float(logits[torch.arange(32), row].mean()) for row in tokens])
    assert found.metrics["token_loss_mask_100"] == pytest.approx(expected, rel=1e-5)


def halves(project):
    return real_halves(project.tokens, "test", limit=CONFIG.num_videos, seed=CONFIG.seed)


def test_another_tokenizer_is_refused(project, tmp_path):
    model = VQGAN(load_tokenizer(project.paths()["tokenizer"]).config)
    save_tokenizer(tmp_path / "other.safetensors", model)
    with pytest.raises(TokenStoreError, match=r"was encoded with tokenizer .* but .* is "):
        everything(project, tokenizer=tmp_path / "other.safetensors")


def test_other_frames_are_refused(project, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a_1.png")
    with pytest.raises(FrameError, match=r"does not hold the frames that .* was made from"):
        everything(project, frames=tmp_path)


def test_a_model_of_another_grid_is_refused(project, tmp_path):
    config = MeBTConfig(
        layers=("encode", "decode"), width=4, num_heads=1, codebook_size=K, grid=(2, 4, 5)
    )
    save_model(tmp_path / "model.safetensors", MeBT(config))
    with pytest.raises(
        TokenStoreError, match=r"has grid \(2, 4, 5\), but .* has \(2, 4, 4\)\. Give"
    ):
        everything(project, run=tmp_path)


def test_a_model_of_another_tokenizer_is_refused(project, tmp_path):
    model = load_model(project.paths()["run"] / "model.safetensors")
    save_model(tmp_path / "model.safetensors", model, extra={"tokenizer": "ee" * 32})
    with pytest.raises(
        TokenStoreError, match=r"model.safetensors has tokenizer eeee.*, but .* has"
    ):
        everything(project, run=tmp_path)


def test_a_run_without_a_model_is_one_clear_line(project, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        everything(project, run=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_videos": 1}, "num_videos must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"mask_ratios": [0.5, 0.0]}, r"mask_ratios must be in \(0, 1\], got 0.0"),
        ({"mask_ratios": [0.5, 0.501]}, "mask_ratios must differ by a per cent"),
        ({"split": "validation"}, "choose from test, train"),
        ({"runs": 0}, "runs must be at least 1, got 0"),
        ({"fvd_hop": 0}, "fvd_hop must be at least 1, got 0"),
        ({"protocol": "mebt-32f"}, "choose from mebt-16f, mebt-128f"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(EvaluateConfig, values, where="evaluate")


class Glance:
    """Stands for I3D: sees the mean of each colour. Counts the videos."""

    def __init__(self):
        self.seen = []

    def features(self, videos):
        self.seen += list(videos.numpy())
        return videos.float().mean(dim=(1, 2, 3))


@pytest.fixture
def glance(project, monkeypatch, tmp_path) -> Glance:
    """Lets the stage open a file `i3d.pt` as a glance, at windows of any length."""
    model = Glance()
    (tmp_path / "i3d.pt").write_bytes(b"weights")
    monkeypatch.setattr("pipeline.evaluation.fvd.load_i3d", lambda path, device: model)
    monkeypatch.setattr("pipeline.evaluation.fvd.I3D_FRAMES", 4)
    return model


OF_I3D = {f"{key}_{who}" for key in ("fvd", "kvd") for who in COMPARED}


def test_i3d_adds_distances_of_every_set(project, glance, tmp_path):
    found = everything(project, i3d=tmp_path / "i3d.pt")
    assert set(found.metrics) >= OF_I3D
    assert set(found.not_computed) == {"lpips", EQUAL}
    said = found.protocol["fvd"]
    assert (said["num_videos"], said["runs"], said["seeds"], said["hop"]) == (7, 1, [0], 16)
    assert (said["frames"], said["stride"], said["split"]) == (4, 1, "test")
    assert said["protocol"] is None
    assert len(said["i3d_sha256"]) == 64
    assert "inception_score" in found.protocol["how"]


def test_published_rounding_is_of_what_i3d_sees_alone(project, glance, tmp_path):
    plain, published = (
        everything(project, i3d=tmp_path / "i3d.pt", published_rounding=rounding)
        for rounding in (False, True)
    )
    half = len(glance.seen) // 2
    difference = np.stack(glance.seen[:half]).astype(int) - np.stack(glance.seen[half:])
    assert set(np.unique(difference)) == {0, 1}
    same = set(plain.metrics) - OF_I3D
    assert {key: plain.metrics[key] for key in same} == {
        key: published.metrics[key] for key in same
    }
    assert plain.metrics["fvd_samples"] != published.metrics["fvd_samples"]
    assert published.protocol["fvd"]["rounding"] == "truncated to bytes, as published"


def test_without_pictures_i3d_has_nothing_to_see(project, glance, tmp_path):
    found = measure(project, i3d=tmp_path / "i3d.pt")
    assert found.not_computed["fvd"] == "no --tokenizer was given"
    assert found.not_computed["kvd"] == "no --tokenizer was given"


def test_windows_too_short_for_i3d_are_not_stretched(project, glance, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.evaluation.fvd.I3D_FRAMES", 9)
    found = everything(project, i3d=tmp_path / "i3d.pt")
    assert found.not_computed["fvd"] == "I3D needs windows of at least 9 frames, these have 4"


def test_a_named_protocol_sets_its_own_values_and_takes_no_less(project):
    config = EvaluateConfig(protocol="mebt-16f", num_videos=3, seed=5)
    named = config.resolved()
    assert (named.num_videos, named.runs, named.seed, named.fvd_hop) == (2048, 10, 0, 16)
    assert EvaluateConfig(protocol="mebt-128f").resolved().num_videos == 512
    with pytest.raises(TokenStoreError, match="protocol mebt-16f compares windows of 16 frames"):
        everything(project, config=config)
    project.tokens.frames = 16
    with pytest.raises(TokenStoreError, match="protocol mebt-16f needs two sets of 2048 real"):
        everything(project, config=config)
    project.tokens.frames = 4


def test_a_file_that_is_no_i3d_is_one_clear_line(project, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "i3d.pt")
    result = run_command(project, tmp_path / "metrics.json", "--i3d", tmp_path / "i3d.pt")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert "is no I3D: it lacks 287 of 344 tensors" in line
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(("given", "folder"), [((), "fvd-cache"), (("--cache", "kept"), "kept")])
def test_what_i3d_sees_in_real_videos_is_kept(project, glance, tmp_path, given, folder):
    flags = ["--i3d", tmp_path / "i3d.pt", *(tmp_path / w if w == "kept" else w for w in given)]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    seen = []
    for file in files:
        assert run_command(project, file, *flags).exit_code == 0
        seen.append(len(glance.seen))
    assert len(list((tmp_path / folder).glob("*.features"))) == 2
    assert seen == [4 * 9, 4 * 9 + 2 * 9]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def lpips_files(monkeypatch, tmp_path) -> list[Path]:
    """Weights of a very small LPIPS, in two files as published."""
    monkeypatch.setattr("tokenizer.perceptual.STAGES", ((2, 1),) * 5)
    torch.manual_seed(0)
    files = [tmp_path / "vgg.pth", tmp_path / "vgg16.pth"]
    for file, part in zip(files, published_lpips(LPIPS()), strict=True):
        torch.save(part, file)
    return files


def test_lpips_is_that_of_every_frame(project, lpips_files):
    found = measure(project, "frames", "tokenizer", lpips=lpips_files)
    assert "lpips" not in found.not_computed
    assert found.protocol["identities"]["lpips"] == sorted(map(sha256_file, lpips_files))
    tokenizer = load_tokenizer(project.paths()["tokenizer"])
    contents = {str(file): torch.load(file, weights_only=True) for file in lpips_files}
    model = load_lpips(contents)
    videos = scan_frames(project.root / "frames").videos
    reader = WindowReader(videos, WINDOW)
    plan = project.tokens.plan("test")
    expected = []
    for row in (row for half in halves(project) for row in half):
        place = plan.take([row]).to_pylist()[0]
        video = to_model(reader.pixels("test", place["video"], place["first_frame"])[None])
        decoded = to_bytes(tokenizer.decode(tokenizer.encode(video)))
        expected += [
            float(model(x[None], y[None]))
            for x, y in zip(video[0].unbind(1), to_model(decoded)[0].unbind(1), strict=True)
        ]
    assert len(expected) == 14 * 4
    assert found.metrics["lpips"] == pytest.approx(np.mean(expected), rel=1e-4)
    without = measure(project, "frames", "tokenizer").metrics
    assert {k: v for k, v in found.metrics.items() if k != "lpips"} == without


def test_without_pictures_lpips_has_nothing_to_see(project, lpips_files, monkeypatch):
    found = measure(project, lpips=lpips_files)
    assert found.not_computed["lpips"] == "no --tokenizer was given"
    monkeypatch.setattr("stages.fitting.SMALLEST", 17)
    found = everything(project, lpips=lpips_files)
    assert found.not_computed["lpips"] == "needs frames of 17 pixels a side, got 16"


def test_the_command_takes_lpips_in_two_files(project, lpips_files, tmp_path):
    flags = [word for file in lpips_files for word in ("--lpips", file)]
    result = run_command(project, tmp_path / "metrics.json", *flags)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["lpips"] > 0
    result = run_command(project, tmp_path / "none.json", *flags[:2])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert "vgg.pth: 10 of the 15 tensors of LPIPS are missing" in line
    assert not (tmp_path / "none.json").exists()


def run_command(project, out: Path, *more):
    params = project.root / "params.yaml"
    params.write_text("evaluate: {num_videos: 99, mask_ratios: [0.5], batch_size: 4}\n")
    args = ["evaluate", "--tokens", project.root / "tokens", "--out", out, "--params", params]
    args += more
    for name, path in project.paths("frames", "samples", "tokenizer").items():
        args += [f"--{name}", path]
    return CliRunner().invoke(cli, [str(arg) for arg in [*args, "--device", "cpu"]])


def test_command_writes_numbers_and_says_what_is_missing(project, tmp_path):
    result = run_command(project, tmp_path / "metrics.json")
    assert result.exit_code == 0, result.output
    assert "not computed: fvd, kvd: needs the I3D network, and no --i3d was given" in result.output
    assert "give i3d_pretrained_400.pt, the published state dict" in result.output
    assert "not computed: lpips: needs weights, and no --lpips was given" in result.output
    assert "give vgg.pth of the lpips package" in result.output
    assert "token_loss_mask_50, token_accuracy_mask_50: no --run was given" in result.output
    assert "compared 9 videos on each side, not 99" in result.output
    assert "No sign of copying: " in result.output
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found) == {"metrics", "copying", "protocol", "not_computed"}
    assert all(isinstance(value, float) for value in found["metrics"].values())


def test_the_same_artefacts_give_the_same_file(project, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    assert [run_command(project, file).exit_code for file in files] == [0, 0]
    assert files[0].read_bytes() == files[1].read_bytes()


def longer(project: Project, frames: int, count: int = 9) -> MemoryStore:
    """Makes samples of so many latent frames, each of which holds its own number."""
    shape = (count, frames, *project.samples.grid[1:])
    tokens = np.broadcast_to(np.arange(frames)[None, :, None, None], shape).astype(np.uint8)
    return MemoryStore(
        {"samples": tokens},
        {},
        codebook_size=K,
        grid=shape[1:],
        tokenizer=project.tokens.tokenizer,
        frames=2 * frames,
        root="longer",
    )


def test_longer_samples_lend_one_window_each_from_all_places_in_turn(project):
    samples = longer(project, 5)
    windows = choose_windows(project.tokens, samples, split="test", limit=7, seed=0)
    assert windows.samples is not None
    firsts = windows.samples[:, :, 0, 0]
    assert firsts.tolist() == [[n % 4, n % 4 + 1] for n in range(7)]
    later = choose_windows(
        project.tokens, samples, split="test", limit=7, seed=0, first_sample=3
    ).samples
    assert later is not None
    assert later[:, 0, 0, 0].tolist() == [3, 0, 1, 2, 3, 0]
    said = windows.protocol()["samples"]
    assert said.startswith("one window of each, of 10 frames (5 latent frames)")


def test_of_a_causal_tokenizer_samples_lend_their_beginnings(project, monkeypatch):
    monkeypatch.setitem(project.tokens.extra, "causal", True)
    windows = choose_windows(project.tokens, longer(project, 5), split="test", limit=7, seed=0)
    assert windows.samples is not None
    assert windows.samples[:, :, 0, 0].tolist() == 7 * [[0, 1]]
    assert windows.protocol()["samples"].startswith("the first window of each, of 10 frames")


def test_longer_samples_are_measured(project, monkeypatch):
    monkeypatch.setattr(project, "samples", longer(project, 3))
    project.use(monkeypatch, "evaluate")
    found = everything(project)
    assert set(found.metrics) == OF_PICTURES | OF_MODEL | OF_TOKENS | OF_SAMPLES | {OF_PAIRS}
    assert found.protocol["num_videos"] == 7


def test_whole_samples_are_said_to_be_whole(project):
    assert everything(project).protocol["samples"] == "whole"
    assert measure(project).protocol["samples"] is None


def test_shorter_samples_are_refused_for_what_they_are(project, monkeypatch):
    monkeypatch.setattr(project, "samples", longer(project, 1))
    project.use(monkeypatch, "evaluate")
    message = r"samples of 2 frames \(1 latent frame\), shorter than .* 4 frames \(2 latent"
    with pytest.raises(TokenStoreError, match=message):
        everything(project)


def test_a_named_protocol_takes_no_longer_samples(project, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "mebt-16f", Protocol(frames=4, num_videos=2, runs=1))
    monkeypatch.setattr(project, "samples", longer(project, 3))
    project.use(monkeypatch, "evaluate")
    with pytest.raises(
        TokenStoreError, match=r"compares samples of 2 latent frames, but .* have 3"
    ):
        everything(project, config=EvaluateConfig(protocol="mebt-16f"))
