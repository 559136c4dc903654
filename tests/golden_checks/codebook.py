"""Moving averages, initialisation and restarts of the published codebook."""

import math
from pathlib import Path

import torch
from torch import Tensor

from tests.golden_checks.recipe import load_case
from tokenizer.codebook import Codebook

PUBLISHED_NAMES = {"embeddings": "embeddings", "N": "counts", "z_avg": "sums"}


def picked_as_recorded(
    rows: Tensor, count: int, permutation: Tensor, noise: Tensor | None
) -> Tensor:
    """What `pick_rows` returns when its draws are the recorded ones."""
    if noise is not None and len(rows) < count:
        rows = rows.repeat(math.ceil(count / len(rows)), 1)
        rows = rows + noise * (0.01 / math.sqrt(rows.shape[1]))
    return rows[permutation][:count]


class Recorded(Codebook):
    """A codebook whose random rows come from the recording, in the order of the draws."""

    def __init__(self, hparams: dict, draws: dict[str, Tensor]) -> None:
        super().__init__(hparams["n_codes"], hparams["embedding_dim"])
        self.draws, self.step, self.call = draws, 0, 0
        self.published_restart = not hparams["no_random_restart"]

    def _pick(
        self, rows: Tensor, generator: torch.Generator | None, weights: Tensor | None = None
    ) -> Tensor:
        prefix = f"step{self.step}."
        permutation = self.draws[f"{prefix}randperm{self.call}"]
        noise = self.draws.get(f"{prefix}tile_noise{self.call}")
        self.call += 1
        return picked_as_recorded(rows, len(self.embeddings), permutation, noise)

    def restart(self, rows: Tensor, *, threshold: float) -> int:
        averages = self.sums.clone(), self.counts.clone()
        replaced = super().restart(rows, threshold=threshold)
        self.sums.copy_(averages[0])  # As published, which leaves these as they were.
        self.counts.copy_(averages[1])
        return replaced


def check_codebook(case: Path) -> None:
    meta, io = load_case(case)
    hparams = meta["hparams"]
    codebook = Recorded(hparams, io)
    for theirs, ours in PUBLISHED_NAMES.items():
        getattr(codebook, ours).copy_(io[f"before.{theirs}"])
    codebook.initialized.fill_(not hparams["need_init"])
    threshold = 0.0 if hparams["no_random_restart"] else hparams["restart_thres"]
    for step in range(len(meta["steps"])):
        codebook.step, codebook.call = step, 0
        features = io[f"step{step}.z"].clone().requires_grad_()
        found = codebook(features, restart_threshold=threshold)
        (3 * found.commitment_loss + (found.embeddings * io[f"step{step}.w"]).sum()).backward()
        prefix = f"step{step}."
        assert torch.equal(found.tokens, io[prefix + "encodings"])
        torch.testing.assert_close(found.embeddings, io[prefix + "embeddings_st"])
        torch.testing.assert_close(found.commitment_loss, io[prefix + "commitment_loss"])
        torch.testing.assert_close(found.perplexity, io[prefix + "perplexity"])
        torch.testing.assert_close(features.grad, io[prefix + "grad_z"])
        for theirs, ours in PUBLISHED_NAMES.items():
            torch.testing.assert_close(getattr(codebook, ours), io[f"{prefix}after.{theirs}"])
    codebook.eval()
    found = codebook(io["eval.z"])
    assert torch.equal(found.tokens, io["eval.encodings"])
    torch.testing.assert_close(found.embeddings, io["eval.embeddings_st"])
    torch.testing.assert_close(found.commitment_loss, io["eval.commitment_loss"])
    torch.testing.assert_close(found.perplexity, io["eval.perplexity"])


CHECKS = {"codebook EMA": check_codebook}
