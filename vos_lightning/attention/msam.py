"""Motion-aware spatial attention: what moves is emphasised."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MSAM(nn.Module):
    r"""Motion-aware spatial attention module: one gate a pixel, from a motion feature, over all channels of a semantic feature.

    .. math:: F_{out} = F_s \odot \sigma(\mathrm{conv}_{1 \times 1}(F_m)) + F_s

    Args:
        channels: of the motion feature.

    Reference: MUNet (Sun et al.) equation 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, 1, 1)

    def forward(
        self, semantic: Float[Tensor, "B C h w"], motion: Float[Tensor, "B CM h w"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B 1 h w"]]:
        """The emphasised feature, of the same shape, and the gate in (0, 1)."""
        attention = torch.sigmoid(self.gate(motion))
        return semantic * attention + semantic, attention
