"""How time and memory grow with a video's length: `python -m benchmarks.growth`.

A model of the published layers at a quarter of their width, so that two cores are done within
minutes, trains on and draws windows of 16 to 256 frames, each in a process of its own. A straight
line is laid through what is measured: what every window costs, and what every token adds.

Time is measured as the commands run, which keep freed memory for later. How much of it lies idle at
the peak changes from run to run; so the memory that work needs is measured in a second process,
which gives freed blocks back, and what is kept on top is said.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.cases import GROWTH, GROWTH_FRAMES
from benchmarks.measure import in_own_process
from pipeline.report.charts import Series, line_chart

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES = Path("benchmarks/growth.json"), Path("docs/pictures")
TOKENS_PER_FRAME = 16 * 16 // 4
TOLERANCE = 0.15
GIVEN_BACK_MB = 1
"""Blocks of more than this are given back where memory is measured."""
STYLE = (
    "text{font:12px sans-serif;fill:#666}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}"
    ".line.c1{stroke:#0f6b6b}.line.c2{stroke:#b4652a}.dot.c1,.name.c1{fill:#0f6b6b}"
    ".dot.c2,.name.c2{fill:#b4652a}"
)


def line_through(tokens: list[int], measured: list[float]) -> tuple[float, float, float]:
    """Returns what a window and what each token costs, and the largest relative distance from that.

    Relative distances are what is made small, so that short windows count as much as long ones.
    """
    places, values = np.asarray(tokens, float), np.asarray(measured, float)
    rows = np.stack([np.ones_like(places), places], axis=1) / values[:, None]
    (window, token), *_ = np.linalg.lstsq(rows, np.ones_like(values), rcond=None)
    away = np.abs((window + token * places) / values - 1)
    return float(window), float(token), float(away.max())


def picture(chart: str, style: str = STYLE) -> str:
    """Makes a file of the first of a chart's two drawings, the wide one."""
    drawing = f"{chart.partition('</svg>')[0]}</svg>"
    head, rest = drawing.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}><style>{style}</style>{rest}\n"


def draw(file: Path, title: str, unit: str, lines: dict[str, list[float]]) -> None:
    """Writes one chart of what each token costs, by the length of the video."""
    series = []
    for (kind, values), colour in zip(lines.items(), ("c1", "c2"), strict=True):
        points = list(zip(GROWTH_FRAMES, values, strict=True))
        series.append(Series(label=kind, points=points, colour=colour, dots=True))
    chart = line_chart(series, title=title, x_label="frames", y_label=unit)
    file.write_text(picture(chart), encoding="utf-8")


def main() -> None:
    """Measures, draws two charts, and prints how straight the growth is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to try it out")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder of the repository")
    options = parser.parse_args()
    tokens = [TOKENS_PER_FRAME * frames for frames in GROWTH_FRAMES]
    rows, seconds, memory = [], {}, {}
    print(f"{'':12} " + " ".join(f"{frames:>7}" for frames in GROWTH_FRAMES) + "  frames")
    for kind, cases in GROWTH.items():
        found = [in_own_process(case, options.device, small=options.small) for case in cases]
        lean = [
            in_own_process(case, options.device, small=options.small, keep_mb=GIVEN_BACK_MB)
            for case in cases
        ]
        measured = [
            row | {"needed_gb": needs["extra_gb"], "seconds_lean": needs["seconds"]}
            for row, needs in zip(found, lean, strict=True)
        ]
        rows += measured
        for lines, key, unit, scale in (
            (seconds, "seconds", "microseconds", 1e6),
            (memory, "needed_gb", "kB", 1e6),
        ):
            whole = [row[key] * scale for row in measured]
            lines[kind] = [value / count for value, count in zip(whole, tokens, strict=True)]
            window, token, away = line_through(tokens, whole)
            shown = " ".join(f"{value:7.1f}" for value in lines[kind])
            straight = "linear" if away <= TOLERANCE else "NOT linear"
            print(
                f"{kind:12} {shown}  {unit} a token: {window:,.0f} a window + {token:.1f} a token, "
                f"within {away:.0%}: {straight}",
                flush=True,
            )
        kept = [row["extra_gb"] - row["needed_gb"] for row in measured]
        shown = " ".join(f"{gb:7.2f}" for gb in kept)
        print(f"{kind:12} {shown}  GB kept on top", flush=True)
    (options.out / RESULTS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    pictures = options.out / PICTURES
    draw(pictures / "growth-time.svg", "Time per token", "microseconds per token", seconds)
    draw(pictures / "growth-memory.svg", "Memory per token", "kB per token", memory)


if __name__ == "__main__":
    main()
