"""STCN as a LightningModule: every fifth frame is remembered, product aggregation, bootstrapped cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from vos_lightning.losses.auxiliary import falling_fraction
from vos_lightning.losses.segmentation import bootstrapped_cross_entropy, trainable_labels
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.policies import All, CountFrom, EveryKth
from vos_lightning.propagation.step import Propagation, StepOutput
from vos_lightning.structures import ClipBatch

OPTIMISATION = Optimisation(learning_rate=1e-5, weight_decay=1e-7, schedule=Schedule("steps", milestones=(125_000,)))
EVALUATION = Evaluation()


class STCNModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.stcn.STCN`.

    The defaults are the main training after the one on still images: Adam with an L2 penalty, with 1e-5 and a tenth of it from
    step 125,000 on. The network's own soft masks are remembered, with gradients through the whole clip. See :class:`VOSModule`
    for the other arguments.

    Args:
        network: the network with its own options.
        memory_stride: number of frames from one remembered frame to the next in evaluation; 3 for the test-dev set of DAVIS.
        count_from: where the stride is counted from, see :class:`EveryKth`; ``latest`` for YouTube-VOS.
        include_previous: in evaluation, read the previous frame too.
        max_memory_frames: most frames without annotation that are remembered; None for all.
        hardest_from: last step at which all pixels count in the loss.
        hardest_until: step from which only ``hardest_fraction`` of them count; the share falls linearly in between.
        hardest_fraction: share of the pixels of each clip and frame that count, those with the largest loss.

    Raises:
        ValueError: ``hardest_from`` lies after ``hardest_until``.

    Reference: STCN (Cheng et al., NeurIPS 2021) and its released code.
    """

    training_arguments = VOSModule.training_arguments | {"hardest_from", "hardest_until", "hardest_fraction"}

    def __init__(
        self,
        network: STCN,
        memory_stride: int = 5,
        count_from: CountFrom = "start",
        include_previous: bool = False,
        max_memory_frames: int | None = None,
        hardest_from: int = 20_000,
        hardest_until: int = 70_000,
        hardest_fraction: float = 0.15,
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
        if hardest_from > hardest_until:
            raise ValueError(f"hardest_from {hardest_from} lies after hardest_until {hardest_until}")
        kept = EveryKth(memory_stride, include_previous, max_memory_frames, count_from)
        super().__init__(
            network,
            train_propagation=Propagation(All(), "product", "overwrite"),
            eval_propagation=Propagation(kept, "product", "overwrite"),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=late_objects,
            channels_last=channels_last,
        )
        self.hardest_from = hardest_from
        self.hardest_until = hardest_until
        self.hardest_fraction = hardest_fraction
        self.save_hyperparameters()

    def counted_fraction(self, step: int) -> float:
        """Fraction of the pixels that count in the loss at an optimiser step."""
        return falling_fraction(step, self.hardest_from, self.hardest_until, self.hardest_fraction)

    def clip_loss(self, outputs: list[StepOutput], batch: ClipBatch) -> dict[str, Tensor]:
        """Bootstrapped cross-entropy, summed over predicted frames and averaged over clips in which an object was given."""
        fraction = self.counted_fraction(self.global_step)
        per_frame = [
            bootstrapped_cross_entropy(output.logits, trainable_labels(batch.label_maps[:, t], output.introduced), fraction)
            for t, output in enumerate(outputs)
            if t > 0
        ]
        counts = outputs[-1].introduced.any(dim=1).to(per_frame[0].dtype)
        return {"loss": (torch.stack(per_frame).sum(dim=0) * counts).sum() / counts.sum().clamp_min(1)}
