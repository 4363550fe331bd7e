"""STCN: space-time correspondence networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.backbones.normalization import Norm, PyramidNorm
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import OtherObjects
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.encoders.value import ValueEncoder
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import Similarity
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Weights = Literal["IMAGENET1K_V1"]


@dataclass(frozen=True)
class Features:
    """A frame, without masks and objects."""

    image: Float[Tensor, "B 3 H W"]
    pyramid: FeaturePyramid
    key: Float[Tensor, "B CK h w"]
    query_value: Float[Tensor, "B CV h w"]


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B CK *cells"]
    """Of the frame alone: all objects share it, and their affinities with it."""
    value: Float[Tensor, "B N CV *cells"] = per_object()  # noqa: RUF009


class STCN(VOSNetwork[Features, Entry, None]):
    """Rethinking Space-Time Networks with Improved Memory Coverage for Efficient Video Object Segmentation.

    Ho Kei Cheng, Yu-Wing Tai, Chi-Keung Tang; NeurIPS 2021, arXiv 2106.05210.

    Frames correspond to frames, whatever objects they show: keys come from the image alone, one encoder makes those of the memory
    and of the query, and one affinity, the negative squared distance of keys, serves all objects. Only the values depend on the
    masks; they are made by a shallow encoder, for the frames that are remembered.

    Deviations. The released code exponentiates the top-k affinities without subtracting the largest, which overflows above 88;
    here it is subtracted: the same function. What does not depend on the object is computed once a frame. The first convolution
    of the value encoder is kept in two parts, for the colours and for the masks. Objects that appear later do not read frames
    from before their first annotation, as in the released code for YouTube-VOS, which keeps a bank for every object.

    Args:
        weights: of both backbones (ResNet-50 and ResNet-18 of torchvision); None for a random initialisation.
        others: the second mask channel of the value encoder; None for the network of the pre-training on still images, which sees
            one object. See :class:`vos_lightning.encoders.masked.MaskedEncoder`.
        similarity: of keys.
        top_k: memory pixels that a query pixel reads in evaluation mode; None for all. In training it always reads all.
        attention: have the CBAM in the value encoder.
        norm: of the backbones. ``frozen_statistics``: scale and shift are trained.
        key_channels: of the keys.
        value_channels: of the memory values and of the query value.
        decoder_channels: at strides 16, 8 and 4.
        blocks: of the first three stages of the key encoder; other than ResNet-50's only without ``weights``.
        value_blocks: of the value encoder's ResNet, likewise.
        width: of the stems of both, likewise.
        reduction: of the channel gate in the value encoder.
        normalize_features: instance-normalise the features of a frame at every scale, before anything reads them.
        copier_start: initialise so that keys follow colours and edges, the memory's values hold the masks and the decoder
            enlarges what was read: the untrained network moves masks along the affinities. See
            :meth:`ResNetPyramid.damp_residuals`, :meth:`KeyValueProjection.start_as_matcher`,
            :meth:`ValueEncoder.start_as_copier`.

    The last two are not in the paper: they are for training without pretrained weights.

    Reference: the paper, and the released code (``hkchengrex/STCN``) for all that it leaves open.
    """

    padding = PaddingRule("mean", larger_half_first=False)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"norm"}

    def __init__(
        self,
        weights: Weights | None = "IMAGENET1K_V1",
        others: OtherObjects | None = "sum",
        similarity: Similarity = "l2",
        top_k: int | None = 20,
        attention: bool = True,
        norm: Norm = "frozen_statistics",
        key_channels: int = 64,
        value_channels: int = 512,
        decoder_channels: tuple[int, int, int] = (512, 256, 256),
        blocks: tuple[int, int, int] = (3, 4, 6),
        value_blocks: tuple[int, int, int] = (2, 2, 2),
        width: int = 64,
        reduction: int = 16,
        normalize_features: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
        self.similarity: Similarity = similarity
        self.top_k = top_k
        self.key_encoder = ResNetPyramid("bottleneck", (*blocks, 3), width, "layer3", weights, "stem", norm)
        self.feature_norm = PyramidNorm(self.key_encoder.channels) if normalize_features else nn.Identity()
        s16 = self.key_encoder.channels[-1]
        self.projection = KeyValueProjection(s16, key_channels, value_channels, orthogonal_key=True)
        self.value_encoder = ValueEncoder(s16, value_channels, others, weights, norm, value_blocks, width, attention, reduction)
        self.decoder = RefineDecoder(self.key_encoder.channels, value_channels, value_channels, decoder_channels)
        if copier_start:
            self.key_encoder.damp_residuals()
            self.projection.start_as_matcher()
            self.value_encoder.start_as_copier()
            self.decoder.start_as_copier()

    @classmethod
    def small(cls) -> STCN:
        """A random network of some 110 thousand parameters."""
        return cls(
            weights=None,
            key_channels=8,
            value_channels=8,
            decoder_channels=(8, 8, 8),
            blocks=(1, 1, 1),
            value_blocks=(1, 1, 1),
            width=8,  # strided 1 x 1 convolutions of 4 channels corrupt memory on CPUs (torch 2.15, channels-last, backward)
            reduction=2,
        )

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid, key and query value of a frame."""
        with record_function("vos/key_encoder"):
            pyramid = self.feature_norm(self.key_encoder(frame.image))
            key, query_value = self.projection(pyramid.s16)
        return Features(frame.image, pyramid, key.float(), query_value)

    def segment(self, features: Features, memory: Memory[Entry, None]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read the memory and decode."""
        bank, cells = memory.bank, features.key.shape[-2:]
        with record_function("vos/readout"):
            readout = read_memory(
                bank.entry.key,
                features.key.flatten(2),
                bank.entry.value,
                bank.readers,
                similarity=self.similarity,
                top_k=None if self.training else self.top_k,
            ).unflatten(3, cells)
        with record_function("vos/decoder"):
            return self.decoder(features.pyramid, readout, features.query_value), {}

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, None] | None,  # noqa: ARG002
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,
    ) -> tuple[Entry | None, None]:
        """Encode the masks, where the frame is remembered at all."""
        if not keep:
            return None, None
        with record_function("vos/value_encoder"):
            value = self.value_encoder(features.image, masks, features.pyramid.s16)
        return Entry(features.key, value), None
