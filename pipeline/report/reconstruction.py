"""What a tokenizer keeps of footage, as a page beside the videos that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.reconstruction import GAIN
from pipeline.report.charts import Level, Series, line_chart, number
from pipeline.report.curves import Card
from pipeline.report.pages import templates

TITLES = {"clip": "Clips, evenly spread", "worst": "The worst clips"}


def reconstruction_page(record: Mapping[str, Any]) -> str:
    """Writes the page of a metrics.json of `mebt reconstruct`, whose videos lie beside it."""
    shown: dict[str, list[dict[str, str]]] = {}
    for file, row in record["shown"].items():
        clip = {"file": file, "about": about_window(record["windows"][row])}
        shown.setdefault(TITLES[file.partition("-")[0]], []).append(clip)
    return (
        templates()
        .get_template("reconstruction.html.j2")
        .render(
            lede=f"{len(record['windows']):,} windows of {len(record['frames'])} frames, no two of "
            "which share one, turned into tokens and back.",
            misfits=record["misfits"],
            numbers=[(key, number(value)) for key, value in record["metrics"].items()],
            cards=[card for card in _curves(record["frames"], record["metrics"]) if card.drawing],
            shown=list(shown.items()),
            gain=GAIN,
        )
    )


def about_window(window: Mapping[str, Any]) -> str:
    """Says in a few words which window it is, and how it came through."""
    level = "equal" if window["psnr"] is None else f"PSNR {window['psnr']:.1f} dB"
    return f"{window['video']}, {window['split']}, frame {window['first_frame']}: {level}"


def _curves(
    frames: Sequence[Mapping[str, float | None]], metrics: Mapping[str, float]
) -> list[Card]:
    """Draws PSNR and SSIM of each frame of a window."""
    still = metrics.get("psnr_mean_frame")
    levels = {"psnr": [] if still is None else [Level("mean frame", still)], "ssim": []}
    units = {"psnr": "PSNR, dB", "ssim": "SSIM"}
    cards = []
    for key, unit in units.items():
        values = [(float(n), frame[key]) for n, frame in enumerate(frames)]
        points = [(x, y) for x, y in values if y is not None]
        chart = line_chart(
            [Series(label=key.upper(), points=points, colour="c2", dots=True)],
            title=f"{unit} along a window",
            x_label="frame of the window",
            y_label=unit,
            levels=levels[key],
        )
        about = "Mean over all windows; ends of a window have fewer neighbours to go by."
        cards.append(Card(f"{key.upper()} along a window", about, chart))
    return cards
