import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mebt import load_model, save_model, weights_identity
from pipeline.errors import PipelineError, TokenStoreError
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_bytes
from pipeline.report.report import make_report
from pipeline.storage.files import remove, write_json
from pipeline.training.previews import write_previews
from stages.__main__ import cli
from stages.report import collect, read_log
from tests.helpers.project import Project, make_project
from tokenizer import VQGAN, load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    project = make_project(tmp_path_factory.mktemp("project"))
    root = project.root
    lines = ['{"step": 10, "loss": 2.5}', '{"step": 20, "val_loss": 2.25}', '{"st']
    (root / "run" / "metrics.jsonl").write_text("\n".join(lines))
    (root / "fit.jsonl").write_text('{"step": 5, "psnr": 21.5, "psnr_mean_frame": 20.5}\n')
    (root / "metrics.json").write_text(json.dumps({"metrics": {"psnr": 23.4}, "protocol": {}}))
    (root / "params.yaml").write_text("decode: {fps: 5}\n")
    short = root / "frames" / "test" / "short <b>"
    short.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16)).save(short / f"short_{number}.png")
    (root / "frames" / "test" / "notes.txt").write_text("no picture")
    record = {
        "num_videos": 3,
        "clips": {"train": 5, "test": 7},
        "rejected": [{"name": "clip <i>", "reason": "still"}],
    }
    (root / "frames" / "extract.json").write_text(json.dumps(record))
    project.tokens.source = source_fingerprint(scan_frames(root / "frames").videos, root / "frames")
    return project


@pytest.fixture
def project(made, monkeypatch) -> Project:
    made.use(monkeypatch, "report")
    return made


def show(project, *names):
    files = {
        "tokenizer-log": project.root / "fit.jsonl",
        "metrics": project.root / "metrics.json",
        "params": project.root / "params.yaml",
        **project.paths(),
    }
    out = project.root / "report.html"
    args = ["report", "--tokens", project.root / "tokens", "--out", out]
    for name in names or files:
        args += [f"--{name}", files[name]]
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r".*report\.html: \d+\.\d MB\n", result.output)
    return out.read_text()


def test_everything_that_is_given_is_shown(project):
    page = show(project)
    for part in (
        "33 windows of real video",
        "filled in 9 windows",
        "23.4 <span",
        "5 frames a second",
        "held out: 2.25 at 20",
        "held out: 21.5 at 5",
        "1,234 steps",
        "77 steps",
        "draft steps",
        "decode: {fps: 5}",
        project.tokens.fingerprint,
        project.tokens.tokenizer,
        project.tokens.source,
        project.samples.fingerprint,
    ):
        assert part in page, part
    # Six test videos have tokens, so six rows of three panels, and three more samples.
    assert page.count("<img ") == 6 + 3


def test_every_reject_is_listed_with_its_reason(project):
    page = show(project, "frames")
    assert "Rejected: 3" in page
    assert "<dt>clip &lt;i&gt;</dt><dd>still</dd>" in page
    assert "test/short &lt;b&gt;/short</dt><dd>3 frames, too few for a window</dd>" in page
    assert "notes.txt</dt><dd>no image by its extension</dd>" in page


def test_logs_of_a_tokenizer_that_was_trained_on_are_drawn_in_a_row(project):
    later = project.root / "later.jsonl"
    later.write_text('{"psnr": 9}\n{"step": 3, "psnr": 22.5}\n{"step": 7, "psnr": 23.5}\n')
    logs = (project.root / "fit.jsonl", later)
    drawn = collect(project.root / "tokens", tokenizer_logs=logs).tokenizer_log
    assert [(line["step"], line["psnr"]) for line in drawn] == [(5, 21.5), (8, 22.5), (12, 23.5)]
    out = project.root / "two.html"
    args = ["report", "--tokens", project.root / "tokens", "--out", out]
    args += [part for log in logs for part in ("--tokenizer-log", log)]
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    assert "held out: 23.5 at 12" in out.read_text()


def test_parameters_are_those_of_the_model(project):
    model = load_model(project.paths()["run"] / "model.safetensors")
    assert f"<dd>{sum(p.numel() for p in model.parameters()):,}</dd>" in show(project, "run")


@pytest.mark.parametrize("name", ["frames", "samples", "run", "tokenizer", "metrics", "params"])
def test_each_artefact_may_come_alone(project, name):
    assert "windows of real video" in show(project, name)


def test_the_same_artefacts_give_the_same_page(project):
    assert show(project) == show(project)


def test_tokens_that_were_imported_can_be_reported(project, monkeypatch):
    for key in ("tokenizer", "frames", "stride", "size"):
        monkeypatch.setattr(project.tokens, key, None)
    assert "33 windows of video came as 32 tokens each." in show(project, "run")
    with pytest.raises(
        TokenStoreError, match="was imported: which tokenizer made its tokens is not known"
    ):
        collect(project.root / "tokens", tokenizer=project.paths()["tokenizer"])


