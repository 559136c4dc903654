"""Artefacts -> one HTML page that needs nothing else: clips, curves, numbers, origins."""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.evaluation.copying import verdict
from pipeline.frames.scan import Rejected
from pipeline.metrics import psnr, squared_error
from pipeline.report.charts import number
from pipeline.report.copying_findings import distances_from_training
from pipeline.report.findings import (
    COLOURS,
    Log,
    by_mask_ratio,
    card,
    comparison,
    curves,
    details,
    facts,
    section,
    table,
)
from pipeline.report.markup import Markup, element
from pipeline.report.page import page
from pipeline.video.writer import write_animation

Clip = UInt8[np.ndarray, "T H W 3"]

SHOWN_REJECTS = 40


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A real clip and what the tokenizer makes of it."""

    name: str
    real: Clip
    reconstruction: Clip


@dataclass(frozen=True, kw_only=True)
class NearestPair:
    """A new video and the training clip that is nearest to it, where they overlap."""

    name: str
    """Of the training clip."""
    sample: Clip
    training: Clip
    distance: float
    """Share of tokens that differ."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One station of the flow."""

    name: str
    about: str
    facts: Sequence[tuple[str, str]] = ()
    identity: str | None = None
    """Hash that tells it from every other one."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything a report may show; what is empty is left out."""

    lede: str
    fps: float = 8.0
    samples: Sequence[Clip] = ()
    pairs: Sequence[Pair] = ()
    pairs_split: str = "test"
    previews: Mapping[int, Sequence[Clip]] = field(default_factory=dict)
    """Step of training -> what the model drew of the same seeds by then."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The contents of metrics.json."""
    nearest: Sequence[NearestPair] = ()
    training_log: Log = ()
    tokenizer_log: Log = ()
    artefacts: Sequence[Artefact] = ()
    rejected: Sequence[Rejected] = ()
    params: str = ""


def make_report(contents: Contents) -> str:
    """Writes the page. Every text in it is escaped; nothing in it is fetched or run."""
    return page(
        "Videos, tokens, new videos",
        _opening(contents),
        _side_by_side(contents),
        _more_samples(contents),
        _step_by_step(contents),
        comparison(contents.evaluation),
        _copying(contents),
        curves(contents.evaluation, contents.training_log, contents.tokenizer_log),
        table(contents.evaluation),
        _origin(contents),
        _params(contents.params),
    )


def _opening(contents: Contents) -> Markup:
    metrics = contents.evaluation.get("metrics", {})
    shown = []

    def show(value: str, unit: str, about: str) -> None:
        big = element("b", value, " ", element("span", unit, class_="unit"))
        shown.append(element("li", big, element("span", about, class_="note")))

    if "psnr" in metrics:
        about = "Likeness of reconstructions to their videos (PSNR)."
        if "psnr_mean_frame" in metrics:
            about += f" A still picture of each clip has {metrics['psnr_mean_frame']:.1f}."
        show(f"{metrics['psnr']:.1f}", "dB", about)
    if losses := by_mask_ratio(metrics, "loss"):
        hidden, loss = min(losses, key=lambda item: abs(item[0] - 0.5))
        about = f"Loss on held-out videos of which {hidden:.0%} are hidden."
        if "token_loss_uniform" in metrics:
            about += f" A blind guess has {metrics['token_loss_uniform']:.2f}."
        show(f"{loss:.2f}", "nat", about)
    for key, name in (("fvd", "FVD"), ("frechet", "Fréchet distance")):
        if f"{key}_samples" in metrics:
            about = f"{name} of new videos from real ones."
            if f"{key}_real" in metrics:
                about += f" Real ones from one another: {number(metrics[f'{key}_real'])}."
            show(number(metrics[f"{key}_samples"]), "", about)
    return element(
        "header",
        element("p", "mebt report", class_="eyebrow"),
        element("h1", "Videos, tokens, new videos"),
        element("p", contents.lede, class_="lede"),
        element("ul", *shown, class_="numbers") if shown else "",
    )


def _moving(frames: Clip, fps: float, about: str) -> Markup:
    """Embeds a clip; its first frame alone for readers who asked for less motion."""
    height, width = frames.shape[1:3]
    still = element(
        "source", srcset=_data_uri(frames[:1], fps), media="(prefers-reduced-motion: reduce)"
    )
    moving = element("img", src=_data_uri(frames, fps), alt=about, width=width, height=height)
    return element("picture", still, moving)


