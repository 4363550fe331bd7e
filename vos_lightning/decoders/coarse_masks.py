"""Coarse masks of objects from their templates: by matching with proposals, or decoded from the template itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.aoa import DEFAULT_ALIGNMENT, AdaptiveObjectAlignment, AlignmentOptions, Comparison
from vos_lightning.backbones.normalization import normed_conv
from vos_lightning.matching.alignment import PositionPool
from vos_lightning.matching.assignment import AssignmentOptions, prune, relaxed_assignment
from vos_lightning.proposals.boxes import paste_masks
from vos_lightning.structures import Proposals


@dataclass(frozen=True)
class ProposalMatching:
    """Options of the matching of objects with proposals.

    Attributes:
        comparison: how proposals are compared with a template, see :data:`vos_lightning.attention.aoa.Comparison`. The paper's
            rows A1 and A2 are without alignment: ``in_place`` changes nothing else, ``pooled`` is the comparison of DMM-Net.
        pool: how the positions of an aligned pair become one similarity, see
            :func:`vos_lightning.matching.alignment.aligned_similarity`.
        iou_weight: weight in [0, 1] of the overlap with the previous mask in a similarity; DMM-Net has 0.3.
        assignment: options of the assignment, which turns similarities into weights of proposals.

    Raises:
        ValueError: a value is unknown or out of range.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.3; DMM-Net (Zeng et al., ICCV 2019), section 3.3.
    """

    comparison: Comparison = "aligned"
    pool: PositionPool = "mean"
    iou_weight: float = 0.0
    assignment: AssignmentOptions = field(default_factory=AssignmentOptions)

    def __post_init__(self) -> None:
        for name, allowed in (("comparison", get_args(Comparison)), ("pool", get_args(PositionPool))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"matching.{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if not 0 <= self.iou_weight <= 1:
            raise ValueError(f"matching.iou_weight must be in [0, 1], not {self.iou_weight}")


DEFAULT_MATCHING = ProposalMatching()


@dataclass(frozen=True)
class SeenProposals:
    """The proposals of a frame, with everything about them that is the same for all objects."""

    proposals: Proposals
    pasted: Float[Tensor, "B K h4 w4"]
    """Masks of the proposals in the frame, at stride 4."""
    projected: Float[Tensor, "B K CD g g"]
    """Features of the proposals in the space where they are compared with templates."""

    @property
    def exist(self) -> Bool[Tensor, "B K"]:
        """Which rows are proposals; the others fill up the batch."""
        return self.proposals.scores > 0


class ProposalMasks(nn.Module):
    """Matches the template of every object with the proposals of a frame; their weighted masks are the coarse mask.

    In a frame without any proposal, an object keeps its mask of the previous frame.

    Args:
        channels: number of channels of the features of templates and proposals.
        alignment: the space in which templates and proposals are compared, and how sharply they are aligned in it.
        options: options of the matching.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.3.
    """

    def __init__(
        self,
        channels: int = 512,
        alignment: AlignmentOptions = DEFAULT_ALIGNMENT,
        options: ProposalMatching = DEFAULT_MATCHING,
        *,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.options = options
        self.matcher = AdaptiveObjectAlignment(
            channels, alignment, pool=options.pool, comparison=options.comparison, groups=groups
        )

    def see(self, proposals: Proposals, features: Float[Tensor, "B K C g g"], size: tuple[int, int]) -> SeenProposals:
        """Prepare the proposals of a frame; done once, for all objects.

        Args:
            proposals: the proposals, with boxes in pixels of the frame.
            features: features of the frame inside their boxes.
            size: height and width of the frame.
        """
        with record_function("vos/proposals"):
            pasted = paste_masks(proposals.masks, proposals.boxes.to(features), *size, stride=4)
        with record_function("vos/matcher"):
            return SeenProposals(proposals, pasted, self.matcher.project_proposals(features))

    def forward(
        self,
        templates: Float[Tensor, "B N C g g"],
        position_weights: Float[Tensor, "B N g g"] | None,
        seen: SeenProposals,
        known: Bool[Tensor, "B N"],
        previous: Float[Tensor, "B N h4 w4"],
        strides: Sequence[int] = (4,),
    ) -> tuple[list[Float[Tensor, "B N h w"]], dict[str, Tensor]]:
        """Coarse masks in [0, 1], with the gradients of the sums before they are clamped.

        Args:
            templates: expected appearance of every object.
            position_weights: weights of the template's positions, for ``pool="masked"``.
            seen: the proposals of the frame, see :meth:`see`.
            known: objects that have been introduced.
            previous: masks of the objects in the previous frame, at stride 4.
            strides: strides at which masks are returned.

        Returns:
            The masks at every stride, and a dictionary with ``template`` and ``projected`` (which are compared), ``similarity``,
            ``assignment``, ``boxes`` and ``proposal_masks``.
        """
        with record_function("vos/matcher"):
            projected = self.matcher.project_templates(templates)
            similarity = self.matcher(projected, seen.projected, position_weights)
            assignment = self._assign(similarity, seen, known, previous)
            masks = [self._weigh(assignment, seen, previous, stride) for stride in strides]
        return masks, {
            "template": projected,
            "projected": seen.projected,
            "similarity": similarity,
            "assignment": assignment,
            "boxes": seen.proposals.boxes,
            "proposal_masks": seen.pasted,
        }

    def _assign(
        self,
        similarity: Float[Tensor, "B N K"],
        seen: SeenProposals,
        known: Bool[Tensor, "B N"],
        previous: Float[Tensor, "B N h4 w4"],
    ) -> Float[Tensor, "B N K"]:
        share, form = self.options.iou_weight, self.options.assignment
        if share:
            before, now = (previous > 0.5).flatten(2).float(), (seen.pasted > 0.5).flatten(2).float()
            with torch.autocast(before.device.type, enabled=False):  # cells are counted, which half precision cannot
                both = before @ now.transpose(1, 2)
            either = before.sum(dim=2, keepdim=True) + now.sum(dim=2).unsqueeze(1) - both
            similarity = (1 - share) * similarity + share * both / (either + 1e-6)
        assignment = relaxed_assignment(
            similarity,
            known,
            seen.exist,
            num_steps=form.train_steps if self.training else form.eval_steps,
            num_sweeps=form.sweeps,
            step_size=form.step_size,
            output=form.output,
            null_column=form.null_column,
        )
        return prune(assignment, "all" if self.training else form.eval_kept)

    @staticmethod
    def _weigh(
        assignment: Float[Tensor, "B N K"], seen: SeenProposals, previous: Float[Tensor, "B N h4 w4"], stride: int
    ) -> Float[Tensor, "B N h w"]:
        if stride == 4:
            masks, before = seen.pasted, previous
        else:
            height, width = (4 * side for side in previous.shape[-2:])
            masks = paste_masks(seen.proposals.masks, seen.proposals.boxes, height, width, stride)
            before = F.interpolate(previous, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        # The weight of the best proposal is about 1.08. A clamp would stop the gradient of all pixels where its mask is 1.
        coarse = bounded((assignment @ masks.flatten(2)).unflatten(2, masks.shape[2:]), 0.0, 1.0)
        return torch.where(seen.exist.any(dim=1)[:, None, None, None], coarse, before.float())


def bounded(values: Float[Tensor, "*size"], low: float, high: float) -> Float[Tensor, "*size"]:
    """Values clamped to a range; gradients pass as if they were not clamped (straight-through)."""
    # The difference is exactly 0, so that the result is the clamped value to the last bit.
    return values.detach().clamp(low, high) + (values - values.detach())


class TemplateMasks(nn.Module):
    """Decodes the coarse mask of every object from its template, in the box where the object was last seen, without proposals.

    Args:
        channels: number of channels of the templates.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), Table 3, row A5, whose layers the paper does not state.
    """

    def __init__(self, channels: int = 512, *, groups: int = 32) -> None:
        super().__init__()
        narrow = channels // 4
        self.decode = nn.Sequential(normed_conv(channels, narrow, 3, groups=groups), nn.Conv2d(narrow, 1, 1))

    def forward(
        self,
        templates: Float[Tensor, "B N C g g"],
        boxes: Float[Tensor, "B N 4"],
        size: tuple[int, int],
        strides: Sequence[int] = (4,),
    ) -> list[Float[Tensor, "B N h w"]]:
        """Coarse masks in [0, 1].

        Args:
            templates: expected appearance of every object.
            boxes: boxes in which the templates lie, as corners ``x0 y0 x1 y1`` in pixels of the frame.
            size: height and width of the frame.
            strides: strides at which masks are returned.

        Returns:
            The masks at every stride.
        """
        with record_function("vos/matcher"):
            inner = self.decode(templates.flatten(0, 1)).sigmoid().float()
            masks = inner.squeeze(1).unflatten(0, templates.shape[:2])
            return [paste_masks(masks, boxes, *size, stride=stride) for stride in strides]
