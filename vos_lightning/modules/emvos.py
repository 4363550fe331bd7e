"""EMVOS as a LightningModule: reference and previous frame, odds aggregation at inference, plain cross-entropy."""

from __future__ import annotations

from typing import Literal

from vos_lightning.mask_ops import Aggregation
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation

OPTIMISATION = Optimisation(learning_rate=1e-4)
EVALUATION = Evaluation(short_side=480, min_object_pixels=1000)


class EMVOSModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.emvos.EMVOS`.

    The defaults are the paper's training: Adam with a constant 1e-4, cross-entropy on all frames after the first, the network's
    own soft masks fed back, and gradients through the whole clip. See :class:`VOSModule` for the other arguments.

    Args:
        network: the network with its own options.
        train_aggregation: how objects are merged in training; ``none`` feeds back the plain softmax (released code); the paper
            does not say.
        eval_aggregation: how objects are merged at inference; ``minimum`` is the odds rule of the released code.
        reannotation: frames that an object reads when it is annotated again: the new one only (``replace``) or both (``add``).

    Reference: EMVOS (Cho et al., arXiv 2209.03139), section 3.7; released code for what the paper leaves open.
    """

    network: EMVOS

    def __init__(
        self,
        network: EMVOS,
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
