"""What makes two runs the same."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, PipelineError
from pipeline.frame_list import SOURCE_SCHEMA, source_of
from pipeline.storage.files import write_text
from pipeline.storage.sealed import to_parquet
from pipeline.training.folder import prepare_run
from pipeline.training.task import LoopConfig
from tests.helpers.small import content


def test_what_may_change_in_a_run(tmp_path: Path) -> None:
    def prepare(overwrite: bool = False, made: str = "a", **fields) -> None:
        config = LoopConfig(**fields)
        prepare_run(tmp_path / "run", config, {"tokens": {"store": made}}, overwrite=overwrite)

    prepare()
    prepare(log_every=1, checkpoint_every=7)
    prepare(max_steps=5000)  # A constant rate just goes on.
    write_text(tmp_path / "run/checkpoints/last", "step-00000300\n")
    prepare(max_steps=300)
    with pytest.raises(ConfigError, match=r"300 steps so far, more than max_steps = 299"):
        prepare(max_steps=299)  # A result of 300 steps would pass for one of 299.
    with pytest.raises(ConfigError, match=r"config\.cosine = false, not true"):
        prepare(cosine=True)
    with pytest.raises(ConfigError, match=r"tokens\.store = 'a', not 'b'"):
        prepare(made="b")
    prepare(made="b", overwrite=True, cosine=True)
    with pytest.raises(ConfigError, match=r"config\.max_steps"):
        prepare(made="b", cosine=True, max_steps=5000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds thesis\.txt but no run\.json"):
            prepare_run(tmp_path / "mine", LoopConfig(), {}, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_run_of_an_earlier_version_is_of_the_published_block(tmp_path: Path) -> None:
    prepare_run(tmp_path, LoopConfig(), {"model": {"width": 8}}, overwrite=False)
    asked = {"model": {"width": 8, "block": "published"}}
    prepare_run(tmp_path, LoopConfig(), asked, overwrite=False)
    prepare_run(tmp_path / "old", LoopConfig(), {"model": {"width": 8}}, overwrite=False)
    with pytest.raises(ConfigError, match=r"model\.block = 'published', not 'stream'"):
        asked = {"model": {"width": 8, "block": "stream"}}
        prepare_run(tmp_path / "old", LoopConfig(), asked, overwrite=False)


def test_what_a_record_leaves_unsaid_is_named_with_its_value(tmp_path: Path) -> None:
    def prepare(out: str, share: float) -> None:
        config = LoopConfig(cosine=True, stable_share=share)
        prepare_run(tmp_path / out, config, {}, overwrite=False)

    prepare("old", 0.0)
    assert "stable_share" not in (tmp_path / "old/run.json").read_text()
    with pytest.raises(ConfigError, match=r"config\.stable_share = 0\.0, not 0\.6;"):
        prepare("old", 0.6)
    prepare("new", 0.6)
    with pytest.raises(ConfigError, match=r"config\.stable_share = 0\.6, not 0\.0;"):
        prepare("new", 0.0)
    prepare("old", 0.0)
    prepare("new", 0.6)


def frames_of(**sizes: int) -> pa.Table:
    rows = [
        {"split": "train", "video": name, "frame": f"{n}.png", "bytes": size + n, "sha256": None}
        for name, size in sizes.items()
        for n in range(3)
    ]
    return pa.Table.from_pylist(rows, SOURCE_SCHEMA)


def prepare(out: Path, frames: pa.Table, **fields: int) -> None:
    made_from = {"source": source_of(frames)}
    prepare_run(out, LoopConfig(**fields), made_from, frames=frames, overwrite=False)


def test_a_run_goes_on_with_mended_frames_but_not_with_other_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, mended, other = frames_of(a=5, b=9), frames_of(a=5, b=8), frames_of(a=5, c=9)
    prepare(tmp_path, before)
    prepare(tmp_path, mended)
    assert "other frames than before: 3 frames differ (0.png of b, 1.png of b" in (
        capsys.readouterr().err
    )
    with pytest.raises(ConfigError, match=r"1 video is new \(c in train\); 1 video is gone \(b"):
        prepare(tmp_path, other)
    prepare(tmp_path, mended)
    assert not capsys.readouterr().err
    write_text(tmp_path / "checkpoints/last", "step-00000300\n")
    with pytest.raises(ConfigError, match=r"other frames: 3 frames differ"):
        prepare(tmp_path, before, max_steps=300)  # It is finished.
    prepare(tmp_path, before, max_steps=301)


def test_a_list_of_frames_that_is_damaged_or_missing_is_said(tmp_path: Path) -> None:
    prepare(tmp_path, frames_of(a=5))
    path = tmp_path / "frames.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ConfigError, match=r"frames\.parquet, which lists them, is damaged"):
        prepare(tmp_path, frames_of(a=6))
    path.write_bytes(to_parquet(frames_of(c=1)))
    with pytest.raises(ConfigError, match=r"frames\.parquet lists those of another run"):
        prepare(tmp_path, frames_of(a=6))
    path.unlink()
    with pytest.raises(ConfigError, match="which an earlier version did not list"):
        prepare(tmp_path, frames_of(a=6))
    prepare(tmp_path, frames_of(a=5))
    assert path.read_bytes() == data


def test_a_kill_between_list_and_record_loses_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, frames_of(a=5))
    newer = to_parquet(frames_of(a=6))
    (tmp_path / "frames.parquet").write_bytes(newer)
    prepare(tmp_path, frames_of(a=6))
    assert (tmp_path / "frames.parquet").read_bytes() == newer


def test_a_flipped_bit_of_a_record_is_refused_or_makes_no_difference(tmp_path: Path) -> None:
    frames = frames_of(a=5)
    prepare(tmp_path, frames)
    whole = content(tmp_path)
    for name in ("run.json", "frames.parquet"):
        data = whole[name]
        for at in range(0, len(data), 17):
            changed = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            (tmp_path / name).write_bytes(changed)
            try:
                prepare(tmp_path, frames)
            except PipelineError:
                (tmp_path / name).write_bytes(data)
            assert content(tmp_path) == whole
