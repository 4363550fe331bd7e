"""DMN-AOA: dynamic memory networks and adaptive object alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.aoa import DEFAULT_ALIGNMENT, AlignmentOptions
from vos_lightning.attention.dynamic_memory import DynamicMemory, Entry, TemplateSource
from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.normalization import Norm, normed_conv
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights, TrainFrom
from vos_lightning.decoders.coarse_masks import (
    DEFAULT_MATCHING,
    ProposalMasks,
    ProposalMatching,
    SeenProposals,
    TemplateMasks,
    bounded,
)
from vos_lightning.decoders.reference_refine import DEFAULT_REFINEMENT, ReferenceFrame, ReferenceRefinement, ReferenceRefiner
from vos_lightning.encoders.objects import DEFAULT_OBJECTS, ObjectEncoder, ObjectOptions
from vos_lightning.encoders.projection import start_isometric
from vos_lightning.mask_ops import PaddingRule, pool_to_stride
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.boxes import tight_boxes
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

MemoryFeatures = Literal["object", "frame"]
Coarse = Literal["proposals", "template"]
CERTAIN = 0.99
"""Largest probability of a coarse mask that is not refined: its weights exceed 1, and at 1 one wrong pixel would have all of the
gradient."""


@dataclass(frozen=True)
class Features:
    """Features of a frame and its proposals, independent of objects."""

    pyramid: FeaturePyramid
    """Reduced features."""
    as_query: Float[Tensor, "B CD h w"] | None
    """Projections of this frame as the current one and as a reference frame; both are None without refinement."""
    as_reference: Float[Tensor, "B CD h w"] | None
    proposals: SeenProposals | None
    """The proposals of the frame; None if coarse masks need none."""


@dataclass(frozen=True)
class Carry:
    """State that is replaced at every frame."""

    known: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    age: Float[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Frames since the object was introduced."""
    boxes: Float[Tensor, "B N 4"] = per_object()  # noqa: RUF009
    """Box in which the object was last seen."""
    masks: Float[Tensor, "B N h4 w4"] = per_object()  # noqa: RUF009
    """Masks of the last frame, at stride 4."""
    template: Float[Tensor, "B N C g g"] | None = per_object()  # noqa: RUF009
    """Value of the frame that introduced the object, if templates come from that frame."""
    previous: ReferenceFrame | None = None
    first: tuple[ReferenceFrame, ...] = ()
    """The frames that introduced objects."""


