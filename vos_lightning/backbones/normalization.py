"""Normalisation that is the same in training and in use, whatever the batch."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["frozen", "frozen_statistics", "batch", "instance"]
"""Frozen statistics and affine parameters; frozen statistics, trained affine parameters; ordinary batch normalisation; instance
normalisation in its place."""


def instance_norm(channels: int) -> nn.GroupNorm:
    """Every channel of every frame to zero mean and unit variance, then a learned affine map.

    Random features that are centred channel by channel already tell regions apart by their cosine; centred by groups of channels
    they do not, for the offsets between the channels dominate every inner product. (As a group normalisation with one channel a
    group, which accepts maps of a single cell.)

    Reference: Ulyanov et al., "Instance Normalization", arXiv 1607.08022; Wu and He, "Group Normalization", ECCV 2018.
    """
    return nn.GroupNorm(channels, channels)


def replace_batch_norm(module: nn.Module) -> None:
    """Put instance normalisation in the place of every batch normalisation inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, instance_norm(child.num_features))
        else:
            replace_batch_norm(child)
