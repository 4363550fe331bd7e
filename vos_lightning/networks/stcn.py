"""STCN: space-time correspondence networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.normalization import Norm, PyramidNorm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import MaskedEncoder, OtherObjects
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.encoders.value import ValueEncoder
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import Similarity
from vos_lightning.propagation.memory import Bank, Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object


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

    key: Float[Tensor, "B CK *cells"]
    """Key of the frame alone: all objects share it and its affinities."""
    value: Float[Tensor, "B N CV *cells"] = per_object()  # noqa: RUF009


class STCN(VOSNetwork[Features, Entry, None]):
    """Rethinking Space-Time Networks with Improved Memory Coverage for Efficient Video Object Segmentation.

    Ho Kei Cheng, Yu-Wing Tai, Chi-Keung Tang; NeurIPS 2021, arXiv 2106.05210.

    Frames correspond to frames, whatever objects they show. Keys come from the image alone, and one encoder makes those of the
    memory and of the query. One affinity, the negative squared distance of keys, serves all objects. Only the values depend on
    the masks; a shallow encoder makes them for the frames that are remembered.

    Deviations. The released code exponentiates the top-k affinities without subtracting the largest, which overflows above 88.
    Here it is subtracted, which is the same function. Everything that does not depend on the object is computed once a frame. The
    first convolution of the value encoder is kept in two parts, for the colours and for the masks. Objects that appear later do
    not read frames from before their first annotation, as in the released code for YouTube-VOS, which keeps a bank for every
    object.

    Args:
        backbone: encoder of frames to keys; in the paper a ResNet-50 up to stride 16.
        mask_encoder: encoder of a frame with its masks to values; in the paper a ResNet-18. With one mask channel
            (``others: null``) it is that of the pre-training on still images, which sees one object.
        similarity: similarity of keys.
        cosine_scale: factor of the similarity with ``cosine``; the other similarities have one over the square root of the number
            of channels.
        top_k: number of memory pixels that a query pixel reads in evaluation mode; None for all. In training it always reads all.
        attention: use the CBAM in the value encoder.
        reduction: factor by which the channel gate of the CBAM narrows.
        value_convolution: put a 3 x 3 convolution after the ResNet-18 of the value encoder (not STCN's).
        key_channels: number of channels of the keys.
        value_channels: number of channels of the memory values and of the query value.
        decoder_channels: numbers of channels of the decoder at strides 16, 8 and 4.
        normalize_features: instance-normalise the features of a frame at every scale, before anything reads them.
        isometric_start: initialise keys as rotations of the features, see :func:`start_isometric`, instead of smoothed ones.
        copier_start: initialise so that keys follow colours and edges, the memory's values hold the masks and the decoder
            enlarges the readout, so that the untrained network moves masks along the affinities. See
            :meth:`Backbone.start_smooth`, :meth:`KeyValueProjection.start_as_matcher` and :meth:`ValueEncoder.start_as_copier`.

    The last three are not in the paper: they are for training without pretrained weights, and for short trainings with them.

    Reference: the paper, and the released code (``hkchengrex/STCN``) for everything that it leaves open.
    """

    padding = PaddingRule("mean", larger_half_first=False)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"isometric_start", "copier_start"}

    def __init__(
        self,
        backbone: Backbone,
        mask_encoder: MaskedEncoder,
        *,
        similarity: Similarity = "l2",
        cosine_scale: float = 1.0,
        top_k: int | None = 20,
        attention: bool = True,
        reduction: int = 16,
        value_convolution: bool = False,
        key_channels: int = 64,
        value_channels: int = 512,
        decoder_channels: tuple[int, int, int] = (512, 256, 256),
        normalize_features: bool = False,
        isometric_start: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
        if similarity not in get_args(Similarity):
            raise ValueError(f"similarity must be one of {get_args(Similarity)}, not {similarity!r}")
        self.similarity: Similarity = similarity
        self.scale = cosine_scale if similarity == "cosine" else key_channels**-0.5
        self.top_k = top_k
        self.key_channels, self.value_channels = key_channels, value_channels
        self.key_encoder = backbone
        self.feature_norm = PyramidNorm(backbone.channels) if normalize_features else nn.Identity()
        s16 = backbone.channels[-1]
        self.projection = KeyValueProjection(s16, key_channels, value_channels, orthogonal_key=True)
        self.value_encoder = ValueEncoder(
            mask_encoder, s16, value_channels, attention=attention, reduction=reduction, convolution=value_convolution
        )
        self.decoder = RefineDecoder(backbone.channels, value_channels, value_channels, decoder_channels)
        if copier_start:
            self.key_encoder.start_smooth()
            self.projection.start_as_matcher()
            self.value_encoder.start_as_copier()
            self.decoder.start_as_copier()
        if isometric_start:
            self.projection.start_isometric()

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen_statistics",
        others: OtherObjects | None = "sum",
        blocks: tuple[int, int, int] = (3, 4, 6),
        value_blocks: tuple[int, int, int] = (2, 2, 2),
        width: int = 64,
        **options: Any,
    ) -> STCN:
        """The network on a ResNet-50 and a ResNet-18, as published.

        Args:
            weights: pretrained weights of both encoders; None for a random initialisation.
            norm: normalisation of both encoders, whose scale and shift are trained in the paper.
            others: second mask channel of the value encoder, see :class:`MaskedEncoder`.
            blocks: numbers of blocks of the first three layer groups of the key encoder; other than ResNet-50's only without
                ``weights``.
            value_blocks: numbers of blocks of the value encoder; other than ResNet-18's only without ``weights``.
            width: number of channels of both stems; other than 64 only without ``weights``.
            options: further arguments of the constructor.
        """
        common: dict[str, Any] = {"width": width, "last": "layer3", "weights": weights, "train_from": "stem", "norm": norm}
        backbone = ResNetPyramid("bottleneck", (*blocks, 3), **common)
        trunk = ResNetPyramid("basic", (*value_blocks, 2), conv_bias=True, **common)
        return cls(backbone, MaskedEncoder(trunk, others, "orthogonal"), **options)

    @classmethod
    def small(cls) -> STCN:
        """A random network with about 110 thousand parameters."""
        # Width 8, as strided 1 x 1 convolutions of 4 channels corrupt memory on CPUs (torch 2.15, channels-last, backward).
        return cls.published(
            None,
            blocks=(1, 1, 1),
            value_blocks=(1, 1, 1),
            width=8,
            reduction=2,
            key_channels=8,
            value_channels=8,
            decoder_channels=(8, 8, 8),
        )

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid, key and query value of a frame."""
        with record_function("vos/key_encoder"):
            pyramid = self.feature_norm(self.key_encoder(frame.image))
            key, query_value = self.projection(pyramid.s16)
        return Features(frame.image, pyramid, key.float(), query_value)

    def segment(self, features: Features, memory: Memory[Entry, None]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read the memory and decode."""
        with record_function("vos/readout"):
            readout = self.read(features.key, memory.bank)
        with record_function("vos/decoder"):
            return self.decoder(features.pyramid, readout, features.query_value), {}

    def read(self, key: Float[Tensor, "B CK h w"], bank: Bank[Entry]) -> Float[Tensor, "B N CV h w"]:
        """The values that the pixels of a query frame read from the bank."""
        return read_memory(
            bank.entry.key,
            key.flatten(2),
            bank.entry.value,
            bank.readers,
            similarity=self.similarity,
            scale=self.scale,
            top_k=None if self.training else self.top_k,
        ).unflatten(3, key.shape[-2:])

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, None] | None,  # noqa: ARG002
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,
    ) -> tuple[Entry | None, None]:
        """Encode the masks, if the frame is remembered at all."""
        if not keep:
            return None, None
        with record_function("vos/value_encoder"):
            value = self.value_encoder(features.image, masks, features.pyramid.s16)
        return Entry(features.key, value), None