def _data_uri(frames: Clip, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webp"
        write_animation(path, frames, fps=fps)
        return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()


def _side_by_side(contents: Contents) -> Markup:
    """Shows a real clip, its reconstruction and a new video in each row."""
    if not contents.pairs:
        return Markup()
    rows = []
    samples = _samples_beside(contents)
    for index, pair in enumerate(contents.pairs):
        panels = {"real": pair.real, "from its tokens": pair.reconstruction}
        if index < len(samples):
            panels["new"] = samples[index]
        # One picture of all, so that they cannot drift apart.
        strip = np.concatenate(list(panels.values()), axis=2)
        about = f"{pair.name}: {', '.join(panels)}"
        moving = element("div", _moving(strip, contents.fps, about), class_="strip")
        names = (element("span", name, class_=name.split()[-1]) for name in panels)
        rows.append(element("li", moving, *names, title=pair.name, class_=f"of{len(panels)}"))
    about = (
        f"Left a real clip of the {contents.pairs_split} split, beside it the same clip after it "
        "was turned into tokens and back: what the tokens keep of it."
    )
    if samples:
        about += (
            " Right a new video, drawn by the transformer from nothing but a random seed; it has "
            "nothing to do with its neighbours, and cannot look better than what tokens keep."
        )
    return section("Side by side", about, element("ul", *rows, class_="rows"))


def _samples_beside(contents: Contents) -> Sequence[Clip]:
    """Returns the samples that pairs have room for: none if they are of another size."""
    fits = all(
        sample.shape == pair.real.shape
        for sample, pair in zip(contents.samples, contents.pairs, strict=False)
    )
    return contents.samples[: len(contents.pairs)] if fits else ()


def _more_samples(contents: Contents) -> Markup:
    beside = len(_samples_beside(contents))
    rest = contents.samples[beside:]
    if not rest:
        return Markup()
    clips = [
        element("li", _moving(frames, contents.fps, f"new video {number}"))
        for number, frames in enumerate(rest, start=beside + 1)
    ]
    return section(
        "More new videos" if beside else "New videos",
        "Drawn from nothing but a random seed, the first ones and not the best ones; "
        f"{number(contents.fps)} frames a second, over and over.",
        element("ul", *clips, class_="clips"),
    )


def _copying(contents: Contents) -> Markup:
    """Says whether new videos are copies, and shows those that are nearest to training."""
    copying = contents.evaluation.get("copying")
    if not copying:
        return Markup()
    rows = []
    for pair in contents.nearest:
        strip = np.concatenate([pair.sample, pair.training], axis=2)
        moving = element("div", _moving(strip, contents.fps, pair.name), class_="strip")
        error = squared_error(pair.sample, pair.training)
        likeness = f"PSNR {psnr(error):.1f} dB" if error else "the same pictures"
        about = f"training: {pair.distance:.0%} of tokens differ, {likeness}"
        panels = element("span", "new", class_="new"), element("span", about)
        rows.append(element("li", moving, *panels, title=pair.name, class_="of2"))
    names = {"samples": "new videos", "real": "held-out real ones"}
    chart = card(
        "How far from training",
        "In tokens that differ from the nearest training clip.",
        distances_from_training(copying, names, COLOURS),
    )
    return section(
        "Is it copying?",
        verdict(contents.evaluation),
        element(
            "p",
            "Every new video was looked up among all training clips. So were held-out real ones, "
            "which cannot be copies: how near those are, videos of this kind are anyway. Near "
            "copies are at most half as far from training as the held-out video in the middle.",
        ),
        element("div", chart, class_="charts"),
        element("p", "The new videos nearest to training, each beside its training clip:")
        if rows
        else "",
        element("ul", *rows, class_="rows") if rows else "",
    )


def _step_by_step(contents: Contents) -> Markup:
    """Shows each seed in a row, as its videos changed while the model trained."""
    if not contents.previews:
        return Markup()
    steps = sorted(contents.previews)
    named = f"at steps {', '.join(map(number, steps))}"
    rows = []
    for seed, videos in enumerate(zip(*(contents.previews[step] for step in steps), strict=True)):
        moving = _moving(np.concatenate(videos, axis=2), contents.fps, f"sample {seed} {named}")
        rows.append(element("div", moving, class_="strip"))
    below = (
        element("span", name) for name in ["step " + number(steps[0]), *map(number, steps[1:])]
    )
    return section(
        "Step by step",
        "In each row the same random seed, drawn from the model when it had trained for so many "
        "steps. Previews are drawn in few passes and never revised, so the last ones are rougher "
        "than new videos.",
        element("div", *rows, *below, class_="steps", style=f"--columns:{len(steps)}"),
    )


def _origin(contents: Contents) -> Markup:
    if not contents.artefacts:
        return Markup()
    stations = []
    for artefact in contents.artefacts:
        rows = list(artefact.facts)
        if artefact.identity:
            rows.append(("identity", artefact.identity))
        about = element("p", artefact.about)
        stations.append(element("li", element("h3", artefact.name), about, facts(rows)))
    rejected = [(item.name, item.reason) for item in contents.rejected[:SHOWN_REJECTS]]
    if (more := len(contents.rejected) - SHOWN_REJECTS) > 0:
        rejected.append((f"{more:,} more", ""))
    return section(
        "Where it comes from",
        "Each step reads what the steps before it wrote. An identity is a hash: equal only for "
        "equal contents.",
        element("ol", *stations, class_="flow"),
        details(f"Rejected: {len(contents.rejected):,}", rejected),
    )


def _params(params: str) -> Markup:
    if not params:
        return Markup()
    text = element("pre", element("code", params))
    return element("details", element("summary", "Params: every value that was set"), text)
