"""STM: space-time memory networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.normalization import CarrierNorm, CellNorm, Norm, PyramidNorm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import CARRIERS, MaskedEncoder, OtherObjects, start_alike, start_as_copiers
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.readout import read_memory
from vos_lightning.propagation.memory import Bank, Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

PadColour = Literal["black", "mean"]


@dataclass(frozen=True)
class Features:
    """Features of a frame, independent of masks and objects."""

    image: Float[Tensor, "B 3 H W"]
    pyramid: FeaturePyramid
    key: Float[Tensor, "B CK h w"]
    query_value: Float[Tensor, "B CV h w"]


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B N CK *cells"] = per_object()  # noqa: RUF009
    value: Float[Tensor, "B N CV *cells"] = per_object()  # noqa: RUF009


class STM(VOSNetwork[Features, Entry, None]):
    """Video Object Segmentation using Space-Time Memory Networks.

    Seoung Wug Oh, Joon-Young Lee, Ning Xu, Seon Joo Kim; ICCV 2019, arXiv 1904.00607.

    Past frames and their masks are encoded into keys and values. Every pixel of the query frame reads the values of the memory
    pixels whose keys resemble its own, and a decoder turns the readout into a mask. Memory and query have separate encoders, so
    the keys of the memory depend on the object.

    Deviations. Objects that appear later, for which nothing is released, are handled as in STCN: they do not read frames from
    before their first annotation. Everything that does not depend on the object is computed once a frame. The first convolution
    of the memory encoder is kept in two parts, for the colours and for the masks, where the released code has three.

    Args:
        backbone: encoder of the query frame; in the paper a ResNet-50 up to stride 16.
        mask_encoder: encoder of a remembered frame with its masks, the same ResNet with mask channels.
        shared_projection: use one projection to keys and values for memory and query (AFB-URR).
        top_k: number of memory pixels that a query pixel reads in evaluation mode; None for all, as published.
        pad_colour: colour of the border that makes the sides of a frame multiples of 16: ``black``, as in the released code,
            which normalises colours after padding, or ``mean``, which is zero after normalisation.
        key_channels: number of channels of the keys.
        value_channels: number of channels of the memory values and of the query value.
        decoder_channels: number of channels of the decoder at all scales.
        normalize_features: instance-normalise the features of a frame at every scale, and those of the memory, before anything
            reads them.
        isometric_start: initialise keys as rotations of the features, see :func:`start_isometric`, instead of smoothed ones.
        copier_start: initialise so that memory and query have the same features and keys, which follow colours and edges, the
            memory's values hold the masks and the decoder enlarges the readout, so that the untrained network moves masks along
            the affinities. See :meth:`Backbone.start_smooth`, :meth:`KeyValueProjection.start_as_matcher` and
            :meth:`MaskedEncoder.start_as_copier`.

    The last three are not in the paper: they are for training without pretrained weights, and for short trainings with them.

    Reference: the paper, and the released code (``seoungwugoh/STM``) for everything that it leaves open.
    """

    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"isometric_start", "copier_start"}

    def __init__(
        self,
        backbone: Backbone,
        mask_encoder: MaskedEncoder,
        *,
        shared_projection: bool = False,
        top_k: int | None = None,
        pad_colour: PadColour = "black",
        key_channels: int = 128,
        value_channels: int = 512,
        decoder_channels: int = 256,
        normalize_features: bool = False,
        isometric_start: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
        if shared_projection and mask_encoder.channels[-1] != backbone.channels[-1]:
            raise ValueError("shared_projection needs as many channels of the memory as of the query: leave out carry_masks")
        # The released code crops masks and pads them again.
        self.padding = PaddingRule("zero" if pad_colour == "black" else "mean", larger_half_first=False, repad_masks=True)
        self.top_k = top_k
        self.query_encoder = backbone
        self.memory_encoder = mask_encoder
        self.feature_norm = PyramidNorm(self.query_encoder.channels) if normalize_features else nn.Identity()
        s16 = self.query_encoder.channels[-1]
        of_memory = mask_encoder.channels[-1]
        self.memory_norm = (
            nn.Sequential(CarrierNorm(of_memory, CARRIERS), CellNorm(CARRIERS)) if normalize_features else nn.Identity()
        )
        self.query_projection = KeyValueProjection(s16, key_channels, value_channels)
        self.memory_projection = None if shared_projection else KeyValueProjection(of_memory, key_channels, value_channels)
        self.decoder = RefineDecoder(
            self.query_encoder.channels,
            value_channels,
            value_channels,
            (decoder_channels,) * 3,
            entry="convolution",
            refine_skip=True,
            num_classes=2,
        )
        if copier_start:
            start_as_copiers(self.query_encoder, self.query_projection, self.memory_encoder, self.memory_projection)
            self.decoder.start_as_copier()
        if isometric_start:
            self.query_projection.start_isometric()
            if self.memory_projection is not None:
                start_alike(self.memory_projection.key, self.query_projection.key)

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen_statistics",
        others: OtherObjects | None = "clamped",
        blocks: tuple[int, int, int] = (3, 4, 6),
        width: int = 64,
        **options: Any,
    ) -> STM:
        """The network on two ResNet-50, as published.

        Args:
            weights: pretrained weights of both encoders; None for a random initialisation.
            norm: normalisation of both encoders, whose scale and shift are trained in the paper.
            others: second mask channel of the memory encoder, see :class:`MaskedEncoder`.
            blocks: numbers of blocks of the first three layer groups; other than ResNet-50's only without ``weights``.
            width: number of channels of the stems; other than 64 only without ``weights``.
            options: further arguments of the constructor.
        """
        trunks = [
            ResNetPyramid(blocks=(*blocks, 3), width=width, last="layer3", weights=weights, train_from="stem", norm=norm)
            for _ in range(2)
        ]
        return cls(trunks[0], MaskedEncoder(trunks[1], others), **options)

    @classmethod
    def small(cls) -> STM:
        """A random network with about 47 thousand parameters."""
        return cls.published(None, blocks=(1, 1, 1), width=4, key_channels=8, value_channels=8, decoder_channels=8)

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid, key and query value of a frame."""
        with record_function("vos/query_encoder"):
            pyramid = self.pyramid(frame.image)
            key, query_value = self.query_projection(pyramid.s16)
        return Features(frame.image, pyramid, key.float(), query_value)

    def segment(self, features: Features, memory: Memory[Entry, None]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read the memory and decode."""
        return self.read(features.pyramid, features.key, features.query_value, memory.bank), {}

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, None] | None,  # noqa: ARG002
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,
    ) -> tuple[Entry | None, None]:
        """Encode the frame with the masks, if it is remembered at all."""
        return (self.entry(self.masked_features(features.image, masks)) if keep else None), None

    # For systems that build on STM ----------------------------------------------------------------------------------------

    def pyramid(self, image: Float[Tensor, "B 3 H W"]) -> FeaturePyramid:
        """Features of a frame, as all other parts read them."""
        pyramid: FeaturePyramid = self.feature_norm(self.query_encoder(image))
        return pyramid

    def read(
        self,
        pyramid: FeaturePyramid,
        key: Float[Tensor, "B CK h w"],
        query_value: Float[Tensor, "B CV h w"],
        bank: Bank[Entry],
    ) -> Float[Tensor, "B N H W"]:
        """Read the bank by the key of a query frame, and decode the readout with its value and pyramid to logits."""
        with record_function("vos/readout"):
            readout = read_memory(
                bank.entry.key,
                key.flatten(2),
                bank.entry.value,
                bank.readers,
                top_k=None if self.training else self.top_k,
            ).unflatten(3, key.shape[-2:])
        with record_function("vos/decoder"):
            logits: Tensor = self.decoder(pyramid, readout, query_value)
            return logits

    def masked_features(self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N C h w"]:
        """Features at stride 16 of a frame with the mask of every object."""
        with record_function("vos/memory_encoder"):
            encoded = self.memory_encoder(image, masks)
            features: Tensor = self.memory_norm(encoded.flatten(0, 1))
            return features.unflatten(0, masks.shape[:2])

    def entry(self, masked: Float[Tensor, "B N C h w"]) -> Entry:
        """The memory entry of such features."""
        projection = self.query_projection if self.memory_projection is None else self.memory_projection
        with record_function("vos/memory_encoder"):
            key, value = projection(masked.flatten(0, 1))
        objects = masked.shape[:2]
        return Entry(key.float().unflatten(0, objects), value.unflatten(0, objects))
