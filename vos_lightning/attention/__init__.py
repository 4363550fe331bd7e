"""Attention blocks."""

from vos_lightning.attention.cbam import CBAM
from vos_lightning.attention.dual import ChannelAttention, DualAttention, SpatialAttention
from vos_lightning.attention.msam import MSAM, MotionLayer

__all__ = ["CBAM", "DualAttention", "SpatialAttention", "ChannelAttention", "MSAM", "MotionLayer"]