def test_another_tokenizer_is_refused(project, tmp_path):
    model = VQGAN(load_tokenizer(project.paths()["tokenizer"]).config)
    save_tokenizer(tmp_path / "other.safetensors", model)
    with pytest.raises(TokenStoreError, match="Give the tokenizer that made the tokens"):
        collect(project.root / "tokens", tokenizer=tmp_path / "other.safetensors")


def test_samples_of_another_tokenizer_are_refused(project, monkeypatch):
    monkeypatch.setattr(project.samples, "tokenizer", "ee" * 32)
    with pytest.raises(TokenStoreError, match=r"has tokens of tokenizer eeee"):
        collect(project.root / "tokens", samples=project.root / "samples")


@pytest.mark.parametrize("what", ["tokens", "tokenizer", "model", "samples"])
def test_numbers_of_something_else_are_refused(project, tmp_path, what):
    paths = project.paths()
    given = {name: paths[name] for name in ("samples", "run", "tokenizer")}
    identities = {
        "tokens": project.tokens.fingerprint,
        "tokenizer": project.tokens.tokenizer,
        "model": weights_identity(paths["run"] / "model.safetensors"),
        "samples": project.samples.fingerprint,
    }
    metrics = tmp_path / "metrics.json"
    evaluation = {"metrics": {}, "protocol": {"identities": identities}}
    write_json(metrics, evaluation)
    collect(project.root / "tokens", metrics=metrics, **given)
    identities[what] = "0" * 64
    write_json(metrics, evaluation)
    with pytest.raises(PipelineError, match=f"was measured with {what} 000.*, but the {what} give"):
        collect(project.root / "tokens", metrics=metrics, **given)


COPYING = {"flagged": False, "distances": {"samples": [0.5], "real": [1]}, "pairs": []}
COUNTED = {**COPYING, "near_copies": {"samples": 0, "real": 0}}
PAIR = {"sample": 5, "row": 3, "shift": 1, "distance": 0.25, "video": "v", "first_frame": 9}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": {"x": "text"}}, "metrics.x: expected float, got 'text'"),
        ({"metrics": {"x": float("inf")}}, "metrics.x: must be a finite number"),
        ({"metrics": None}, "metrics: expected dict"),
        ({"protocol": {"identities": 5}}, "protocol.identities: expected dict"),
        ({"not_computed": {"fvd": 3}}, "not_computed.fvd: expected str"),
        ({"not_computed": []}, "not_computed: expected dict"),
        ({"\x1b[31m": 1}, r"unknown key '\x1b[31m'"),
        ({"copying": COPYING}, "'near_copies' is missing"),
        ({"copying": {**COPYING, "flagged": None}}, "why copying was not judged is missing"),
        ({"copying": {**COPYING, "pairs": [{"row": 1}]}}, "pairs[0]: 'sample' is missing"),
        ({"copying": {**COPYING, "distances": {"samples": [], "real": []}}}, "there are none"),
        ({"copying": {**COPYING, "distances": {"samples": [2], "real": [1]}}}, "must be in 0 … 1"),
        ({"copying": {**COUNTED, "pairs": [PAIR] * 7}}, "there are 7 pairs, more than 6"),
        ({"metrics": {"psnr": 1e300}}, "a metric is larger than 1e+12"),
    ],
)
def test_numbers_that_evaluate_does_not_write_are_one_clear_line(project, tmp_path, change, said):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"metrics": {"psnr": 1}, "protocol": {}, **change}))
    words = ("--tokens", project.root / "tokens", "--metrics", metrics, "--out", tmp_path / "x")
    result = CliRunner().invoke(cli, ["report", *map(str, words)])
    assert result.exit_code == 1, repr(result.exception)
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {metrics} is not what `mebt evaluate` writes: ")
    assert said in line
    assert not (tmp_path / "x").exists()


