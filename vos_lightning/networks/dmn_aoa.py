"""DMN-AOA: dynamic memory networks and adaptive object alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.aoa import AdaptiveObjectAlignment, Sharpness, projector
from vos_lightning.backbones.normalization import Norm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights, TrainFrom
from vos_lightning.decoders.reference_refine import ReferenceRefineDecoder, References
from vos_lightning.mask_ops import MAX_LOGIT, PaddingRule, pool_to_stride
from vos_lightning.matching.alignment import PositionPool, correspondence, move_blocks
from vos_lightning.matching.assignment import AssignmentOutput, prune, relaxed_assignment
from vos_lightning.matching.readout import read_memory
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.boxes import box_features, masks_in_boxes, paste_masks, tight_boxes
from vos_lightning.structures import FeaturePyramid, FrameInput, Proposals, per_object

Template = Literal["memory", "first_frame"]
MemoryFeatures = Literal["object", "frame"]
Coarse = Literal["proposals", "template"]


@dataclass(frozen=True)
class Features:
    """A frame and its proposals, without objects."""

    pyramid: FeaturePyramid
    """Reduced, with the same channels at every stride."""
    as_query: Float[Tensor, "B CD h w"] | None
    """Projections by which the frame is aligned to, and by which it is moved; None without refinement."""
    as_reference: Float[Tensor, "B CD h w"] | None
    proposals: Proposals
    pasted: Float[Tensor, "B K h4 w4"]
    """Masks of the proposals in the frame, at stride 4."""
    projected: Float[Tensor, "B K CD g g"]
    """Features of the proposals in the space where they are compared with templates."""


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``g g`` (a grid in the object's box) or ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B N CK *cells"] = per_object()  # noqa: RUF009
    value: Float[Tensor, "B N C *cells"] = per_object()  # noqa: RUF009
    masks: Float[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    visible: Bool[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    """Whether the object was there: a frame without it is not read."""


@dataclass(frozen=True)
class Reference:
    """A frame that the refinement looks back to."""

    pyramid: FeaturePyramid
    projected: Float[Tensor, "B CD h w"]
    masks: Float[Tensor, "B N h4 w4"] = per_object()  # noqa: RUF009
    """At stride 4."""
    owner: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Objects that were introduced in this frame."""