class DMNAOA(VOSNetwork[Features, Entry, Carry]):
    """Video Object Segmentation with Dynamic Memory Networks and Adaptive Object Alignment.

    Shuxian Liang, Xu Shen, Jianqiang Huang, Xian-Sheng Hua; ICCV 2021.

    Objects are matched to proposals of an instance detector. A memory of each object, encoded in its boxes, is read with the
    features in its last box and gives a template for the current frame (:class:`DynamicMemory`). Every proposal is aligned to the
    template before the two are compared, and a relaxed assignment weighs the masks of the proposals into a coarse mask
    (:class:`ProposalMasks`). The coarse mask is refined with the first and the previous frame, both aligned to the current one
    (:class:`ReferenceRefiner`).

    The authors have published no code, so everything that the paper leaves open is an argument. An object that has vanished is
    searched where it was last seen, and frames without it are not read. Everything that does not depend on the object is computed
    once a frame.

    Args:
        backbone: encoder of frames; in the paper a ResNet-50 or ResNet-101 up to stride 16 with frozen batch normalisation.
        reduced_channels: numbers of channels to which the features at strides 4, 8 and 16 are reduced (the "bottleneck layers").
            The paper does not state them; the default is a quarter of ResNet-50's, as inside its bottleneck blocks.
        groups: number of groups of every group normalisation.
        objects: options of the encoding of objects and proposals inside their boxes.
        alignment: options of the spaces in which proposals are aligned to templates, and reference frames to the current one.
        template: source of the templates: read from the ``memory``, or the value of the ``first_frame`` (rows A1 and A3).
        memory_features: what the memory encodes: the ``object`` in its box, or the whole ``frame`` (row A4).
        coarse: source of the coarse masks: weighted masks of the ``proposals``, or masks that are decoded from the ``template``
            in the last box, without proposals (row A5).
        matching: options of the matching of objects with proposals, for ``coarse`` ``proposals``.
        refinement: options of the refinement of coarse masks; None returns the coarse masks (row A6).
        isometric_start: initialise the reduction at stride 16 and the projections of the refinement as rotations of the features,
            see :func:`start_isometric`; half of the channels hold the negatives of the others. Not in the paper.
        copier_start: initialise the refinement to pass on the coarse mask, or with ``coarse`` ``template``, whose masks are noise
            at first, the moved masks of the first and the previous frame, see :meth:`ReferenceRefiner.start_as_copier`; for
            training in little time, not in the paper.

    Raises:
        ValueError: an argument is unknown, or arguments contradict each other.
    """

    padding = PaddingRule("zero", larger_half_first=False, repad_masks=True)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"matching.assignment.train_steps", "isometric_start", "copier_start"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        reduced_channels: tuple[int, int, int] = (64, 128, 256),
        groups: int = 32,
        objects: ObjectOptions = DEFAULT_OBJECTS,
        alignment: AlignmentOptions = DEFAULT_ALIGNMENT,
        template: TemplateSource = "memory",
        memory_features: MemoryFeatures = "object",
        coarse: Coarse = "proposals",
        matching: ProposalMatching = DEFAULT_MATCHING,
        refinement: ReferenceRefinement | None = DEFAULT_REFINEMENT,
        isometric_start: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("memory_features", memory_features, get_args(MemoryFeatures)),
            ("coarse", coarse, get_args(Coarse)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        others = [*reduced_channels, alignment.channels, *([] if refinement is None else [refinement.width])]
        if objects.channels % (4 * groups) or any(count % groups for count in others):
            raise ValueError(
                f"objects.channels must be a multiple of 4 * groups; reduced_channels, alignment.channels and refinement.width "
                f"must be multiples of groups, {groups}"
            )
        if template == "first_frame" and memory_features == "frame":
            raise ValueError("the template of the first frame is in its box: memory_features must be 'object'")
        self.template: TemplateSource = template
        self.memory_features: MemoryFeatures = memory_features
        self.needs_proposals = coarse == "proposals"

        self.backbone = backbone
        self.reduce = nn.ModuleList(
            normed_conv(count, fewer, 1, groups=groups) for count, fewer in zip(backbone.channels, reduced_channels, strict=True)
        )
        self.objects = ObjectEncoder(reduced_channels, objects, groups=groups)
        self.dynamic_memory = DynamicMemory(objects.channels, template)
        self.coarse_masks: ProposalMasks | TemplateMasks = (
            ProposalMasks(objects.channels, alignment, matching, groups=groups)
            if self.needs_proposals
            else TemplateMasks(objects.channels, groups=groups)
        )
        self.refiner = None if refinement is None else ReferenceRefiner(reduced_channels, alignment, refinement, groups=groups)
        if isometric_start:
            reduce16 = self.reduce[2]
            assert isinstance(reduce16, nn.Sequential)
            start_isometric(reduce16[0], writes_pairs=True)
            if self.refiner is not None:
                self.refiner.start_isometric()
        if copier_start and self.refiner is not None:
            self.refiner.start_as_copier("coarse" if self.needs_proposals else "references")

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen",
        train_from: TrainFrom | None = "stem",
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        **options: Any,
    ) -> DMNAOA:
        """The network on a ResNet up to stride 16, as published.

        Args:
            weights: pretrained weights, see :class:`ResNetPyramid`; None for a random initialisation.
            norm: normalisation of the backbone.
            train_from: first layer group of the backbone that is trained.
            blocks: ``(3, 4, 6, 3)`` for ResNet-50, ``(3, 4, 23, 3)`` for ResNet-101; other numbers only without ``weights``.
            width: number of channels of the stem; other than 64 only without ``weights``.
            options: further arguments of the constructor.
        """
        backbone = ResNetPyramid("bottleneck", blocks, width, "layer3", weights, train_from, norm)
        return cls(backbone, **options)

    @classmethod
    def small(cls) -> DMNAOA:
        """A random network with every part, whose objects differ clearly from each other."""
        return cls.published(
            None,
            blocks=(1, 1, 1, 1),
            width=4,
            reduced_channels=(4, 6, 8),
            groups=2,
            objects=ObjectOptions(channels=16, grid=4),
            alignment=AlignmentOptions(channels=8),
            refinement=ReferenceRefinement(width=8),
            copier_start=True,
        )

    def encode(self, frame: FrameInput) -> Features:
        """Reduced pyramid, projections for the refinement, and features of the proposals."""
        with record_function("vos/features"):
            full = self.backbone(frame.image)
            s4, s8, s16 = (layer(x) for layer, x in zip(self.reduce, (full.s4, full.s8, full.s16), strict=True))
            pyramid = FeaturePyramid(s4, s8, s16)
        proposals = None
        if isinstance(self.coarse_masks, ProposalMasks):
            assert frame.proposals is not None, "the propagation refuses frames without proposals"
            with record_function("vos/matcher"):
                inside = self.objects(pyramid, frame.proposals.boxes)
            proposals = self.coarse_masks.see(frame.proposals, inside, _size(pyramid))
        as_query = as_reference = None
        if self.refiner is not None:
            with record_function("vos/refinement"):
                as_query, as_reference = self.refiner.project(s16)
        return Features(pyramid, as_query, as_reference, proposals)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read a template of every object, decode a coarse mask from it, and refine the mask.

        Returns:
            Logits, and a dictionary with ``coarse``, the coarse masks at stride 4, and the auxiliary outputs of
            :meth:`ProposalMasks.forward`.
        """
        carry = memory.carry
        with record_function("vos/template"):
            templates, position_weights = self._templates(features.pyramid, memory)
        strides = (4, 1) if self.refiner is None else (4,)
        aux: dict[str, Tensor] = {}
        if isinstance(self.coarse_masks, ProposalMasks):
            assert features.proposals is not None
            seen = features.proposals
            masks, aux = self.coarse_masks(templates, position_weights, seen, carry.known, carry.masks, strides)
        else:
            masks = self.coarse_masks(templates, self.objects.enlarge(carry.boxes), _size(features.pyramid), strides)
        aux["coarse"] = masks[0]
        if self.refiner is None:
            return torch.logit(bounded(masks[1], 1 - CERTAIN, CERTAIN)), aux
        assert features.as_query is not None
        assert carry.previous is not None
        with record_function("vos/refinement"):
            return self.refiner(features.pyramid, features.as_query, carry.first, carry.previous, masks[0]), aux

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode every object in its box, and keep the reference frames of the refinement."""
        old = None if memory is None else memory.carry
        at4 = pool_to_stride(masks, 4)
        boxes, visible = tight_boxes(masks)
        if old is None:
            known, age = torch.zeros_like(introduced), torch.zeros_like(at4[:, :, 0, 0])
            height, width = masks.shape[-2:]
            last = boxes.new_tensor([0, 0, width, height]).expand_as(boxes)
        else:
            known, age, last = old.known, old.age + 1, old.boxes
        new = introduced & ~known
        age = age * ~new
        boxes = torch.where(visible.unsqueeze(2), boxes, last)
        entry = template = None
        if keep or self.template == "first_frame":
            with record_function("vos/template"):
                entry = self._entry(features.pyramid, at4, boxes, age, visible & introduced)
            if self.template == "first_frame":
                template = entry.value
                if old is not None:
                    assert old.template is not None
                    template = torch.where(new[:, :, None, None, None], template, old.template)
        previous, first = None, () if old is None else old.first
        if features.as_reference is not None:
            previous = ReferenceFrame(features.pyramid, features.as_reference, at4, new)
            if old is None or bool(new.any()):
                first = (*first, previous)
        return entry if keep else None, Carry(introduced, age, boxes, at4, template, previous, first)

    def _templates(
        self, pyramid: FeaturePyramid, memory: Memory[Entry, Carry]
    ) -> tuple[Float[Tensor, "B N C g g"], Float[Tensor, "B N g g"] | None]:
        """The expected appearance of every object in this frame, and how much of each cell belongs to it."""
        carry = memory.carry
        if self.template == "first_frame":
            assert carry.template is not None
            return carry.template, None
        seen = self.objects(pyramid, carry.boxes) + self.objects.time(carry.age + 1)
        return self.dynamic_memory.read(seen, memory.bank.entry, memory.bank.readable)

    def _entry(
        self,
        pyramid: FeaturePyramid,
        masks: Float[Tensor, "B N h4 w4"],
        boxes: Float[Tensor, "B N 4"],
        age: Float[Tensor, "B N"],
        visible: Bool[Tensor, "B N"],
    ) -> Entry:
        if self.memory_features == "frame":
            seen, inner = self.objects.whole_frame(pyramid).unsqueeze(1), pool_to_stride(masks, 4)
        else:
            seen, inner = self.objects(pyramid, boxes), self.objects.masks(masks, boxes)
        return self.dynamic_memory.write(seen + self.objects.time(age), inner, visible)


def _size(pyramid: FeaturePyramid) -> tuple[int, int]:
    """Height and width of the frame."""
    height, width = pyramid.s4.shape[-2:]
    return 4 * height, 4 * width
