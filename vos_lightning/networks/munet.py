"""MUNet: motion-uncertainty-aware video object segmentation."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.msam import MSAM
from vos_lightning.backbones.normalization import Norm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import MaskedEncoder, OtherObjects
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.local_window import (
    Confidence,
    OutOfFrame,
    local_similarity,
    match_confidence,
    soft_displacement,
)
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import l2_normalize
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Motion = Literal["none", "displacement", "displacement+uncertainty"]
Fusion = Literal["attention", "addition"]
MotionNorm = Literal["none", "group"]

MOTION_KERNELS = (7, 1, 3, 1, 3, 1, 3, 1)
MOTION_CHANNELS = (3, 16, 16, 32, 32, 32, 64)
"""Kernels, and outputs of all layers but the last, of the motion network (Table 1)."""


@dataclass(frozen=True)
class Features:
    """A frame, without masks and objects."""

    image: Float[Tensor, "B 3 H W"]
    """Padded; the reference encoder sees it again together with the masks."""
    pyramid: FeaturePyramid
    current: Float[Tensor, "B CM h w"] | None
    """Reduced features of unit length, as the frame whose motion is asked for; None without motion."""
    earlier: Float[Tensor, "B CM h w"] | None
    """The same as the frame before it; another tensor only with two reductions."""


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B N CK *cells"] = per_object()  # noqa: RUF009
    value: Float[Tensor, "B N CV *cells"] = per_object()  # noqa: RUF009


@dataclass(frozen=True)
class Carry:
    """What the next frame needs of this one beside the memory."""

    earlier: Float[Tensor, "B CM h w"] | None
    """Reduced features of unit length."""


class MotionLayer(nn.Module):
    r"""Motion-uncertainty layer: where each pixel came from and how sure that is, as a feature.

    The cosines :math:`C(u, x)` of the reduced features of this frame and of a window in the one before give a displacement, the
    mean offset under a softmax of :math:`\pm C / \tau`, and an uncertainty map, :math:`\max_u C(u, x)`. A small network lifts
    these three channels to as many as the semantic feature has.

    Args:
        in_channels: of the semantic feature, and of the result.
        reduced_channels: after the reduction.
        window: side of the window in cells.
        uncertainty: form of the second map, see :func:`match_confidence`; None leaves it out.
        sign: of the softmax, see :func:`match_weights`.
        temperature: likewise.
        learn_temperature: train the logarithm of the temperature, which starts at ``temperature``.
        normalize: divide the displacement by ``window // 2``.
        out_of_frame: see :func:`match_weights`.
        separate_reduction: a reduction of its own for the frame before.
        norm: ``group`` puts a group normalisation of one group after every layer of the network but the last.

    Reference: MUNet (Sun et al.) section 3.2 and Table 1.
    """

    def __init__(
        self,
        in_channels: int,
        reduced_channels: int,
        window: int,
        uncertainty: Confidence | None,
        sign: int,
        temperature: float,
        learn_temperature: bool,
        normalize: bool,
        out_of_frame: OutOfFrame,
        separate_reduction: bool,
        norm: MotionNorm,
    ) -> None:
        super().__init__()
        self.window = window
        self.uncertainty = uncertainty
        self.sign = sign
        self.normalize = normalize
        self.out_of_frame = out_of_frame
        self.reduction = nn.Conv2d(in_channels, reduced_channels, 1)
        self.earlier_reduction = nn.Conv2d(in_channels, reduced_channels, 1) if separate_reduction else None
        log_temperature = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature
        widths = (2 if uncertainty is None else 3, *MOTION_CHANNELS, in_channels)
        layers: list[nn.Module] = []
        for (narrow, wide), kernel in zip(itertools.pairwise(widths), MOTION_KERNELS, strict=True):
            layers.append(nn.Conv2d(narrow, wide, kernel, padding=kernel // 2))
            if norm == "group":
                layers.append(nn.GroupNorm(1, wide))
            layers.append(nn.ReLU(inplace=True))
        # The last layer is linear.
        self.network = nn.Sequential(*layers[: -2 if norm == "group" else -1])

    @property
    def temperature(self) -> float | Tensor:
        """Of the softmax."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def reduce(self, semantic: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B CM h w"], Float[Tensor, "B CM h w"]]:
        """Reduced features of unit length of a frame as the current one and as the one before."""
        current = l2_normalize(self.reduction(semantic))
        if self.earlier_reduction is None:
            return current, current
        return current, l2_normalize(self.earlier_reduction(semantic))

    def forward(
        self, current: Float[Tensor, "B CM h w"], earlier: Float[Tensor, "B CM h w"]
    ) -> tuple[Float[Tensor, "B C h w"], dict[str, Tensor]]:
        """Motion feature from the reduced features of two frames; displacement and uncertainty by name."""
        volume = local_similarity(current, earlier, self.window, "dot")
        tau = self.temperature
        maps = {"displacement": soft_displacement(volume, self.sign, tau, self.normalize, self.out_of_frame)}
        if self.uncertainty is not None:
            maps["uncertainty"] = match_confidence(volume, self.uncertainty, self.sign, tau, self.out_of_frame)
        return self.network(torch.cat(list(maps.values()), dim=1)), maps


