"""STM as a LightningModule: previous frame and every fifth frame are remembered, product aggregation, plain cross-entropy."""

from __future__ import annotations

from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.networks.stm import STM
from vos_lightning.propagation.policies import All, CountFrom, EveryKth
from vos_lightning.propagation.step import Propagation

OPTIMISATION = Optimisation(learning_rate=1e-5)
EVALUATION = Evaluation()


class STMModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.stm.STM`.

    The defaults are the paper's training: Adam with a constant 1e-5, cross-entropy on all frames after the first, the network's
    own soft masks remembered, and gradients through the whole clip. See :class:`VOSModule` for the other arguments.

    Args:
        network: the network with its own options.
        memory_stride: number of frames from one remembered frame to the next in evaluation.
        count_from: where the stride is counted from, see :class:`EveryKth`.
        include_previous: in evaluation, read the previous frame too.
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
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
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
        self.save_hyperparameters()
