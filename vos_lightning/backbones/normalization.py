"""Normalisation that is the same in training and in use, whatever the batch."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Norm = Literal["frozen", "batch", "group"]
"""Frozen statistics and affine parameters; ordinary batch normalisation; group normalisation in its place."""
GROUP_SIZE = 16
"""Channels of a group, where the number of channels allows it."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of 16 channels, or of the largest divisor of 16 that divides ``channels``.

    Reference: Wu and He, "Group Normalization", ECCV 2018.
    """
    return nn.GroupNorm(channels // math.gcd(channels, GROUP_SIZE), channels)


def replace_batch_norm(module: nn.Module) -> None:
    """Put group normalisation in the place of every batch normalisation inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            replace_batch_norm(child)
