"""What a report says about copying: its numbers, and how far new and held-out videos are."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import Level, Series, line_chart
from pipeline.report.markup import Markup

MEANINGS = {
    "train_distance_samples": (
        "New videos from training",
        "%",
        "Share of tokens in which a new video differs from the nearest training clip, at the best "
        "shift in time; median.",
    ),
    "train_distance_real": ("Held-out videos from training", "%", "The same, of held-out videos."),
    "near_copies_samples": (
        "Near copies among new videos",
        "%",
        "Share that is at most half as far from training as the median held-out video.",
    ),
    "near_copies_real": ("Near copies among held-out ones", "%", "The same, of held-out videos."),
    "copying_z": (
        "z of being nearer",
        "",
        "Mann-Whitney z of new videos' distances from training against held-out ones': far below 0 "
        "if new ones are nearer, above it if they are farther.",
    ),
    "psnr_nearest_samples": (
        "PSNR of the nearest pairs",
        "dB",
        "How close the new videos that are nearest to training come to it in pixels.",
    ),
    "psnr_nearest_real": (
        "PSNR of the nearest held-out ones",
        "dB",
        "The same, of held-out videos.",
    ),
}
"""Key in metrics.json -> name, unit (% of a share), one sentence of meaning."""


def distances_from_training(
    copying: Mapping[str, Any], names: Mapping[str, str], colours: Mapping[str, str]
) -> Markup:
    """Draws all distances in order, a line for each set; copies lie below the dashed line."""
    lines = []
    for who, distances in copying.get("distances", {}).items():
        places = [(rank + 0.5) / len(distances) for rank in range(len(distances))]
        points = list(zip(places, distances, strict=True))
        lines.append(Series(label=names[who], points=points, colour=colours[who]))
    near = copying.get("near")
    return line_chart(
        lines,
        title="How far videos are from the nearest training clip",
        x_label="share of videos, nearest first",
        y_label="tokens that differ",
        levels=[] if near is None else [Level("near copies", near)],
        percent="xy",
    )
