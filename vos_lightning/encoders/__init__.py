"""Encoders of what the memory keeps: keys of a frame, values of a frame with its masks."""

from vos_lightning.encoders.masked import MaskedEncoder, MaskInit, OtherObjects
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.encoders.value import ValueEncoder

__all__ = ["MaskedEncoder", "MaskInit", "OtherObjects", "KeyValueProjection", "ValueEncoder"]
