"""Peak memory of long videos beside that of short ones: `python -m benchmarks.endless`.

Draws a video of the shipped fish in few steps and decodes it, of 256 frames and of 10,000, each
command in a process of its own, and puts the table into docs/steering.md. Minutes on one core; how
busy the machine is changes nothing.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.pages import replace_between

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "steering.md"
BEGIN, END = "<!-- made by python -m benchmarks.endless -->\n", "<!-- end of endless -->\n"
LENGTHS = (256, 10_000)
RUN, TOKENIZER = ROOT / "models/fish", ROOT / "models/fish-64.safetensors"


def peak(*words: str | Path) -> int:
    """Returns the megabytes that a `mebt` command held at most, Python and torch included."""
    command = [sys.executable, "-m", "stages", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed.")
    # Linux counts kilobytes, macOS bytes.
    return usage.ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(frames: int, folder: Path) -> dict[str, int]:
    """Draws and decodes a video of so many frames; returns the peaks of both commands."""
    few = ["--set", "sample.num_samples=1", "--set", "sample.draft_steps=4"]
    few += ["--set", "sample.context_frames=4", "--set", "sample.revise_rounds=0"]
    made = ["sample", "--run", RUN, "--frames", str(frames), *few, "--out", folder / "tokens"]
    decoded = ["--tokens", folder / "tokens", "--tokenizer", TOKENIZER, "--out", folder / "videos"]
    return {"mebt sample": peak(*made), "mebt decode --exact": peak("decode", *decoded, "--exact")}


def table(peaks: dict[int, dict[str, int]]) -> str:
    """Returns the table in Markdown: a row for each command."""
    short, long = peaks
    lines = [f"| peak, MB | {short:,} frames | {long:,} frames | |", "|---|---:|---:|---:|"]
    for name, before in peaks[short].items():
        after = peaks[long][name]
        lines.append(f"| `{name}` | {before:,} | {after:,} | x {after / before:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures both lengths, and writes down what was found."""
    peaks = {}
    for frames in LENGTHS:
        with tempfile.TemporaryDirectory() as folder:
            peaks[frames] = measure(frames, Path(folder))
    print(table(peaks))
    replace_between(PAGE, BEGIN, END, f"\n{table(peaks)}\n\n")


if __name__ == "__main__":
    main()
