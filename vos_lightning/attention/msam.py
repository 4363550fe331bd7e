"""Motion-aware spatial attention: what moved since the frame before, and a gate that emphasises it."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.matching.local_window import (
    Confidence,
    OutOfFrame,
    local_similarity,
    match_confidence,
    soft_displacement,
)
from vos_lightning.matching.similarity import l2_normalize

MotionNorm = Literal["none", "group"]

MOTION_KERNELS = (7, 1, 3, 1, 3, 1, 3, 1)
MOTION_CHANNELS = (3, 16, 16, 32, 32, 32, 64)
"""Kernels, and outputs of all layers but the last, of the motion network (Table 1)."""


class MotionLayer(nn.Module):
    r"""Motion-uncertainty layer: where each pixel came from and how sure that is, as a feature.

    The cosines :math:`C(u, x)` of the reduced features of this frame and of a window in the one before give a displacement, the
    mean offset under a softmax of :math:`\pm C / \tau`, and an uncertainty map, :math:`\max_u C(u, x)`. A small network lifts
    these three channels to as many as the semantic feature has.

    Args:
        in_channels: of the semantic feature, and of the result.
        reduced_channels: after the reduction.
        window: side of the window in cells.
        uncertainty: form of the second map, see :func:`match_confidence`; None leaves it out.
        sign: of the softmax, see :func:`match_weights`.
        temperature: likewise.
        learn_temperature: train the logarithm of the temperature, which starts at ``temperature``.
        normalize: divide the displacement by ``window // 2``.
        out_of_frame: see :func:`match_weights`.
        separate_reduction: a reduction of its own for the frame before.
        norm: ``group`` puts a group normalisation of one group after every layer of the network but the last.

    Reference: MUNet (Sun et al.) section 3.2 and Table 1.
    """

    def __init__(
        self,
        in_channels: int,
        reduced_channels: int,
        window: int,
        uncertainty: Confidence | None,
        sign: int,
        temperature: float,
        learn_temperature: bool,
        normalize: bool,
        out_of_frame: OutOfFrame,
        separate_reduction: bool,
        norm: MotionNorm,
    ) -> None:
        super().__init__()
        self.window = window
        self.uncertainty = uncertainty
        self.sign = sign
        self.normalize = normalize
        self.out_of_frame = out_of_frame
        self.reduction = nn.Conv2d(in_channels, reduced_channels, 1)
        self.earlier_reduction = nn.Conv2d(in_channels, reduced_channels, 1) if separate_reduction else None
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature
        widths = (2 if uncertainty is None else 3, *MOTION_CHANNELS, in_channels)
        layers: list[nn.Module] = []
        for (narrow, wide), kernel in zip(itertools.pairwise(widths), MOTION_KERNELS, strict=True):
            layers.append(nn.Conv2d(narrow, wide, kernel, padding=kernel // 2))
            if norm == "group":
                layers.append(nn.GroupNorm(1, wide))
            layers.append(nn.ReLU(inplace=True))
        # The last layer is linear.
        self.network = nn.Sequential(*layers[: -2 if norm == "group" else -1])

    @property
    def temperature(self) -> float | Tensor:
        """Of the softmax."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def reduce(self, semantic: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B CM h w"], Float[Tensor, "B CM h w"]]:
        """Reduced features of unit length of a frame as the current one and as the one before."""
        current = l2_normalize(self.reduction(semantic))
        if self.earlier_reduction is None:
            return current, current
        return current, l2_normalize(self.earlier_reduction(semantic))

    def forward(
        self, current: Float[Tensor, "B CM h w"], earlier: Float[Tensor, "B CM h w"]
    ) -> tuple[Float[Tensor, "B C h w"], dict[str, Tensor]]:
        """Motion feature from the reduced features of two frames; displacement and uncertainty by name."""
        volume = local_similarity(current, earlier, self.window, "dot")
        tau = self.temperature
        maps = {"displacement": soft_displacement(volume, self.sign, tau, self.normalize, self.out_of_frame)}
        if self.uncertainty is not None:
            maps["uncertainty"] = match_confidence(volume, self.uncertainty, self.sign, tau, self.out_of_frame)
        return self.network(torch.cat(list(maps.values()), dim=1)), maps


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
