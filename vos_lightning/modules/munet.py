"""MUNet as a LightningModule: the reference frame as memory in training, hardest pixels and mask IoU as loss."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vos_lightning.losses.segmentation import (
    bootstrapped_binary_cross_entropy,
    bootstrapped_cross_entropy,
    mask_iou_loss,
    trainable_labels,
)
from vos_lightning.mask_ops import Aggregation, masks_from_label_map
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.networks.munet import MUNet
from vos_lightning.propagation.policies import All, AnnotatedOnly, CountFrom, EveryKth
from vos_lightning.propagation.step import Propagation, StepOutput
from vos_lightning.structures import ClipBatch

Loss = Literal["cross_entropy", "bootstrapped+iou", "binary_bootstrapped+iou"]
TrainMemory = Literal["reference", "recurrent", "truth"]


OPTIMISATION = Optimisation("adamw", learning_rate=2e-5, weight_decay=0.5)
EVALUATION = Evaluation()


class MUNetModule(VOSModule):
    r"""Training and evaluation of :class:`vos_lightning.networks.munet.MUNet`.

    The loss of a frame is :math:`L_{bsce} + \lambda L_{miou}` of the aggregated probabilities. See :class:`VOSModule` for the
    other arguments.

    Args:
        network: the network with its own options.
        loss: ``bootstrapped+iou``: cross-entropy over background and objects on the hardest pixels, and the mask IoU of every
            object; ``binary_bootstrapped+iou``: instead a binary cross-entropy for every object, as the paper's equation reads;
            ``cross_entropy``: the baseline of the ablation.
        hardest_fraction: share of the pixels that the bootstrapped loss keeps.
        iou_weight: weight :math:`\lambda` of the mask IoU.
        train_memory: what the frames of a training clip read: the annotated frame (``reference``) or all earlier frames
            (``recurrent``), with their predicted masks or with the annotated ones (``truth``). The paper does not say; AFB-URR,
            whose training it follows otherwise, reads the first frame.
        memory_stride: number of frames from one remembered frame to the next at inference.
        count_from: where the stride is counted from, see :class:`EveryKth`.
        include_previous: remember the previous frame at inference, until the next one.
        max_memory_frames: most frames without annotation that are remembered at inference; None for all.
        optimisation: optimiser, rates and schedule; the paper states no schedule.

    Reference: MUNet (Sun et al., arXiv 2111.14646) sections 3.4 and 3.5; STM (Oh et al., ICCV 2019) for the memory at inference.
    """

    network: MUNet
    training_arguments = VOSModule.training_arguments | {"loss", "hardest_fraction", "iou_weight", "train_memory"}

    def __init__(
        self,
        network: MUNet,
        loss: Loss = "bootstrapped+iou",
        hardest_fraction: float = 0.4,
        iou_weight: float = 1.0,
        train_memory: TrainMemory = "reference",
        memory_stride: int = 5,
        count_from: CountFrom = "start",
        include_previous: bool = True,
        max_memory_frames: int | None = None,
        train_aggregation: Aggregation = "product",
        eval_aggregation: Aggregation = "product",
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
        for name, value, allowed in (
            ("loss", loss, get_args(Loss)),
            ("train_memory", train_memory, get_args(TrainMemory)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if not 0 < hardest_fraction <= 1:
            raise ValueError(f"hardest_fraction must be in (0, 1], not {hardest_fraction}")
        super().__init__(
            network,
            train_propagation=Propagation(
                AnnotatedOnly("add") if train_memory == "reference" else All(), train_aggregation, "overwrite"
            ),
            eval_propagation=Propagation(
                EveryKth(memory_stride, include_previous, max_memory_frames, count_from), eval_aggregation, "overwrite"
            ),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=late_objects,
            channels_last=channels_last,
        )
        self.loss: Loss = loss
        self.train_memory: TrainMemory = train_memory
        self.hardest_fraction = hardest_fraction
        self.iou_weight = iou_weight
        self.save_hyperparameters()

    def remembered_masks(self, batch: ClipBatch) -> Float[Tensor, "B T N H W"] | None:
        """The annotation, if ``train_memory`` asks for it; otherwise None."""
        if self.train_memory != "truth":
            return None
        return masks_from_label_map(batch.label_maps, batch.object_valid.shape[1])

    def clip_loss(self, outputs: list[StepOutput], batch: ClipBatch) -> dict[str, Tensor]:
        """Mean loss of all predicted frames, and its parts; a clip in which no object was given does not count."""
        if self.loss == "cross_entropy":
            return super().clip_loss(outputs, batch)
        pixels, overlaps = [], []
        for t, output in enumerate(outputs[1:], start=1):
            labels = trainable_labels(batch.label_maps[:, t], output.introduced)
            if self.loss == "bootstrapped+iou":
                pixels.append(bootstrapped_cross_entropy(output.logits, labels, self.hardest_fraction))
            else:
                pixels.append(
                    bootstrapped_binary_cross_entropy(output.probabilities, labels, output.introduced, self.hardest_fraction)
                )
            overlaps.append(mask_iou_loss(output.probabilities, labels, output.introduced))
        counts = outputs[-1].introduced.any(dim=1).float()
        pixel, overlap = ((torch.stack(p).mean(dim=0) * counts).sum() / counts.sum().clamp_min(1) for p in (pixels, overlaps))
        return {"loss": pixel + self.iou_weight * overlap, "bootstrapped": pixel, "mask_iou": overlap}
