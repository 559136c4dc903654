"""What the report says of each artefact, and whether they belong together."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import FrameError, PipelineError
from pipeline.frames.given import Frames, folder_of
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import FrameFolder
from pipeline.frames.tars import Rejected
from pipeline.rates import RECORD
from pipeline.size import sides
from pipeline.storage.files import parse_json
from pipeline.storage.places import Place, open_file
from pipeline.store.reader import TokenStore
from pipeline.video.films import find_frames


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What a report says of one artefact: its videos, frames, tokens, a model or samples."""

    name: str
    about: str
    facts: Sequence[tuple[str, str]] = ()
    identity: str | None = None
    """Hash that tells it from every other one."""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Its facts, then its identity."""
        return [*self.facts, ("identity", self.identity)] if self.identity else [*self.facts]


MEASURED = {
    "Tokenizer": "tokenizer",
    "Tokens": "tokens",
    "Transformer": "model",
    "New videos": "samples",
}
"""Artefacts, and what metrics.json calls them."""


def check_measured(
    evaluation: Mapping[str, Any], artefacts: Sequence[Artefact], path: Path | None
) -> None:
    """Raises PipelineError if numbers are of something else than what is shown beside them."""
    measured = evaluation.get("protocol", {}).get("identities", {})
    for artefact in artefacts:
        what = MEASURED.get(artefact.name)
        if what in measured and measured[what] != artefact.identity:
            raise PipelineError(
                f"{path} was measured with {what} {measured[what]}, but the {what} given here has "
                f"{artefact.identity}; measure again with `mebt evaluate`."
            )


def times(values: Sequence[int]) -> str:
    """Writes sizes with signs of multiplication between them."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, values))


def _window_bits(store: TokenStore) -> float:
    return math.prod(store.grid) * math.log2(store.codebook_size)


def lede(store: TokenStore, samples: TokenStore | None) -> str:
    """Sums the project up: how many windows, tokens and new videos, and how far compressed."""
    info = store.info
    total = sum(store.num_windows(split) for split in store.splits)
    count = math.prod(store.grid)
    if info.frames and info.size:
        pixels = info.frames * math.prod(sides(info.size)) * 3
        text = (
            f"{total:,} windows of real video, {info.frames} frames of "
            f"{times(sides(info.size))} pixels each, became {count:,} tokens apiece: "
            f"{8 * pixels / _window_bits(store):,.0f} times fewer bits than their pixels have."
        )
    else:
        text = f"{total:,} windows of video came as {count:,} tokens each."
    if samples is None:
        return text
    number = samples.num_windows(samples.splits[0])
    return (
        f"{text} A transformer learned to fill in tokens that are hidden from it. Then it was "
        f"shown nothing at all, and filled in {number:,} windows: new videos."
    )


@dataclass(frozen=True)
class Extracted:
    """What extract says of the frames that it made; nothing if others made them."""

    num_videos: int = 0
    clips: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class Footage:
    """Frames as they lie in a folder or a bucket, and what extract says of them."""

    place: Frames
    folder: FrameFolder
    extracted: Extracted


def read_footage(frames: Frames) -> Footage:
    """Lists frames. Raises FrameError if the record beside them is not what extract writes."""
    found = find_frames(frames, skip_broken=True)
    return Footage(frames, found, _read_extracted(folder_of(frames)))


def _read_extracted(frames: Place | None) -> Extracted:
    if frames is None:
        return Extracted()
    place = frames / RECORD if isinstance(frames, Path) else f"{frames}/{RECORD}"
    try:
        with open_file(place) as file:
            record = parse_json(file.read(), place, FrameError, "frame folder")
    except FileNotFoundError:
        return Extracted()
    try:
        clips = {str(split): int(count) for split, count in record["clips"].items()}
        rejected = [Rejected(**item) for item in record["rejected"]]
        return Extracted(int(record["num_videos"]), clips, rejected)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FrameError(f"{place} is not what `mebt extract` writes; delete it.") from None


