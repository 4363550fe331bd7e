"""Dual self-attention over a handful of score maps: between pixels and between maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    r"""Every pixel gathers the maps of all pixels, weighted by their similarity to its own.

    .. math:: y_p = x_p + \gamma \sum_q \mathrm{softmax}_q(\langle Q_p, K_q \rangle) \, V_q

    ``Q``, ``K`` and ``V`` are 1 x 1 convolutions with as many channels as ``x``; the inner products are not scaled.
    :math:`\gamma` starts at 0.

    Args:
        channels: number of maps.

    Reference: DANet (Fu et al., CVPR 2019), without channel reduction as in PMVOS's released code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "B M h w"]) -> Float[Tensor, "B M h w"]:
        """Attend; same shape in and out."""
        # As (B, 1, h*w, M), PyTorch's attention never holds the (h*w)^2 weights of all maps and objects at once.
        query, key, value = (layer(x).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.query, self.key, self.value))
        gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma * gathered.squeeze(1).transpose(1, 2).view_as(x) + x


class ChannelAttention(nn.Module):
    r"""Every map gathers all maps, and gives most weight to the one that is least similar to it.

    .. math:: y_i = x_i + \gamma \sum_j \mathrm{softmax}_j(\max_l E_{il} - E_{ij}) \, x_j, \quad E = x x^\top

    The inner products run over the pixels and are not scaled; :math:`\gamma` starts at 0.

    Reference: DANet (Fu et al., CVPR 2019), released code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "B M h w"]) -> Float[Tensor, "B M h w"]:
        """Attend; same shape in and out."""
        flat = x.flatten(2)
        energy = flat @ flat.transpose(1, 2)
        weights = (energy.amax(dim=2, keepdim=True) - energy).softmax(dim=2)
        return self.gamma * (weights @ flat).view_as(x) + x


class DualAttention(nn.Module):
    """Spatial and channel attention side by side: ``M`` maps in, ``2 M`` out, the spatially attended first.

    Computed in float32 even under autocast, like the scores; there are only a few parameters.

    Args:
        channels: number of maps ``M``.

    Reference: PMVOS (Cho et al., arXiv 2009.08855) section 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels)
        self.channel = ChannelAttention()

    def forward(self, x: Float[Tensor, "B M h w"]) -> Float[Tensor, "B M2 h w"]:
        """Apply both attentions."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return torch.cat([self.spatial(x), self.channel(x)], dim=1)
