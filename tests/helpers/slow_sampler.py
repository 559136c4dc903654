"""The sampler as plainly as it can be said: whole probabilities, full sorts, nothing kept.

One window at a time, from the published rules, for comparison with `mebt.sampling`.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from mebt import MeBT, SampleConfig
from mebt.draft_revise import CONFIDENCE_SCHEDULES, RowNoise
from mebt.masking import num_masked
from mebt.sampling import sample_generator

Ids, How = list[int], dict[str, Any]
"""Tokens or positions, and how they are drawn."""


class SlowSampler:
    """Draws one sample. Noise is asked for in the same order, but for all targets at once."""

    def __init__(self, model: MeBT, config: SampleConfig, number: int) -> None:
        self.model, self.config = model, config
        self.noise = RowNoise([sample_generator(config.seed, number)])

    def sample(self, given: Tensor | None = None, *, drafted: bool = False) -> Tensor:
        """Returns [T h w]; `given` [t h w] keeps the latent frames that the config names."""
        t, h, w = self.model.config.grid
        total = self.config.total_frames or t
        length = min(total, t)
        tokens = [0] * (length * h * w)
        kept: Ids = []
        if given is not None:
            tokens = given[:length].flatten().tolist()
            for frame in self.config.keep:
                kept += range(frame * h * w, (frame + 1) * h * w)
        made = self.fill(tokens, kept, whole=given is None, drafted=drafted)
        known, again = self.config.context_frames * h * w, self.config.redraw_frames * h * w
        while len(made) < total * h * w:
            made = made[: len(made) - again]
            window = [*made[-known:], *[0] * (t * h * w - known)]
            made += self.fill(window, list(range(known)), whole=False)[known:]
        return torch.tensor(made[: total * h * w]).reshape(total, h, w)

    def fill(self, tokens: Ids, kept: Ids, *, whole: bool, drafted: bool = False) -> Ids:
        tokens, context = list(tokens), list(kept)
        targets = [position for position in range(len(tokens)) if position not in kept]
        every = list(targets)
        if not drafted:
            for _ in range(min(self.config.bootstrap_steps, len(targets))):
                targets = self.order(self.noise.normal(len(targets))[0].tolist(), targets, heat=0.0)
                logits = self.logits(tokens, context, targets)
                tokens[targets[0]] = self.choose(logits[:1])[0][0]
                context.append(targets.pop(0))
            if self.config.strategy == "remask":
                self.remask(tokens, context, targets)
            else:
                self.draft(tokens, context, targets, len(tokens) if whole else len(targets))
        for _ in range(self.config.revise_rounds):
            groups, temperature = self.config.revise_groups, self.config.revise_temperature
            self.revise(tokens, kept, every, groups, temperature)
        return tokens

    def draft(self, tokens: Ids, context: Ids, targets: Ids, total: int) -> None:
        config = self.config
        for step in range(1, config.draft_steps + 1):
            progress = step / config.draft_steps
            count = len(targets) - num_masked(config.schedule, progress, total)
            if count <= 0:
                continue
            how = {key: getattr(config, key) for key in ("temperature", "top_k", "top_p")}
            if config.strategy == "random":
                self.draw_at_random(tokens, context, targets, count, how)
                continue
            drawn, scores = self.choose(self.logits(tokens, context, targets), **how)
            for position, token in zip(targets, drawn, strict=True):
                tokens[position] = token
            heat = config.confidence_temperature
            heat *= CONFIDENCE_SCHEDULES[config.confidence_schedule](progress)
            targets[:] = self.order(scores, targets, heat=heat)
            context += targets[:count]
            del targets[:count]

    def draw_at_random(self, tokens: Ids, context: Ids, targets: Ids, count: int, how: How) -> None:
        targets[:] = [targets[i] for i in self.noise.permutations(len(targets))[0].tolist()]
        drawn, _ = self.choose(self.logits(tokens, context, targets)[:count], **how)
        for position, token in zip(targets[:count], drawn, strict=True):
            tokens[position] = token
        context += targets[:count]
        del targets[:count]

    def remask(self, tokens: Ids, context: Ids, targets: Ids) -> None:
        config = self.config
        hot, cold = config.temperatures
        for step in range(config.draft_steps if targets else 0):
            count = num_masked(config.schedule, step / config.draft_steps, len(targets))
            order = self.masking_order(targets, len(tokens))
            masked, known = order[:count], order[count:]
            drawn, _ = self.choose(
                self.logits(tokens, [*context, *known], masked),
                temperature=cold + (hot - cold) * count / len(targets),
                top_k=config.top_k,
                top_p=config.top_p,
            )
            for position, token in zip(masked, drawn, strict=True):
                tokens[position] = token

    def masking_order(self, targets: Ids, total: int) -> Ids:
        if not self.config.frame_noise:
            return [targets[i] for i in self.noise.permutations(len(targets))[0].tolist()]
        frame = math.prod(self.model.config.grid[1:])
        of_frames = self.noise.exponential(total // frame)[0].log()
        own = self.noise.exponential(len(targets))[0].log()
        late = [
            float(noise + self.config.frame_noise * of_frames[place // frame])
            for place, noise in zip(targets, own, strict=True)
        ]
        return [targets[i] for i in sorted(range(len(targets)), key=lambda i: late[i])]

    def revise(self, tokens: Ids, kept: Ids, every: Ids, groups: int, temperature: float) -> None:
        order = [every[i] for i in self.noise.permutations(len(every))[0].tolist()]
        edges = [len(order) * i // groups for i in range(groups + 1)]
        for start, stop in itertools.pairwise(edges):
            if start < stop:
                context = [*kept, *order[stop:], *order[:start]]
                logits = self.logits(tokens, context, order[start:stop])
                drawn, _ = self.choose(logits, temperature=temperature)
                for position, token in zip(order[start:stop], drawn, strict=True):
                    tokens[position] = token

    def logits(self, tokens: Ids, context: Ids, targets: Ids) -> Tensor:
        known = torch.tensor([[tokens[position] for position in context]], dtype=torch.int64)
        places = (torch.tensor([x], dtype=torch.int64) for x in (context, targets))
        with torch.no_grad():
            return self.model(known, *places)[0]

    def choose(
        self,
        logits: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> tuple[Ids, list[float]]:
        exponential = self.noise.exponential(*logits.shape)[0]
        tokens, scores = [], []
        for row, noise in zip(logits / (temperature + 1e-8), exponential, strict=True):
            if top_k is not None:
                row = torch.where(row < row.sort(descending=True).values[top_k - 1], -math.inf, row)
            probs = row.softmax(0)
            if top_p is not None:
                mass = 0.0
                kept = torch.zeros_like(probs)
                for token in probs.argsort(descending=True).tolist():
                    if mass < top_p:
                        kept[token] = probs[token]
                    mass += float(probs[token])
                probs = kept / kept.sum()
            tokens.append(int((probs / noise).argsort(descending=True)[0]))
            scores.append(float(probs[tokens[-1]]))
        return tokens, scores

    def order(self, scores: list[float], targets: Ids, *, heat: float) -> Ids:
        noise = self.noise.exponential(len(targets))[0].tolist()
        noisy = [s / sum(scores) / e**heat for s, e in zip(scores, noise, strict=True)]
        best = sorted(range(len(targets)), key=lambda i: -noisy[i])
        return [targets[i] for i in best]
