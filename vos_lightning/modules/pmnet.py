"""PMNet as a LightningModule: the losses of the backbone and point refinement, and of the uncertainty detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.optim import Optimizer

from vos_lightning.decoders.point_refinement import PointSource
from vos_lightning.losses.auxiliary import HardestBy, falling_fraction, mean_over_objects, point_loss, uncertainty_loss
from vos_lightning.losses.segmentation import bootstrapped_cross_entropy, trainable_labels
from vos_lightning.mask_ops import masks_from_label_map, padding_for, pool_to_stride, soft_aggregate, unpad
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule, trainable
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.propagation.policies import All, CountFrom, EveryKth
from vos_lightning.propagation.step import Propagation, StepOutput
from vos_lightning.structures import IGNORE_LABEL, ClipBatch

Alternation = Literal["iteration", "epoch", "joint"]
Part = Literal["segmentation", "uncertainty"]
"""Backbone and point refinement together, or the detector of uncertainty."""
PointLoss = Literal["binary", "aggregated"]
Downsampling = Literal["nearest", "area"]
CoarseStride = Literal[1, 4]
TargetProbability = Literal["object", "aggregated"]


OPTIMISATION = Optimisation(learning_rate=1e-5, weight_decay=1e-7, schedule=Schedule("steps", milestones=(125_000,)))
EVALUATION = Evaluation()


class PMNetModule(VOSModule):
    r"""Training and evaluation of :class:`vos_lightning.networks.pmnet.PMNet`.

    Backbone :math:`\theta` and point refinement :math:`\gamma` follow the loss of the first masks and of the refined points
    (equation 4), and the detector :math:`\phi` follows the loss of its map (equation 1). They take turns: one part is frozen
    while the other follows its own loss. No gradient of one objective reaches the parameters of the other in any case. The parts
    are two groups of one optimiser. As it keeps the moments of every parameter separately and leaves out parameters without a
    gradient, its steps are the same as those of two optimisers.

    A network with ``sampling.source`` ``none`` is trained without points: only the backbone, as in the pre-training on still
    images. The parameters of points are then fixed. See :class:`VOSModule` for the arguments that are not listed here.

    Args:
        network: the network with its own options.
        alternation: how long a turn is: one optimiser step (``iteration``) or ``steps_per_epoch`` of them (``epoch``), and
            backbone and point refinement begin; ``joint``: no turns, every step updates both parts in one backward pass.
        steps_per_epoch: length of a turn for ``alternation`` ``epoch``; the default is 3,764 videos in batches of 8.
        switch_fraction: share of the training in which points come from the predicted probabilities; after it, they come from the
            network's ``sampling.source``. The detector is trained all the time. 2/3 means epoch 100 of 150.
        point_weight: weight :math:`\lambda` of equation 4, which the paper does not state.
        point_loss: loss of the points: ``binary`` cross-entropy of every object, or the cross-entropy over background and objects
            after aggregation (``aggregated``).
        truth: true masks at stride 4: where the object covers more than half of the ``area`` of a cell, or by the ``nearest``
            neighbour, which is the first pixel of every cell, so that masks lie 1.5 pixels further down and right than they are.
        coarse_stride: resolution of the first term of equation 4: that of the frame, after enlargement (1, as STCN), or that of
            the first masks, with the truth of the points (4: equation 1 has its :math:`M` there).
        target_probability: the probability in equation 1: of the ``object`` by itself at stride 4, or ``aggregated`` at full
            resolution and averaged over cells.
        uncertainty_by: what ranks the cells in equation 1, see :func:`vos_lightning.losses.auxiliary.uncertainty_loss`.
        hardest_from: last step at which all pixels count in the first term of equation 4.
        hardest_until: step from which only ``hardest_fraction`` of them count; the share falls linearly in between.
        hardest_fraction: share of the pixels of each clip and frame that count, those with the largest loss.
        uncertain_from: last step at which all cells count in equation 1.
        uncertain_until: step from which only ``uncertain_fraction`` of them count.
        uncertain_fraction: share of the cells that count.
        memory_stride: number of frames from one remembered frame to the next in evaluation.
        count_from: where the stride is counted from, see :class:`EveryKth`; ``latest`` for YouTube-VOS.
        include_previous: in evaluation, read the previous frame at stride 16 too.
        max_memory_frames: most frames without annotation that are remembered; None for all.

    Raises:
        ValueError: an argument is unknown or out of range.

    Reference: PMNet sections 3.2.4 and 4.1; STCN (Cheng et al., NeurIPS 2021) for the training that it leaves open.
    """

    network: PMNet
    new_parts = ("network.detector.", "network.refiner.")
    base_part = "network.stcn."
    """A checkpoint of STCN holds the parameters under this prefix."""
    training_arguments = VOSModule.training_arguments.union(
        (
            "alternation",
            "steps_per_epoch",
            "switch_fraction",
            "point_weight",
            "point_loss",
            "truth",
            "coarse_stride",
            "target_probability",
        ),
        ("uncertainty_by", "hardest_from", "hardest_until", "hardest_fraction"),
        ("uncertain_from", "uncertain_until", "uncertain_fraction"),
    )

    def __init__(
        self,
        network: PMNet,
        alternation: Alternation = "iteration",
        steps_per_epoch: int = 470,
        switch_fraction: float = 2 / 3,
        point_weight: float = 1.0,
        point_loss: PointLoss = "binary",
        truth: Downsampling = "area",
        coarse_stride: CoarseStride = 1,
        target_probability: TargetProbability = "object",
        uncertainty_by: HardestBy = "predicted",
        hardest_from: int = 20_000,
        hardest_until: int = 70_000,
        hardest_fraction: float = 0.15,
        uncertain_from: int = 20_000,
        uncertain_until: int = 70_000,
        uncertain_fraction: float = 0.15,
        memory_stride: int = 5,
        count_from: CountFrom = "start",
        include_previous: bool = False,
        max_memory_frames: int | None = None,
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
        for name, value, allowed in (
            ("alternation", alternation, get_args(Alternation)),
            ("point_loss", point_loss, get_args(PointLoss)),
            ("truth", truth, get_args(Downsampling)),
            ("coarse_stride", coarse_stride, get_args(CoarseStride)),
            ("target_probability", target_probability, get_args(TargetProbability)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if hardest_from > hardest_until or uncertain_from > uncertain_until:
            raise ValueError("hardest_from and uncertain_from must not lie after hardest_until and uncertain_until")
        if not 0 <= switch_fraction <= 1:
            raise ValueError(f"switch_fraction must be in [0, 1], not {switch_fraction}")
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, not {steps_per_epoch}")
        super().__init__(
            network,
            train_propagation=Propagation(All(), "product", "overwrite"),
            eval_propagation=Propagation(
                EveryKth(memory_stride, include_previous, max_memory_frames, count_from), "product", "overwrite"
            ),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=late_objects,
            channels_last=channels_last,
        )
        self.alternation: Alternation = alternation
        self.steps_per_epoch, self.switch_fraction = steps_per_epoch, switch_fraction
        self.point_weight, self.point_loss = point_weight, point_loss
        self.truth, self.coarse_stride, self.target_probability, self.uncertainty_by = (
            truth,
            coarse_stride,
            target_probability,
            uncertainty_by,
        )
        self.hardest = (hardest_from, hardest_until, hardest_fraction)
        self.uncertain = (uncertain_from, uncertain_until, uncertain_fraction)
        if network.sampling.source == "none":
            network.detector.requires_grad_(False)
            network.refiner.requires_grad_(False)
        self.save_hyperparameters()

    # Which parameters move, and where points come from ----------------------------------------------------------------

    def parts(self) -> dict[Part, list[nn.Parameter]]:
        """The trainable parameters of either part; empty for a detector that is not trained."""
        detector = {id(p) for p in self.network.detector.parameters()}
        trained = trainable(self.parameters())
        return {
            "segmentation": [p for p in trained if id(p) not in detector],
            "uncertainty": [p for p in trained if id(p) in detector],
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Backbone and point refinement as one group, and the detector as another if it is trained."""
        return [{"params": parameters, "name": part, "part": part} for part, parameters in self.parts().items() if parameters]

    def resting(self) -> Part | None:
        """The part whose turn it is not in this optimiser step; None if there are no turns."""
        if self.alternation == "joint" or self.network.sampling.source == "none":
            return None
        length = self.steps_per_epoch if self.alternation == "epoch" else 1
        return "segmentation" if self.global_step // length % 2 else "uncertainty"

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """As that of all modules; the resting part is frozen, so that it has no graph and no backward pass."""
        resting = self.resting()
        frozen = [] if resting is None else self.parts()[resting]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            loss = super().training_step(batch, batch_idx)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        # A gradient of zero: several processes wait for one of every parameter.
        return loss + sum(0.0 * parameter.sum() for parameter in frozen)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Remove the zeros of the resting part: Adam leaves parameters without a gradient, and their moments, as they are."""
        resting = self.resting()
        for group in optimizer.param_groups:
            if group["part"] == resting:
                for parameter in group["params"]:
                    parameter.grad = None

    def training_source(self, step: int) -> PointSource | None:
        """Source of points in training; None for the network's own ``sampling.source``."""
        if self.network.sampling.source != "learned":
            return None
        # Rounded, so that a fraction such as 2/3 gives the intended step.
        return "probabilities" if step < round(self.switch_fraction * self.trainer.max_steps) else None

    def training_network(self) -> PMNet:
        """The network with the source of points of this step."""
        source = self.training_source(self.global_step)
        return self.network if source is None else self.network.with_points_from(source)

    # Loss -------------------------------------------------------------------------------------------------------------

    def clip_loss(self, outputs: list[StepOutput], batch: ClipBatch) -> dict[str, Tensor]:
        """Losses summed over the predicted frames and averaged over the clips in which an object was given.

        ``loss`` is what the part in turn follows; ``coarse``, ``points`` and ``uncertainty`` are there in every turn.
        """
        parts: dict[str, list[Tensor]] = {"coarse": [], "points": [], "uncertainty": []}
        for t in range(1, len(outputs)):
            # An object that is given in this frame was not predicted in it.
            known = outputs[t - 1].introduced
            labels = trainable_labels(batch.label_maps[:, t], known)
            for name, value in self._frame_losses(outputs[t].aux, labels, known).items():
                parts[name].append(value)
        counts = outputs[-1].introduced.any(dim=1).float()
        summed = {
            name: (torch.stack(values).sum(dim=0) * counts).sum() / counts.sum().clamp_min(1)
            for name, values in parts.items()
            if values
        }
        loss, resting = summed["coarse"], self.resting()
        if "points" in summed:
            loss = loss + self.point_weight * summed["points"]
            if resting == "segmentation":
                loss = summed["uncertainty"]
            elif resting is None:
                loss = loss + summed["uncertainty"]
        return {"loss": loss, **summed}

    def _frame_losses(
        self, aux: dict[str, Tensor], labels: UInt8[Tensor, "B H W"], known: Bool[Tensor, "B N"]
    ) -> dict[str, Float[Tensor, " B"]]:
        step, mode = self.global_step, self.train_propagation.aggregation
        network = self.network
        padding = padding_for(labels.shape[1], labels.shape[2], network.stride, network.padding.larger_half_first)
        coarse, probabilities = soft_aggregate(network.stcn.decoder.enlarge(aux["coarse"]), known, mode)
        amounts = (padding.left, padding.right, padding.top, padding.bottom)
        fine = self._downsample(F.pad(labels, amounts, value=IGNORE_LABEL), known.shape[1])
        if self.coarse_stride == 1:
            first, truth = unpad(coarse, padding), labels
        else:
            first, truth = soft_aggregate(aux["coarse"], known, mode)[0], fine.labels
        losses = {"coarse": bootstrapped_cross_entropy(first, truth, falling_fraction(step, *self.hardest))}
        if "points" not in aux:
            return losses
        predicted = aux["coarse"].sigmoid() if self.target_probability == "object" else pool_to_stride(probabilities[:, 1:], 4)
        target = (predicted.detach() - fine.masks).abs()
        counted = fine.counted.unsqueeze(1) & known[:, :, None, None]
        fraction = falling_fraction(step, *self.uncertain)
        losses["uncertainty"] = uncertainty_loss(aux["uncertainty"], target, counted, fraction, self.uncertainty_by)
        index, counts = aux["points"], aux["points_valid"] & counted.flatten(2).gather(2, aux["points"])
        if self.point_loss == "binary":
            losses["points"] = point_loss(aux["point_logits"], fine.masks.flatten(2).gather(2, index), counts)
        else:
            merged, _ = soft_aggregate(aux["refined"], known, mode)
            cells = F.cross_entropy(merged, fine.labels.long(), ignore_index=IGNORE_LABEL, reduction="none")
            losses["points"] = mean_over_objects(
                cells.flatten(1).unsqueeze(1).expand(-1, index.shape[1], -1).gather(2, index), counts
            )
        return losses

    def _downsample(self, labels: UInt8[Tensor, "B H W"], num_objects: int) -> _Truth:
        if self.truth == "nearest":
            sparse = labels[:, ::4, ::4]
            return _Truth(sparse, masks_from_label_map(sparse, num_objects), sparse != IGNORE_LABEL)
        ignored = pool_to_stride((labels == IGNORE_LABEL).float().unsqueeze(1), 4)[:, 0] > 0.5
        masks = pool_to_stride(masks_from_label_map(labels, num_objects), 4) > 0.5
        slots = torch.arange(1, num_objects + 1, device=labels.device, dtype=torch.uint8).view(-1, 1, 1)
        merged = (masks * slots).amax(dim=1).masked_fill(ignored, IGNORE_LABEL)
        return _Truth(merged, masks.float(), ~ignored)


@dataclass(frozen=True)
class _Truth:
    """Annotation at stride 4."""

    labels: UInt8[Tensor, "B h w"]
    masks: Float[Tensor, "B N h w"]
    counted: Bool[Tensor, "B h w"]
