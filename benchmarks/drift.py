"""How videos without end drift: `python -m benchmarks.drift --keep FOLDER`.

Fetches the demo's footage, draws videos of 2,000 frames with a model, by each way to go on from
what there is so far, and measures stretches of one window each, from the first frame to the last:
how far they are from real held-out clips (Fréchet distance of the tokenizer's features, distance
of token histograms), and how much they move. Real clips went through the tokenizer too, so what is
measured is the sampler's alone. With the model that is shipped, that takes two hours on one core.
What is made stays in FOLDER, and the same command goes on there after a stop.

  python -m benchmarks.drift --keep drift --run my-run --add 'trained with noise'

measures another model in the default way alone, and adds its row.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.growth import STYLE, picture
from benchmarks.pages import replace_between
from benchmarks.quality import fabric_of
from pipeline.config import build, load_params
from pipeline.evaluation.distances import VideoSet
from pipeline.metrics import frechet_distance, token_counts, total_variation
from pipeline.pixels import to_bytes, to_model
from pipeline.report.charts import Level, Series, line_chart
from pipeline.store.layout import INFO
from pipeline.store.reader import TokenStore, read_rows, spread_rows
from pipeline.tuning import tune_process
from stages.sample import SampleStageConfig, sample
from stages.sample_store import SPLIT
from tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES, PAGE = "benchmarks/drift.json", "docs/pictures", "docs/steering.md"
BEGIN, END = "<!-- drift -->\n", "<!-- /drift -->\n"
STRETCHES = 8
"""Equal parts of a video, each measured by itself."""
WAYS: dict[str, dict[str, int]] = {
    "context 1": {"context_frames": 1},
    "context 4": {"context_frames": 4},
    "context 8": {"context_frames": 8},
    "context 12": {"context_frames": 12},
    "context 4, 4 drawn anew": {"context_frames": 4, "redraw_frames": 4},
}
"""Of windows of 16 latent frames. Those of the same sum take as long."""
FIGURES = {"frechet": "Fréchet distance", "tokens": "Token histogram", "motion": "Motion"}
COLOURS = ("#5b4a9c", "#a23b5f", "#4c7a2f", "#8a6d00", "#2f6fb0", "#c0397f", "#555")
MORE_COLOURS = ".level{stroke:#999;stroke-dasharray:3 3}.name.level{stroke:none}" + "".join(
    f".line.c{n}{{stroke:{colour}}}.dot.c{n},.name.c{n}{{fill:{colour}}}"
    for n, colour in enumerate(COLOURS, 3)
)
Row = dict[str, Any]


def extract_footage(keep: Path) -> Path:
    """Fetches the demo's footage and extracts its frames, as far as that is not done."""
    frames, video = keep / "frames", keep / "video"
    params = ["--params", str(ROOT / "demo/params.yaml")]
    for words in (
        [str(ROOT / "demo/fetch_footage.py"), str(video)],
        ["-m", "stages", "extract", "--videos", str(video), "--out", str(frames), *params],
    ):
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    return frames


def footage(keep: Path, tokenizer: Path) -> TokenStore:
    """Makes tokens of the demo's footage, or opens those that there are."""
    tokens = keep / "tokens"
    if not (tokens / INFO).exists() or TokenStore(tokens, allow_partial=True).missing():
        places = {"--frames": extract_footage(keep), "--out": tokens, "--tokenizer": tokenizer}
        given = {**places, "--params": ROOT / "demo/params.yaml"}
        words = [str(word) for pair in given.items() for word in pair]
        subprocess.run([sys.executable, "-m", "stages", "tokenize", *words], cwd=ROOT, check=True)
    return TokenStore(tokens)