@dataclass(frozen=True)
class Carry:
    """What is replaced at every frame."""

    known: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    age: Float[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Frames since the object was introduced."""
    boxes: Float[Tensor, "B N 4"] = per_object()  # noqa: RUF009
    """Where it was last seen."""
    masks: Float[Tensor, "B N h4 w4"] = per_object()  # noqa: RUF009
    """Of the last frame, at stride 4."""
    template: Float[Tensor, "B N C g g"] | None = per_object()  # noqa: RUF009
    """Value of the frame that introduced the object, where that is the template."""
    previous: Reference | None = None
    first: tuple[Reference, ...] = ()
    """The frames that introduced objects."""


class DMNAOA(VOSNetwork[Features, Entry, Carry]):
    r"""Video Object Segmentation with Dynamic Memory Networks and Adaptive Object Alignment.

    Shuxian Liang, Xu Shen, Jianqiang Huang, Xian-Sheng Hua; ICCV 2021.

    Objects are matched to proposals of an instance detector. A memory of each object, seen in its own boxes, is read with the
    features in its last box and gives a template for the current frame; every proposal is aligned to the template before the two
    are compared; a relaxed assignment weighs the masks of the proposals into a coarse mask, which is refined with the first and
    the previous frame, aligned to the current one.

    The authors have published no code. What the paper leaves open is an argument. An object in a frame without any proposal keeps
    the mask of the frame before as its coarse mask. An object that has vanished is looked for where it was last seen, and frames
    without it are not read. The correspondence to the reference frames is computed at stride 16 and moves the pixels of the finer
    scales in blocks; it is shared by all objects, as is all of a convolution that sees only features.

    Args:
        weights: of the backbone, see :class:`ResNetPyramid`; None for a random initialisation.
        blocks: of the backbone: ``[3, 4, 6, 3]`` for ResNet-50, ``[3, 4, 23, 3]`` for ResNet-101.
        width: of the backbone.
        norm: of the backbone; ``frozen`` is the paper.
        train_from: first stage of the backbone that is trained.
        reduced_channels: of the features at strides 4, 8 and 16 (the "bottleneck layers").
        channels: ``C`` of object features, templates and values; keys have a quarter.
        grid: cells along a side of an object's box.
        projected_channels: ``C_D`` of the spaces in which objects, and frames, are aligned.
        sharpness: :math:`\alpha` of the alignment.
        learned_sharpness: train it.
        pool: how the positions of an aligned pair become one similarity.
        box_scale: factor by which boxes are enlarged before features are read in them.
        offset_unit: frames that count as 1 in the embedding of time.
        template: read from the memory (``memory``), or the value of the first frame (``first_frame``, rows A1 and A3).
        align_proposals: align proposals to the template; without it spatial means are compared (rows A1 and A2).
        memory_features: what the memory encodes: the object in its box, or the whole frame (``frame``, row A4).
        coarse: weighted masks of the proposals, or a mask that is decoded from the template in the last box, without proposals
            (``template``, row A5).
        refine: without it the coarse mask is the result (row A6).
        move_masks: move the masks of the reference frames as their features are moved.
        refine_width: channels of the refinement.
        refine_kernel: of its last convolution: 1 is the paper, 3 is STM.
        groups: of the group normalisation.
        iou_weight: share of the overlap with the previous mask in a similarity; DMM-Net has 0.3.
        train_steps: gradient steps of the relaxed assignment in training ...
        eval_steps: ... and in use.
        sweeps: sweeps of its projections.
        step_size: of its gradient steps.
        assignment_output: which mean of its iterates is the result.
        null_column: let objects stay without a proposal.
        copier_start: initialise the refinement to hand the coarse mask on; for training from scratch, not in the paper.

    Raises:
        ValueError: arguments that are unknown or contradict each other.
    """

    padding = PaddingRule("zero", larger_half_first=False, repad_masks=True)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"matching.assignment.train_steps", "copier_start"}

    def __init__(
        self,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        norm: Norm = "frozen",
        train_from: TrainFrom | None = "stem",
        reduced_channels: int = 256,
        channels: int = 512,
        grid: int = 14,
        projected_channels: int = 256,
        sharpness: float = 100.0,
        learned_sharpness: bool = False,
        pool: PositionPool = "mean",
        box_scale: float = 1.0,
        offset_unit: float = 1.0,
        template: Template = "memory",
        align_proposals: bool = True,
        memory_features: MemoryFeatures = "object",
        coarse: Coarse = "proposals",
        refine: bool = True,
        move_masks: bool = True,
        refine_width: int = 256,
        refine_kernel: Literal[1, 3] = 1,
        groups: int = 32,
        iou_weight: float = 0.0,
        train_steps: int = 10,
        eval_steps: int = 40,
        sweeps: int = 5,
        step_size: float = 0.1,
        assignment_output: AssignmentOutput = "mean_pre",
        null_column: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("template", template, get_args(Template)),
            ("memory_features", memory_features, get_args(MemoryFeatures)),
            ("coarse", coarse, get_args(Coarse)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if channels % (4 * groups) or any(c % groups for c in (reduced_channels, projected_channels, refine_width)):
            raise ValueError(f"channels must be a multiple of 4 * groups, all other channels one of groups, {groups}")
        if template == "first_frame" and memory_features == "frame":
            raise ValueError("the template of the first frame is in its box: memory_features must be 'object'")
        if not 0 <= iou_weight <= 1:
            raise ValueError(f"iou_weight must be in [0, 1], not {iou_weight}")
        self.channels = channels
        self.grid = grid
        self.projected_channels = projected_channels
        self.box_scale = box_scale
        self.offset_unit = offset_unit
        self.template_source: Template = template
        self.memory_features: MemoryFeatures = memory_features
        self.move_masks = move_masks
        self.iou_weight = iou_weight
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.sweeps = sweeps
        self.step_size = step_size
        self.assignment_output: AssignmentOutput = assignment_output
        self.null_column = null_column

        self.backbone = ResNetPyramid(
            blocks=blocks, width=width, last="layer3", weights=weights, train_from=train_from, norm=norm
        )
        self.reduce = nn.ModuleList(_normed_conv(c, reduced_channels, 1, groups) for c in self.backbone.channels)
        self.fuse = _normed_conv(3 * reduced_channels, channels, 1, groups)
        # As in STM, keys and values are plain convolutions: a normalisation would take the scale out of the inner products.
        reads_memory = template == "memory"
        self.memory_key = nn.Conv2d(channels + 1, channels // 4, 3, padding=1) if reads_memory else None
        self.memory_value = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.query_key = nn.Conv2d(channels, channels // 4, 3, padding=1) if reads_memory else None
        self.matcher = (
            AdaptiveObjectAlignment(channels, projected_channels, sharpness, learned_sharpness, pool, align_proposals, groups)
            if coarse == "proposals"
            else None
        )
        self.template_mask = (
            nn.Sequential(_normed_conv(channels, channels // 4, 3, groups), nn.Conv2d(channels // 4, 1, 1))
            if coarse == "template"
            else None
        )
        self.needs_proposals = self.matcher is not None
        self.decoder: ReferenceRefineDecoder | None = None
        if refine:
            self.frame_query = projector(reduced_channels, projected_channels, groups)
            self.frame_reference = projector(reduced_channels, projected_channels, groups)
            self.frame_sharpness = Sharpness(sharpness, learned_sharpness)
            self.decoder = ReferenceRefineDecoder(reduced_channels, refine_width, groups, refine_kernel)
            if copier_start:
                self.decoder.start_as_copier()

    @classmethod
    def small(cls) -> DMNAOA:
        """A random network with every part, whose objects differ clearly from each other."""
        return cls(
            weights=None,
            blocks=(1, 1, 1, 1),
            width=4,
            reduced_channels=8,
            channels=16,
            grid=4,
            projected_channels=8,
            refine_width=8,
            groups=2,
            copier_start=True,
        )

    # A frame ------------------------------------------------------------------------------------------------------------

    def encode(self, frame: FrameInput) -> Features:
        """Reduced pyramid, projections for the refinement, and features of the proposals."""
        with record_function("vos/features"):
            pyramid = self.backbone(frame.image)
            s4, s8, s16 = (layer(x) for layer, x in zip(self.reduce, (pyramid.s4, pyramid.s8, pyramid.s16), strict=True))
            reduced = FeaturePyramid(s4, s8, s16)
        proposals = frame.proposals if self.needs_proposals else self._no_proposals(frame.image)
        assert proposals is not None, "the propagation refuses frames without proposals"
        height, width = frame.image.shape[-2:]
        with record_function("vos/proposals"):
            pasted = paste_masks(proposals.masks, proposals.boxes.to(s4), height, width, stride=4)
        with record_function("vos/matcher"):
            projected = (
                self._no_features(s4)
                if self.matcher is None
                else self.matcher.project_proposals(self._object_features(reduced, proposals.boxes))
            )
        as_query = as_reference = None
        if self.decoder is not None:
            with record_function("vos/refinement"):
                as_query, as_reference = self.frame_query(s16), self.frame_reference(s16)
        return Features(reduced, as_query, as_reference, proposals, pasted, projected)

    @staticmethod
    def _no_proposals(image: Tensor) -> Proposals:
        batch = image.shape[0]
        return Proposals(image.new_zeros(batch, 0, 4), image.new_zeros(batch, 0, 28, 28), image.new_zeros(batch, 0))

    def _no_features(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[0], 0, self.projected_channels, self.grid, self.grid)

    def _object_features(self, pyramid: FeaturePyramid, boxes: Float[Tensor, "B K 4"]) -> Float[Tensor, "B K C g g"]:
        """Features of all scales inside boxes, fused."""
        boxes = self._enlarge(boxes).to(pyramid.s4.dtype)
        with torch.autocast(boxes.device.type, enabled=False):
            read = [
                box_features(level.float(), boxes.float(), self.grid, 1 / stride)
                for level, stride in ((pyramid.s4, 4), (pyramid.s8, 8), (pyramid.s16, 16))
            ]
        return self.fuse(torch.cat(read, dim=2).flatten(0, 1)).unflatten(0, boxes.shape[:2])

    def _enlarge(self, boxes: Tensor) -> Tensor:
        if self.box_scale == 1.0:
            return boxes
        low, high = boxes.split(2, dim=-1)
        centre, half = (low + high) / 2, (high - low) / 2 * self.box_scale
        return torch.cat([centre - half, centre + half], dim=-1)

    # Segmentation -------------------------------------------------------------------------------------------------------

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read a template of every object, match it with the proposals, weigh their masks, refine.

        Returns:
            Logits, and ``template`` and ``projected`` (what is compared), ``similarity``, ``assignment``, ``boxes`` and
            ``proposal_masks`` of the proposals, and ``coarse``, the coarse masks at stride 4.
        """
        carry = memory.carry
        with record_function("vos/template"):
            templates, position_weights = self._templates(features, memory)
        aux: dict[str, Tensor] = {}
        with record_function("vos/matcher"):
            if self.matcher is None:
                assert self.template_mask is not None
                inner = self.template_mask(templates.flatten(0, 1)).sigmoid().float()
                masks = inner.squeeze(1).unflatten(0, templates.shape[:2])
                boxes = self._enlarge(carry.boxes)
                coarse = paste_masks(masks, boxes, *self._size(features), stride=4)
            else:
                projected = self.matcher.project_templates(templates)
                similarity = self.matcher(projected, features.projected, position_weights)
                assignment = self._assign(similarity, features, carry)
                coarse = self._weigh(assignment, features.pasted, features, carry.masks)
                aux = {
                    "template": projected,
                    "projected": features.projected,
                    "similarity": similarity,
                    "assignment": assignment,
                    "boxes": features.proposals.boxes,
                    "proposal_masks": features.pasted,
                }
        aux["coarse"] = coarse
        if self.decoder is None:
            height, width = self._size(features)
            if self.matcher is None:
                full = paste_masks(masks, boxes, height, width)
            else:
                pasted = paste_masks(features.proposals.masks, features.proposals.boxes, height, width)
                before = F.interpolate(carry.masks, size=(height, width), mode="bilinear", align_corners=False)
                full = self._weigh(assignment, pasted, features, before)
            return torch.logit(full, eps=1e-6).clamp(-MAX_LOGIT, MAX_LOGIT), aux
        with record_function("vos/refinement"):
            return self._refine(self.decoder, features, carry, coarse), aux

    @staticmethod
    def _size(features: Features) -> tuple[int, int]:
        height, width = features.pyramid.s4.shape[-2:]
        return 4 * height, 4 * width

    def _templates(
        self, features: Features, memory: Memory[Entry, Carry]
    ) -> tuple[Float[Tensor, "B N C g g"], Float[Tensor, "B N g g"] | None]:
        """What every object should look like in this frame, and how much of each position belongs to it."""
        carry = memory.carry
        if self.query_key is None:
            assert carry.template is not None
            return carry.template, None
        seen = self._object_features(features.pyramid, carry.boxes) + self._time(carry.age + 1)
        objects = seen.shape[:2]
        query = self.query_key(seen.flatten(0, 1)).flatten(2)
        bank = memory.bank.entry
        readable = (memory.bank.readable & bank.visible).flatten(0, 1).unsqueeze(1)
        # Every object has a memory of its own; objects are rows of the batch. The mask is read along as one more value.
        values = torch.cat([bank.value, bank.masks.unsqueeze(2).to(bank.value.dtype)], dim=2)
        read = read_memory(bank.key.flatten(0, 1), query, values.flatten(0, 1).unsqueeze(1), readable)
        read = read.squeeze(1).unflatten(0, objects).unflatten(3, (self.grid, self.grid))
        return read[:, :, :-1], read[:, :, -1]

    def _assign(self, similarity: Float[Tensor, "B N K"], features: Features, carry: Carry) -> Float[Tensor, "B N K"]:
        if self.iou_weight:
            before, now = (carry.masks > 0.5).flatten(2).float(), (features.pasted > 0.5).flatten(2).float()
            both = before @ now.transpose(1, 2)
            either = before.sum(dim=2, keepdim=True) + now.sum(dim=2).unsqueeze(1) - both
            similarity = (1 - self.iou_weight) * similarity + self.iou_weight * both / (either + 1e-6)
        assignment = relaxed_assignment(
            similarity,
            carry.known,
            features.proposals.scores > 0,
            self.train_steps if self.training else self.eval_steps,
            self.sweeps,
            self.step_size,
            self.assignment_output,
            self.null_column,
        )
        return prune(assignment, hard=not self.training)

    @staticmethod
    def _weigh(
        assignment: Float[Tensor, "B N K"],
        masks: Float[Tensor, "B K y x"],
        features: Features,
        before: Float[Tensor, "B N y x"],
    ) -> Float[Tensor, "B N y x"]:
        """Coarse masks in [0, 1]; those of the frame before where a frame has no proposal."""
        coarse = (assignment @ masks.flatten(2)).unflatten(2, masks.shape[2:]).clamp(0, 1)
        found = (features.proposals.scores > 0).any(dim=1)
        return torch.where(found[:, None, None, None], coarse, before.float())

    def _refine(
        self, decoder: ReferenceRefineDecoder, features: Features, carry: Carry, coarse: Float[Tensor, "B N h4 w4"]
    ) -> Float[Tensor, "B N H W"]:
        assert features.as_query is not None
        assert carry.previous is not None
        frames = (*carry.first, carry.previous)
        batch = coarse.shape[0]
        # All reference frames are rows of one batch.
        source = torch.cat([frame.projected for frame in frames]).flatten(2)
        query = features.as_query.flatten(2).repeat(len(frames), 1, 1)
        weights = correspondence(query, source, self.frame_sharpness())
        levels = [
            move_blocks(weights, torch.cat([getattr(frame.pyramid, name) for frame in frames]), block)
            for name, block in (("s4", 4), ("s8", 2), ("s16", 1))
        ]
        masks = torch.cat([frame.masks for frame in frames])
        if self.move_masks:
            masks = move_blocks(weights, masks, 4)
        owner = None if len(carry.first) == 1 else torch.stack([frame.owner for frame in carry.first]).float()
        first_masks = masks[:-batch].unflatten(0, (-1, batch))
        own = first_masks[0] if owner is None else torch.einsum("rbn,rbnyx->bnyx", owner, first_masks)
        three = torch.stack([own.float(), masks[-batch:].float(), coarse], dim=2)
        coarser = [pool_to_stride(three.flatten(1, 2), s).unflatten(1, three.shape[1:3]) for s in (2, 4)]
        moved = References(
            FeaturePyramid(*(level[:-batch] for level in levels)), FeaturePyramid(*(level[-batch:] for level in levels)), owner
        )
        return decoder(features.pyramid, moved, (three, coarser[0], coarser[1]))

    # Memory -------------------------------------------------------------------------------------------------------------

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode every object in its box, and keep what the refinement of the next frame looks back to."""
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
        if keep or self.template_source == "first_frame":
            with record_function("vos/template"):
                entry = self._encode_objects(features.pyramid, at4, boxes, age, visible & introduced)
            if self.template_source == "first_frame":
                template = entry.value
                if old is not None:
                    assert old.template is not None
                    template = torch.where(new[:, :, None, None, None], template, old.template)
        previous, first = None, () if old is None else old.first
        if features.as_reference is not None:
            previous = Reference(features.pyramid, features.as_reference, at4, new)
            if old is None or bool(new.any()):
                first = (*first, previous)
        return entry if keep else None, Carry(introduced, age, boxes, at4, template, previous, first)

    def _encode_objects(
        self,
        pyramid: FeaturePyramid,
        masks: Float[Tensor, "B N h4 w4"],
        boxes: Float[Tensor, "B N 4"],
        age: Float[Tensor, "B N"],
        visible: Bool[Tensor, "B N"],
    ) -> Entry:
        objects = masks.shape[:2]
        if self.memory_features == "frame":
            levels = [F.avg_pool2d(pyramid.s4, 4), F.avg_pool2d(pyramid.s8, 2), pyramid.s16]
            seen = self.fuse(torch.cat(levels, dim=1)).unsqueeze(1) + self._time(age)
            inner = pool_to_stride(masks, 4)
        else:
            seen = self._object_features(pyramid, boxes) + self._time(age)
            with torch.autocast(masks.device.type, enabled=False):
                inner = masks_in_boxes(masks.float(), self._enlarge(boxes).float(), self.grid, 1 / 4)
        joint = torch.cat([seen, inner.unsqueeze(2).to(seen.dtype)], dim=2).flatten(0, 1)
        value = self.memory_value(joint).unflatten(0, objects)
        # Without a memory that is read there are no keys; one channel keeps the entry a dataclass of tensors.
        key = value[:, :, :1] if self.memory_key is None else self.memory_key(joint).unflatten(0, objects)
        return Entry(key, value, inner, visible[:, :, None, None].expand_as(inner))

    def _time(self, offset: Float[Tensor, "B N"]) -> Float[Tensor, "B N C 1 1"]:
        """Embedding of the distance to the frame that introduced the object."""
        return sinusoid(offset / self.offset_unit, self.channels)[..., None, None]


def sinusoid(position: Float[Tensor, "*batch"], channels: int) -> Float[Tensor, "*batch C"]:
    r"""Sines and cosines of a position, :math:`\sin(p / 10000^{2i/C})` in channel ``2i`` and the cosine in channel ``2i + 1``.

    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    rate = 10000.0 ** (-torch.arange(0, channels, 2, device=position.device, dtype=torch.float32) / channels)
    angle = position.float().unsqueeze(-1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def _normed_conv(in_channels: int, out_channels: int, kernel: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.GroupNorm(groups, out_channels),
        nn.ReLU(inplace=True),
    )
