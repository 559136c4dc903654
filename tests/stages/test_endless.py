"""The table of peak memory, of whole commands, on the page that has a place for it."""

from pathlib import Path

import pytest

from benchmarks import endless


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{endless.BEGIN}old\n{endless.END}after\n", encoding="utf-8")
    monkeypatch.setattr(endless, "PAGE", page)
    monkeypatch.setattr(endless, "LENGTHS", (256, 1024))
    endless.main()
    said = page.read_text(encoding="utf-8")
    assert said.startswith(f"before\n{endless.BEGIN}\n| peak, MB | 256 frames | 1,024 frames | |\n")
    assert said.endswith(f"|\n\n{endless.END}after\n")
    rows = [
        line.replace(",", "").split("|")[1:5]
        for line in said.splitlines()
        if line.startswith("| `mebt ")
    ]
    assert [row[0].strip() for row in rows] == ["`mebt sample`", "`mebt decode --exact`"]
    assert all(float(row[2]) < 1.2 * float(row[1]) for row in rows)
    assert endless.BEGIN in (endless.ROOT / "docs/steering.md").read_text(encoding="utf-8")


def test_a_command_that_fails_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"-m stages decode --tokens none failed\."):
        endless.peak("decode", "--tokens", "none")