def unused_files(footage: Footage, store: TokenStore) -> list[Rejected]:
    """Lists every file and video of which no window was cut, and why."""
    used = {name for s in store.splits for name in store.plan(s)["video"].unique().to_pylist()}
    too_short = [
        Rejected(f"{video.split}/{video.name}", f"{len(video.frames)} frames, too few for a window")
        for video in footage.folder.videos
        if video.name not in used
    ]
    return [*footage.extracted.rejected, *footage.folder.rejected, *too_short]


def frame_artefacts(footage: Footage) -> Iterator[Artefact]:
    """Describes the videos, if it is known which they were, and the frames."""
    extracted, videos = footage.extracted, footage.folder.videos
    if extracted.num_videos:
        kept = ", ".join(f"{count:,} {split}" for split, count in extracted.clips.items())
        yield Artefact(
            name="Videos",
            about=f"{extracted.num_videos:,} given, cut into clips; train and test split by time.",
            facts=[("clips kept", kept), ("rejected", f"{len(extracted.rejected):,}")],
        )
    splits = Counter(video.split for video in videos)
    yield Artefact(
        name="Frames",
        about=f"{sum(len(video.frames) for video in videos):,} pictures in order.",
        facts=[(f"{split} videos", f"{count:,}") for split, count in splits.items()],
        identity=source_fingerprint(videos, footage.place),
    )


def tokenizer_artefact(
    config: Mapping[str, Any],
    *,
    num_parameters: int,
    steps: str | None,
    identity: str,
    tokens_of: str,
) -> Artefact:
    """Describes a tokenizer; `config` and `steps` are what its file says.

    `tokens_of` is the identity of the tokenizer whose tokens it makes, its own or another.
    """
    codebook = f"{config['codebook_size']:,} vectors of {config['embedding_dim']}"
    if config["levels"]:
        codebook += f", of {times(config['levels'])} levels"
    about = (
        f"{config['what']}: each block of {times(config['downsample'])} (frames, height, width) "
        "pixels becomes a token."
    )
    if config["causal"]:
        about += " The first frame has tokens of its own."
    facts = [("codebook", codebook), ("parameters", f"{num_parameters:,}"), *_trained(steps)]
    if tokens_of != identity:
        facts.append(("tokens of", tokens_of))
    return Artefact(name="Tokenizer", about=about, facts=facts, identity=identity)


def _trained(steps: str | None) -> list[tuple[str, str]]:
    return [("trained", f"{int(steps):,} steps")] if steps and steps.isdecimal() else []


def token_artefact(store: TokenStore) -> Artefact:
    """Describes the tokens of real videos."""
    facts = [(f"{split} windows", f"{store.num_windows(split):,}") for split in store.splits]
    return Artefact(
        name="Tokens",
        about=f"A grid of {times(store.grid)} tokens (time, height, width) for each window.",
        facts=[*facts, ("bytes a window", f"{math.ceil(_window_bits(store) / 8):,}")],
        identity=store.fingerprint,
    )


def model_artefact(
    config: Mapping[str, Any],
    *,
    num_parameters: int,
    steps: str | None,
    num_previews: int,
    identity: str,
) -> Artefact:
    """Describes a transformer; `config` and `steps` are what its file says."""
    return Artefact(
        name="Transformer",
        about="MeBT: latent tokens read the tokens that are shown, and predict the hidden ones.",
        facts=[
            ("layers", f"{len(config['layers'])} of width {config['width']}"),
            ("latent tokens", f"{config['num_latents']}"),
            ("parameters", f"{num_parameters:,}"),
            *_trained(steps),
            ("previews", f"of {num_previews:,} steps" if num_previews else "none kept"),
        ],
        identity=identity,
    )


def sample_artefact(samples: TokenStore) -> Artefact:
    """Describes new videos, and how they were drawn."""
    config: Mapping[str, Any] = samples.info.extra.get("sample", {})
    return Artefact(
        name="New videos",
        about=f"{samples.num_windows(samples.splits[0]):,} token grids, drawn from seeds.",
        facts=[(key.replace("_", " "), str(value)) for key, value in config.items()],
        identity=samples.fingerprint,
    )
