"""PMVOS as a LightningModule: reference and previous frame, odds aggregation at test time, rates that fall by the epoch."""

from __future__ import annotations

from typing import Literal

from vos_lightning.mask_ops import Aggregation
from vos_lightning.metrics import Protocol
from vos_lightning.modules.base import VOSModule
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.panels import FrameView, Panel, score_panels
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation


class PMVOSModule(VOSModule):
    """Training and evaluation of :class:`vos_lightning.networks.pmvos.PMVOS`.

    The defaults are the paper's first stage: Adam, 1e-4 times 0.975 an epoch, cross-entropy on all frames after the first. The
    network's own soft masks are fed back, with gradients through the whole clip. See :class:`VOSModule` for the arguments.

    Args:
        network: the network with its own options.
        decay: factor of the learning rate from epoch to epoch, with the ``constant`` schedule; 1 for none.
        steps_per_epoch: optimiser steps that count as an epoch for ``decay``; the paper does not say how many clips an epoch has.
        train_aggregation: ``none`` feeds the plain softmax back; the paper does not say.
        eval_aggregation: ``minimum``, the odds rule of the released code.
        reannotation: an object that is annotated again reads the new frame only (``replace``) or both (``add``).
        weight_decay: the paper states none; A-GAME, whose recipe this is otherwise, has 1e-5 and then 1e-6.

    Reference: PMVOS (Cho et al., arXiv 2009.08855), section 3.4; released code for the aggregation.
    """

    network: PMVOS
    training_arguments = VOSModule.training_arguments | {"decay", "steps_per_epoch"}

    def __init__(
        self,
        network: PMVOS,
        decay: float = 0.975,
        steps_per_epoch: int = 883,
        train_aggregation: Aggregation = "none",
        eval_aggregation: Aggregation = "minimum",
        reannotation: Literal["replace", "add"] = "replace",
        protocol: Protocol = "davis17",
        optimizer: Literal["adam", "adamw"] = "adam",
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        late_objects: bool = False,
        short_side: int | None = None,
        min_object_pixels: int = 0,
        channels_last: bool = True,
    ) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], not {decay}")
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, not {steps_per_epoch}")
        policy = AnnotatedOnly(reannotation)
        super().__init__(
            network,
            train_propagation=Propagation(policy, train_aggregation, "join"),
            eval_propagation=Propagation(policy, eval_aggregation, "join"),
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
        )
        self.decay = decay
        self.steps_per_epoch = steps_per_epoch
        self.save_hyperparameters()

    def _rate_factor(self, step: int) -> float:
        factor = super()._rate_factor(step)
        return factor * self.decay ** (step // self.steps_per_epoch) if self.schedule == "constant" else factor

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
