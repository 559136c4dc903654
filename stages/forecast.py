"""What a flow would find in footage or tokens, and take: what `mebt check` says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from mebt import MeBTConfig, MeBTShape
from pipeline.config import build
from pipeline.errors import ConfigError, FrameError, PipelineError
from pipeline.forecast.footage import Footage, look_at_images, look_at_videos
from pipeline.forecast.record import about_footage, about_tokens
from pipeline.forecast.sample import Sample, encode_sample, extract_sample
from pipeline.forecast.sizes import enlarged, keep_shape
from pipeline.forecast.store_size import (
    bits_of_token,
    bytes_beside_tokens,
    bytes_of_tokens,
    frame_table,
    most_bytes_of_tokens,
    raw_gb,
)
from pipeline.forecast.windows import frames_read, windows_at_hops
from pipeline.frames.given import Frames, folder_of
from pipeline.params.choose import (
    Choice,
    fitted,
    fitted_to_frames,
    fitted_to_machine,
    this_machine,
)
from pipeline.rates import recorded_rate
from pipeline.size import sides
from pipeline.storage.places import Place
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.video.tiles import ExtractConfig
from pipeline.windows.encode import Encode, encoder_of
from pipeline.windows.plan import Plan, TokenizeConfig, plan_windows
from stages.fitting import check_window, open_tokenizer
from stages.mebt_task import TrainConfig
from stages.tokenizer_task import FitTokenizerConfig
from stages.trial import Trials
from tokenizer import VQGAN, Tokenizer, TokenizerConfig, VQGANConfig, tokens_identity


@dataclass(frozen=True)
class Values:
    """The sections that a forecast goes by."""

    extract: ExtractConfig
    tokenizer: VQGANConfig
    fit_tokenizer: FitTokenizerConfig
    tokenize: TokenizeConfig
    model: MeBTShape
    train: TrainConfig

    @staticmethod
    def of(sections: dict[str, dict[str, Any]], where: str) -> "Values":
        """Builds them. Raises ConfigError; `where` opens its message."""
        owners = get_type_hints(Values).items()
        found = {k: build(cls, sections.get(k, {}), where=f"{where}: {k}") for k, cls in owners}
        return Values(**found)


def look_at_footage(
    videos: Sequence[Place],
    frames: Frames | None,
    values: Values,
    trials: Trials,
    scratch: Path,
    *,
    cameras: Sequence[str] = (),
    skip_broken: bool = False,
) -> tuple[Footage, Choice | None]:
    """Looks at videos or frames; returns what there is, and the values that would suit.

    Raises PipelineError if nothing is of use.
    """
    if frames is None:
        footage = look_at_videos(
            *(videos, values.extract, scratch / "look"), cameras=cameras, skip_broken=skip_broken
        )
    else:
        as_stored = values.tokenize.as_stored
        rate = values.tokenize.fps or recorded_rate(folder_of(frames))
        footage = look_at_images(frames, as_stored=as_stored, rate=rate, skip_broken=skip_broken)
    return footage, _fitted(footage, frames is not None, trials.not_measured)


def check_footage(
    footage: Footage,
    choice: Choice | None,
    frames: Frames | None,
    tokenizer: Path | None,
    values: Values,
    trials: Trials,
    scratch: Path,
) -> dict[str, Any]:
    """Forecasts windows, bytes and times of what follows; returns the record.

    What is extracted of videos for that goes into the folder `scratch`. The choice of values is
    brought to the shape of the footage, and to what the tokenizer needs.
    """
    windows = values.tokenize
    footage.notes += enlarged(
        footage.seen, windows.size, values.extract if frames is None else None
    )
    plan = plan_windows(footage.videos, windows)
    model = _open(tokenizer, values, trials.kind)
    info = _store_info(model, plan, values, known=tokenizer is not None)
    encode = encoder_of(model, half=info.half)
    sample = None
    if tokenizer is not None:
        try:
            sample = _sample(footage, plan, info, encode, values, trials, scratch / "frames")
        except FrameError as error:
            trials.not_measured.append(f"how well tokens compress: {error}")
    else:
        num_frames = sum(len(video.frames) for video in footage.videos)
        trials.fitting(values.tokenizer, values.fit_tokenizer, windows, num_frames)
    trials.tokenizing(
        *(encode, windows, plan.table.num_rows),
        frames_read(footage.videos, windows),
        None if sample is None else sample.seconds_per_frame,
    )
    _train(trials, values, info)
    record = {
        "footage": about_footage(footage, plan),
        "windows": {
            "frames": windows.frames,
            "stride": windows.stride,
            "hop": windows.hop,
            "by_hop": {str(k): v for k, v in windows_at_hops(footage.videos, windows).items()},
        },
        "store": _store_bytes(info, plan, footage, frames, sample),
    }
    if choice:
        now = {"extract__size": values.extract.size, "tokenize__size": windows.size}
        keep_shape(choice, footage.seen, **now)
    if choice and tokenizer:
        _keep_to(choice, model.config, windows)
    return record


def check_tokens(
    tokens: Place, values: Values, trials: Trials
) -> tuple[dict[str, Any], Choice | None]:
    """Reads a token store, and forecasts the training on it."""
    store = TokenStore(tokens)
    _train(trials, values, store.info)
    return {"tokens": about_tokens(store)}, fitted_to_machine(this_machine())


def _open(tokenizer: Path | None, values: Values, device: str) -> Tokenizer:
    """Opens the tokenizer, or makes one of section `tokenizer` that is as fast."""
    if tokenizer is not None:
        return open_tokenizer(tokenizer, values.tokenize, device)
    model = VQGAN(values.tokenizer).eval().to(device)
    check_window(model.config, values.tokenize, "sections tokenizer and tokenize")
    return model


def _store_info(model: Tokenizer, plan: Plan, values: Values, *, known: bool) -> StoreInfo:
    windows = values.tokenize
    counts = {split: plan.num_windows(split) for split in ("train", "test")}
    return StoreInfo(
        tokenizer=tokens_identity(model) if known else "0" * 64,
        codebook_size=model.config.codebook_size,
        grid=model.config.grid(windows.frames, *sides(windows.size)),
        source="0" * 64,
        counts={split: count for split, count in counts.items() if count},
        fps=windows.fps,
        **windows.in_store(causal=model.config.causal),
    )


def _sample(
    footage: Footage,
    plan: Plan,
    info: StoreInfo,
    encode: Encode,
    values: Values,
    trials: Trials,
    folder: Path,
) -> Sample:
    """Encodes a few real windows; of videos, some are extracted into `folder` for it."""
    if not footage.sources:
        return encode_sample(footage.videos, plan, info, values.tokenize, encode)
    clips, seconds = extract_sample(footage, values.extract, folder)
    trials.extracting(seconds, sum(footage.lengths.values()))
    few = plan_windows(clips, values.tokenize)
    counts = {split: few.num_windows(split) for split in ("train", "test")}
    about = replace(info, counts={split: n for split, n in counts.items() if n})
    return encode_sample(clips, few, about, values.tokenize, encode)


def _store_bytes(
    info: StoreInfo, plan: Plan, footage: Footage, frames: Frames | None, sample: Sample | None
) -> dict[str, Any]:
    most = most_bytes_of_tokens(info)
    tokens = most if sample is None else bytes_of_tokens(info, sample.chunks)
    listed = frame_table(footage.videos, frames, size=info.size or 1)
    return {
        "bytes": tokens + bytes_beside_tokens(info, plan.table, listed),
        "bytes_of_tokens": tokens,
        "at_most": sample is None,
        "bits_of_token": bits_of_token(info, tokens),
        "most_bits": bits_of_token(info, most),
    }


def _train(trials: Trials, values: Values, info: StoreInfo) -> None:
    try:
        values.model.check_trainable()
    except ValueError as error:
        raise ConfigError(f"section model: {error}") from None
    # What it is conditioned on takes no time that could be told.
    fields = {**vars(values.model), "conditions": ()}
    shape = MeBTConfig(**fields, codebook_size=info.codebook_size, grid=info.grid)
    trials.training(shape, values.train, raw_gb(info.counts, info))


def _keep_to(choice: Choice, config: TokenizerConfig, windows: TokenizeConfig) -> None:
    """Leaves out what a tokenizer that is there already has decided, or cannot encode."""
    chosen = choice.values["tokenize"]
    fixed = ["tokenizer.", "fit_tokenizer."]
    try:
        wanted = replace(windows, frames=chosen["frames"], size=chosen["size"])
        check_window(config, wanted, "of no use")
    except ConfigError:
        fixed += ["tokenize.frames", "tokenize.size", "extract.size"]
    for name in [name for name in choice.reasons if name.startswith(tuple(fixed))]:
        del choice.reasons[name]


def _fitted(footage: Footage, are_frames: bool, not_measured: list[str]) -> Choice | None:
    machine = this_machine()
    try:
        if not are_frames:
            # Of images in tars the rate may not be known.
            known = footage.seen and all(seen.rate for seen in footage.seen)
            return fitted(footage.seen, machine) if known else fitted_to_machine(machine)
        lengths: dict[str, list[int]] = {}
        for video in footage.videos:
            lengths.setdefault(video.split, []).append(len(video.frames))
        return fitted_to_frames(footage.seen, lengths, machine)
    except PipelineError as error:
        not_measured.append(f"which params would suit: {error}")
        return None
