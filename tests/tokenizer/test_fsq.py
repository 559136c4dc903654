"""Finite scalar quantisation: tokens are all combinations of levels, and behave as a codebook's."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import VQGAN, VQGANConfig, identity, load_tokenizer, save_tokenizer
from tokenizer.fsq import FSQ
from tokenizer.losses import reconstruction_loss

LEVELS = (4, 3, 2)
"""A tuple with even and odd numbers, of 24 tokens."""

many_levels = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


def make_model(levels: tuple[int, ...] = LEVELS) -> VQGAN:
    torch.manual_seed(0)
    sizes = {"codebook_size": math.prod(levels), "embedding_dim": len(levels), "width": 8}
    return VQGAN(VQGANConfig(**sizes, levels=levels, downsample=(2, 4, 4), norm="batch"))


def all_tokens(levels: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(levels)).reshape(-1, 1, 1, 1)


def test_the_first_entry_is_the_lowest_digit() -> None:
    vectors = FSQ((2, 3)).embed(all_tokens((2, 3))).flatten(1)
    assert vectors.tolist() == [[-1, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [1, 1]]


@given(many_levels)
def test_tokens_are_all_combinations_of_evenly_spaced_levels(levels: tuple[int, ...]) -> None:
    vectors = FSQ(levels).embed(all_tokens(levels)).flatten(1)
    expected = list(itertools.product(*(torch.linspace(-1, 1, n).tolist() for n in levels)))
    torch.testing.assert_close(vectors.sort(0).values, torch.tensor(expected).sort(0).values)
    assert len(vectors.unique(dim=0)) == math.prod(levels)


@given(many_levels)
def test_each_token_is_found_again_from_its_vector(levels: tuple[int, ...]) -> None:
    fsq, tokens = FSQ(levels), all_tokens(levels)
    features = torch.atanh(fsq.embed(tokens).clamp(-0.999, 0.999))
    assert torch.equal(fsq.nearest(features.flatten(1)), tokens.flatten())
    assert torch.equal(fsq(features).tokens, tokens)


@given(many_levels, st.integers(0, 2**32))
def test_the_nearest_levels_are_chosen_and_mirror_images_have_mirrored_ones(
    levels: tuple[int, ...], seed: int
) -> None:
    fsq = FSQ(levels)
    rows = 2 * torch.randn(40, len(levels), generator=torch.Generator().manual_seed(seed))
    found = fsq.embed(fsq.nearest(rows)[:, None, None, None]).flatten(1)
    distances = torch.cdist(torch.tanh(rows), fsq.embed(all_tokens(levels)).flatten(1))
    torch.testing.assert_close(
        (torch.tanh(rows) - found).norm(dim=1), distances.amin(1), atol=1e-3, rtol=0
    )
    mirrored = fsq.embed(fsq.nearest(-rows)[:, None, None, None]).flatten(1)
    torch.testing.assert_close(mirrored, -found)


def test_gradients_pass_straight_through_to_the_tanh(generator: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, 2, generator=generator, requires_grad=True)
    weights = torch.randn(features.shape, generator=generator)
    made = FSQ(LEVELS)(features)
    (made.embeddings * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights * (1 - torch.tanh(features.detach()) ** 2))
    torch.testing.assert_close(made.embeddings, FSQ(LEVELS).embed(made.tokens))
    assert float(made.commitment_loss) == 0


def test_perplexity_counts_the_tokens_in_use() -> None:
    features = torch.tensor([-9.0, 9.0, -9.0, 9.0]).reshape(1, 1, 4, 1, 1).expand(-1, 3, -1, -1, -1)
    assert float(FSQ(LEVELS)(features).perplexity) == pytest.approx(2)


def test_levels_are_chosen_in_float32_whatever_the_convolutions_compute_in() -> None:
    fsq, rows = FSQ((256, 255)), torch.linspace(-2, 2, 5000).expand(2, -1).T
    exact = fsq.nearest(rows)
    assert len(exact.unique()) > 240
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq.nearest(rows), exact)


@pytest.mark.slow
def test_a_tokenizer_of_levels_has_a_gradient_everywhere_and_learns_one_clip() -> None:
    model = make_model().train()
    rows = torch.linspace(-0.4, 0.4, 8)
    video = (rows[:, None] * rows[None, :] * 2).expand(1, 3, 4, 8, 8) + rows[::2, None, None] / 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = reconstruction_loss(model(video, restart_threshold=0.5).reconstruction, video)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert model.encoder.stem.weight.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert math.fsum(losses[-5:]) < 0.4 * math.fsum(losses[:5])


def test_a_tokenizer_of_levels_comes_back_and_its_levels_are_part_of_its_identity(
    tmp_path: Path,
) -> None:
    model = make_model().eval()
    save_tokenizer(tmp_path / "t", model)
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.config == model.config
    assert identity(loaded) == identity(model)
    video = torch.rand(1, 3, 4, 8, 8) - 0.5
    tokens = model.encode(video)
    assert torch.equal(loaded.encode(video), tokens)
    assert torch.equal(loaded.decode(tokens), model.decode(tokens))
    other = make_model((3, 4, 2)).eval()
    other.load_state_dict(model.state_dict())
    assert identity(other) != identity(model)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((8, 8, 8, 5), r"make 2560 vectors of 4 entries: set codebook_size to 2560 and embedding_"),
        ((4, 3, 2, 1), r"levels must be up to 31 whole numbers 2 … 65536, got \[4, 3, 2, 1\]"),
        ((4, 3, 2.0), "up to 31 whole numbers"),
        ((4, True, 2), "up to 31 whole numbers"),
        ((2,) * 32, "up to 31 whole numbers"),
        ((1 << 17,), "up to 31 whole numbers"),
        ("ab", "up to 31 whole numbers"),
    ],
)
def test_impossible_levels_are_refused(levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQGANConfig(codebook_size=24, embedding_dim=3, levels=levels)
