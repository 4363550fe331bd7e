"""MUNet: motion-uncertainty-aware video object segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor
from torch.profiler import record_function

from vos_lightning.attention.msam import MSAM, MotionLayer, MotionOptions
from vos_lightning.backbones.resnet import ResNetWeights
from vos_lightning.networks.stm import STM, Entry
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput

Fusion = Literal["attention", "addition"]
DEFAULT_MOTION = MotionOptions()


@dataclass(frozen=True)
class Features:
    """Features of a frame, independent of masks and objects."""

    image: Float[Tensor, "B 3 H W"]
    """Padded; the memory encoder of STM sees it again together with the masks."""
    pyramid: FeaturePyramid
    current: Float[Tensor, "B CM h w"] | None
    """Reduced features of unit length, for the motion of this frame; None without motion."""
    earlier: Float[Tensor, "B CM h w"] | None
    """Reduced features of unit length, for the motion of the next frame; a different tensor only with two reductions."""


@dataclass(frozen=True)
class Carry:
    """What the next frame needs from this one besides the memory."""

    earlier: Float[Tensor, "B CM h w"] | None
    """Reduced features of unit length; None without motion."""


class MUNet(VOSNetwork[Features, Entry, Carry]):
    """MUNet: Motion Uncertainty-aware Semi-supervised Video Object Segmentation.

    Jiadai Sun, Yuxin Mao, Yuchao Dai, Yiran Zhong, Jianyuan Wang; Pattern Recognition, 2023 (arXiv 2111.14646).

    A space-time memory network whose query emphasises what moves. The features of this frame and of the previous one are compared
    in a window. The displacement of every pixel and the uncertainty of its match become a gate that emphasises the query's
    features before they are turned into the key and the value that read the memory. The motion is learned without supervision.

    The paper does not name its base network. Here it is STM: memory keys that depend on the object, separate projections for
    memory and query, and STM's decoder with two classes, whose difference of logits is returned.

    Deviations. The paper's softmax favours the offsets that match worst. Without a temperature it is almost uniform over 625
    offsets, so that its displacement hardly changes. The defaults of :class:`MotionOptions` take the best match instead
    (``sign=1``, a low ``temperature``, normalised to the window, no bias at the border of the frame); ``sign=-1,
    temperature=1.0, normalize=False, out_of_frame="zero"`` is what is printed. What equation 2 calls uncertainty is high where
    the match is sure. The motion of a frame does not depend on the objects and is computed once for all of
    them, and the reduced features of a frame are kept for the next one instead of encoding it twice.

    Args:
        stm: the space-time memory network; its memory encoder has one mask channel (``others: null``) in the paper.
        motion: options of the motion layer; None is the baseline of the ablation, the plain STM.
        fusion: how motion and semantic features are joined: by spatial attention (:class:`MSAM`) or as a sum.
        store_motion: fuse the motion with the features of remembered frames too.

    Raises:
        ValueError: an argument is unknown, or arguments contradict each other.
    """

    reads_previous = False

    def __init__(
        self,
        stm: STM,
        *,
        motion: MotionOptions | None = DEFAULT_MOTION,
        fusion: Fusion = "attention",
        store_motion: bool = False,
    ) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            raise ValueError(f"fusion must be one of {get_args(Fusion)}, not {fusion!r}")
        if store_motion and motion is None:
            raise ValueError("store_motion needs motion: set motion.window or another of its options")
        if store_motion and stm.memory_encoder.carry_masks:
            raise ValueError("store_motion fuses motion with features that carry no masks: leave out mask_encoder.carry_masks")
        self.padding = stm.padding
        self.store_motion = store_motion
        self.stm = stm
        s16 = stm.query_encoder.channels[-1]
        self.motion = None if motion is None else MotionLayer(s16, motion)
        self.attention = MSAM(s16) if motion is not None and fusion == "attention" else None

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        *,
        motion: MotionOptions | None = DEFAULT_MOTION,
        fusion: Fusion = "attention",
        store_motion: bool = False,
        **options: Any,
    ) -> MUNet:
        """The network on :meth:`STM.published` with one mask channel.

        Args:
            weights: pretrained weights of both encoders; None for a random initialisation. ``MASK_RCNN_COCO_V1`` is the paper's
                second version.
            motion: options of the motion layer, see the constructor.
            fusion: how motion and semantic features are joined, see the constructor.
            store_motion: whether remembered frames are fused with motion too, see the constructor.
            options: further arguments of :meth:`STM.published`.
        """
        stm = STM.published(weights, **{"others": None, **options})
        return cls(stm, motion=motion, fusion=fusion, store_motion=store_motion)

    @classmethod
    def small(cls) -> MUNet:
        """A random network with about 84 thousand parameters."""
        widths: dict[str, Any] = {"key_channels": 8, "value_channels": 8, "decoder_channels": 8}
        return cls.published(None, motion=MotionOptions(window=5, reduced_channels=8), blocks=(1, 1, 1), width=4, **widths)

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid of the frame, and its features as the motion layer compares them."""
        with record_function("vos/query_encoder"):
            pyramid = self.stm.pyramid(frame.image)
        current, earlier = (None, None) if self.motion is None else self.motion.reduce(pyramid.s16)
        return Features(frame.image, pyramid, current, earlier)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Emphasise what moves, read the memory and decode.

        The auxiliary outputs are at stride 16: ``displacement`` ``(B, 2, h, w)`` as (x, y), ``uncertainty`` and ``attention``
        ``(B, 1, h, w)``. Outputs of parts that the network does not have are missing.
        """
        semantic = features.pyramid.s16
        aux: dict[str, Tensor] = {}
        if self.motion is not None:
            with record_function("vos/motion"):
                motion, aux = self._motion(features, memory)
                semantic, gate = self._fuse(semantic, motion)
                aux = aux if gate is None else {**aux, "attention": gate}
        key, value = self.stm.query_projection(semantic)
        return self.stm.read(features.pyramid, key, value, memory.bank), aux

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode the frame with its masks if it is to be kept, and pass on its reduced features."""
        carry = self.carry_of(features)
        if not keep:
            return None, carry
        masked = self.stm.masked_features(features.image, masks)
        if self.store_motion and memory is not None:
            motion, _ = self._motion(features, memory)
            fused, _ = self._fuse(masked.flatten(0, 1), motion.unsqueeze(1).expand_as(masked).flatten(0, 1))
            masked = fused.unflatten(0, masked.shape[:2])
        return self.stm.entry(masked), carry

    def carry_of(self, features: Features) -> Carry:
        """The reduced features, which depend on no mask."""
        return Carry(features.earlier)

    def _motion(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.motion is not None
        assert features.current is not None
        assert memory.carry.earlier is not None
        return self.motion(features.current, memory.carry.earlier)

    def _fuse(self, semantic: Float[Tensor, "R C h w"], motion: Float[Tensor, "R C h w"]) -> tuple[Tensor, Tensor | None]:
        """The semantic feature joined with the motion, and the attention if there is one."""
        return (semantic + motion, None) if self.attention is None else self.attention(semantic, motion)
