"""What each part of a tokenizer brings: `python -m benchmarks.tokenizers --keep FOLDER`.

Trains tokenizers that differ in one thing on the demo's footage, each for the same steps, by the
commands, and measures them by `mebt evaluate` on held-out windows. That takes ten minutes a row on
one core. What is made stays in FOLDER, and the same command goes on there after a stop.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.drift import extract_footage
from benchmarks.pages import replace_between
from pipeline.training.log import FILE as LOG
from pipeline.tuning import tune_process
from stages.__main__ import cli
from tokenizer.weights import TOKENIZER_FILE

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = "benchmarks/tokenizers.json", "docs/tokenizer.md"
BEGIN, END = "<!-- tokenizers -->\n", "<!-- /tokenizers -->\n"
BASE = {
    "tokenizer.decoder_norm": "null",
    "tokenizer.local": "false",
    "tokenizer.pixel_range": "[]",
    "fit_tokenizer.change_weight": "0",
    "fit_tokenizer.ema_decay": "0",
    "fit_tokenizer.frames": "null",
    "tokenize.frames": "16",
    "tokenize.hop": "16",
}
"""Of every row, over the values of the demo: FSQ 8·8·8, 4x8x8 pixels a token."""
MEASURED = {"tokenize.hop": "64"}
"""Windows that are measured: the beginning of each clip."""
LEARNED = {"tokenizer.levels": "[]", "tokenizer.embedding_dim": "8"}
SMALL = {"tokenizer.downsample": "[4, 4, 4]"}
LAYER = {"tokenizer.decoder_norm": "layer"}
CHANGES = {"fit_tokenizer.change_weight": "1"}
CUT_OFF = {"tokenizer.pixel_range": "[0, 239]"}
ROWS: dict[str, dict[str, str]] = {
    "4x8x8, FSQ 8·8·8": {},
    "512 learned codes": LEARNED,
    "4x4x4, FSQ 8·8·8": SMALL,
    "4x4x4, 512 learned codes": {**SMALL, **LEARNED},
    "`decoder_norm: layer`": LAYER,
    "the same, changes weighed": {**LAYER, **CHANGES},
    "the same, changes weighed, `pixel_range: [0, 239]`": {**LAYER, **CHANGES, **CUT_OFF},
    "the same, 512 learned codes": {**LAYER, **LEARNED},
    "`causal`, 17 frames": {"tokenizer.causal": "true", "tokenize.frames": "17"},
    "changes weighed (`change_weight: 1`)": CHANGES,
    "weights averaged (`ema_decay: 0.99`)": {"fit_tokenizer.ema_decay": "0.99"},
}
"""What differs from the first row."""
FIGURES = {
    "PSNR over a still picture": ("gain", "{:.1f}"),
    "where it moves": ("gain_moving", "{:.1f}"),
    "SSIM": ("ssim", "{:.3f}"),
    "motion": ("motion_reconstructions", "{:.2f}"),
    "flicker": ("flicker_reconstructions", "{:.2f}"),
    "codes used": ("codebook_use", "{:.0%}"),
    "perplexity": ("codebook_perplexity", "{:.1f}"),
    "bits a token": ("bits_per_token", "{:.2f}"),
    "s a step": ("seconds_per_step", "{:.2f}"),
}


def try_once(frames: Path, out: Path, sets: dict[str, str], params: Path) -> dict[str, float]:
    """Trains a tokenizer, makes its tokens, and measures what it keeps."""
    run, tokens, report = out / "run", out / "tokens", out / "metrics.json"
    tokenizer = ["--tokenizer", str(run / TOKENIZER_FILE), "--frames", str(frames)]
    for words, besides in (
        (["fit-tokenizer", "--frames", str(frames), "--out", str(run)], {}),
        (["tokenize", *tokenizer, "--out", str(tokens)], MEASURED),
        (["evaluate", *tokenizer, "--tokens", str(tokens), "--out", str(report)], MEASURED),
    ):
        pairs = (f"{key}={value}" for key, value in {**sets, **besides}.items())
        given = [word for pair in pairs for word in ("--set", pair)]
        cli([*words, "--params", str(params), *given], standalone_mode=False)
    log = [json.loads(line) for line in (run / LOG).read_text("utf-8").splitlines()]
    seconds = median(line["seconds_per_step"] for line in log if line.get("seconds_per_step"))
    metrics = json.loads(report.read_text("utf-8"))["metrics"]
    found = {
        **metrics,
        "gain": metrics["psnr"] - metrics["psnr_mean_frame"],
        "gain_moving": metrics["psnr_moving"] - metrics["psnr_moving_mean_frame"],
        "seconds_per_step": seconds,
    }
    return {key: round(found[key], 4) for key, _ in FIGURES.values()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Says in Markdown what was found."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "|---" + "|---:" * len(FIGURES) + "|"]
    for label, found in rows.items():
        numbers = [form.format(found[key]) for key, form in FIGURES.values()]
        lines.append(f"| {label} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tries every row, and writes down what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--frames", type=Path, help="frame folder; else the demo's footage")
    parser.add_argument("--params", type=Path, default=ROOT / "demo/params.yaml")
    parser.add_argument("--steps", type=int, default=1200, help="of each training")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder of the repository")
    options = parser.parse_args()
    frames = options.frames or extract_footage(options.keep)
    steps = {"fit_tokenizer.max_steps": str(options.steps)}
    rows: dict[str, Any] = {}
    for number, (label, values) in enumerate(ROWS.items()):
        folder = options.keep / f"row-{number}"
        rows[label] = try_once(frames, folder, {**BASE, **steps, **values}, options.params)
        print(label, rows[label], flush=True)
        # After each, as all of them take long.
        text = json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n"
        (options.out / RESULTS).write_text(text, encoding="utf-8")
        replace_between(options.out / PAGE, BEGIN, END, table(rows))


if __name__ == "__main__":
    tune_process()
    main()
