"""Attention blocks."""

from vos_lightning.attention.cbam import CBAM

__all__ = ["CBAM"]
