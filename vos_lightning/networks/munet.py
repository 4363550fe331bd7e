"""MUNet: motion-uncertainty-aware video object segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.msam import MSAM, MotionLayer, MotionNorm
from vos_lightning.backbones.normalization import CarrierNorm, CellNorm, Norm, PyramidNorm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import CARRIERS, MaskedEncoder, OtherObjects, start_as_copiers
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.local_window import Confidence, OutOfFrame
from vos_lightning.matching.readout import read_memory
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Motion = Literal["none", "displacement", "displacement+uncertainty"]
Fusion = Literal["attention", "addition"]
DetectorEncoders = Literal["both", "query"]


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
        weights: of both encoders, see :class:`ResNetPyramid`; None for a random initialisation. ``MASK_RCNN_COCO_V1`` is the
            paper's second version.
        detector_encoders: with a detector's weights, whether the reference encoder has them too, or ImageNet's.
        norm: of both encoders.
        key_channels: of the memory's and the query's key.
        value_channels: likewise of the value.
        decoder_channels: of every scale of the decoder.
        blocks: size of both encoders; other than ResNet-50 only without ``weights``.
        width: likewise.
        normalize_features: instance-normalise the features of a frame at every scale, and those of the memory, before anything
            reads them.
        copier_start: initialise so that memory and query have the same features and keys, the memory's values hold the masks and
            the decoder enlarges what was read: the untrained network moves masks along the affinities. See
            :meth:`MaskedEncoder.start_as_copier`.

    The last two are not in the paper: they are for training without pretrained weights.

    Raises:
        ValueError: arguments that are unknown or contradict each other.
    """

    padding = PaddingRule("zero", larger_half_first=False, repad_masks=True)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"detector_encoders", "norm"}

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
        detector_encoders: DetectorEncoders = "both",
        norm: Norm = "frozen_statistics",
        key_channels: int = 128,
        value_channels: int = 512,
        decoder_channels: int = 256,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        normalize_features: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("motion", motion, get_args(Motion)),
            ("fusion", fusion, get_args(Fusion)),
            ("uncertainty", uncertainty, get_args(Confidence)),
            ("out_of_frame", out_of_frame, get_args(OutOfFrame)),
            ("motion_norm", motion_norm, get_args(MotionNorm)),
            ("detector_encoders", detector_encoders, get_args(DetectorEncoders)),
            ("displacement_sign", displacement_sign, (-1, 1)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of cells, not {window}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
        if store_motion and motion == "none":
            raise ValueError("store_motion needs motion: set motion to 'displacement+uncertainty' or 'displacement'")
        self.store_motion = store_motion
        self.top_k = top_k
        self.query_encoder = ResNetPyramid("bottleneck", blocks, width, "layer3", weights, "stem", norm)
        if weights == "MASK_RCNN_COCO_V1" and detector_encoders == "query":
            weights = "IMAGENET1K_V1"
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
        self.feature_norm = PyramidNorm(self.query_encoder.channels) if normalize_features else nn.Identity()
        self.memory_norm = nn.Sequential(CarrierNorm(s16, CARRIERS), CellNorm(CARRIERS)) if normalize_features else nn.Identity()
        self.decoder = RefineDecoder(
            self.query_encoder.channels,
            value_channels,
            value_channels,
            (decoder_channels, decoder_channels, decoder_channels),
            entry="convolution",
            refine_skip=True,
            num_classes=2,
        )
        if copier_start:
            start_as_copiers(self.query_encoder, self.query_projection, self.reference_encoder, self.memory_projection)
            self.decoder.start_as_copier()

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
        pyramid = self.feature_norm(self.query_encoder(frame.image))
        current, earlier = (None, None) if self.motion is None else self.motion.reduce(pyramid.s16)
        return Features(frame.image, pyramid, current, earlier)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Emphasise what moves, read the memory and decode.

        The auxiliary outputs, at stride 16: ``displacement`` ``(B, 2, h, w)`` as (x, y), ``uncertainty`` and ``attention`` ``(B,
        1, h, w)``, as far as the network has them.
        """
        semantic = features.pyramid.s16
        aux: dict[str, Tensor] = {}
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
            semantic = self.memory_norm(self.reference_encoder(features.image, masks).flatten(0, 1))
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
