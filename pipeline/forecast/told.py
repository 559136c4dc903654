"""A forecast as lines for people."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.forecast.looks import LEVELS, LOOKS, SIDE

SHOWN = 5
"""Names of each kind that are told."""


def told(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a forecast, the params to use last."""
    if footage := record.get("footage"):
        yield from _footage(footage)
    if tokens := record.get("tokens"):
        yield from _tokens(tokens)
    if windows := record.get("windows"):
        yield from _windows(windows, record["values"])
    if store := record.get("store"):
        yield from _store(store)
    yield from _costs(record)
    for line in record["not_measured"]:
        yield f"not measured: {line}"
    yield from _params(record["params"])


def _footage(about: Mapping[str, Any]) -> Iterator[str]:
    what = [f"{about['videos']:,} videos"]
    if about["seconds"]:
        what.append(f"{duration(about['seconds'])} in all")
    if about["rates"]:
        what.append(f"{_span([f'{rate:g}' for rate in about['rates']])} frames a second")
    if about["sizes"]:
        what.append(f"{_span([f'{w}x{h}' for w, h in about['sizes']])} pixels")
    yield ", ".join(what)
    if about["counted_by_packets"]:
        yield (
            f"frames of {about['counted_by_packets']:,} of them were counted by packets, not "
            "decoded: damage inside comes up in extract"
        )
    yield from about["notes"]
    for split, clips in about["clips"].items():
        yield (
            f"{split}: {clips['count']:,} clips, {clips['frames']:,} frames: {clips['shortest']:,} "
            f"to {clips['longest']:,} each, {clips['median']:,.0f} in the middle"
        )
    yield from _named("rejected", about["rejected"])
    yield from _named("left out by extract.min_motion:", about["rejected_still"])
    yield from _named("too short:", about["too_short"])
    how = f"by {LOOKS} grey pictures of {SIDE}x{SIDE} of each, to {LEVELS} levels of 255"
    yield from _some(f"look still ({how})", about["look_still"], about["looked_at"])
    pairs = [f"{late} like {early}" for early, late in about["look_alike"]]
    yield from _some(f"look like an earlier one ({how})", pairs, about["looked_at"])


def _named(what: str, items: Sequence[Sequence[str]]) -> Iterator[str]:
    for name, reason in items[:SHOWN]:
        yield f"{what} {name}: {reason}"
    if items[SHOWN:]:
        yield f"{what} {len(items) - SHOWN:,} more"


def _some(what: str, names: Sequence[str], total: int) -> Iterator[str]:
    if names:
        more = f", and {len(names) - SHOWN:,} more" if names[SHOWN:] else ""
        yield f"{len(names):,} of {total:,} {what}: {', '.join(names[:SHOWN])}{more}"


def _tokens(about: Mapping[str, Any]) -> Iterator[str]:
    windows = ", ".join(f"{count:,} {split}" for split, count in about["windows"].items())
    grid = "x".join(map(str, about["grid"]))
    yield (
        f"{windows} windows of {grid} tokens, codebook {about['codebook_size']:,} "
        f"({about['codebook_used']:.1%} used), {size(about['bytes'])}; every shard is whole"
    )
    total = sum(about["windows"].values())
    for key, what in (
        ("still_windows", "have the same tokens at all times: nothing moves in them"),
        ("repeated_windows", "are the same as an earlier one of their split"),
        ("in_train_and_test", "are in train and in test: tests would measure what was learned"),
    ):
        if about[key]:
            yield f"{about[key]:,} of {total:,} windows {what}"


def _windows(about: Mapping[str, Any], where: str) -> Iterator[str]:
    yield (
        f"windows of {about['frames']} frames, stride {about['stride']}, by tokenize.hop (values: "
        f"{where}):"
    )
    for hop, counts in about["by_hop"].items():
        each = " + ".join(f"{count:,} {split}" for split, count in counts.items())
        yours = "  <- tokenize.hop" if int(hop) == about["hop"] else ""
        yield f"  {hop}: {each}{yours}"


def _store(about: Mapping[str, Any]) -> Iterator[str]:
    most = "at most " if about["at_most"] else "about "
    yield (
        f"token store: {most}{size(about['bytes'])}, {about['bits_of_token']:.1f} bits a token "
        f"({about['most_bits']:.1f} if all codes were as likely)"
    )


def _costs(record: Mapping[str, Any]) -> Iterator[str]:
    for stage, cost in record["costs"].items():
        yield (
            f"{stage}: about {duration(cost['seconds'])} on this {record['device']} ({cost['how']})"
        )
    if peaks := [cost["memory_gb"] for cost in record["costs"].values() if "memory_gb" in cost]:
        whose = "of the GPU" if record["device"].startswith("cuda") else "of the whole process"
        caches = "; ".join(
            f"{size(gb * 2**30)} for {what}" for what, gb in record["caches"].items()
        )
        yield f"memory: up to {max(peaks):.2g} GB {whose} while steps were timed; besides {caches}"


def _params(params: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not params:
        yield "params to use: those at hand"
        return
    yield "params to use:"
    for item in params:
        now = "" if item["now"] is None else f", now {item['now']}"
        word = shlex.quote(f"{item['key']}={_plain(item['value'])}")
        yield f"  --set {word}{now}: {item['reason']}"


def _plain(value: object) -> str:
    return "null" if value is None else str(value).replace(" ", "")


def _span(words: Sequence[str]) -> str:
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def duration(seconds: float) -> str:
    """Says a time as briefly as is of use."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def size(num_bytes: float) -> str:
    """Says a number of bytes as briefly as is of use."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} GB"
