"""Adaptive object alignment: proposals take the pose of a template before they are compared with it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.matching.alignment import PositionPool, aligned_similarity, pooled_similarity


def projector(channels: int, projected: int, groups: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with group normalisation and a rectifier between them, none after."""
    return nn.Sequential(
        nn.Conv2d(channels, projected, 3, padding=1),
        nn.GroupNorm(groups, projected),
        nn.ReLU(inplace=True),
        nn.Conv2d(projected, projected, 3, padding=1),
    )


class Sharpness(nn.Module):
    r"""The factor :math:`\alpha` of cosines before a softmax, fixed or learned as its logarithm.

    Args:
        value: :math:`\alpha`, or its start.
        learned: whether it is trained.

    Raises:
        ValueError: the value is not positive.
    """

    def __init__(self, value: float, learned: bool = False) -> None:
        super().__init__()
        if value <= 0:
            raise ValueError(f"sharpness must be positive, not {value}")
        self.value = value
        self.logarithm = nn.Parameter(torch.tensor(math.log(value))) if learned else None

    def forward(self) -> float | Float[Tensor, ""]:
        """The factor."""
        return self.value if self.logarithm is None else self.logarithm.exp()


class AdaptiveObjectAlignment(nn.Module):
    """Compares object templates with proposals in a common space, where proposals are first aligned to the template.

    Args:
        channels: of templates and proposals.
        projected: of the common space.
        sharpness: of the alignment.
        learned_sharpness: train it.
        pool: how positions become one number, see :func:`vos_lightning.matching.alignment.aligned_similarity`.
        align: without it, spatial means are compared.
        groups: of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.3.
    """

    def __init__(
        self,
        channels: int = 512,
        projected: int = 256,
        sharpness: float = 100.0,
        learned_sharpness: bool = False,
        pool: PositionPool = "mean",
        align: bool = True,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.template = projector(channels, projected, groups)
        self.proposal = projector(channels, projected, groups)
        self.sharpness = Sharpness(sharpness, learned_sharpness and align)
        self.pool: PositionPool = pool
        self.align = align

    def project_proposals(self, features: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B K CD h w"]:
        """Proposals in the common space: once a frame, for all objects."""
        return self.proposal(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def project_templates(self, features: Float[Tensor, "B N C h w"]) -> Float[Tensor, "B N CD h w"]:
        """Templates in the common space."""
        return self.template(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def forward(
        self,
        templates: Float[Tensor, "B N CD h w"],
        proposals: Float[Tensor, "B K CD h w"],
        position_weights: Float[Tensor, "B N h w"] | None = None,
    ) -> Float[Tensor, "B N K"]:
        """Similarities of projected templates and projected proposals, in [-1, 1].

        Args:
            templates: see :meth:`project_templates`.
            proposals: see :meth:`project_proposals`.
            position_weights: of the template's positions, for ``pool="masked"``.
        """
        templates, proposals = templates.flatten(3), proposals.flatten(3)
        if not self.align:
            return pooled_similarity(templates, proposals)
        weights = None if position_weights is None else position_weights.flatten(2)
        return aligned_similarity(templates, proposals, self.sharpness(), self.pool, weights)
