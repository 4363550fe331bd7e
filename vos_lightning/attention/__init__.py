"""Attention blocks."""

from vos_lightning.attention.cbam import CBAM
from vos_lightning.attention.dual import ChannelAttention, DualAttention, SpatialAttention

__all__ = ["CBAM", "DualAttention", "SpatialAttention", "ChannelAttention"]
