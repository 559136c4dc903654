"""Other people's videos go all the way: from their form to tokens, a trained model and samples."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow
from tests.stages.test_lerobot import write_set
from tests.stages.test_shards import image, published, write_shard


def of_videos(folder: Path) -> list[str]:
    """Shards as video2dataset writes them."""
    return ["--videos", str(published(folder))]


def of_a_robot(folder: Path) -> list[str]:
    """A LeRobot data set."""
    return ["--videos", str(write_set(folder)), "--camera", "top"]


def of_numbered_images(folder: Path) -> list[str]:
    """Shards in which the images of a video are numbered inside one key."""
    for video in "ab":
        images = {f"{number:03d}.png": image(number, size=16) for number in range(12)}
        write_shard(folder / f"{video}.tar", {"__key__": video, **images})
    return ["--videos", str(folder)]


def of_single_images(folder: Path) -> list[str]:
    """Shards of one image a sample, with the video and its number in the key: it may go on."""
    for tar, numbers in enumerate((range(7), range(7, 12))):
        keys = [(f"{video}_{number:04d}", number) for video in "ab" for number in numbers]
        samples = ({"__key__": key, "png": image(number, size=16)} for key, number in keys)
        write_shard(folder / f"{tar}.tar", *samples)
    return ["--videos", str(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("source", [of_videos, of_a_robot, of_numbered_images, of_single_images])
def test_videos_of_others_are_extracted_tokenized_and_learned(source, tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    words = ["extract", *source(tmp_path / "theirs"), "--out", str(tmp_path / "frames")]
    words += ["--set", "extract.size=16", "--set", "extract.test_share=0"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    learn_and_sample(flow)


@pytest.mark.slow
@pytest.mark.parametrize("source", [of_videos, of_numbered_images, of_single_images])
def test_tars_of_others_are_tokenized_and_learned(source, tmp_path: Path) -> None:
    source(tmp_path / "frames")
    learn_and_sample(Flow(tmp_path))


def learn_and_sample(flow: Flow) -> None:
    """Runs the rest of the flow on its frames."""
    flow.ok("tokenize")
    tokens = TokenStore(flow.root / "tokens")
    assert not tokens.verify() and tokens.num_windows("train") > 4
    flow.ok("train", "--set", "train.max_steps=2")
    flow.ok("sample", "--set", "sample.num_samples=2")
    flow.ok("decode")
    assert len(list((flow.root / "videos").glob("*.mp4"))) == 2
