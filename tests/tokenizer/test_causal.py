"""The causal tokenizer: nothing depends on what comes later, so pieces are as good as the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer import VQGAN, VQGANConfig
from tokenizer.layers import Past

K, SIZE, LATENT = 13, 16, 4
"""Codes, side of the frames, latent frames of a clip."""

KINDS = pytest.mark.parametrize(
    ("norm", "padding", "downsample"),
    [
        ("batch", "replicate", (4, 8, 8)),
        ("group", "zeros", (2, 4, 8)),
        ("batch", "reflect", (8, 2, 4)),
        ("group", "circular", (1, 4, 4)),
        ("layer", "zeros", (4, 8, 8)),
    ],
)
"""The first is local besides: what is true of causal tokenizers is true of such."""


def make_model(norm: str, padding: str, downsample: tuple[int, int, int]) -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(
        codebook_size=K, embedding_dim=3, width=16, downsample=downsample, norm=norm,
        padding=padding, causal=True, local=padding == "replicate",
    )  # type: ignore[arg-type]  # fmt: skip
    return VQGAN(config).eval()


def made(model: VQGAN) -> tuple[Tensor, Tensor]:
    """Draws a clip and tokens of `LATENT` latent frames."""
    factor, h, w = model.config.downsample
    frames = 1 + (LATENT - 1) * factor
    video = torch.rand(2, 3, frames, SIZE, SIZE) - 0.5
    return video, torch.randint(K, (2, LATENT, SIZE // h, SIZE // w))


@KINDS
def test_a_clip_begins_with_a_frame_by_itself(norm, padding, downsample) -> None:
    model = make_model(norm, padding, downsample)
    factor, h, w = downsample
    for latent in (1, 2, LATENT):
        frames = 1 + (latent - 1) * factor
        grid = (latent, SIZE // h, SIZE // w)
        assert model.config.grid(frames, SIZE, SIZE) == grid
        tokens = model.encode(torch.zeros(1, 3, frames, SIZE, SIZE))
        assert tokens.shape == (1, *grid)
        assert model.decode(tokens).shape == (1, 3, frames, SIZE, SIZE)


@KINDS
def test_a_beginning_is_encoded_and_decoded_as_in_the_whole(norm, padding, downsample) -> None:
    model = make_model(norm, padding, downsample)
    video, tokens = made(model)
    with torch.no_grad():
        features, pictures = model.features(video), model.decode(tokens)
        for latent in range(1, LATENT + 1):
            frames = 1 + (latent - 1) * downsample[0]
            found = model.features(video[:, :, :frames])
            torch.testing.assert_close(found, features[:, :, :latent], atol=1e-5, rtol=1e-5)
            found = model.decode(tokens[:, :latent])
            torch.testing.assert_close(found, pictures[:, :, :frames], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("training", [False, True])
def test_each_latent_frame_depends_on_its_own_frames_and_those_before(
    norm, padding, downsample, training: bool
) -> None:
    """By gradients, so exactly; batch norm mixes all frames in training alone."""
    model = make_model(norm, padding, downsample).train(training and norm == "group")
    video, tokens = made(model)
    embeddings = model.codebook.embed(tokens).requires_grad_()
    video.requires_grad_()
    for latent in range(LATENT):
        first = 0 if latent == 0 else 1 + (latent - 1) * downsample[0]
        last = latent * downsample[0]
        (grad,) = torch.autograd.grad(model.features(video)[:, :, latent].sum(), video)
        seen = grad.abs().amax((0, 1, 3, 4)) > 0
        assert seen[first : last + 1].all() and not seen[last + 1 :].any()
        pictures = model.decoder(model.from_embedding(embeddings))
        for frame in (first, last):
            (grad,) = torch.autograd.grad(
                pictures[:, :, frame].sum(), embeddings, retain_graph=True
            )
            seen = grad.abs().amax((0, 1, 3, 4)) > 0
            assert seen[latent] and not seen[latent + 1 :].any()


@KINDS
@pytest.mark.parametrize("first", [1, 3])
def test_pieces_are_encoded_and_decoded_as_the_whole(norm, padding, downsample, first: int) -> None:
    model = make_model(norm, padding, downsample)
    video, tokens = made(model)
    factor = downsample[0]
    start = 1 + (first - 1) * factor
    pieces = [video[:, :, :start], *video[:, :, start:].split(factor, dim=2)]
    grids = [tokens[:, :first], *tokens[:, first:].split(1, dim=1)]
    with torch.no_grad():
        past: Past = {}
        found = torch.cat([model.features(piece, past) for piece in pieces], dim=2)
        torch.testing.assert_close(found, model.features(video), atol=1e-5, rtol=1e-5)
        past = {}
        pictures = torch.cat([model.decode(grid, past) for grid in grids], dim=2)
        torch.testing.assert_close(pictures, model.decode(tokens), atol=1e-5, rtol=1e-5)
        past = {}
        pieced = torch.cat([model.encode(piece, past) for piece in pieces], dim=1)
        assert torch.equal(pieced, model.encode(video))
    for kept in past.values():  # Of the pieces themselves nothing is held.
        assert kept.untyped_storage().nbytes() == 4 * kept.numel()
        assert kept.shape[2] <= 3


@pytest.mark.parametrize(
    ("frames", "past", "message"),
    [
        (16, None, "a clip of 16 frames does not divide into tokens of 4; use 1 . a multiple of 4"),
        (5, {torch.nn.Identity(): torch.zeros(1)}, "clip of 5 frames .* use a multiple of 4"),
        (0, None, "a clip of 0 frames does not divide"),
    ],
)
def test_other_lengths_are_refused(frames: int, past: Past | None, message: str) -> None:
    model = make_model("batch", "replicate", (4, 8, 8))
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(1, 3, frames, SIZE, SIZE), past)


def test_a_tokenizer_that_looks_ahead_takes_no_pieces() -> None:
    model = VQGAN(VQGANConfig(codebook_size=K, embedding_dim=3, width=4, norm="batch"))
    for refuses, given in (
        (model.encode, torch.zeros(1, 3, 4, 16, 16)),
        (model.decode, torch.zeros(1, 1, 2, 2, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="only a causal tokenizer takes a video in pieces"):
            refuses(given, {})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["causal", "local"])
@pytest.mark.parametrize("value", [1, "yes", None])
def test_causal_and_local_are_true_or_false(name: str, value: Any) -> None:
    fields = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be true or false"):
        VQGANConfig(**fields)


def test_weights_of_both_kinds_are_of_the_same_shapes() -> None:
    """So `causal` is told by the config alone, and is part of the identity."""
    causal = make_model("group", "replicate", (4, 8, 8))
    fields = {**vars(causal.config), "causal": False}
    other = VQGAN(VQGANConfig(**fields))
    other.load_state_dict(causal.state_dict())
    assert causal.config.recorded() == {**other.config.recorded(), "causal": True}


def test_every_parameter_of_a_causal_tokenizer_gets_a_gradient() -> None:
    model = make_model("batch", "replicate", (4, 8, 8)).train()
    video, _ = made(model)
    out = model(video)
    ((out.reconstruction - video).abs().mean() + out.commitment_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
