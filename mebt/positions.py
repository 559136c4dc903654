"""Where positions and latents begin in the model's space, so that neighbours are alike."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PLASTIC = 1.2207440846057596
"""The root of x**4 = x + 1."""


def places_of(grid: tuple[int, int, int]) -> Float[Tensor, "N 3"]:
    """Returns time, row and column of each position of a grid, in order."""
    return torch.cartesian_prod(*(torch.arange(float(size)) for size in grid))


def spread_places(grid: tuple[int, int, int], count: int) -> Float[Tensor, "M 3"]:
    """Returns places that fill a grid evenly, whatever their count, in fractions of positions.

    They are the R3 sequence (Roberts 2018): the golden ratio's steps, in three dimensions.
    """
    steps = torch.tensor([PLASTIC**-axis for axis in (1, 2, 3)], dtype=torch.float64)
    shares = (0.5 + torch.arange(1, count + 1)[:, None] * steps) % 1
    return (shares * torch.tensor(grid) - 0.5).float()


def sines(places: Float[Tensor, "N 3"], width: int, *, power: float = 1.0) -> Float[Tensor, "N D"]:
    """Returns sines and cosines of places in time, height and width, of mean square 1.

    Learned positions that begin at random have to be told apart first, and then which of them are
    neighbours; until then a model sees no more than how frequent tokens are (Attention Is All You
    Need, section 3.5, for each axis). Frequencies are evenly spaced, for grids are short; a `power`
    above 1 has more slow ones, so that near places are more alike than far ones.
    """
    waves = []
    for axis in range(3):
        count = (width // 2 + 2 - axis) // 3
        if power == 1:  # As runs so far began, to the last bit.
            frequencies = torch.arange(1, count + 1) * (math.pi / max(count, 1))
        else:
            frequencies = (torch.arange(1, count + 1) / max(count, 1)) ** power * math.pi
        angles = places[:, axis, None] * frequencies
        waves += [angles.sin(), angles.cos()]
    table = math.sqrt(2) * torch.cat(waves, dim=1)
    return F.pad(table, (0, width - table.shape[1]))
