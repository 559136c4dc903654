"""`mebt import-config`: every published key has its place, its reason, or is refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.config import as_dict, load_params, load_section
from stages.__main__ import cli
from stages.sample import SampleStageConfig
from tests.helpers.published_yaml import EXPERIMENTS
from tests.test_project import ROOT


def run(source: Path, *more: str) -> Result:
    out = source.with_name("params.yaml")
    return CliRunner().invoke(cli, ["import-config", str(source), "--out", str(out), *more])


def edited(folder: Path, old: str, new: str, name: str = "ucf_16f") -> Path:
    """A published config with one place changed."""
    path = EXPERIMENTS[name].write(folder / "mine.yaml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_published_config_gives_the_shipped_params(tmp_path: Path, name: str) -> None:
    result = run(EXPERIMENTS[name].write(tmp_path / "published.yaml"))
    assert result.exit_code == 0, result.output
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "configs" / f"{name}.yaml")


def test_the_shipped_params_are_those_of_the_paper() -> None:
    """The table of the six experiments, typed in anew."""
    table = {
        "sky_16f": (1.08e-5, 0.01, 6, 0.1, "longest", 1, 0, 32, 8, None, 2, 2, 0.7, 2048, "test"),
        "sky_128f": (1.8e-5, 0.01, 5, 0.1, 30_000, 1, 64, 32, 4, 32, 2, 2, 0.7, 512, "test"),
        "taichi_16f": (3e-5, 1e-4, 32, 0, "longest", 4, 0, 64, 2, None, 2, 8, 0.3, 2048, "test"),
        "taichi_128f": (3e-5, 1e-4, 4, 0, 100_000, 1, 64, 32, 4, 32, 2, 4, 0.1, 512, "test"),
        "ucf_16f": (3e-5, 1e-4, 32, 0, "longest", 1, 0, 128, 6, None, 4, 4, 0.7, 2048, "train"),
        "ucf_128f": (3e-5, 1e-4, 6, 0, 100_000, 1, 64, 32, 2, 32, 32, 2, 0.1, 512, "train"),
    }
    for name, expected in table.items():
        params = load_params(ROOT / "configs" / f"{name}.yaml")
        train, sample = params["train"], params["sample"]
        is_longest = train["length_prior"] == "longest"
        found = (
            *(train["learning_rate"], train["weight_decay"], train["batch_size"]),
            params["model"]["attention_dropout"],
            "longest" if is_longest else train["time_scale"],
            params["tokenize"]["stride"],
            *(sample["bootstrap_steps"], sample["draft_steps"], sample["confidence_temperature"]),
            *(sample["top_k"], sample["revise_groups"], sample["revise_rounds"]),
            *(
                sample["revise_temperature"],
                params["evaluate"]["num_videos"],
                params["evaluate"]["split"],
            ),
        )
        assert found == expected, name
        assert train["max_steps"] == 2_000_000
        runs = params["evaluate"]["runs"]
        assert runs == {16: 10, 128: 5}[params["tokenize"]["frames"]]
        assert sample["num_samples"] == runs * params["evaluate"]["num_videos"]


def test_dropped_keys_are_named_and_paths_become_commands(tmp_path: Path) -> None:
    output = run(EXPERIMENTS["sky_16f"].write(tmp_path / "published.yaml")).output
    for key in ("model.params.n_unmasked", "model.mask.params.iid", "data.smap_cond"):
        assert f"dropped      {key}: " in output
    assert "mebt import-tokenizer ckpts/vqgan_sky_128_488.ckpt --out tokenizer" in output
    assert "mebt tokenize --frames datasets/vqgan_data/stl_128 " in output
    assert "as published for sky, 16 frames" in output


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        (
            "n_head:",
            "n_heads:",
            "unknown key 'model.params.n_heads'; did you mean 'model.params.n_",
        ),
        ("exp:", "exps:", "unknown key 'exps"),
        ("exact_lr: 3e-05", "exact_lr: fast", "exp.exact_lr is 'fast'; it must be of type float"),
        ("exact_lr: 3e-05", "cosine_lr: True", "exp.exact_lr is missing"),
        ("    exact_lr: 3e-05", "    exact_lr: -1", "exp.exact_lr must not be negative, got -1"),
        ("unconditional: True", "unconditional: False", "only unconditional models"),
        ("[0.0, 1.0]", "[0.0, 0.5]", "model.mask.params.t_range is [0.0, 0.5]"),
        ("vtokens: False", "vtokens: True", "mebt tokens import"),
        ("t_prior: longest", "t_prior: gaussian3", "did you mean 'gaussian2'"),
        ("schedule: linear", "schedule: liner", "unknown schedule 'liner'"),
        ("block_size: 1024", "block_size: 1000", "model.params.block_size is 1000"),
        ("shape: [4, 16, 16]", "shape: [5, 16, 16]", "do not divide into a grid of 5x16x16"),
        ("n_layer: 24", "n_layer: 3", "has n_layer 3, but its mode lists 24"),
        ("n_head: 16", "n_head: 7", "width must be a multiple of num_heads"),
        ("- lt2l", "- latent_up", "unknown published layer 'latent_up'"),
        ("batch_size: 32", "batch_size: 0", "mine.yaml: train: batch_size must be at least 1"),
        ("model:", "model: [", "not YAML"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    tmp_path: Path, old: str, new: str, saying: str
) -> None:
    result = run(edited(tmp_path, old, new))
    assert result.exit_code == 1, result.output
    assert saying in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize(
    ("old", "new", "section", "expected"),
    [
        ("avg_loss: True", "avg_loss: 0.5", "train", {"average_loss": 0.5}),
        ("        avg_loss: True\n", "", "train", {"average_loss": 0.0}),
        ("avg_loss: True", "label_smoothing: 0.1", "train", {"label_smoothing": 0.1}),
        ("budget: 1024", "budget: 100", "train", {"budget": 100}),
        ("exp:", "exp:\n    warmup_steps: 7", "train", {"warmup_steps": 7}),
        ("exp:", "exp:\n    cosine_lr: True", "train", {"cosine": True, "stable_share": 0.0}),
        (
            *("exp:", "exp:\n    accumulate_grad_batches: 3", "train"),
            {"accumulate": 3, "batch_size": 96},
        ),
        ("batch_size: 32", "batch_size: 9", "train", {"batch_size": 9}),
        ("sos_emb: 256", "sos_emb: 64", "model", {"num_latents": 64}),
        ("resid_pdrop: 0.0", "resid_pdrop: 0.2", "model", {"residual_dropout": 0.2}),
        ("vocab_size: 16384", "vocab_size: 512", "tokenizer", {"codebook_size": 512}),
        ("resolution: 128", "resolution: 64", "tokenizer", {"downsample": [4, 4, 4]}),
        ("resolution: 128", "resolution: 64", "extract", {"size": 64}),
        ("sample_every_n_frames: 1", "sample_every_n_frames: 2", "tokenize", {"stride": 2}),
    ],
)
def test_every_key_that_is_used_reaches_its_place(
    tmp_path: Path, old: str, new: str, section: str, expected: dict
) -> None:
    result = run(edited(tmp_path, old, new))
    assert result.exit_code == 0, result.output
    found = load_params(tmp_path / "params.yaml")[section]
    assert {key: found[key] for key in expected} == expected


def test_videos_in_place_of_frame_lists_are_extracted_and_return_fewer_frames(
    tmp_path: Path,
) -> None:
    source = edited(tmp_path, "image_folder: True", "image_folder: False", "taichi_16f")
    source.write_text(source.read_text().replace("sequence_length: 16", "sequence_length: 64"))
    output = run(source).output
    assert "mebt extract --videos datasets/vqgan_data/taichi_128 --out frames" in output
    found = load_params(tmp_path / "params.yaml")["tokenize"]
    assert (found["frames"], found["stride"]) == (16, 4)


def test_an_unknown_data_set_gets_our_sampling_unless_one_is_named(tmp_path: Path) -> None:
    source = edited(tmp_path, "ucf_128'", "cats'")
    source.write_text(source.read_text().replace("vqgan_ucf", "vqgan_cats"))
    assert "sampling     our defaults" in run(source).output
    params = tmp_path / "params.yaml"
    ours = as_dict(SampleStageConfig(precision="32-true"))  # As the published code computes.
    assert load_params(params)["sample"] == ours
    assert "--overwrite" in run(source).output
    assert "as published for ucf" in run(source, "--experiment", "ucf", "--overwrite").output
    assert load_section(params, "sample", SampleStageConfig).draft_steps == 128
