"""The golden checks hold for cases of any size: here of primes, written by the slow sampler."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from mebt import MeBT, MeBTConfig, SampleConfig
from tests.golden_checks.sampling import check_pieces, check_runs
from tests.helpers.foreign_files import mebt_state, vqgan_model
from tests.helpers.slow_sampler import How, Ids, SlowSampler

GRID, K, BATCH = (3, 5, 7), 11, 2
FRAME, COUNT = 5 * 7, 3 * 5 * 7
MODES = {"latent_enc": "encode", "latent_self": "process", "latent_dec": "decode"}
HPARAMS = {
    **{"shape": list(GRID), "vocab": K, "n_embd": 12, "n_head": 2, "n_layer": 3},
    **{"mode": list(MODES), "sos_emb": 5, "block_size": COUNT},
}
GIBBS = {"draft_t": 0.9, "revise_t": 0.7}
CONTEXT = "all but last frame"
RUNS: dict[str, dict[str, Any]] = {
    "sample_noise": {"n_steps": 5, "temperature": 0.9, "top_k": 4, "context_temperature": 4.5},
    "sample_random_order": {"n_steps": 3, "context_temperature": 0.0, "strategy": "random"},
    "edit_true": {"n_steps": 4, "context_temperature": 2.0, "edit": True},
    "edit_false_with_context": {"n_steps": 7, "context_temperature": 0.0, "edit": False},
    "dnr_noise": {"n_draft": 7, "n_revise": 5, "M": 2, **GIBBS},
    "dnr_context": {"n_draft": 5, "n_revise": 7, "M": 1, **GIBBS, "context": CONTEXT},
    "dnr_edit": {"n_draft": 7, "n_revise": 3, "M": 1, **GIBBS, "context": CONTEXT, "edit": True},
    "revise_only_noise": {"skip_draft": True, "n_revise": 3, "M": 2, "revise_t": 0.7},
    "extrapolate_c8_t28": {"total_length": 28, "step_size": 12, "context_size": 8, "vid_n_steps": 3}
    | {"vid_c_temp": 0.0},
}


class Recorder(SlowSampler):
    """Samples one row slowly, and keeps what a case records: every draw and every call."""

    def __init__(self, model: MeBT, params: dict[str, Any], row: int) -> None:
        config = SampleConfig(
            draft_steps=params.get("n_steps") or params.get("vid_n_steps") or 1,
            temperature=params.get("temperature", 1.0),
            top_k=params.get("top_k"),
            strategy=params.get("strategy", "confidence"),
            confidence_temperature=params.get("context_temperature", 0.0),
            schedule="cosine",
        )
        super().__init__(model, config, row)
        self.draws: list[tuple[str, Tensor]] = []
        self.calls: list[tuple[list[int], list[int], list[int]]] = []
        generator, self.noise = self.noise.generators[0], self  # type: ignore[assignment]
        self.generator: Generator = generator

    def keep(self, kind: str, drawn: Tensor) -> Tensor:
        self.draws.append((kind, drawn))
        return drawn[None]

    def exponential(self, *shape: int) -> Tensor:
        return self.keep("exp", torch.empty(shape).exponential_(generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        return self.keep("randn", torch.randn(shape, generator=self.generator))

    def permutations(self, count: int) -> Tensor:
        return self.keep("randperm", torch.randperm(count, generator=self.generator))

    def logits(self, tokens: list[int], context: list[int], targets: list[int]) -> Tensor:
        self.calls.append((list(tokens), list(context), list(targets)))
        return super().logits(tokens, context, targets)

    def draw_at_random(self, tokens: Ids, context: Ids, targets: Ids, count: int, how: How) -> None:
        """The published step draws a token for every target, and then which targets it fixes."""
        drawn, _ = self.choose(self.logits(tokens, context, targets), **how)
        for position, token in zip(targets, drawn, strict=True):
            tokens[position] = token
        scores = self.noise.normal(len(targets))[0].tolist()
        targets[:] = self.order(scores, targets, heat=0.0)
        context += targets[:count]
        del targets[:count]

    def draft_groups(self, tokens: list[int], kept: list[int], groups: int, heat: float) -> None:
        """Each step draws for all that is open, and keeps a group of it."""
        every = [position for position in range(len(tokens)) if position not in kept]
        order = [every[i] for i in self.permutations(len(every))[0].tolist()]
        size, rest = divmod(len(order), groups)
        assert not rest  # The published code cuts into equal groups only.
        for start in range(0, len(order), size):
            logits = self.logits(tokens, [*kept, *order[:start]], order[start:])
            drawn, _ = self.choose(logits, temperature=heat)
            for position, token in zip(order[start : start + size], drawn[:size], strict=True):
                tokens[position] = token

    def run(self, name: str, params: dict[str, Any], given: list[int]) -> list[int]:
        """Does what the published sampler does under this name."""
        first = list(range(COUNT - FRAME))
        if name.startswith("sample"):
            return self.fill([0] * COUNT, [], whole=True)
        if name.startswith("edit"):
            return self.fill(given, first, whole=not params["edit"])
        if name.startswith("extrapolate"):
            made = list(given)
            while len(made) < 7 * FRAME:  # 28 frames of video; a window of 3 begins with 2.
                window = self.fill([*made[-2 * FRAME :], *[0] * FRAME], first, whole=False)
                made += window[2 * FRAME :]
            return made
        kept = first if "context" in params else []
        tokens = list(given)
        if not params.get("skip_draft"):
            tokens = tokens if kept else [0] * COUNT
            self.draft_groups(tokens, kept, params["n_draft"], params["draft_t"])
        kept = [] if params.get("edit") else kept
        for _ in range(params["M"]):
            every = [p for p in range(COUNT) if p not in kept]
            self.revise(tokens, kept, every, params["n_revise"], params["revise_t"])
        return tokens


def record(name: str, params: dict[str, Any], model: MeBT, given: Tensor) -> dict[str, Tensor]:
    """Returns the tensors of one run, as a case names them."""
    rows = [Recorder(model, params, row) for row in range(BATCH)]
    final = [r.run(name, params, given[i].flatten().tolist()) for i, r in enumerate(rows)]
    io = {f"{name}.final": torch.tensor(final)}
    for kind in ("exp", "randn"):
        drawn = zip(*([d for k, d in row.draws if k == kind] for row in rows), strict=True)
        io |= {f"{name}.{kind}{i}": torch.stack(both) for i, both in enumerate(drawn)}
    orders = [[d for k, d in row.draws if k == "randperm"] for row in rows]
    for i, drawn in enumerate(d for both in zip(*orders, strict=True) for d in both):
        io[f"{name}.randperm{i}"] = drawn
    if not name.startswith("extrapolate"):
        for step, calls in enumerate(zip(*(row.calls for row in rows), strict=True)):
            parts = map(list, zip(*calls, strict=True))
            for part, values in zip(("partial_in", "context", "target"), parts, strict=True):
                io[f"{name}.step{step}.{part}"] = torch.tensor(values, dtype=torch.int64)
    io[f"{name}.calls"] = torch.tensor(len(rows[0].calls))
    return io


@pytest.fixture(scope="module")
def model() -> MeBT:
    torch.manual_seed(0)
    config = MeBTConfig(
        layers=tuple(MODES.values()),
        block="published",
        **{"width": 12, "num_heads": 2, "num_latents": 5, "codebook_size": K, "grid": GRID},
    )
    made = MeBT(config)
    made.initialize(0.5)
    return made.eval().requires_grad_(False)


def write_case(folder: Path, meta: dict[str, Any], io: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    save_file({key: value.contiguous() for key, value in io.items()}, folder / "io.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_runs_of_a_grid_of_primes_are_replayed(name: str, model: MeBT, tmp_path: Path) -> None:
    given = torch.randint(K, (BATCH, *GRID), generator=Generator().manual_seed(1))
    io = {"given_tokens": given, **record(name, RUNS[name], model, given)}
    run = {"name": name, "n_model_calls": int(io[f"{name}.calls"]), "note": None}
    meta = {"hparams": HPARAMS, "batch": BATCH, "runs": [{**run, "params": RUNS[name]}]}
    case = write_case(tmp_path / "case", meta, io)
    state = mebt_state(model, vqgan_model())
    ours = {key: value for key, value in state.items() if not key.startswith("first_stage")}
    save_file(ours, case / "weights.safetensors")
    check_runs(case)
    io[f"{name}.final"].flatten()[-1] += 1  # Of what is made, and nothing that was given.
    save_file({k: v.contiguous() for k, v in io.items()}, case / "io.safetensors")
    with pytest.raises(AssertionError):
        check_runs(case)


def gibbs(kind: str, context: Tensor, targets: Tensor, groups: int, order: Tensor) -> Any:
    """Yields the context and the targets of each group."""
    places = targets.gather(1, order)
    size = targets.shape[1] // groups
    for start in range(0, targets.shape[1], size):
        before, group = places[:, :start], places[:, start : start + size]
        after = places[:, start + size :]
        if kind == "draft":
            yield torch.cat([context, before], 1), places[:, start:]
        else:
            yield torch.cat([context, after, before], 1), group


def order_pieces(generator: Generator) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Which of 23 open positions of 31 are fixed: by score, and by score and noise of heat 3.5."""
    places = torch.stack([torch.randperm(31, generator=generator) for _ in range(BATCH)])
    context, targets = places[:, :8], places[:, 8:]
    scores = torch.rand(BATCH, 23, generator=generator)
    noise = torch.empty(BATCH, 23).exponential_(generator=generator)
    io = {"order.scores": scores, "order.exp_noise": noise}
    io |= {"next.context_indices": context, "next.target_indices": targets}
    by_score = scores.argsort(1, descending=True)
    by_both = (scores.log() - 3.5 * noise.log()).argsort(1, descending=True)
    io |= {"order.ctemp0.0": by_score, "order.ctemp3.5": by_both}
    for key, order, masked in (("n13", by_score, 13), ("noisy3.5_n17", by_both, 17)):
        best = targets.gather(1, order)
        io[f"next.{key}.context"] = torch.cat([context, best[:, : 23 - masked]], 1)
        io[f"next.{key}.target"] = best[:, 23 - masked :]
    cases = [{"t": 0.5, "n_masked": 13}]
    return {"next_mask": {"schedule": "cosine", "cases": cases}}, io


