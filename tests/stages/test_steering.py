"""Conditions through the commands: training, samples that are asked for something, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from mebt import Conditions, load_model
from mebt.weights import read_config
from pipeline.store.reader import TokenStore
from stages import previews
from stages.conditions import StoreConditions
from stages.mebt_task import TrainConfig, begin_with, dropped_rows
from tests.helpers.steered import LABELS, Steered, label_of, make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    """A trained run; only read it."""
    flow = Steered(tmp_path_factory.mktemp("steered"))
    said = flow.train("run")
    assert (
        "train: conditioned on label (3 names, not known of 3 of 24 windows), speed (4 numbers a "
        "latent frame, not known of 1 of 24 windows), key (4 kinds a latent frame)"
    ) in said
    flow.train("plain", conditions="[]")
    return flow


@pytest.fixture
def flow(made: Steered, tmp_path: Path) -> Steered:
    shutil.copytree(made.root, tmp_path / "steered")
    copied = Steered.__new__(Steered)
    copied.root = tmp_path / "steered"
    return copied


def write_states(path: Path, frames: int = 6, videos: int = 1, **values: str) -> Path:
    columns = {"speed.0": "0.5", "speed.1": "2", "key": "1", **values}
    lines = [",".join(["video", "frame", *columns])]
    for video in range(videos):
        lines += [f"v{video},{frame},{','.join(columns.values())}" for frame in range(frames)]
    if videos == 1:  # A single one needs no name.
        lines = [line.partition(",")[2] for line in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Training.


@pytest.mark.slow
def test_a_model_knows_names_widths_and_deviations(made: Steered) -> None:
    config = read_config(made.root / "run" / "model.safetensors")
    assert config.labels == LABELS
    speed, key = config.states
    assert (speed.name, speed.width, speed.frames, key.name, key.kinds) == ("speed", 2, 2, "key", 4)
    store = TokenStore(made.root / "tokens")
    values = np.concatenate(
        [StoreConditions(store, "train", config).reader.read(range(24)).states["speed"]]
    )
    np.testing.assert_allclose(speed.mean, np.nanmean(values, (0, 1)), rtol=1e-5)
    np.testing.assert_allclose(speed.std, np.nanstd(values, (0, 1)), rtol=1e-5)


def test_conditions_of_rows_are_what_the_store_says(made: Steered) -> None:
    config = read_config(made.root / "run" / "model.safetensors")
    rows = [20, 3, 6, 9]
    found = StoreConditions(TokenStore(made.root / "tokens"), "train", config).read(rows)
    names = [config.labels[place] if place >= 0 else None for place in found.labels.tolist()]
    assert names == [label_of(row) for row in rows]
    assert found.states.shape == (4, 3, 4 + 8)
    kinds = found.states[:, :, 4:].reshape(4, 3, 2, 4)
    assert torch.equal(kinds.sum(3), torch.ones(4, 3, 2))
    tokens = torch.from_numpy(TokenStore(made.root / "tokens").read("train")[rows])
    assert torch.equal(kinds[:, :, 0].argmax(2), tokens[:, :, 0, 0] % 4)


def test_dropout_is_of_whole_windows_and_of_seed_and_step_alone() -> None:
    config = TrainConfig(batch_size=1000, condition_dropout=0.3)
    dropped = dropped_rows(config, step=5)
    assert torch.equal(dropped, dropped_rows(config, step=5))
    assert 0.25 < dropped.float().mean() < 0.35
    assert not torch.equal(dropped, dropped_rows(config, step=6))
    assert dropped_rows(TrainConfig(batch_size=8, condition_dropout=1.0), 0).all()


@pytest.mark.slow
def test_a_stopped_run_ends_bit_for_bit_the_same(flow: Steered) -> None:
    flow.train("stopped", "--set", "train.max_steps=3", "--set", "train.accumulate=2")
    flow.train("stopped", "--set", "train.max_steps=6", "--set", "train.accumulate=2")
    flow.train("whole", "--set", "train.accumulate=2")
    whole, stopped = (flow.root / run / "model.safetensors" for run in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()
    # What is dropped acts.
    flow.train("bare", "--set", "train.accumulate=2", "--set", "train.condition_dropout=1")
    bare = load_model(flow.root / "bare" / "model.safetensors")
    assert not torch.equal(bare.latents, load_model(whole).latents)


@pytest.mark.slow
def test_the_log_says_what_held_out_windows_cost_without_conditions(made: Steered) -> None:
    lines = (made.root / "run" / "metrics.jsonl").read_text().splitlines()
    (*_, last) = [line for line in map(json.loads, lines) if line.get("val_loss")]
    assert last["val_loss_without/mask_100"] != last["val_loss/mask_100"]
    plain = (made.root / "plain" / "metrics.jsonl").read_text()
    assert "val_loss_without" not in plain


def test_an_unconditional_run_records_nothing_of_conditions(made: Steered) -> None:
    record = json.loads((made.root / "plain" / "run.json").read_text())
    assert "condition_dropout" not in record["config"]
    assert "conditions" not in record["model"]
    conditional = json.loads((made.root / "run" / "run.json").read_text())
    assert conditional["model"]["conditions"] == ["label", "speed", "key:integers"]


@pytest.mark.parametrize(
    ("conditions", "line"),
    [
        ("[camera]", "has no condition 'camera'; it has label, speed, key."),
        ("[speed:integers]", "which counts no kind 0, 1, …; leave out :integers."),
        ("[label,label]", "model: conditions must name different things"),
        ("[a b]", "model: 'a b' is no condition: give label, NAME or NAME:integers"),
    ],
)
def test_conditions_that_the_store_lacks_are_refused(
    made: Steered, tmp_path: Path, conditions: str, line: str
) -> None:
    words = ("--tokens", str(made.root / "tokens"), "--out", str(tmp_path / "run"))
    said = made.refused("train", *words, "--set", f"model.conditions={conditions}")
    assert line in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fine_tuning_needs_the_same_conditions(flow: Steered) -> None:
    words = ("--tokens", str(flow.root / "tokens"), "--out", str(flow.root / "tuned"))
    init = ("--init", str(flow.root / "run" / "model.safetensors"))
    assert "has conditions" in flow.refused("train", *words, *init)
    flow.train("tuned", *init)
    other = ("--set", "model.conditions=[label]")
    assert "has conditions" in flow.refused("train", *words, *init, *other)


@pytest.mark.slow
def test_a_model_that_knows_none_is_taught_conditions(flow: Steered) -> None:
    plain = flow.root / "plain" / "model.safetensors"
    taught = load_model(flow.root / "run" / "model.safetensors")
    begin_with(taught, load_model(plain))
    predict = [load_model(plain), taught.eval()]
    tokens = torch.from_numpy(TokenStore(flow.root / "tokens").read("train")[:2]).flatten(1)
    known = torch.arange(4).expand(2, 4), torch.arange(4, 12).expand(2, 8)
    conditions = Conditions(torch.tensor([0, 2]), torch.randn(2, 3, 12))
    with torch.inference_mode():  # At first they change nothing.
        one = predict[0](tokens[:, :4], *known)
        two = predict[1](tokens[:, :4], *known, conditions=conditions)
    assert torch.equal(one, two)
    words = ["train", *flow.train_words("taught", "--init", str(plain))]
    flow.ok(*words, "--set", "model.conditions=[label,speed,key:integers]")
    learned = load_model(flow.root / "taught" / "model.safetensors").condition_embedding
    assert learned is not None
    assert all(parameter.any() for parameter in learned.parameters())
    # Of a run's optimizer there is no state for them.
    words = ["train", *flow.train_words("other", "--init", str(flow.root / "plain"))]
    assert "has conditions" in flow.refused(*words, "--set", "model.conditions=[label]")


@pytest.mark.slow
def test_what_is_in_other_splits_alone_is_not_known(flow: Steered) -> None:
    shutil.rmtree(flow.root / "tokens")
    store = make_store(flow.root / "tokens", held_out=True)
    said = flow.train("some")
    assert "label (3 names, not known of 3 of 24 windows, never seen there: swim)" in said
    assert "key (4 kinds a latent frame, never seen: 1)" in said
    config = read_config(flow.root / "some" / "model.safetensors")
    assert (config.labels, config.states[1].kinds) == (LABELS, 4)
    found = StoreConditions(store, "test", config, allowed=True)
    assert found.foreign == ["swim"]
    read = found.read([0, 1])
    assert read.labels.tolist() == [-1, 1]
    assert read.states[0, 0].isnan().any()
    words = ("--label", "swim")
    refused = flow.refused("sample", *flow.sample_words("swimming", *words, run="some"))
    assert "does not know the label 'swim'; " in refused
    words = ("--tokens", str(flow.root / "tokens"), "--run", str(flow.root / "some"))
    said = flow.ok("evaluate", *words, "--out", str(flow.root / "metrics.json"))
    assert "model.safetensors knows no label swim" in said


@pytest.mark.slow
def test_a_causal_store_has_one_frame_in_its_first_latent_one(tmp_path: Path) -> None:
    flow = Steered(tmp_path)
    shutil.rmtree(tmp_path / "tokens")
    make_store(tmp_path / "tokens", causal=True)
    flow.train("run")
    config = read_config(tmp_path / "run" / "model.safetensors")
    assert [state.frames for state in config.states] == [2, 2]
    states = write_states(tmp_path / "actions.csv", frames=5)
    flow.sample("moved", "--states", str(states))
    write_states(states, frames=4)
    said = flow.refused("sample", *flow.sample_words("other", "--states", str(states)))
    assert "ends with frame 3, but frames up to 4 are drawn, counted from 0." in said


def test_previews_show_the_first_label_to_the_last(
    made: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(made.root / "run" / "model.safetensors")
    fabric = Fabric(accelerator="cpu", precision="32-true")
    seen: list[Conditions | None] = []

    def drawn(*_: object, conditions: Conditions | None, **__: object) -> torch.Tensor:
        seen.append(conditions)
        return torch.zeros(4, 3, 2, 2, dtype=torch.int64)

    monkeypatch.setattr(previews, "sample_frames", drawn)
    previews.draw(model.config, fabric, model.state_dict())
    (conditions,) = seen
    assert conditions is not None and conditions.labels is not None
    assert conditions.labels.tolist() == [0, 1, 1, 2]
    plain = load_model(made.root / "plain" / "model.safetensors")
    previews.draw(plain.config, fabric, plain.state_dict())
    assert seen[1] is None


# Samples.


def test_labels_are_dealt_out_in_turn_and_kept_with_the_samples(flow: Steered) -> None:
    said = flow.sample("two", "--label", "run", "--label", "sit")
    assert "asked for label run, sit; left open: speed, key" in said
    store = TokenStore(flow.root / "two")
    assert store.plan("sample")["label"].to_pylist() == ["run", "sit"] * 3
    flow.sample("one", "--label", "run")
    flow.sample("none")
    one, two, none = (flow.tokens(name) for name in ("one", "two", "none"))
    assert np.array_equal(one[::2], two[::2])
    assert not np.array_equal(one[1::2], two[1::2])
    assert not np.array_equal(one, none)
    assert TokenStore(flow.root / "none").label_names == []
    assert "conditions" not in TokenStore(flow.root / "none").info.extra


def test_samples_do_not_depend_on_their_batch(flow: Steered) -> None:
    states = str(write_states(flow.root / "actions.csv", videos=2))
    asked = ("--label", "run", "--states", states, "--set", "sample.guidance=[3,1.5]")
    flow.sample("whole", *asked)
    flow.sample("other", *asked, "--set", "sample.batch_size=1")
    assert np.array_equal(flow.tokens("whole"), flow.tokens("other"))
    flow.sample("weak", *asked[:4])
    assert not np.array_equal(flow.tokens("whole"), flow.tokens("weak"))


def test_samples_are_asked_for_what_real_windows_have(flow: Steered) -> None:
    like = ("--conditions-of", str(flow.root / "tokens"), "--split", "test")
    said = flow.sample("like", *like)
    assert "left open" not in said
    assert "not known" not in said
    said = flow.sample("longer", *like, "--set", "sample.total_frames=10")
    assert "split test; left open: states behind their windows" in said
    store = TokenStore(flow.root / "like")
    assert store.plan("sample")["label"].to_pylist() == [label_of(row) for row in range(6)]
    flow.sample("free")
    assert not np.array_equal(flow.tokens("like"), flow.tokens("free"))


def test_long_samples_follow_the_states_of_all_their_frames(flow: Steered) -> None:
    states = write_states(flow.root / "actions.csv", frames=9)
    longer = ("--set", "sample.total_frames=10", "--states", str(states))
    said = flow.refused("sample", *flow.sample_words("long", *longer))
    assert "actions.csv ends with frame 8, but frames up to 9 are drawn, counted from 0." in said
    write_states(states, frames=12)
    flow.sample("long", *longer)
    assert flow.tokens("long").shape == (6, 5, 2, 2)


def test_samples_are_not_mixed_with_those_asked_for_something_else(flow: Steered) -> None:
    flow.sample("samples", "--label", "run")
    assert "nothing to do" in flow.sample("samples", "--label", "run")
    others = {
        "extra.conditions.labels": ["--label", "sit"],
        "extra.conditions = ": [],
        "extra.sample.guidance": ["--label", "run", "--set", "sample.guidance=2"],
    }
    for difference, words in others.items():
        assert difference in flow.refused("sample", *flow.sample_words("samples", *words))


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--label", "runn"], "does not know the label 'runn'; did you mean 'run'? it knows jump,"),
        (["--set", "sample.guidance=2"], "but nothing is asked for: give --label or --states."),
        (["--set", "sample.revise_guidance=0"], "but nothing is asked for"),
        (["--label", "run", "--set", "sample.guidance=-1"], "guidance must be in 0 … 1000, got -1"),
    ],
)
def test_what_nobody_trained_is_refused(made: Steered, asked: list[str], line: str) -> None:
    assert line in made.refused("sample", *made.sample_words("refused", *asked))
    assert not (made.root / "refused").exists()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"camera": "1"}, "has 'camera', which"),
        ({"key": "7"}, "key is 7, but the model knows the whole numbers 0 … 3."),
        ({"speed.2": "1"}, "speed has 3 numbers a frame, but the model knows 2."),
        ({"key": "x"}, "column key must hold numbers"),
    ],
)
def test_states_that_do_not_fit_are_refused(
    made: Steered, tmp_path: Path, values: dict[str, str], line: str
) -> None:
    states = write_states(tmp_path / "actions.csv", **values)
    said = made.refused("sample", *made.sample_words("refused", "--states", str(states)))
    assert line in said
    assert not (made.root / "refused").exists()


def test_states_that_say_nothing_are_refused_and_gaps_are_counted(
    made: Steered, tmp_path: Path
) -> None:
    def asked(lines: str) -> list[str]:
        path = tmp_path / "actions.csv"
        path.write_text(lines, encoding="utf-8")
        return made.sample_words(f"asked-{len(lines)}", "--states", str(path))

    rows = [f"{frame},0.5,2,1\n" for frame in range(6)]
    head = "frame,speed.0,speed.1,key\n"
    nothing = "actions.csv says nothing of speed in what is drawn of its video 0, counted from 0"
    for lines in (
        [f"{frame},,,1\n" for frame in range(6)],
        [f"{frame},0.5,,1\n" for frame in range(6)],
        [f"{frame},0.5,2,1\n" for frame in (1, 3, 5)],
    ):
        assert nothing in made.refused("sample", *asked(head + "".join(lines)))
    assert "holds no rows" in made.refused("sample", *asked(head))
    assert "has frame -1; frames are counted from 0." in made.refused(
        "sample", *asked(head + "-1,0,0,1\n" + "".join(rows))
    )
    said = made.ok("sample", *asked(head + "".join([*rows[:2], *rows[3:]])))
    assert "; not known: speed of 6 of 18 latent frames, key of 6 of 18 latent frames; left" in said
    said = made.ok("sample", *asked("frame,key\n" + "".join(f"{frame},1\n" for frame in range(6))))
    assert said.splitlines()[0].endswith("actions.csv; left open: label, speed")


def test_a_run_without_conditions_is_asked_for_none(made: Steered) -> None:
    words = made.sample_words("refused", "--label", "run", run="plain")
    assert "knows no conditions, so none can be asked for; train with" in made.refused(
        "sample", *words
    )


def test_conditions_of_too_few_windows_or_foreign_labels_are_refused(
    made: Steered, tmp_path: Path
) -> None:
    like = ("--conditions-of", str(made.root / "tokens"), "--split", "test")
    words = made.sample_words("refused", *like, "--set", "sample.num_samples=7")
    assert "has 6 windows of test, but sample.num_samples is 7" in made.refused("sample", *words)
    make_store(tmp_path / "foreign", labels=("jump", "run", "swim"))
    like = ("--conditions-of", str(tmp_path / "foreign"), "--split", "test")
    assert "has the label 'swim', which the model does not know; it knows jump, run, sit." in (
        made.refused("sample", *made.sample_words("refused", *like))
    )


@pytest.mark.parametrize(
    "words",
    [["--split", "test"], ["--conditions-of", "TOKENS", "--split", "test", "--label", "run"]],
)
def test_wrong_usage_ends_with_2(made: Steered, words: list[str]) -> None:
    words = [word.replace("TOKENS", str(made.root / "tokens")) for word in words]
    assert made.run("sample", *made.sample_words("refused", *words)).exit_code == 2


def test_held_out_tokens_are_measured_with_what_is_known_of_them(flow: Steered) -> None:
    words = ("--tokens", str(flow.root / "tokens"), "--run", str(flow.root / "run"))
    flow.ok("evaluate", *words, "--out", str(flow.root / "metrics.json"))
    metrics = json.loads((flow.root / "metrics.json").read_text())["metrics"]
    assert np.isfinite(metrics["token_loss_mask_100"])


def test_condition_dropout_is_a_share() -> None:
    with pytest.raises(ValueError, match="condition_dropout must be in"):
        TrainConfig(condition_dropout=1.5)
