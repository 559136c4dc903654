"""What each number of metrics.json means, in words for readers who never measured one."""

import re

SETS = {"real": "other real videos", "reconstructions": "reconstructions", "samples": "new videos"}
"""What is compared with the real videos: end of the key in metrics.json -> name."""
DISTANCES = {
    "fvd": (
        "FVD",
        "Fréchet video distance: the same as the Fréchet distance, but as I3D sees the videos, a "
        "network that names what people do in videos. 0 is no difference.",
    ),
    "kvd": ("KVD", "Kernel video distance: the same without assuming a bell curve."),
    "frechet": (
        "Fréchet distance",
        "How far the average and the variety of the videos, as the tokenizer's encoder sees them, "
        "are from those of real ones. 0 is no difference.",
    ),
    "kernel": (
        "Kernel distance",
        "The same question without assuming a bell curve. Around 0, also below it, is no "
        "difference.",
    ),
    "token_distance": (
        "Token histogram",
        "Share of tokens that would have to be another one for each token to be as frequent as in "
        "real videos (total variation distance).",
    ),
    "motion_distance": (
        "Amount of motion",
        "How far the motion of a video has to be changed, on average, for both sets to have the "
        "same mixture of calm and lively ones; in grey levels (Wasserstein distance).",
    ),
}
"""Start of the key in metrics.json -> name, one sentence of meaning."""
MEANINGS = {
    "psnr": ("PSNR", "dB", "How close a reconstruction comes to its video; higher is closer."),
    "psnr_mean_frame": (
        "PSNR of the mean frame",
        "dB",
        "The same for a still picture, the average of each clip's frames: what can be had without "
        "seeing any motion.",
    ),
    "psnr_moving": (
        "PSNR of what moves",
        "dB",
        "The same at the twentieth of a clip's places that change most in time.",
    ),
    "psnr_moving_mean_frame": (
        "PSNR of the mean frame where it moves",
        "dB",
        "What a still picture has there.",
    ),
    "flicker_real": (
        "Flicker of real videos",
        "levels",
        "How much the calmer half of a clip's places changes from one frame to the next.",
    ),
    "flicker_reconstructions": ("Flicker of reconstructions", "levels", "The same, from tokens."),
    "ssim": ("SSIM", "", "How alike the structures of reconstruction and video are; 1 is equal."),
    "lpips": (
        "LPIPS",
        "",
        "How different reconstruction and video look to a network that people's judgements tuned; "
        "0 is equal.",
    ),
    "codebook_use": (
        "Codebook in use",
        "%",
        "Share of the codebook's tokens that occur at all in the training split.",
    ),
    "codebook_dead": ("Dead tokens", "", "Tokens of the codebook that never occur."),
    "codebook_perplexity": (
        "Perplexity",
        "",
        "Number of tokens that, used equally often, would be as hard to guess.",
    ),
    "bits_per_token": (
        "Bits per token",
        "bit",
        "What one token tells to someone who knows how often each occurs (entropy).",
    ),
    "token_loss_uniform": (
        "Loss of a blind guess",
        "nat",
        "Cross-entropy of guessing among all tokens evenly, ln K: where training starts.",
    ),
    "token_loss_frequency": (
        "Loss of a guess by frequency",
        "nat",
        "Cross-entropy when only the frequency of each token is known: a model that beats it has "
        "learned how tokens belong together.",
    ),
    "motion_real": (
        "Motion of real videos",
        "levels",
        "How much a pixel changes from one frame to the next, on average, in grey levels of 255.",
    ),
    "motion_reconstructions": ("Motion of reconstructions", "levels", "The same, from tokens."),
    "motion_samples": ("Motion of new videos", "levels", "The same, in new videos."),
    "blank_real": (
        "Blank real videos",
        "%",
        "Share of videos in which nothing is seen to move, be they of one colour or one picture.",
    ),
    "blank_reconstructions": ("Blank reconstructions", "%", "The same, from tokens."),
    "blank_samples": ("Blank new videos", "%", "The same, of new videos."),
    "train_distance_samples": (
        "New videos from training",
        "%",
        "Share of tokens in which a new video differs from the nearest training clip, at the best "
        "shift in time; median.",
    ),
    "train_distance_real": ("Held-out videos from training", "%", "The same, of held-out videos."),
    "near_copies_samples": (
        "Near copies among new videos",
        "%",
        "Share that is at most half as far from training as the median held-out video.",
    ),
    "near_copies_real": ("Near copies among held-out ones", "%", "The same, of held-out videos."),
    "copying_z": (
        "z of being nearer",
        "",
        "Mann-Whitney z of new videos' distances from training against held-out ones': far below 0 "
        "if new ones are nearer, above it if they are farther.",
    ),
    "c2st_samples": (
        "New videos told from training",
        "",
        "How often a classifier that sees a part of a training clip and one of a new video finds "
        "out which is which: 0.5 is by chance, 1 always.",
    ),
    "c2st_real": ("Held-out videos told from training", "", "The same, of held-out videos."),
    "psnr_nearest_samples": (
        "PSNR of the nearest pairs",
        "dB",
        "How close the new videos that are nearest to training come to it in pixels.",
    ),
    "psnr_nearest_real": (
        "PSNR of the nearest held-out ones",
        "dB",
        "The same, of held-out videos.",
    ),
}
"""Key in metrics.json -> name, unit (% of a share), one sentence of meaning."""
AT_MASK = re.compile(r"token_(loss|accuracy)_mask_(\d+)")
"""Key of a number at a mask ratio, in per cent."""
OVER_TIME = re.compile(r"(fvd|frechet)_(\w+)_at_(\d+)")
"""Key of the FVD of the 16 frames from there on, or of the Fréchet distance of a stretch."""
SPREAD = re.compile(r"(fvd|kvd)_([a-z]+)(_at_\d+)?_std")
"""Key of a standard deviation over runs."""


def meaning_of(key: str) -> tuple[str, str, str]:
    """Returns name, unit and meaning of a number; of one that nobody explained only its key."""
    if match := SPREAD.fullmatch(key):
        where = f", from frame {match[3].removeprefix('_at_')}" if match[3] else ""
        name = f"Spread of {match[1].upper()}, {SETS.get(match[2], match[2])}{where}"
        return name, "", "Standard deviation from one run to another, with other videos each time."
    return MEANINGS.get(key, (key, "", ""))
