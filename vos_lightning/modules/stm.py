"""STM as a LightningModule: previous frame and a frame in five are remembered, product aggregation, plain cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vos_lightning.metrics.davis import Protocol
from vos_lightning.modules.base import Schedule, VOSModule
from vos_lightning.networks.stm import STM
from vos_lightning.propagation.policies import All, CountFrom, EveryKth
from vos_lightning.propagation.step import Propagation


class STMModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.stm.STM`.

    The defaults are the paper's recipe: Adam, constant 1e-5, cross-entropy on all frames after the first, the network's own soft
    masks remembered, gradients through the whole clip. See :class:`VOSModule` for the arguments.

    Args:
        network: the network with its own options.
        memory_stride: frames from one remembered frame to the next in evaluation.
        count_from: where the stride is counted from, see :class:`EveryKth`.
        include_previous: read the previous frame too in evaluation.
        max_memory_frames: most frames without annotation that are remembered; None for all.

    Reference: STM (Oh et al., ICCV 2019), section 3.5, and answers of its first author in the issues of ``seoungwugoh/STM``.
    """

    def __init__(
        self,
        network: STM,
        memory_stride: int = 5,
        count_from: CountFrom = "start",
        include_previous: bool = True,
        max_memory_frames: int | None = None,
        protocol: Protocol = "davis17",
        optimizer: Literal["adam", "adamw"] = "adam",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
        milestones: Sequence[int] = (),
        warmup_steps: int = 0,
        late_objects: bool = False,
        short_side: int | None = None,
        min_object_pixels: int = 0,
        channels_last: bool = True,
    ) -> None:
        kept = EveryKth(memory_stride, include_previous, max_memory_frames, count_from)
        super().__init__(
            network,
            train_propagation=Propagation(All(), "product", "overwrite"),
            eval_propagation=Propagation(kept, "product", "overwrite"),
            protocol=protocol,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_steps=warmup_steps,
            late_objects=late_objects,
            short_side=short_side,
            min_object_pixels=min_object_pixels,
            channels_last=channels_last,
            milestones=milestones,
        )
        self.save_hyperparameters()
