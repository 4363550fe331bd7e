"""DMN-AOA as a LightningModule: all earlier frames of a clip in training, STM's memory at inference, a slower backbone."""

from __future__ import annotations

import sys
from typing import Literal, get_args

import torch
from torch import Tensor

from vos_lightning.losses.matching import matching_loss, soft_iou_loss
from vos_lightning.mask_ops import Aggregation, masks_from_label_map, pad, padding_for, pool_to_stride
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth, MemoryPolicy, PreviousOnly
from vos_lightning.propagation.step import Propagation, StepOutput
from vos_lightning.structures import ClipBatch

MemoryStrategy = Literal["first", "previous", "first+previous", "every_kth", "all"]
"""Rows B1, B2, B3, F0 and B4 of Table 3; ``every_kth`` includes the first and the previous frame."""


OPTIMISATION = Optimisation(learning_rate=1e-4, schedule=Schedule("steps", milestones=(0.8,)), rate_factors={"backbone": 0.1})
EVALUATION = Evaluation(short_side=480)


class DMNAOAModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.dmn_aoa.DMNAOA`.

    The defaults are the paper's pre-training: Adam with 1e-4 (1e-5 in the backbone), cross-entropy of the aggregated masks, and
    all earlier frames of a clip in the memory. See :class:`VOSModule` for the other arguments.

    Args:
        network: the network with its own options.
        memory: which frames are remembered at inference.
        memory_stride: number of frames from one remembered frame to the next, for ``every_kth``.
        max_memory_frames: largest number of remembered frames without an annotation; None keeps all frames that ``memory``
            selects.
        train_aggregation: how objects are merged in training.
        eval_aggregation: how objects are merged at inference.
        coarse_weight: weight of the soft overlap loss of coarse masks; 0 in the paper.
        matching_weight: weight of the squared error of the similarities, see :func:`matching_loss`; 0 in the paper.

    Raises:
        ValueError: an argument is out of its range.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 4.1. The paper does not state when rates fall (``schedule.milestones``).
    """

    network: DMNAOA
    training_arguments = VOSModule.training_arguments | {"coarse_weight", "matching_weight"}

    def __init__(
        self,
        network: DMNAOA,
        memory: MemoryStrategy = "every_kth",
        memory_stride: int = 5,
        max_memory_frames: int | None = None,
        train_aggregation: Aggregation = "product",
        eval_aggregation: Aggregation = "product",
        coarse_weight: float = 0.0,
        matching_weight: float = 0.0,
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
        if matching_weight and not network.needs_proposals:
            raise ValueError(
                "matching_weight weighs the matching with proposals, and network.coarse 'template' has none: set it to 0"
            )
        policy = memory_policy(memory, memory_stride, max_memory_frames)
        super().__init__(
            network,
            train_propagation=Propagation(All(), train_aggregation, "overwrite"),
            eval_propagation=Propagation(policy, eval_aggregation, "overwrite"),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=late_objects,
            channels_last=channels_last,
        )
        self.coarse_weight = coarse_weight
        self.matching_weight = matching_weight
        self.save_hyperparameters()

    def clip_loss(self, outputs: list[StepOutput], batch: ClipBatch) -> dict[str, Tensor]:
        """Cross-entropy of the refined masks, plus the weighted losses of the coarse masks and of the matching."""
        losses = super().clip_loss(outputs, batch)
        parts: dict[str, list[Tensor]] = {"coarse": [], "matching": []}
        for t, output in enumerate(outputs[1:], start=1):
            truth = self._truth_at_stride_4(batch, t)
            known = outputs[t - 1].introduced
            parts["coarse"].append(soft_iou_loss(output.aux["coarse"], truth, known))
            if self.matching_weight and "similarity" in output.aux:
                found = output.aux["proposal_masks"]
                exists = found.flatten(2).any(dim=2)
                parts["matching"].append(matching_loss(output.aux["similarity"], found, truth, known, exists))
        losses |= {name: torch.stack(values).mean() for name, values in parts.items() if values}
        loss = losses["loss"] + self.coarse_weight * losses["coarse"]
        if "matching" in losses:
            loss = loss + self.matching_weight * losses["matching"]
        return {**losses, "loss": loss}

    def _truth_at_stride_4(self, batch: ClipBatch, t: int) -> Tensor:
        """True masks on the grid of the coarse masks, padded as the network pads frames."""
        masks = masks_from_label_map(batch.label_maps[:, t], batch.object_valid.shape[1])
        height, width = masks.shape[-2:]
        padding = padding_for(height, width, self.network.stride, self.network.padding.larger_half_first)
        return pool_to_stride(pad(masks, padding, "zero"), 4)


def memory_policy(memory: MemoryStrategy, stride: int, max_frames: int | None) -> MemoryPolicy:
    """The policy of a memory strategy.

    Raises:
        ValueError: the strategy is unknown.
    """
    if memory == "first":
        return AnnotatedOnly("add")
    if memory == "previous":
        return PreviousOnly()
    if memory == "first+previous":
        return EveryKth(sys.maxsize, include_previous=True, max_frames=max_frames)
    if memory == "every_kth":
        return EveryKth(stride, include_previous=True, max_frames=max_frames)
    if memory == "all":
        return All() if max_frames is None else EveryKth(1, include_previous=True, max_frames=max_frames)
    raise ValueError(f"memory must be one of {get_args(MemoryStrategy)}, not {memory!r}")
