"""PMVOS as a LightningModule: reference and previous frame, odds aggregation at test time, rates that fall by the epoch."""

from __future__ import annotations

from typing import Literal

from vos_lightning.mask_ops import Aggregation
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation
from vos_lightning.visualization.panels import FrameView, Panel, score_panels

OPTIMISATION = Optimisation(learning_rate=1e-4, schedule=Schedule("exponential", factor=0.975, period=883))
EVALUATION = Evaluation()


class PMVOSModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.pmvos.PMVOS`.

    The defaults are the paper's first stage: Adam, 1e-4 times 0.975 an epoch, cross-entropy on all frames after the first. The
    network's own soft masks are fed back, with gradients through the whole clip. See :class:`VOSModule` for the other arguments.

    Args:
        network: the network with its own options.
        train_aggregation: ``none`` feeds the plain softmax back; the paper does not say.
        eval_aggregation: ``minimum``, the odds rule of the released code.
        reannotation: an object that is annotated again reads the new frame only (``replace``) or both (``add``).
        optimisation: the rate falls by 0.975 an epoch; the paper does not say how many clips an epoch has (``schedule.period``),
            and states no weight decay, where A-GAME, whose recipe this is otherwise, has 1e-5 and then 1e-6.

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

    def panels(self, view: FrameView) -> list[Panel]:
        """The score maps of either class, then the same after spatial and after channel attention, each on its own scale."""
        panels = super().panels(view)
        if "scores" not in view.aux:
            return panels
        kinds = self.network.kinds
        scores, attended = view.aux["scores"], view.aux["attended"]
        groups = {"scores": scores}
        if attended.shape[2] > len(kinds):
            groups["after spatial attention"], groups["after channel attention"] = attended.chunk(2, dim=2)
        for title, maps in groups.items():
            for k, side in enumerate(("background", "foreground")):
                panels += score_panels(view, maps[:, k], kinds, f"{side} {title}")
        return panels