def seen(model: Tokenizer, tokens: NDArray[np.int64]) -> VideoSet:
    """Decodes windows [N, t, h, w] and keeps what is compared of them."""
    parts = []
    for few in np.array_split(tokens, -(-len(tokens) // 8)):
        with torch.inference_mode():
            videos = to_bytes(model.decode(torch.from_numpy(few)))
            features = model.features(to_model(videos)).numpy()
        parts.append(VideoSet.of(features, videos))
    return VideoSet.joined(parts)


def compared(
    model: Tokenizer, size: int, found: NDArray[np.int64], real: NDArray[np.int64]
) -> dict[str, float]:
    """Measures windows [N, t, h, w] against as many real ones."""
    count = min(len(found), len(real))
    ours, theirs = (seen(model, x[spread_rows(len(x), count)]) for x in (found, real))
    return {
        "frechet": round(frechet_distance(theirs.features, ours.features), 4),
        "tokens": round(total_variation(token_counts(real, size), token_counts(found, size)), 4),
        "motion": round(float(ours.motion.mean()), 3),
    }


def stretches(tokens: NDArray[np.int64], window: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the middle of each part of videos [N, T, h, w] in latent frames, and its windows."""
    parts = min(STRETCHES, tokens.shape[1] // window)
    edges = [tokens.shape[1] * part // parts for part in range(parts + 1)]
    for first, last in itertools.pairwise(edges):
        begins = range(first, last - window + 1, window)
        yield (first + last) // 2, np.concatenate([tokens[:, b : b + window] for b in begins])


def try_once(
    run: Path, out: Path, values: dict[str, Any], real: TokenStore, model: Tokenizer
) -> Row:
    """Draws videos by one way to go on, and measures every part of them."""
    params = load_params(ROOT / "demo/params.yaml", [])["sample"]
    config = build(SampleStageConfig, {**params, **values}, where="sample")
    sample(run, out, config, fabric=fabric_of(config))
    store = TokenStore(out)
    each, window = (store.info.frames or 0) // store.grid[0], real.grid[0]
    held_out = real.read("test")
    parts = [
        {
            "frame": each * middle,
            "windows": len(found),
            **compared(model, real.codebook_size, found, held_out),
        }
        for middle, found in stretches(store.read(SPLIT), window)
    ]
    return {**values, "parts": parts}


def floor_of(real: TokenStore, model: Tokenizer, count: int) -> dict[str, float]:
    """Measures as many windows of training footage, as if they were drawn."""
    rows = spread_rows(real.num_windows("train"), count)
    return compared(model, real.codebook_size, read_rows(real, "train", rows), real.read("test"))


def table(results: dict[str, Any]) -> str:
    """Says in Markdown what was found: of each way the first part, the middle and the last."""
    rows, first = results["ways"], next(iter(results["ways"].values()))["parts"]
    shown = sorted({0, len(first) // 2, len(first) - 1})
    heads = [
        f"{FIGURES[key]} at frame {first[part]['frame']:,}" for key in FIGURES for part in shown
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for label, row in rows.items():
        numbers = [f"{row['parts'][part][key]:.3f}" for key in FIGURES for part in shown]
        lines.append(f"| {label} | " + " | ".join(numbers) + " |")
    floor = [f"{results['training clips'][key]:.3f}" for key in FIGURES for _ in shown]
    lines.append("| training clips | " + " | ".join(floor) + " |")
    pictures = " ".join(f"![{name}](pictures/drift-{key}.svg)" for key, name in FIGURES.items())
    return "\n".join([*lines, "", pictures, ""])


def write_all(results: dict[str, Any], out: Path) -> None:
    """Writes the numbers, a chart of each figure, and the page's table, between its marks."""
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for key, name in FIGURES.items():
        lines = [
            Series(
                label=label,
                points=[(part["frame"], part[key]) for part in row["parts"]],
                colour=f"c{1 + number % (2 + len(COLOURS))}",
                dots=True,
            )
            for number, (label, row) in enumerate(results["ways"].items())
        ]
        level = Level("training clips", results["training clips"][key])
        chart = line_chart(lines, title=name, x_label="frame", y_label="", levels=[level])
        path = out / PICTURES / f"drift-{key}.svg"
        path.write_text(picture(chart, STYLE + MORE_COLOURS), encoding="utf-8")
    replace_between(out / PAGE, BEGIN, END, table(results))


def main() -> None:
    """Draws by every way, measures, and writes down what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--run", type=Path, default=ROOT / "models/fish", help="run of the model")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models/fish-64.safetensors")
    parser.add_argument("--tokens", type=Path, help="real clips; else those of the demo's footage")
    parser.add_argument("--add", metavar="LABEL", help="add one row, of this run by the default")
    parser.add_argument("--frames", type=int, default=2000, help="of each video")
    parser.add_argument("--samples", type=int, default=8, help="videos of each way")
    parser.add_argument("--steps", type=int, default=64, help="sample.draft_steps")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder of the repository")
    options = parser.parse_args()
    model = load_tokenizer(options.tokenizer)
    real = (
        TokenStore(options.tokens) if options.tokens else footage(options.keep, options.tokenizer)
    )
    results: dict[str, Any] = {"ways": {}}
    if options.add:
        results = json.loads((options.out / RESULTS).read_text("utf-8"))
    for label, values in ({options.add: {}} if options.add else WAYS).items():
        asked = {"num_samples": options.samples, "draft_steps": options.steps, **values}
        out = options.keep / "-".join(label.split())
        row = try_once(options.run, out, {**asked, "total_frames": options.frames}, real, model)
        results["ways"][label] = row
        print(label, *(f"{x['frame']}: {x['frechet']:.3f}" for x in row["parts"]), flush=True)
    results["training clips"] = floor_of(real, model, row["parts"][-1]["windows"])
    write_all(results, options.out)


if __name__ == "__main__":
    tune_process()
    main()
