"""The numbers of a report: distances as bars, curves, a table, each with what it means."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.charts import Level, Series, line_chart, number
from pipeline.report.fvd_findings import OVER_TIME, explain_spread, over_time
from pipeline.report.markup import Markup, element, join
from pipeline.report.meanings import DISTANCES, MEANINGS, SETS

Log = Sequence[Mapping[str, Any]]
"""Lines of a metrics.jsonl."""

COLOURS = {"real": "c4", "reconstructions": "c2", "samples": "c1"}
AT_MASK = re.compile(r"token_(loss|accuracy)_mask_(\d+)")
"""Key of a number at a mask ratio, in per cent."""


def by_mask_ratio(metrics: Mapping[str, float], kind: str) -> list[tuple[float, float]]:
    """Returns (mask ratio, value) of all `token_loss` or `token_accuracy` numbers, in order."""
    found = ((AT_MASK.fullmatch(key), value) for key, value in metrics.items())
    return sorted((int(m[2]) / 100, value) for m, value in found if m and m[1] == kind)


def section(title: str, about: str, *parts: str) -> Markup:
    """Makes a section with its heading and what it is about."""
    return element("section", element("h2", title), element("p", about), *parts)


def details(title: str, rows: Sequence[tuple[str, str]]) -> Markup:
    """Makes a list that opens on demand; nothing if there are no rows."""
    if not rows:
        return Markup()
    return element("details", element("summary", title), facts(rows))


def facts(rows: Sequence[tuple[str, str]]) -> Markup:
    """Makes a list of names and values."""
    pairs = (join(element("dt", name), element("dd", value)) for name, value in rows)
    return element("dl", *pairs, class_="facts")


def comparison(evaluation: Mapping[str, Any]) -> Markup:
    """Shows how far real videos, reconstructions and samples are from real videos."""
    metrics = evaluation.get("metrics", {})
    cards = []
    for key, (name, meaning) in DISTANCES.items():
        found = {who: metrics[f"{key}_{who}"] for who in SETS if f"{key}_{who}" in metrics}
        if found:
            cards.append(element("div", element("h3", name), element("p", meaning), _bars(found)))
    if not cards:
        return Markup()
    count = evaluation.get("protocol", {}).get("num_videos")
    along = [
        card(
            "FVD along the video",
            "Of 16 frames each: does a long video stay as good as it began?",
            over_time(metrics, "fvd", SETS, COLOURS),
        ),
        card(
            "Fréchet distance along the video",
            "Of a quarter of each video to the same quarter of real ones.",
            over_time(metrics, "frechet", SETS, COLOURS),
        ),
    ]
    return section(
        "How close to real",
        f"Each bar is a distance from the same {f'{count} ' if count else ''}real videos; shorter "
        "is closer. Other real videos show how far apart real ones are by chance: nothing can be "
        "expected to be closer. Reconstructions show about what perfect tokens would give with "
        "this tokenizer.",
        element("div", *cards, class_="measures"),
        element("div", *along, class_="charts") if any(along) else "",
    )


def _bars(values: Mapping[str, float]) -> Markup:
    largest = max(*map(abs, values.values()), 1e-12)
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    rows = []
    for who, value in values.items():
        width = f"width:{max(0.0, value) / largest:.2%}"
        rows.append(element("dt", SETS[who]))
        rows.append(
            element("dd", element("div", class_=f"bar {COLOURS[who]}", style=width), class_="track")
        )
        rows.append(element("dd", _signed(value, decimals), class_="value"))
    return element("dl", *rows, class_="bars")


def _signed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def curves(evaluation: Mapping[str, Any], training_log: Log, tokenizer_log: Log) -> Markup:
    """Shows how the transformer and the tokenizer learned."""
    cards = [
        *_training_charts(training_log),
        *_mask_charts(evaluation.get("metrics", {})),
        *_tokenizer_charts(tokenizer_log),
    ]
    if not any(cards):
        return Markup()
    return section(
        "How it learned",
        "Loss is the cross-entropy of hidden tokens in nats: the lower, the better they are "
        "guessed. A blind guess among all tokens has a loss of ln K. Held-out videos take no part "
        "in training.",
        element("div", *cards, class_="charts"),
    )


def _points(log: Log, key: str) -> list[tuple[float, float]]:
    """Reads one curve of a log; lines that lack the number, or hold none, are left out."""
    pairs = ((line.get("step"), line.get(key)) for line in log)
    return [
        (float(x), float(y))
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y)
    ]


def _level(label: str, log: Log, key: str) -> list[Level]:
    points = _points(log, key)
    return [Level(label, points[-1][1])] if points else []


def card(title: str, about: str, drawing: Markup) -> Markup:
    """Makes a chart with its heading; nothing if nothing was drawn."""
    if not drawing:
        return Markup()
    words = element("div", element("h3", title), element("p", about, class_="note"))
    return element("div", words, drawing, class_="chart-card")


def _training_charts(log: Log) -> list[Markup]:
    levels = _level("blind guess", log, "uniform")
    whole = line_chart(
        [
            Series(label="training", points=_points(log, "loss"), colour="c2"),
            Series(label="held out", points=_points(log, "val_loss"), colour="c1", dots=True),
        ],
        title="Loss of the transformer over training",
        x_label="training step",
        y_label="loss, nat per token",
        levels=levels,
    )
    named = {key for line in log for key in line if re.fullmatch(r"loss/\D*\d+_\d+", key)}
    buckets = sorted(key for key in named if _points(log, key))
    by_mask = line_chart(
        [
            Series(label=_bucket(key), points=_points(log, key), colour=f"s{index % 5 + 1}")
            for index, key in enumerate(buckets)
        ],
        title="Loss of the transformer over training, by share of hidden tokens",
        x_label="training step",
        y_label="loss, nat per token",
        levels=levels,
    )
    return [
        card("The transformer's loss", "On training and on held-out videos.", whole),
        card(
            "… by share of hidden tokens",
            "The more of a video is hidden, the harder the rest is to guess.",
            by_mask,
        ),
    ]


def _bucket(key: str) -> str:
    low, high = (int(part) for part in re.findall(r"\d+", key)[-2:])
    return f"{low}\N{EN DASH}{high}%"


def _mask_charts(metrics: Mapping[str, float]) -> list[Markup]:
    levels = [
        Level(name, metrics[key])
        for name, key in (
            ("blind guess", "token_loss_uniform"),
            ("by frequency", "token_loss_frequency"),
        )
        if key in metrics
    ]
    loss = line_chart(
        [Series(label="held out", points=by_mask_ratio(metrics, "loss"), colour="c1", dots=True)],
        title="Held-out loss over the share of hidden tokens",
        x_label="share of tokens hidden",
        y_label="loss, nat per token",
        levels=levels,
        percent="x",
    )
    right = line_chart(
        [
            Series(
                label="held out",
                points=by_mask_ratio(metrics, "accuracy"),
                colour="c1",
                dots=True,
            )
        ],
        title="Share of right first guesses over the share of hidden tokens",
        x_label="share of tokens hidden",
        y_label="first guesses that are right",
        percent="xy",
    )
    return [
        card("The finished transformer's loss", "On held-out videos.", loss),
        card("… and how often its first guess is right", "On held-out videos.", right),
    ]


def _tokenizer_charts(log: Log) -> list[Markup]:
    likeness = line_chart(
        [Series(label="held out", points=_points(log, "psnr"), colour="c1", dots=True)],
        title="PSNR of the tokenizer's reconstructions over training",
        x_label="training step",
        y_label="PSNR, dB",
        levels=_level("mean frame", log, "psnr_mean_frame"),
    )
    use = line_chart(
        [Series(label="held out", points=_points(log, "codebook_use"), colour="c1", dots=True)],
        title="Share of the codebook in use over training",
        x_label="training step",
        y_label="tokens in use",
        percent="y",
    )
    return [
        card(
            "The tokenizer's reconstructions",
            "Likeness to held-out videos; dashed: a still picture of each clip's average frame.",
            likeness,
        ),
        card("… and its codebook", "Share of its tokens that occur in held-out videos.", use),
    ]


def table(evaluation: Mapping[str, Any]) -> Markup:
    """Shows every number that neither a bar nor a curve shows, and how all were made."""
    metrics = evaluation.get("metrics", {})
    if not metrics:
        return Markup()
    rows = []
    known = [key for key in MEANINGS if key in metrics]
    for key in [*known, *(key for key in metrics if key not in MEANINGS)]:
        start, _, end = key.rpartition("_")
        drawn = AT_MASK.fullmatch(key) or OVER_TIME.fullmatch(key)
        if (start in DISTANCES and end in SETS) or drawn:
            continue
        name, unit, meaning = MEANINGS.get(key) or explain_spread(key, SETS) or (key, "", "")
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                element("td", _with_unit(metrics[key], unit), class_="value"),
                element("td", meaning, class_="meaning"),
            )
        )
    missing = [(key, str(why)) for key, why in evaluation.get("not_computed", {}).items()]
    return section(
        "Other numbers",
        "Compare numbers only if they were made in the same way: the protocol says how these were.",
        element("table", element("tbody", *rows)),
        details("Protocol: how the numbers were made", _flat(evaluation.get("protocol", {}))),
        details("Not computed, and why", missing),
    )


def _with_unit(value: float, unit: str) -> str:
    return f"{number(100 * value)}%" if unit == "%" else f"{number(value)} {unit}".rstrip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}".replace("_", " "), shown))
    return rows
