"""What makes two runs the same."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.run_folder import prepare_run
from pipeline.training import LoopConfig


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
    with pytest.raises(ConfigError, match=r"config\.cosine = False, not True"):
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