def test_new_videos_stand_beside_the_training_windows_that_they_are_nearest_to(project, tmp_path):
    given = {name: project.paths()[name] for name in ("samples", "tokenizer")}
    place = {"video": "v", "first_frame": 9}
    pairs = [
        {"sample": 5, "row": 3, "shift": 1, "distance": 0.25, **place},
        {"sample": 2, "row": 4, "shift": -1, "distance": 0.5, **place},
    ]
    copying = {"flagged": None, "distances": {"samples": [0.5], "real": [1]}, "pairs": pairs}
    evaluation = {"metrics": {}, "protocol": {}, "not_computed": {"copying_z": "too few"}}
    write_json(tmp_path / "metrics.json", {**evaluation, "copying": copying})
    shown = collect(project.root / "tokens", metrics=tmp_path / "metrics.json", **given).nearest
    assert [pair.distance for pair in shown] == [0.25, 0.5]
    assert shown[0].name == "new video 6; v, frame 9"
    tokenizer = load_tokenizer(given["tokenizer"])

    def decode(store, split, row):
        return to_bytes(tokenizer.decode(torch.from_numpy(store.read(split, row, row + 1))))[0]

    # A latent frame is two of the video's four.
    np.testing.assert_array_equal(shown[0].sample, decode(project.samples, "samples", 5)[2:])
    np.testing.assert_array_equal(shown[0].training, decode(project.tokens, "train", 3)[:2])
    np.testing.assert_array_equal(shown[1].sample, decode(project.samples, "samples", 2)[:2])
    np.testing.assert_array_equal(shown[1].training, decode(project.tokens, "train", 4)[2:])


@pytest.mark.parametrize("wrong", [{"sample": 10**9}, {"row": -1}, {"row": 10**12}, {"shift": 2}])
def test_pairs_of_other_samples_and_tokens_are_refused(project, tmp_path, wrong):
    given = {name: project.paths()[name] for name in ("samples", "tokenizer")}
    copying = {**COUNTED, "pairs": [{**PAIR, **wrong}]}
    write_json(tmp_path / "metrics.json", {"metrics": {}, "protocol": {}, "copying": copying})
    with pytest.raises(PipelineError, match="of the nearest pairs in the metrics are not of these"):
        collect(project.root / "tokens", metrics=tmp_path / "metrics.json", **given)


def test_a_log_loses_only_a_line_that_a_kill_cut_off(project, tmp_path):
    assert [line["step"] for line in read_log(project.root / "run" / "metrics.jsonl")] == [10, 20]
    assert read_log(tmp_path / "missing.jsonl") == []
    broken = tmp_path / "metrics.jsonl"
    broken.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(PipelineError, match="line 2: not a line of a log"):
        read_log(broken)


def test_videos_play_at_the_rate_of_the_samples_unless_another_is_set(project, monkeypatch):
    shown = {name: project.paths()[name] for name in ("samples", "tokenizer")}
    assert collect(project.root / "tokens", **shown).fps == 8
    monkeypatch.setattr(project.tokens, "fps", 30.0)
    monkeypatch.setattr(project.samples, "fps", 12.5)
    assert collect(project.root / "tokens").fps == 30
    assert collect(project.root / "tokens", **shown).fps == 12.5
    params = project.root / "params.yaml"
    assert collect(project.root / "tokens", **shown, params=params).fps == 5


@pytest.fixture
def run(project, tmp_path):
    """A run that drew 20 times while it trained on the project's tokens."""
    model = load_model(project.paths()["run"] / "model.safetensors")
    extra = {"tokenizer": project.tokens.tokenizer}
    save_model(tmp_path / "model.safetensors", model, extra=extra)
    (tokens,) = project.samples.tokens.values()
    write_previews(tmp_path, {100 * step: tokens[:4] for step in range(20)})
    return tmp_path


def test_previews_of_a_few_steps_are_shown_the_first_and_the_last_among_them(project, run):
    (tokens,) = project.samples.tokens.values()
    tokenizer = project.paths()["tokenizer"]
    found = collect(project.root / "tokens", run=run, tokenizer=tokenizer)
    assert list(found.previews) == [0, 300, 500, 800, 1100, 1400, 1600, 1900]
    wanted = to_bytes(load_tokenizer(tokenizer).decode(torch.from_numpy(tokens[:4].astype(int))))
    for clips in found.previews.values():
        np.testing.assert_array_equal(np.stack(clips), wanted)
    assert "<dt>previews</dt><dd>of 20 steps</dd>" in make_report(found)


def test_previews_that_are_missing_or_cannot_be_decoded_are_said(project, run):
    only_tokens = collect(project.root / "tokens", run=run)
    assert not only_tokens.previews
    assert "<dt>previews</dt><dd>of 20 steps</dd>" in make_report(only_tokens)
    remove(run / "previews")
    found = collect(project.root / "tokens", run=run, tokenizer=project.paths()["tokenizer"])
    assert not found.previews
    assert "<dt>previews</dt><dd>none kept</dd>" in make_report(found)


def test_previews_of_another_tokenizer_are_refused(project, run):
    model = load_model(run / "model.safetensors")
    save_model(run / "model.safetensors", model, extra={"tokenizer": "ee" * 32})
    with pytest.raises(TokenStoreError, match=r"has previews of tokenizer eeee"):
        collect(project.root / "tokens", run=run, tokenizer=project.paths()["tokenizer"])
