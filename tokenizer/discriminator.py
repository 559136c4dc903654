"""Judges of pictures and clips: patches that look real score high."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MAX_WIDTH = 512
LEAK = 0.2


class Discriminator(nn.Module):
    """A patch discriminator as published: for frames (`axes` 2) or clips (`axes` 3).

    `num_layers` convolutions of stride 2, one of stride 1, one to a single channel; all 4 wide,
    padded by 2. Batch norm in all but the first and the last, also where the VQGAN has group norm.
    """

    def __init__(
        self, axes: Literal[2, 3], *, in_channels: int = 3, width: int = 64, num_layers: int = 3
    ) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
        widths = [min(width << stage, MAX_WIDTH) for stage in range(num_layers + 1)]
        self.layers = nn.ModuleList([nn.Sequential(conv(in_channels, width, 4, 2, padding=2))])
        for stage in range(1, num_layers + 1):
            stride = 1 if stage == num_layers else 2
            before, after = widths[stage - 1], widths[stage]
            convolved = conv(before, after, 4, stride, padding=2)
            self.layers.append(nn.Sequential(convolved, norm(after)))
        self.layers.append(nn.Sequential(conv(widths[-1], 1, 4, 1, padding=2)))

    def forward(self, x: Float[Tensor, "B C *sizes"]) -> tuple[Tensor, list[Tensor]]:
        """Returns the score of every patch, and what all layers but the last see."""
        features = []
        *hidden, last = self.layers
        for layer in hidden:
            x = F.leaky_relu(layer(x), LEAK)
            features.append(x)
        return last(x), features
