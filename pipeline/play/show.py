"""What the page asks for: checked, and answered by videos of which a few are kept."""

import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.play.video import Video

MAX_VIDEOS = 4
"""Of more, that one is dropped that nobody watched for longest."""
MAX_SEED, MAX_TEMPERATURE = (1 << 32) - 1, 4.0


class RefusedError(Exception):
    """What the page asks for cannot be had; `status` is that of HTTP."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Show:
    """Videos that are being watched, by names that cannot be guessed.

    `about` is what the page is told: `labels` and `actions` are lists of what may be chosen.
    """

    def __init__(self, open_video: Callable[[int, int | None], Video], about: Mapping[str, Any]):
        self.open_video, self.about = open_video, about
        self.videos: OrderedDict[str, Video] = OrderedDict()

    def begin(self, asked: Mapping[str, Any]) -> bytes:
        """Begins the video of a seed and a label; returns its name, as JSON."""
        _check_keys(asked, "seed", "label")
        seed = _whole(asked, "seed", MAX_SEED)
        label = _choice(asked, "label", len(self.about["labels"]))
        name = secrets.token_urlsafe(16)
        self.videos[name] = self.open_video(seed, label)
        while len(self.videos) > MAX_VIDEOS:
            self.videos.popitem(last=False)
        return json.dumps({"video": name}).encode()

    def frames(self, asked: Mapping[str, Any]) -> bytes:
        """Returns the pixels of the next frames, one behind the other; none at the end."""
        _check_keys(asked, "video", "action", "temperature")
        action = _choice(asked, "action", len(self.about["actions"]))
        temperature = asked["temperature"]
        is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if not is_number or not 0 <= temperature <= MAX_TEMPERATURE:  # NaN is neither.
            raise RefusedError(400, f"temperature must be in 0 … {MAX_TEMPERATURE:g}.")
        name = asked["video"]
        if not isinstance(name, str) or name not in self.videos:
            raise RefusedError(410, f"this video is gone: {MAX_VIDEOS} newer ones were begun.")
        self.videos.move_to_end(name)
        return self.videos[name].next_frames(action, float(temperature)).tobytes()


def _check_keys(asked: Mapping[str, Any], *keys: str) -> None:
    if set(asked) != set(keys):
        raise RefusedError(400, f"the keys must be {', '.join(keys)}.")


def _whole(asked: Mapping[str, Any], key: str, most: int) -> int:
    value = asked[key]
    if type(value) is not int or not 0 <= value <= most:
        raise RefusedError(400, f"{key} must be a whole number in 0 … {most}.")
    return value


def _choice(asked: Mapping[str, Any], key: str, count: int) -> int | None:
    if asked[key] is not None and not count:
        raise RefusedError(400, f"{key} must be null: the model knows none.")
    return None if asked[key] is None else _whole(asked, key, count - 1)
