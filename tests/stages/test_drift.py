"""The figures of how long videos drift, on tiny data, and what the page shows of them."""

import json
import re
from pathlib import Path

import av
import pytest

from benchmarks import drift
from pipeline.store.reader import TokenStore
from tests.helpers.small import Flow
from tests.test_readme import run_section, sections

ROOT = Path(__file__).parents[2]


def measure(made: Flow, out: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> str:
    words = ["drift", "--keep", str(out / "keep"), "--tokens", str(made.root / "tokens")]
    words += ["--run", str(made.root / "run"), "--out", str(out), "--frames", "24"]
    words += ["--tokenizer", str(made.root / "tokenizer.safetensors")]
    monkeypatch.setattr("sys.argv", [*words, "--samples", "2", "--steps", "1", *more])
    drift.main()
    return (out / drift.PAGE).read_text(encoding="utf-8")


def test_the_table_and_the_pictures_come_from_one_command(
    made: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "WAYS", {"context 1": {"context_frames": 1}})
    for folder in ("benchmarks", drift.PICTURES):
        (tmp_path / folder).mkdir(parents=True)
    before = f"# A page\n\nBefore\n\n{drift.BEGIN}old\n{drift.END}\nAfter\n"
    (tmp_path / drift.PAGE).write_text(before, encoding="utf-8")
    page = measure(made, tmp_path, monkeypatch=monkeypatch)
    assert page.startswith(before.partition("old")[0])
    assert page.endswith(f"{drift.END}\nAfter\n")
    assert "| context 1 | " in page
    assert all(f"Motion at frame {frame} |" in page for frame in (2, 14, 22))
    again = measure(made, tmp_path, "--add", "another", monkeypatch=monkeypatch)
    first, second = (line for line in again.splitlines() if line.startswith(("| con", "| ano")))
    assert first.split("|")[2:] == second.split("|")[2:]  # The same model, in the same way.
    results = json.loads((tmp_path / drift.RESULTS).read_text(encoding="utf-8"))
    parts = results["ways"]["context 1"]["parts"]
    assert [part["frame"] for part in parts] == [2, 6, 10, 14, 18, 22]
    assert len({part["frechet"] for part in parts}) > 1
    for key in drift.FIGURES:
        assert (tmp_path / drift.PICTURES / f"drift-{key}.svg").read_text("utf-8").count(
            "<svg"
        ) == 1


@pytest.mark.slow
def test_the_commands_and_the_code_of_the_page_run(
    made: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, there in (("models", ROOT / "models"), ("tokens", made.root / "tokens")):
        (tmp_path / name).symlink_to(there)
    (tmp_path / "params.yaml").write_bytes((made.root / "params.yaml").read_bytes())
    text = dict(sections(ROOT / drift.PAGE))["Without end"]
    assert len(run_section(text, tmp_path, monkeypatch)) == 3
    assert TokenStore(tmp_path / "long/tokens").info.frames == 72
    assert (tmp_path / "long/videos/sample-00000.mp4").exists()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "steering.md", "exec"), {"__name__": "steering"})
    with av.open(str(tmp_path / "long.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 160


def test_the_page_has_room_for_the_table() -> None:
    page = (ROOT / drift.PAGE).read_text(encoding="utf-8")
    assert page.count(drift.BEGIN) == page.count(drift.END) == 1
    assert page.index("# Without end") < page.index(drift.BEGIN) < page.index(drift.END)
