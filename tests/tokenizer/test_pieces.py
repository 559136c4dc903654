"""Long videos decoded in pieces: the frames of the whole, where a tokenizer allows that."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pipeline.pixels import to_bytes
from tests.tokenizer.test_vidtok import SMALL
from tokenizer import VQGAN, VQGANConfig, decode_pieces
from tokenizer.pieces import BEFORE, check_pieces, cut, decoder_reach, num_frames_of, overlap_of
from tokenizer.vidtok import VidTok

K = 11


def make(**fields: object) -> VQGAN:
    torch.manual_seed(0)
    shape = {"codebook_size": K, "embedding_dim": 3, "width": 16, "norm": "batch"}
    model = VQGAN(VQGANConfig(**{**shape, **fields}))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)  # So that far frames have a say that is seen.
    return model.eval()


def tokens_of(latent: int) -> Tensor:
    return torch.randint(K, (2, latent, 1, 1), generator=torch.Generator().manual_seed(1))


DOWNSAMPLES = pytest.mark.parametrize("downsample", [(4, 4, 4), (2, 4, 4), (1, 2, 4), (8, 2, 2)])


@DOWNSAMPLES
def test_frames_depend_on_latent_ones_within_reach_and_no_further(
    downsample: tuple[int, int, int],
) -> None:
    model = make(downsample=downsample)
    reach, rate = decoder_reach(model.config), downsample[0]
    latent = 2 * reach + 4
    changed = tokens_of(latent)
    tokens = changed.clone()
    changed[:, reach + 2] = (changed[:, reach + 2] + 1) % K
    differs = (model.decode(tokens) != model.decode(changed)).any(3).any(3).any(1).any(0)
    moved = differs.nonzero().flatten()
    assert int(moved.min()) >= 2 * rate
    assert int(moved.max()) < (2 * reach + 3) * rate
    spare = (int(moved.min()) // rate - 2, 2 * reach + 2 - int(moved.max()) // rate)
    assert min(spare) <= 1  # The reach is no more than it need be.


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "most"), [("batch", 14), ("batch", 19), ("layer", 19)])
@DOWNSAMPLES
def test_pieces_without_a_group_norm_are_the_frames_of_the_whole(
    downsample: tuple[int, int, int], norm: str, most: int
) -> None:
    model = make(downsample=downsample, norm=norm)
    most += 2 * decoder_reach(model.config) - 13
    for latent in (most, most + 1, 2 * most + 3):
        tokens = tokens_of(latent)
        parts = list(decode_pieces(model, tokens, most=most))
        assert (len(parts) > 1) == (latent > most)
        torch.testing.assert_close(torch.cat(parts, 2), model.decode(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_pieces_of_a_causal_tokenizer_are_the_pixels_of_the_whole(norm: str) -> None:
    model = make(downsample=(4, 4, 4), norm=norm, causal=True)
    tokens = tokens_of(7)
    parts = list(decode_pieces(model, tokens.to(torch.uint16), most=2))
    assert [part.shape[2] for part in parts] == [5, 8, 8, 4]
    whole = model.decode(tokens)
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-4, rtol=1e-4)
    levels = abs(to_bytes(torch.cat(parts, 2)).astype(int) - to_bytes(whole))
    assert levels.max() <= 1
    assert levels.mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("downsample", [(4, 4, 4), (2, 4, 4), (1, 2, 4)])
def test_a_long_causal_video_is_the_same_in_pieces_of_any_length(
    norm: str, downsample: tuple[int, int, int]
) -> None:
    # In float64: group norms magnify the rounding of float32 to 2e-3 of values up to 10.
    model = make(downsample=downsample, norm=norm, causal=True).double()
    latent, rate = 23, downsample[0]
    tokens = tokens_of(latent)
    whole = model.decode(tokens)
    assert whole.shape[2] == 1 + (latent - 1) * rate
    for most in (1, 2, 5, 9, 22, 23, 40):
        parts = list(decode_pieces(model, tokens, most=most))
        lengths = [min(most, latent - first) * rate for first in range(0, latent, most)]
        assert [part.shape[2] for part in parts] == [lengths[0] - rate + 1, *lengths[1:]]
        torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-10, rtol=0)


def test_pieces_of_a_group_norm_differ_little() -> None:
    model = make(downsample=(4, 4, 4), norm="group")
    tokens = tokens_of(60)
    parts = torch.cat(list(decode_pieces(model, tokens, most=24)), 2)
    whole = model.decode(tokens)
    assert parts.shape == whole.shape
    assert 0 < float((parts - whole).std() / whole.std()) < 0.3


def test_pieces_of_others_tokenizers_are_nearly_the_frames_of_the_whole() -> None:
    torch.manual_seed(0)
    model = VidTok(SMALL).eval()
    tokens = torch.randint(60, (1, 39, 1, 2))
    parts = list(decode_pieces(model, tokens, most=BEFORE + 4))
    whole = model.decode(tokens)
    assert sum(part.shape[2] for part in parts) == num_frames_of(model.config, 39) == 153
    assert len(parts) > 3
    differs = (torch.cat(parts, 2) - whole).abs()
    assert float(differs.mean()) < 1e-3
    assert float((differs > 0.01).float().mean()) < 0.02


@pytest.mark.parametrize("overlap", [(0, 0), (3, 3), (2, 0)])
@pytest.mark.parametrize("total", [1, 8, 9, 23, 40])
def test_pieces_hold_every_latent_frame_once_with_room_around(
    total: int, overlap: tuple[int, int]
) -> None:
    before, behind = overlap
    pieces = cut(total, 8, overlap)
    kept = [latent for piece in pieces for latent in range(piece.first, piece.last)]
    assert kept == list(range(total))
    for piece in pieces:
        assert piece.stop - piece.start <= 8
        assert piece.start == max(0, piece.start) <= max(0, piece.first - before)
        assert piece.stop == total or piece.stop >= piece.last + behind
        if any(overlap):
            assert piece.stop - piece.start == min(8, total)


def test_pieces_without_room_are_refused() -> None:
    config = make(downsample=(4, 4, 4)).config
    least = (2 * decoder_reach(config) + 1) * 4
    check_pieces(config, least)
    with pytest.raises(ValueError, match=f"need at least {least}"):
        check_pieces(config, least - 1)
    assert overlap_of(dataclasses.replace(config, causal=True)) == (0, 0)
    model = make(downsample=(4, 4, 4))
    with pytest.raises(ValueError, match="too short"):
        list(decode_pieces(model, tokens_of(30), most=5))
