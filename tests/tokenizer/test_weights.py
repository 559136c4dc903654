"""The tokenizer's file: the same bytes, the same identity, nothing hostile believed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokenizer import (
    VQGAN,
    VQGANConfig,
    identity,
    load_tokenizer,
    save_tokenizer,
    tokens_identity,
)
from tokenizer import tokenizer_metadata as read_metadata
from tokenizer.weights import as_half


@pytest.fixture
def model() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(
        VQGANConfig(codebook_size=9, embedding_dim=3, width=4, downsample=(2, 2, 2), norm="batch")
    ).eval()


def test_a_tokenizer_comes_back(tmp_path: Path, model: VQGAN) -> None:
    for name in "ab":
        save_tokenizer(tmp_path / name, model, extra={"steps": "5", "z": "", "a": ""})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_tokenizer(tmp_path / "a")
    assert identity(loaded) == identity(model)
    assert read_metadata(tmp_path / "a")["steps"] == "5"
    video = torch.rand(1, 3, 4, 8, 8) - 0.5
    assert torch.equal(loaded.encode(video), model.encode(video))


def test_a_decoder_with_a_norm_of_its_own_comes_back(tmp_path: Path, model: VQGAN) -> None:
    other = VQGAN(replace(model.config, decoder_norm="layer")).eval()
    save_tokenizer(tmp_path / "t", other)
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.config == other.config
    assert identity(loaded) == identity(other)
    tokens = torch.randint(9, (1, 2, 4, 4))
    assert torch.equal(loaded.decode(tokens), other.decode(tokens))


def test_a_tokenizer_remembers_whose_tokens_it_keeps(tmp_path: Path, model: VQGAN) -> None:
    assert tokens_identity(model) == identity(model)
    model.tokens_of = "5e" * 32
    save_tokenizer(tmp_path / "t", model)
    loaded = load_tokenizer(tmp_path / "t")
    assert (identity(loaded), tokens_identity(loaded)) == (identity(model), "5e" * 32)
    for hostile in ("", "5E" * 32, "5e" * 32 + "\n"):
        model.tokens_of = None
        save_tokenizer(tmp_path / "t", model, extra={"tokens_of": hostile})
        with pytest.raises(ValueError, match=r"has tokens_of '.*', which is not a SHA-256\.$"):
            load_tokenizer(tmp_path / "t")


def test_what_came_later_changes_no_identity_while_it_is_off(tmp_path: Path, model: VQGAN) -> None:
    """The identity is that of the first version, which hashed no other fields."""
    with torch.no_grad():
        for values in model.state_dict().values():
            values.copy_(torch.arange(values.numel()).reshape(values.shape) % 7)
    assert identity(model).startswith("cc6faadc9df3ba94")
    save_tokenizer(tmp_path / "t", model)
    assert json.loads(read_metadata(tmp_path / "t")["config"]) == {
        **{"codebook_size": 9, "embedding_dim": 3, "width": 4, "downsample": [2, 2, 2]},
        **{"norm": "batch", "padding": "replicate", "in_channels": 3},
    }


def test_any_changed_number_is_another_identity(model: VQGAN) -> None:
    before = identity(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert identity(model) != before


def test_half_is_half_the_bytes_and_survives_large_variances(tmp_path: Path, model: VQGAN) -> None:
    name = next(name for name, _ in model.named_buffers() if name.endswith("running_var"))
    model.get_buffer(name)[0] = 1e6  # Beyond float16.
    save_tokenizer(tmp_path / "whole", model)
    save_tokenizer(tmp_path / "half", model, half=True)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    loaded = load_tokenizer(tmp_path / "half")
    assert float(loaded.get_buffer(name)[0]) == 1e6
    assert identity(load_tokenizer(tmp_path / "half")) == identity(loaded) != identity(model)
    before = identity(model)
    assert identity(as_half(model)) == identity(loaded)
    assert identity(model) == before


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, model: VQGAN) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="not finite; not saved"):
        save_tokenizer(tmp_path / "t", model)
    assert not (tmp_path / "t").exists()


def test_files_that_do_not_fit_are_refused(tmp_path: Path, model: VQGAN) -> None:
    path = tmp_path / "t.safetensors"
    save_tokenizer(path, model)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    name = sorted(tensors)[0]

    def refuses(changed: dict, message: str, header: dict = header) -> None:
        save_file(changed, path, header)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(path)

    refuses({k: v for k, v in tensors.items() if k != name}, f"lacks tensor '{name}'")
    refuses({**tensors, "virus": torch.zeros(1)}, "unknown tensor 'virus'")
    refuses({**tensors, name: torch.zeros(1, 2, 3)}, "has shape")
    refuses({**tensors, name: tensors[name] * torch.nan}, "not finite")
    refuses(tensors, "has format None", {})
    refuses(tensors, "has format 'mebt-tokenizer-9'", {"mebt": '{"format": "mebt-tokenizer-9"}'})
    refuses(tensors, "no usable config", {"mebt": '{"format": "mebt-tokenizer-1"}'})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable"):
        load_tokenizer(path)


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path, model: VQGAN) -> None:
    path = tmp_path / "t.safetensors"
    save_tokenizer(path, model, extra={"steps": "5"})
    data = path.read_bytes()
    steps = data.index(b'\\"steps\\": \\"5') + len(b'\\"steps\\": \\"')
    path.write_bytes(data[:steps] + b"4" + data[steps + 1 :])
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged: its header is not"):
        read_metadata(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert read_metadata(path)["steps"] == "5"
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged: its tensors are not"):
        load_tokenizer(path)
