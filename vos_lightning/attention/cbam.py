"""Convolutional block attention: a gate over the channels, then one over the pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

ChannelPool = Literal["mean", "max"]


class CBAM(nn.Module):
    r"""Convolutional block attention module, in the form that TBD and EMVOS use by default.

    .. math::
        x &\leftarrow \mathrm{conv}_{3 \times 3}(x) \\
        x &\leftarrow x \cdot \sigma(\mathrm{MLP}(\mathrm{avg}\,x) + \mathrm{MLP}(\mathrm{max}\,x)) \\
        x &\leftarrow x \cdot \sigma(\mathrm{conv}([\mathrm{mean}_c\,x, \mathrm{max}_c\,x]))

    There is no residual connection and no normalisation. The original (and STCN's) block is
    ``CBAM(c, entry_conv=False, reduction=16, spatial_hidden=None, spatial_kernel=7, spatial_pools=("max", "mean"))``.

    Args:
        channels: number of channels of input and output.
        entry_conv: start with a 3 x 3 convolution without activation.
        reduction: the hidden layer of the channel gate has ``channels / reduction`` units.
        spatial_hidden: number of channels between the two convolutions of the spatial gate; None makes it a single convolution.
        spatial_kernel: side of the spatial gate's kernels in cells, odd.
        spatial_pools: the two maps that the spatial gate receives, in this order.

    Reference: Woo et al., "CBAM", ECCV 2018; EMVOS (Cho et al., arXiv 2209.03139), released code.
    """

    def __init__(
        self,
        channels: int,
        entry_conv: bool = True,
        reduction: int = 1,
        spatial_hidden: int | None = 16,
        spatial_kernel: int = 3,
        spatial_pools: Sequence[ChannelPool] = ("mean", "max"),
    ) -> None:
        super().__init__()
        self.entry = nn.Conv2d(channels, channels, 3, padding=1) if entry_conv else nn.Identity()
        hidden = channels // reduction
        self.channel_gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
        )
        self.spatial_pools = tuple(spatial_pools)
        widths = [len(self.spatial_pools), *([] if spatial_hidden is None else [spatial_hidden]), 1]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Conv2d(wide, narrow, spatial_kernel, padding=spatial_kernel // 2), nn.ReLU(inplace=True)]
        self.spatial_gate = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Gate the features; same shape in and out."""
        x = self.entry(x)
        mean, largest = self.channel_gate(x.mean(dim=(2, 3), keepdim=True)), self.channel_gate(x.amax(dim=(2, 3), keepdim=True))
        x = x * torch.sigmoid(mean + largest)
        pooled = [x.mean(dim=1, keepdim=True) if pool == "mean" else x.amax(dim=1, keepdim=True) for pool in self.spatial_pools]
        return x * torch.sigmoid(self.spatial_gate(torch.cat(pooled, dim=1)))

    @torch.no_grad()
    def start_as_constant(self, carriers: int) -> float:
        """Initialise both gates to one half everywhere, and the entry convolution to pass the first channels unchanged.

        Args:
            carriers: number of channels to pass unchanged.

        Returns:
            The constant factor by which those channels are multiplied.
        """
        if isinstance(self.entry, nn.Conv2d):
            self.entry.weight *= 0.3
            self.entry.weight[:carriers] = 0
            for channel in range(carriers):
                self.entry.weight[channel, channel, 1, 1] = 1
        for gate in (self.channel_gate, self.spatial_gate):
            last = gate[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight.zero_()
            last.bias.zero_()
        return 0.25
