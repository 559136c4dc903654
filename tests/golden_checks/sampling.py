"""Choosing, ordering, drafting and revising as the published sampler does, draw by draw."""

from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from mebt.draft_revise import (
    Canvas,
    Logits,
    Predict,
    bootstrap,
    choose_tokens,
    draft,
    draw,
    group_edges,
    rank,
    revise,
    token_probabilities,
)
from mebt.extrapolation import stream_frames
from mebt.kv_cache import CachedPredictor
from mebt.masking import num_masked
from tests.golden_checks.model import load_published
from tests.golden_checks.recipe import load_case

FRAMES_PER_LATENT = 4
"""The published sampler counts in video frames, and has this ratio in its code."""


def draft_groups(
    predict: Predict, canvas: Canvas, *, num_groups: int, temperature: float, noise: "RecordedNoise"
) -> Canvas:
    """Fills the open positions in random order, a group of equal size per step, as published."""
    order = canvas.targets.gather(1, noise.permutations(canvas.targets.shape[1]))
    tokens = canvas.tokens
    for start, stop in group_edges(order.shape[1], num_groups):
        context = torch.cat([canvas.context, order[:, :start]], dim=1)
        logits = predict(tokens.gather(1, context), context, order[:, start:])
        drawn, _ = draw(logits, stop - start, noise, temperature=temperature)
        tokens = tokens.scatter(1, order[:, start:stop], drawn)
    return Canvas(tokens, torch.cat([canvas.context, order], dim=1), order[:, :0])


class RecordedNoise:
    """Gives back the recorded draws in their order; ones where none were stored."""

    def __init__(self, io: dict[str, Tensor], prefix: str, batch: int) -> None:
        self.io, self.prefix, self.batch = io, prefix, batch
        self.used = {"exp": 0, "randn": 0, "randperm": 0}
        self.rest = torch.empty(batch, 0)  # Of noise that is drawn a few rows at a time.

    def _next(self, kind: str) -> Tensor | None:
        found = self.io.get(f"{self.prefix}{kind}{self.used[kind]}")
        self.used[kind] += 1
        return found

    def exponential(self, *shape: int) -> Tensor:
        if f"{self.prefix}exp0" not in self.io:
            return torch.ones(self.batch, *shape)
        if not self.rest.shape[1]:
            found = self._next("exp")
            assert found is not None
            self.rest = found
        noise, self.rest = self.rest[:, : shape[0]], self.rest[:, shape[0] :]
        assert noise.shape == (self.batch, *shape)
        return noise

    def normal(self, *shape: int) -> Tensor:
        noise = self._next("randn")
        assert noise is not None and noise.shape == (self.batch, *shape)
        return noise

    def permutations(self, count: int) -> Tensor:
        if f"{self.prefix}randperm0" not in self.io:
            return torch.arange(count).expand(self.batch, count)
        rows = [self._next("randperm") for _ in range(self.batch)]
        return torch.stack([row for row in rows if row is not None])


class BootstrapNoise(RecordedNoise):
    """The recorded draws of a bootstrap, in our order.

    The published step draws a token for every target, and then which target it fixes. Ours draws
    the position first, and then a token for it alone, from the noise recorded for that position.
    """

    def normal(self, *shape: int) -> Tensor:
        self.all_tokens = self._next("exp")
        scores = super().normal(*shape)
        self.fixed = (scores / scores.sum(1, keepdim=True)).argmax(1)
        return scores

    def exponential(self, *shape: int) -> Tensor:
        if len(shape) == 1:
            return super().exponential(*shape)
        assert self.all_tokens is not None
        noise = self.all_tokens[torch.arange(self.batch), self.fixed][:, None]
        assert noise.shape == (self.batch, *shape)
        return noise


class RandomNoise(RecordedNoise):
    """The recorded draws of a draft at random places, in our order.

    The published step draws a token for every target, and then which targets it fixes. Ours draws
    the places first, and then tokens for them alone, from the noise recorded for those places.
    """

    def permutations(self, count: int) -> Tensor:
        every = self._next("exp")
        scores = self.normal(count)
        self._next("exp")  # Of the order, where it has no effect.
        order = (scores / scores.sum(1, keepdim=True)).argsort(dim=1, descending=True)
        if every is not None:
            self.tokens = every.gather(1, order[..., None].expand_as(every))
        return order

    def exponential(self, *shape: int) -> Tensor:
        if f"{self.prefix}exp0" not in self.io:
            return super().exponential(*shape)
        noise, self.tokens = self.tokens[:, : shape[0]], self.tokens[:, shape[0] :]
        assert noise.shape == (self.batch, *shape)
        return noise


