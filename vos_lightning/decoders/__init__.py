"""Decoders: matching maps and a feature pyramid in, logits out."""

from vos_lightning.decoders.crvos import CRVOSDecoder
from vos_lightning.decoders.deconv import DeconvDecoder, FusionStage, initialize, transposed_convolution
from vos_lightning.decoders.refine import RefineDecoder, RefineStage

__all__ = ["CRVOSDecoder", "DeconvDecoder", "FusionStage", "RefineDecoder", "RefineStage", "initialize", "transposed_convolution"]
