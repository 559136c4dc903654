"""Samples of any length, a few latent frames at a time, that can be left off and gone on with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mebt.conditions import Conditions
from mebt.draft_revise import Canvas, Predict
from mebt.extrapolation import stream_frames, window_sizes
from mebt.sampling import SampleConfig, fill_window, row_noise

State = dict[str, Tensor]
"""What a stream goes on from, on the CPU."""


@runtime_checkable
class Remembers(Protocol):
    """A predictor that keeps something of one window for the next, such as `CachedPredictor`."""

    def state(self) -> State:
        """Returns what `restore` needs."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on as the predictor would have whose state this is."""


def sizes_of(config: SampleConfig, grid: tuple[int, int, int]) -> list[int]:
    """Returns how many latent frames each window adds to samples, from the first one on."""
    return window_sizes(
        config.total_frames or grid[0],
        window=grid[0],
        context=config.context_frames,
        redraw=config.redraw_frames,
    )


class Stream:
    """Samples with these numbers, of `config.total_frames` latent frames, as they are made.

    Iterate it for latent frames [B n h w], one window's at a time. It holds no more than a window
    of them; the rest of the arguments are those of `sample_frames`. Between two parts it has a
    `state`: another one made alike that is given it by `restore` goes on with the very same tokens.
    """

    def __init__(
        self,
        predict: Predict,
        grid: tuple[int, int, int],
        config: SampleConfig,
        *,
        numbers: Sequence[int],
        given: Int[Tensor, "B t h w"] | None = None,
        revise_only: bool = False,
        conditions: Conditions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.predict, self.grid, self.config = predict, grid, config
        self.given, self.revise_only, self.device = given, revise_only, device
        self.conditions = conditions
        self.total = config.total_frames or grid[0]
        self.context = config.context_frames
        self.noise = row_noise(config, numbers, device)
        self.made = 0
        """Latent frames so far."""
        self.last = torch.zeros((len(numbers), 0, *grid[1:]), dtype=torch.int64, device=device)
        """Those of them with which the next window begins [B c h w]."""

    def __iter__(self) -> Iterator[Int[Tensor, "B n h w"]]:
        if not self.made:
            yield self._keep(self._first())
        if self.made >= self.total:
            return
        added = stream_frames(
            *(self._fill, self.last),
            window_frames=self.grid[0],
            context_frames=self.context,
            num_frames=self.total,
            redraw_frames=self.config.redraw_frames,
            first_frame=self.made - self.last.shape[1],
        )
        for frames in added:
            yield self._keep(frames)

    def _keep(self, frames: Int[Tensor, "B n h w"]) -> Int[Tensor, "B kept h w"]:
        """Takes in new latent frames; returns them without those beyond the end."""
        frames = frames[:, : self.total - self.made]
        self.made += frames.shape[1]
        both = torch.cat([self.last, frames], dim=1)
        self.last = both[:, -self.context :].clone()
        return frames

    @torch.inference_mode()
    def _first(self) -> Int[Tensor, "B t h w"]:
        """Draws the first window."""
        t, h, w = self.grid
        length = min(self.total, t)
        if self.given is None:
            start = Canvas.empty((len(self.last), length * h * w), self.device)
        else:
            tokens = rearrange(self.given[:, :length], "b t h w -> b (t h w)").to(self.device)
            places = torch.arange(length * h * w, device=self.device).reshape(length, h * w)
            kept = places[[frame for frame in self.config.keep if frame < length]].flatten()
            start = Canvas.given(tokens, kept.expand(len(tokens), -1))
        filled = fill_window(
            *(self.predict, start, self.grid, self.config, self.noise, self._conditions(0)),
            unconditional=self.given is None,
            revise_only=self.revise_only,
        )
        made = rearrange(filled.tokens, "b (t h w) -> b t h w", h=h, w=w)
        return made[:, : t - self.config.redraw_frames] if self.total > t else made

    @torch.inference_mode()
    def _fill(self, canvas: Canvas, first_frame: int) -> Canvas:
        """Draws a further window, which begins with this latent frame of the whole."""
        return fill_window(
            *(self.predict, canvas, self.grid, self.config, self.noise),
            self._conditions(first_frame),
            unconditional=False,
        )

    def _conditions(self, first_frame: int) -> Conditions | None:
        """Returns what is known of the window that begins with this latent frame."""
        return self.conditions and self.conditions.window(first_frame, self.grid[0])

    def sizes(self) -> list[int]:
        """Returns how many latent frames each part has, from the first one on."""
        return sizes_of(self.config, self.grid)

    def state(self) -> State:
        """Returns what the latent frames to come depend on, but for the last ones so far.

        And but for weights and values. It is on the CPU.
        """
        noise = torch.stack([generator.get_state() for generator in self.noise.generators])
        remembered: State = self.predict.state() if isinstance(self.predict, Remembers) else {}
        return {
            "made": torch.tensor(self.made),
            "noise": noise,
            **{f"predict.{name}": tensor for name, tensor in remembered.items()},
        }

    def restore(self, state: Mapping[str, Tensor], last: Int[Tensor, "B c h w"]) -> None:
        """Goes on from a `state`, behind the `last` latent frames so far: `context` of them.

        Raises ValueError if it is no state of samples like these.
        """
        try:
            made, noise = int(state["made"]), state["noise"]
            wanted = (len(self.last), self.context, *self.grid[1:])
            if last.shape != wanted or len(noise) != wanted[0] or not 0 < made <= self.total:
                raise ValueError(f"{made} frames, the last of them {list(last.shape)}")
            for generator, its in zip(self.noise.generators, noise, strict=True):
                generator.set_state(its.clone())  # Of a view torch 2.13 reads other bytes.
            if isinstance(self.predict, Remembers):
                named = (name.partition("predict.") for name in state)
                self.predict.restore({x: state[f"predict.{x}"] for start, _, x in named if x})
        except (KeyError, RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"it is no state of such samples: {error}") from None
        self.made, self.last = made, last.to(self.device)


@torch.inference_mode()
def sample_frames(
    predict: Predict,
    grid: tuple[int, int, int],
    config: SampleConfig,
    *,
    numbers: Sequence[int],
    given: Int[Tensor, "B t h w"] | None = None,
    revise_only: bool = False,
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "B T h w"]:
    """Draws samples of `config.total_frames` latent frames with a model of windows of `grid`.

    `given` windows keep the latent frames that `config.keep` names; all others are drawn, or with
    `revise_only` only revised. Every further window begins with the last `config.context_frames` of
    everything so far. `conditions` have states of all latent frames, which are unknown behind their
    end. See `sample` for what a sample depends on. All frames are returned together: `Stream` gives
    them one window at a time.
    """
    stream = Stream(
        *(predict, grid, config),
        numbers=numbers,
        given=given,
        revise_only=revise_only,
        conditions=conditions,
        device=device,
    )
    return torch.cat(list(stream), dim=1)
