"""What is known of footage and tokens, as JSON holds it: counts, lengths, what looks alike."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.forecast.footage import Footage
from pipeline.forecast.looks import duplicates, is_still
from pipeline.frames.scan import Video
from pipeline.frames.tars import describe_broken
from pipeline.params.choose import Choice
from pipeline.store.reader import TokenStore
from pipeline.windows.plan import Plan


def about_footage(footage: Footage, plan: Plan) -> dict[str, Any]:
    """Returns what there is, what is rejected, and which clips are still or look alike."""
    names, looks = list(footage.looks), list(footage.looks.values())
    return {
        "videos": len(footage.seen),
        "seconds": sum(seen.seconds for seen in footage.seen if seen.rate),
        "rates": sorted({round(seen.rate, 3) for seen in footage.seen if seen.rate}),
        "sizes": sorted({(seen.width, seen.height) for seen in footage.seen}),
        "clips": _clips(footage.videos),
        "rejected": [[item.name, item.reason] for item in footage.rejected],
        "rejected_still": [[item.name, item.reason] for item in footage.still],
        "too_short": [[item.name, item.reason] for item in plan.rejected],
        "look_still": [name for name, seen in footage.looks.items() if is_still(seen)],
        "look_alike": [[names[a], names[b]] for a, b in duplicates(looks)],
        "looked_at": len(looks),
        "counted_by_packets": footage.by_packets,
        "notes": [*footage.notes, *describe_broken(footage.rejected)],
    }


def _clips(videos: Sequence[Video]) -> dict[str, dict[str, float]]:
    lengths: dict[str, list[int]] = {}
    for video in videos:
        lengths.setdefault(video.split, []).append(len(video.frames))
    return {
        split: {
            "count": len(found),
            "frames": sum(found),
            "shortest": min(found),
            "median": statistics.median(found),
            "longest": max(found),
        }
        for split, found in sorted(lengths.items(), reverse=True)
    }


def about_tokens(store: TokenStore) -> dict[str, Any]:
    """Returns what a token store holds; reads, and so checks, every shard."""
    seen: dict[str, set[bytes]] = {}
    repeated = still = 0
    for split, shard in store.info.shards():
        tokens = store.read_shard(split, shard)
        still += int((tokens == tokens[:, :1]).all(axis=(1, 2, 3)).sum())
        hashes = seen.setdefault(split, set())
        for window in tokens:
            digest = hashlib.blake2b(window.tobytes(), digest_size=8).digest()
            repeated += digest in hashes
            hashes.add(digest)
    info = store.info
    return {
        "grid": list(info.grid),
        "codebook_size": info.codebook_size,
        "window": {"frames": info.frames, "stride": info.stride, "hop": info.hop},
        "size": info.size,
        "fps": info.fps,
        "videos": {s: len(set(store.plan(s)["video"].to_pylist())) for s in store.splits},
        "windows": dict(info.counts),
        "bytes": sum(int(store.part(*shard)["bytes"]) for shard in info.shards()),
        "still_windows": still if info.grid[0] > 1 else 0,
        "repeated_windows": repeated,
        "in_train_and_test": len(seen.get("train", set()) & seen.get("test", set())),
        "codebook_used": _used(store),
    }


def _used(store: TokenStore) -> float:
    counts = np.sum([store.token_counts(split) for split in store.splits], axis=0)
    return float(np.mean(counts > 0))


def advice(choice: Choice, values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists the values that would suit, beside those of now where they differ, with reasons."""
    found = []
    for name, reason in choice.reasons.items():
        section, _, key = name.partition(".")
        wanted, now = choice.values[section][key], values[section][key]
        if wanted != now:
            found.append({"key": name, "value": wanted, "now": now, "reason": reason})
    return found