def choose_by_sort(probs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The published choice: like ours where the noise is Exp(1), else ties decide.

    In some runs the recorded "Exp(1)" noise is -1e-9 throughout. Every token that top-k or top-p
    dropped then ties at zero for the best, and the published sort says which comes first.
    """
    if (noise > 0).all():
        return choose_tokens(probs, noise)
    tokens = (probs / noise).sort(dim=-1, descending=True).indices[..., 0]
    return tokens, probs.gather(-1, tokens[..., None])[..., 0]


def check_pieces(case: Path) -> None:
    meta, io = load_case(case)
    for index, choice in enumerate(meta["choices"]):
        settings = {key: choice.get(key) for key in ("top_k", "top_p")}
        probs = token_probabilities(io["logits"], temperature=choice["temperature"], **settings)
        tokens, scores = choose_tokens(probs, io["exp_noise"])
        torch.testing.assert_close(probs, io[f"choice{index}.probs"])
        assert torch.equal(tokens, io[f"choice{index}.tokens"])
        torch.testing.assert_close(scores, io[f"choice{index}.scores"])
    scores, noise = io["order.scores"], io["order.exp_noise"]
    for key in (key for key in io if key.startswith("order.ctemp")):
        order = rank(scores, noise, temperature=float(key.removeprefix("order.ctemp")))
        expected = io[key]
        same_positions = torch.equal(order, expected)
        assert same_positions or torch.equal(io["next.target_indices"].gather(1, order), expected)
    check_next(meta, io, scores, noise)
    for entry in meta["gibbs"]:
        check_groups(entry, io)


def check_next(meta: dict, io: dict[str, Tensor], scores: Tensor, noise: Tensor) -> None:
    """Which positions become context: so many that the schedule's share stays open."""
    context, targets = io["next.context_indices"], io["next.target_indices"]
    total = context.shape[1] + targets.shape[1]
    tokens = torch.zeros(len(context), total, dtype=torch.int64)
    for entry in meta["next_mask"]["cases"]:
        masked = entry["n_masked"]
        key = f"next.t{entry['t']}" if masked is None else f"next.n{masked}"
        if masked is None:
            masked = num_masked(meta["next_mask"]["schedule"], entry["t"], total)
        count = max(0, targets.shape[1] - masked)
        check_fixed(Canvas(tokens, context, targets), scores, noise, 0.0, count, io, key)
    for key in (key for key in io if key.startswith("next.noisy") and key.endswith(".target")):
        heat, masked = key.removeprefix("next.noisy").removesuffix(".target").split("_n")
        canvas, count = Canvas(tokens, context, targets), targets.shape[1] - int(masked)
        check_fixed(canvas, scores, noise, float(heat), count, io, key.removesuffix(".target"))


def check_fixed(
    canvas: Canvas,
    scores: Tensor,
    noise: Tensor,
    heat: float,
    count: int,
    io: dict[str, Tensor],
    key: str,
) -> None:
    found = canvas
    if count:  # A step that fixes nothing is left out altogether.
        found = canvas.fix(canvas.targets, rank(scores, noise, temperature=heat), count)
    assert torch.equal(found.context, io[f"{key}.context"]), key
    assert torch.equal(found.targets, io[f"{key}.target"]), key


class Spy:
    """A model that notes its calls and says nothing of interest."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.noise: RecordedNoise | None = None

    def __call__(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Logits:
        self.calls.append((tokens, context, targets))
        if self.noise:  # A published draft in groups draws for all targets, ours for its group.
            self.noise.rest = self.noise.rest[:, :0]
        return self.predict(tokens, context, targets)


def check_groups(entry: dict, io: dict[str, Tensor]) -> None:
    key = f"gibbs.{entry['tag']}.{entry['kind']}"
    context, targets = io[f"{key}.in_context"], io[f"{key}.in_target"]
    total = context.shape[1] + targets.shape[1]
    canvas = Canvas(torch.zeros(len(context), total, dtype=torch.int64), context, targets)
    spy = Spy(lambda tokens, context, targets: torch.zeros(*targets.shape, 5))
    run = draft_groups if entry["kind"] == "draft" else revise

    class Permutation(RecordedNoise):
        def permutations(self, count: int) -> Tensor:
            return io[f"{key}.randperm"]

    noise = Permutation({}, "", len(context))
    run(spy, canvas, num_groups=entry["n_steps"], temperature=1.0, noise=noise)
    assert len(spy.calls) == entry["n_steps"]
    for step, (_, found_context, found_targets) in enumerate(spy.calls):
        assert torch.equal(found_context, io[f"{key}.step{step}.context"])
        assert torch.equal(found_targets, io[f"{key}.step{step}.target"])


def check_runs(case: Path) -> None:
    meta, io = load_case(case)
    model = load_published(case, meta["hparams"])
    for run in meta["runs"]:
        if "INFORMATIONAL" in (run["note"] or ""):
            continue  # Temperature 0 (an order by ties) and one fault of the published code.
        for predict in (model, CachedPredictor(model)):
            spy = Spy(predict)
            with (
                torch.no_grad(),
                mock.patch("mebt.draft_revise.choose_tokens", choose_by_sort),
                mock.patch("mebt.draft_revise.SAMPLE_CHUNK", 24),
                mock.patch("mebt.model.QUERY_CHUNK", 20),
            ):
                final = replay(spy, run, io, meta)
            assert torch.equal(final.flatten(1), io[f"{run['name']}.final"].flatten(1)), run["name"]
            check_calls(spy, run, io)


def check_calls(spy: Spy, run: dict, io: dict[str, Tensor]) -> None:
    """Our calls are the published ones, less those after which nothing was fixed."""
    assert len(spy.calls) <= run["n_model_calls"], run["name"]
    if f"{run['name']}.step0.context" not in io:
        return  # Nothing was recorded but the final tokens.
    recorded = []
    for step in range(run["n_model_calls"]):
        key = f"{run['name']}.step{step}"
        context = io[f"{key}.context"]
        recorded.append((io[f"{key}.partial_in"].gather(1, context), context, io[f"{key}.target"]))
    drafting = run["name"].startswith(("sample", "edit", "extrapolate", "bidirect"))
    if drafting:  # Such a call is followed by one with the same targets.
        pairs = zip(recorded, [*recorded[1:], None], strict=True)
        recorded = [
            call
            for call, after in pairs
            if after is None
            or after[2].shape[1] != call[2].shape[1]
            or after[1].shape[1] != call[1].shape[1]
        ]
    assert len(spy.calls) == len(recorded), run["name"]
    num_bootstrap = run["params"].get("bootstrap", 0)
    at_random = run["params"].get("strategy") == "random"
    for step, (ours, theirs) in enumerate(zip(spy.calls, recorded, strict=True)):
        if at_random or step < num_bootstrap:  # Targets to fix are put first; they are the same.
            ours, theirs = ((*call[:2], call[2].sort(1).values) for call in (ours, theirs))
        for found, expected in zip(ours, theirs, strict=True):
            assert torch.equal(found, expected), run["name"]


def replay(spy: Spy, run: dict, io: dict[str, Tensor], meta: dict) -> Tensor:
    params, name, batch = run["params"], run["name"], meta["batch"]
    t, h, w = meta["hparams"]["shape"]
    kind = RandomNoise if params.get("strategy") == "random" else RecordedNoise
    noise = spy.noise = kind(io, f"{name}.", batch)
    settings = {
        "num_steps": params.get("n_steps", params.get("vid_n_steps")),
        "noise": noise,
        "schedule": params.get("schedule", "cosine"),
        "strategy": params.get("strategy", "confidence"),
        "temperature": params.get("temperature", 1.0),
        "top_k": params.get("top_k"),
        "top_p": params.get("top_p"),
        "confidence_temperature": params.get("context_temperature", params.get("vid_c_temp", 0.0)),
        "confidence_schedule": params.get("ctemp_schedule", "linear"),
    }
    first = Canvas.empty((batch, t * h * w))
    if f"{name}.step0.target" in io:
        parts = ("partial_in", "context", "target")
        first = Canvas(*(io[f"{name}.step0.{part}"] for part in parts))
    if name.startswith("sample"):
        return draft(spy, first, **settings, unconditional=True).tokens
    if name.startswith("edit"):
        return draft(spy, first, **settings, unconditional=not params["edit"]).tokens
    if name == "bidirect_bootstrap":
        others = BootstrapNoise(io, f"{name}.", batch)
        started = bootstrap(spy, first, num_steps=params["bootstrap"], noise=others)
        noise.used = others.used
        return draft(spy, started, **settings, unconditional=True).tokens
    if name.startswith(("extrapolate", "bidirect")):
        edit = name.startswith("extrapolate")
        start = io["given_tokens"]
        if not edit:
            filled = draft(spy, first, **settings, unconditional=True).tokens
            start = filled.reshape(batch, t, h, w)
        added = stream_frames(
            lambda canvas, _: draft(spy, canvas, **settings, unconditional=not edit),
            start,
            window_frames=params["step_size"] // FRAMES_PER_LATENT,
            context_frames=params["context_size"] // FRAMES_PER_LATENT,
            num_frames=params["total_length"] // FRAMES_PER_LATENT,
        )
        return torch.cat([start, *added], dim=1)
    return replay_groups(spy, run, noise, first, num_kept=(t - 1) * h * w)


def replay_groups(
    spy: Spy, run: dict, noise: RecordedNoise, first: Canvas, *, num_kept: int
) -> Tensor:
    """`num_kept`: positions before the last latent frame, for runs that are given these."""
    params = run["params"]
    count = first.tokens.shape[1]
    kept = torch.arange(num_kept if "context" in params else 0).expand(len(first.tokens), -1)
    start = Canvas.given(first.tokens, kept)
    tokens = start.tokens
    if not params.get("skip_draft"):
        tokens = draft_groups(
            spy,
            start,
            num_groups=params["n_draft"],
            temperature=params["draft_t"],
            noise=noise,
        ).tokens
    if params.get("edit"):  # Published: revision forgets what was given.
        start = Canvas.empty((len(tokens), count))
    for _ in range(params["M"]):
        tokens = revise(
            spy,
            Canvas(tokens, start.context, start.targets),
            num_groups=params["n_revise"],
            temperature=params["revise_t"],
            noise=noise,
        ).tokens
    return tokens


CHECKS = {"sampling pieces": check_pieces, "sampling runs": check_runs}