def test_pieces_of_prime_sizes_are_checked(tmp_path: Path) -> None:
    generator = Generator().manual_seed(0)
    meta, io = order_pieces(generator)
    logits = torch.randn(BATCH, 5, K, generator=generator)
    noise = torch.empty(BATCH, 5, K).exponential_(generator=generator)
    kept = logits >= logits.sort(-1, descending=True).values[..., 2:3]
    probs = torch.where(kept, logits.exp(), 0.0)
    probs = probs / probs.sum(-1, keepdim=True)
    tokens = (probs / noise).argmax(-1)
    io |= {"logits": logits, "exp_noise": noise, "choice0.probs": probs, "choice0.tokens": tokens}
    io["choice0.scores"] = probs.gather(-1, tokens[..., None])[..., 0]
    meta |= {"choices": [{"temperature": 1.0, "top_k": 3}], "gibbs": []}
    context, targets = io["next.context_indices"][:, :3], io["next.target_indices"][:, :21]
    # Together the positions 0 … 23, in any order.
    places = torch.cat([context, targets], 1).argsort(1)
    context, targets = places[:, :3], places[:, 3:]
    for kind in ("draft", "revise"):
        key = f"gibbs.p.{kind}"
        meta["gibbs"].append({"tag": "p", "kind": kind, "n_steps": 7})
        order = torch.stack([torch.randperm(21, generator=generator) for _ in range(BATCH)])
        io |= {f"{key}.in_context": context, f"{key}.in_target": targets, f"{key}.randperm": order}
        for step, pair in enumerate(gibbs(kind, context, targets, 7, order)):
            io[f"{key}.step{step}.context"], io[f"{key}.step{step}.target"] = pair
    check_pieces(write_case(tmp_path / "case", meta, io))
    io["next.noisy3.5_n17.target"] = io["next.noisy3.5_n17.target"].flip(1)
    with pytest.raises(AssertionError):
        check_pieces(write_case(tmp_path / "other", meta, io))
