"""Compared sets of windows -> numbers about tokens, the model and pictures, or why there are none.

What was not given is `Missing`; each function writes down itself what it does not measure, and why.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.copying import PIXELS
from pipeline.evaluation.distances import (
    DISTANCE_KEYS,
    FLICKER_KEYS,
    RECONSTRUCTION_KEYS,
    ReconstructionErrors,
    VideoSet,
    distances,
    frechet_along,
    stretches_of,
)
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.sets import COMPARED, ComparedSets, Videos, batches
from pipeline.metrics import codebook_use, frequency_loss, token_counts, total_variation
from pipeline.seeds import step_seed
from pipeline.store.window import Window

SET_KEYS = [f"{key}_{who}" for key in DISTANCE_KEYS for who in COMPARED]
PICTURE_KEYS = [*RECONSTRUCTION_KEYS, *SET_KEYS, "lpips", *PIXELS]
"""What nobody can measure without pictures; FVD says so itself."""


def measure_tokens(evaluation: Evaluation, sets: ComparedSets) -> None:
    """Measures how the codebook is used, and compares token histograms."""
    size, known = sets.store.codebook_size, sets.known
    use = codebook_use(known)
    evaluation.add(
        {
            "codebook_use": use.share,
            "codebook_dead": use.dead,
            "codebook_perplexity": use.perplexity,
            "bits_per_token": use.bits,
            "token_loss_uniform": math.log(size),
            "token_loss_frequency": frequency_loss(known, token_counts(sets.held_out(), size)),
        }
    )
    if sets.samples is None:
        evaluation.skip(["token_distance_samples"], "no --samples were given")
    if sets.count < 1:
        evaluation.skip(["token_distance_real", "token_distance_samples"], sets.too_few(1))
        return
    reference = token_counts(sets.reference[: sets.count], size)
    for who, tokens in (("real", sets.real), ("samples", sets.samples)):
        if tokens is not None:
            counts = token_counts(tokens[: sets.count], size)
            evaluation.add({f"token_distance_{who}": total_variation(reference, counts)})


def measure_model(
    evaluation: Evaluation,
    sets: ComparedSets,
    held_out_means: Callable[..., Mapping[int, tuple[float, float]]] | Missing,
    config: EvaluateConfig,
    *,
    device: str,
) -> None:
    """Measures how well held-out tokens are guessed at each mask ratio.

    `held_out_means` is that of `mebt.objective`, of a model on `device`, but for batches of tokens
    and which rows of the split these are.
    """
    if isinstance(held_out_means, Missing):
        keys = [f"token_{k}_mask_{p}" for k in ("loss", "accuracy") for p in config.percents]
        evaluation.skip(keys, held_out_means.why)
        return
    tokens = torch.from_numpy(sets.held_out()).flatten(1)
    rows = [*sets.rows[0], *sets.rows[1]]
    means = held_out_means(
        lambda which: (
            (tokens[part].to(device), rows[part])
            for part in batches(len(tokens), config.batch_size, which)
        ),
        mask_ratios=config.mask_ratios,
        generator=lambda hidden: torch.Generator().manual_seed(step_seed(config.seed, hidden, 0)),
    )
    for hidden, (loss, accuracy) in means.items():
        evaluation.add(
            {f"token_loss_mask_{hidden}": loss, f"token_accuracy_mask_{hidden}": accuracy}
        )


def measure_pictures(
    evaluation: Evaluation, sets: ComparedSets, pictures: Pictures | Missing, *, batch_size: int
) -> None:
    """Measures reconstructions against their videos, and each set of videos against real ones.

    Holds one batch of pictures at a time, whatever the number of windows.
    """
    if isinstance(pictures, Missing):
        evaluation.skip(PICTURE_KEYS, pictures.why)
        return
    errors = ReconstructionErrors()
    seen: dict[str, list[VideoSet]] = defaultdict(list)
    for who, videos, decoded in _real_batches(sets, pictures, batch_size):
        for video, reconstruction in zip(videos, decoded, strict=True):
            errors.add(video, reconstruction)
        errors.perceptual += pictures.perceptual(videos, decoded)
        seen[who].append(VideoSet.of(pictures.features(videos), videos))
        if who == "real":
            seen["reconstructions"].append(VideoSet.of(pictures.features(decoded), decoded))
    if sets.samples is None:
        evaluation.skip([f"{key}_samples" for key in DISTANCE_KEYS], "no --samples were given")
    else:
        for part in batches(sets.count, batch_size, "samples"):
            videos = pictures.decode(sets.samples[part])
            seen["samples"].append(VideoSet.of(pictures.features(videos), videos))
    _add_errors(evaluation, errors)
    if sets.count < 2:
        evaluation.skip(SET_KEYS, sets.too_few(2))
    else:
        joined = {who: VideoSet.joined(parts).first(sets.count) for who, parts in seen.items()}
        _add_distances(evaluation, sets, joined)


def _real_batches(
    sets: ComparedSets, pictures: Pictures, batch_size: int
) -> Iterator[tuple[str, Videos, Videos]]:
    """Yields windows of the reference, then the other real ones, each with its reconstruction."""
    real = {"reference": sets.reference, "real": sets.real}
    for rows, (who, tokens) in zip(sets.rows, real.items(), strict=True):
        places = sets.places(rows)
        for part in batches(len(rows), batch_size, f"{who} videos"):
            yield who, pictures.real(sets.split, places[part]), pictures.decode(tokens[part])


def _add_errors(evaluation: Evaluation, errors: ReconstructionErrors) -> None:
    evaluation.add(errors.summary())
    if not errors.flicker:
        evaluation.skip(FLICKER_KEYS, "windows have a single frame")
    if not errors.similarity:
        evaluation.skip(["ssim"], "the frames are smaller than its window")


def _add_distances(
    evaluation: Evaluation, sets: ComparedSets, videos: Mapping[str, VideoSet]
) -> None:
    """Adds how far each set is from the reference, as a whole and along long windows."""
    window, (latent, *_) = Window.of(sets.store.info), sets.store.grid
    # Of a causal window, whose first latent frame is one frame, frames_of(0) is negative.
    starts = [max(0, window.frames_of(part.start, latent) or 0) for part in stretches_of(latent)]
    for who in (who for who in COMPARED if who in videos):
        values = distances(videos["reference"], videos[who])
        evaluation.add({f"{key}_{who}": value for key, value in values.items()})
        along = zip(starts, frechet_along(videos["reference"], videos[who]), strict=True)
        evaluation.add({f"frechet_{who}_at_{start}": value for start, value in along})
