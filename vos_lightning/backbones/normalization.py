"""Normalisation that is the same in training and at inference, and does not depend on the batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.structures import FeaturePyramid

Norm = Literal["frozen", "frozen_statistics", "batch", "instance"]
"""``frozen``: fixed statistics and affine parameters; ``frozen_statistics``: fixed statistics, trained affine parameters;
``batch``: ordinary batch normalisation; ``instance``: instance normalisation in its place."""


def instance_norm(channels: int) -> nn.GroupNorm:
    """Normalise every channel of every frame to zero mean and unit variance, then apply a learned affine map.

    With random features that are centred channel by channel, cosines already tell regions apart. Centred by groups of channels
    they do not, because the offsets between the channels dominate every inner product.

    Reference: Ulyanov et al., "Instance Normalization", arXiv 1607.08022; Wu and He, "Group Normalization", ECCV 2018.
    """
    return nn.GroupNorm(channels, channels)


def normed_conv(in_channels: int, out_channels: int, kernel: int, *, groups: int) -> nn.Sequential:
    """Convolution that keeps the size, group normalisation, ReLU.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output, a multiple of ``groups``.
        kernel: side of the convolution's kernel, odd.
        groups: number of groups of the group normalisation.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.GroupNorm(groups, out_channels),
        nn.ReLU(inplace=True),
    )


def replace_batch_norm(module: nn.Module) -> None:
    """Replace every batch normalisation inside a module by instance normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, instance_norm(child.num_features))
        else:
            replace_batch_norm(child)


class CarrierNorm(nn.GroupNorm):
    """:func:`instance_norm` that only scales and shifts its first channels.

    If the first channels carry a mask, normalisation would make its value inside the object depend on the object's size.

    Args:
        channels: number of channels of the input.
        carriers: number of first channels that are not normalised.
    """

    def __init__(self, channels: int, carriers: int) -> None:
        super().__init__(channels, channels)
        self.carriers = carriers

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Normalise all but the carriers."""
        weight, bias = (p[: self.carriers, None, None] for p in (self.weight, self.bias))
        return torch.cat([x[:, : self.carriers] * weight + bias, super().forward(x)[:, self.carriers :]], dim=1)


class CellNorm(nn.Module):
    """Normalise every cell of every frame to a mean square of 1 over its channels.

    Where keys are compared by inner products, a few cells of large norm would otherwise win every comparison.

    Args:
        carriers: number of first channels that are left unchanged; see :class:`CarrierNorm`.
    """

    def __init__(self, carriers: int = 0) -> None:
        super().__init__()
        self.carriers = carriers

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Normalise all channels but the carriers."""
        others = x[:, self.carriers :]
        if not self.carriers:
            return F.normalize(others, dim=1) * others.shape[1] ** 0.5
        return torch.cat([x[:, : self.carriers], F.normalize(others, dim=1) * others.shape[1] ** 0.5], dim=1)


class PyramidNorm(nn.Module):
    """:func:`instance_norm` at every scale of a pyramid, then :class:`CellNorm` at stride 16.

    Args:
        channels: numbers of channels at strides 4, 8 and 16.
    """

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.s4, self.s8, self.s16 = (instance_norm(count) for count in channels)
        self.cells = CellNorm()

    def forward(self, pyramid: FeaturePyramid) -> FeaturePyramid:
        """Normalise every scale separately."""
        return FeaturePyramid(self.s4(pyramid.s4), self.s8(pyramid.s8), self.cells(self.s16(pyramid.s16)))