class MUNet(VOSNetwork[Features, Entry, Carry]):
    """MUNet: Motion Uncertainty-aware Semi-supervised Video Object Segmentation.

    Jiadai Sun, Yuxin Mao, Yuchao Dai, Yiran Zhong, Jianyuan Wang; Pattern Recognition, 2023 (arXiv 2111.14646).

    A space-time memory network whose query knows what moves. The features of this frame and of the one before are compared in a
    window; the displacement of every pixel and the uncertainty of its match become a gate that emphasises the query's features
    before they are turned into the key and the value which read the memory. Nobody supervises the motion.

    The paper leaves its base open. Here it is STM: memory keys that depend on the object, separate projections for memory and
    query, STM's decoder with two classes, of whose logits the difference is returned.

    Deviations. The paper's softmax favours the offsets that match worst and is, without a temperature, almost uniform over 625
    offsets, so that its displacement hardly moves. The defaults take the best match instead (``displacement_sign=1``, a low
    ``temperature``, normalised to the window, offsets out of the frame left out); ``displacement_sign=-1, temperature=1.0,
    normalize_displacement=False`` is what is printed. The motion of a frame does not depend on the objects and is computed once
    for all of them, and the reduced features of a frame are kept for the next one instead of encoding it twice.

    Args:
        motion: ``none`` is the baseline of the ablation, ``displacement`` leaves the uncertainty map out.
        fusion: of motion and semantic features: spatial attention (:class:`MSAM`) or the sum.
        uncertainty: form of the uncertainty map, see :func:`match_confidence`.
        window: side of the window in cells, odd.
        displacement_sign: see :class:`MotionLayer`, as for the next seven.
        temperature: likewise.
        learn_temperature: likewise.
        normalize_displacement: likewise.
        out_of_frame: likewise.
        reduced_channels: likewise; the paper has a quarter of the features' 1024.
        separate_reduction: likewise.
        motion_norm: likewise.
        store_motion: fuse the motion with the features of remembered frames too.
        others: a second mask channel of the reference encoder, see :class:`MaskedEncoder`; the paper has none.
        shared_projection: one projection to keys and values for memory and query, as AFB-URR.
        top_k: memory pixels that a query pixel reads, in evaluation mode only; None for all.
        weights: of both encoders, see :class:`ResNetPyramid`; None for a random initialisation.
        norm: of both encoders.
        key_channels: of the memory's and the query's key.
        value_channels: likewise of the value.
        decoder_channels: of every scale of the decoder.
        blocks: size of both encoders; other than ResNet-50 only without ``weights``.
        width: likewise.

    Raises:
        ValueError: arguments that are unknown or contradict each other.
    """

    padding = PaddingRule("zero", larger_half_first=False, repad_masks=True)
    reads_previous = False

    def __init__(
        self,
        motion: Motion = "displacement+uncertainty",
        fusion: Fusion = "attention",
        uncertainty: Confidence = "maximum",
        window: int = 25,
        displacement_sign: Literal[-1, 1] = 1,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        normalize_displacement: bool = True,
        out_of_frame: OutOfFrame = "mask",
        reduced_channels: int = 256,
        separate_reduction: bool = False,
        motion_norm: MotionNorm = "none",
        store_motion: bool = False,
        others: OtherObjects | None = None,
        shared_projection: bool = False,
        top_k: int | None = None,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen_statistics",
        key_channels: int = 128,
        value_channels: int = 512,
        decoder_channels: int = 256,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("motion", motion, get_args(Motion)),
            ("fusion", fusion, get_args(Fusion)),
            ("uncertainty", uncertainty, get_args(Confidence)),
            ("out_of_frame", out_of_frame, get_args(OutOfFrame)),
            ("motion_norm", motion_norm, get_args(MotionNorm)),
            ("displacement_sign", displacement_sign, (-1, 1)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of cells, not {window}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if store_motion and motion == "none":
            raise ValueError("store_motion needs motion: set motion to 'displacement+uncertainty' or 'displacement'")
        self.store_motion = store_motion
        self.top_k = top_k
        self.query_encoder = ResNetPyramid("bottleneck", blocks, width, "layer3", weights, "stem", norm)
        self.reference_encoder = MaskedEncoder("bottleneck", blocks, width, weights, norm, others=others)
        s16 = self.query_encoder.channels[-1]
        self.motion = self.attention = None
        if motion != "none":
            self.motion = MotionLayer(
                s16,
                reduced_channels,
                window,
                uncertainty if motion == "displacement+uncertainty" else None,
                displacement_sign,
                temperature,
                learn_temperature,
                normalize_displacement,
                out_of_frame,
                separate_reduction,
                motion_norm,
            )
            self.attention = MSAM(s16) if fusion == "attention" else None
        self.query_projection = KeyValueProjection(s16, key_channels, value_channels)
        self.memory_projection = None if shared_projection else KeyValueProjection(s16, key_channels, value_channels)
        self.decoder = RefineDecoder(
            self.query_encoder.channels,
            value_channels,
            value_channels,
            (decoder_channels, decoder_channels, decoder_channels),
            entry="convolution",
            refine_skip=True,
            num_classes=2,
        )

    @classmethod
    def small(cls) -> MUNet:
        """A random network of some 84 thousand parameters."""
        return cls(
            weights=None,
            window=5,
            reduced_channels=8,
            key_channels=8,
            value_channels=8,
            decoder_channels=8,
            blocks=(1, 1, 1, 1),
            width=4,
        )

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid of the frame, and its features as the motion layer compares them."""
        pyramid = self.query_encoder(frame.image)
        current, earlier = (None, None) if self.motion is None else self.motion.reduce(pyramid.s16)
        return Features(frame.image, pyramid, current, earlier)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Emphasise what moves, read the memory and decode.

        The auxiliary outputs, at stride 16: ``displacement`` ``(B, 2, h, w)`` as (x, y), ``uncertainty`` and ``attention`` ``(B,
        1, h, w)``, as far as the network has them.
        """
        semantic, aux = features.pyramid.s16, {}
        if self.motion is not None:
            with record_function("vos/motion"):
                motion, aux = self._motion(features, memory)
                semantic, gate = self._fuse(semantic, motion)
                aux = aux if gate is None else {**aux, "attention": gate}
        with record_function("vos/read"):
            key, value = self.query_projection(semantic)
            bank = memory.bank
            readout = read_memory(
                bank.entry.key,
                key.flatten(2),
                bank.entry.value,
                bank.readers,
                top_k=None if self.training else self.top_k,
            )
        with record_function("vos/decode"):
            return self.decoder(features.pyramid, readout.unflatten(-1, value.shape[-2:]), value), aux

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode the frame with its masks if it is to be kept, and hand its reduced features on."""
        carry = Carry(features.earlier)
        if not keep:
            return None, carry
        with record_function("vos/memorize"):
            objects = masks.shape[:2]
            semantic = self.reference_encoder(features.image, masks).flatten(0, 1)
            if self.store_motion and memory is not None:
                motion, _ = self._motion(features, memory)
                semantic, _ = self._fuse(semantic, motion.unsqueeze(1).expand(-1, objects[1], -1, -1, -1).flatten(0, 1))
            projection = self.query_projection if self.memory_projection is None else self.memory_projection
            key, value = projection(semantic)
        return Entry(key.unflatten(0, objects), value.unflatten(0, objects)), carry

    def _motion(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.motion is not None
        assert features.current is not None
        assert memory.carry.earlier is not None
        return self.motion(features.current, memory.carry.earlier)

    def _fuse(self, semantic: Float[Tensor, "R C h w"], motion: Float[Tensor, "R C h w"]) -> tuple[Tensor, Tensor | None]:
        """The semantic feature with the motion, and the attention if there is one."""
        return (semantic + motion, None) if self.attention is None else self.attention(semantic, motion)
