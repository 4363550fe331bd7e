"""PMVOS as a LightningModule: reference and previous frame, odds aggregation at inference, rates that fall every epoch."""

from __future__ import annotations

from typing import Literal

from vos_lightning.mask_ops import Aggregation
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation

OPTIMISATION = Optimisation(learning_rate=1e-4, schedule=Schedule("exponential", factor=0.975, period=883))
EVALUATION = Evaluation()


class PMVOSModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.pmvos.PMVOS`.

    The defaults are the paper's first stage: Adam with 1e-4, multiplied by 0.975 every epoch, and cross-entropy on all frames
    after the first. The network's own soft masks are fed back, with gradients through the whole clip. See :class:`VOSModule` for
    the other arguments.

    Args:
        network: the network with its own options.
        train_aggregation: how objects are merged in training; ``none`` feeds back the plain softmax; the paper does not say.
        eval_aggregation: how objects are merged at inference; ``minimum`` is the odds rule of the released code.
        reannotation: frames that an object reads when it is annotated again: the new one only (``replace``) or both (``add``).
        optimisation: optimiser, rates and schedule. The rate is multiplied by 0.975 every epoch. The paper does not say how many
            clips an epoch has (``schedule.period``), and states no weight decay; A-GAME, whose training it follows otherwise, has
            1e-5 and then 1e-6.

    Reference: PMVOS (Cho et al., arXiv 2009.08855), section 3.4; released code for the aggregation.
    """

    network: PMVOS

    def __init__(
        self,
        network: PMVOS,
        train_aggregation: Aggregation = "none",
        eval_aggregation: Aggregation = "minimum",
        reannotation: Literal["replace", "add"] = "replace",
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
        late_objects: bool = False,
        channels_last: bool = True,
    ) -> None:
        policy = AnnotatedOnly(reannotation)
        super().__init__(
            network,
            train_propagation=Propagation(policy, train_aggregation, "join"),
            eval_propagation=Propagation(policy, eval_aggregation, "join"),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=late_objects,
            channels_last=channels_last,
        )
        self.save_hyperparameters()
