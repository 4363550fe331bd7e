"""Adaptive object alignment: proposals take the pose of a template before they are compared with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.matching.alignment import PositionPool, aligned_similarity, in_place_similarity, pooled_similarity

Comparison = Literal["aligned", "in_place", "pooled"]
"""How a template and a proposal are compared. ``aligned``: the proposal is aligned to the template first; ``in_place``: position
by position, as they lie in their boxes; ``pooled``: by their spatial means, as in DMM-Net."""


@dataclass(frozen=True)
class AlignmentOptions:
    r"""Options of the spaces in which maps are aligned by appearance.

    Attributes:
        channels: number of channels :math:`C_D` of these spaces.
        sharpness: factor :math:`\alpha` of the cosines before the softmax, positive.
        learned_sharpness: train the logarithm of the factor, which starts at ``sharpness``.

    Raises:
        ValueError: a value is not positive.

    Reference: DMN-AOA (Liang et al., ICCV 2021), equation 2.
    """

    channels: int = 256
    sharpness: float = 100.0
    learned_sharpness: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "sharpness"):
            if getattr(self, name) <= 0:
                raise ValueError(f"alignment.{name} must be positive, not {getattr(self, name)}")


DEFAULT_ALIGNMENT = AlignmentOptions()


def projector(channels: int, projected: int, *, groups: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, with group normalisation and a ReLU between them and nothing after the second."""
    return nn.Sequential(
        nn.Conv2d(channels, projected, 3, padding=1),
        nn.GroupNorm(groups, projected),
        nn.ReLU(inplace=True),
        nn.Conv2d(projected, projected, 3, padding=1),
    )


class Sharpness(nn.Module):
    r"""The factor :math:`\alpha` of cosines before a softmax, fixed or learned as its logarithm.

    Args:
        value: the factor :math:`\alpha`, or its initial value; positive, see :class:`AlignmentOptions`.
        learned: whether it is trained.
    """

    def __init__(self, value: float, *, learned: bool = False) -> None:
        super().__init__()
        self.value = value
        self.logarithm = nn.Parameter(torch.tensor(math.log(value))) if learned else None

    def forward(self) -> float | Float[Tensor, ""]:
        """The factor of the cosines."""
        return self.value if self.logarithm is None else self.logarithm.exp()


class AdaptiveObjectAlignment(nn.Module):
    """Compares object templates with proposals in a common space, where proposals are aligned to the template.

    Args:
        channels: number of channels of templates and proposals.
        options: options of the common space and of the alignment.
        pool: how the cosines of all positions become one number, see :func:`vos_lightning.matching.alignment.aligned_similarity`;
            not used by ``pooled``.
        comparison: how the two are compared, see :data:`Comparison`; only ``aligned`` is adaptive object alignment.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.3.
    """

    def __init__(
        self,
        channels: int = 512,
        options: AlignmentOptions = DEFAULT_ALIGNMENT,
        *,
        pool: PositionPool = "mean",
        comparison: Comparison = "aligned",
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.template = projector(channels, options.channels, groups=groups)
        self.proposal = projector(channels, options.channels, groups=groups)
        # Without the alignment, the factor is not used.
        self.sharpness = Sharpness(options.sharpness, learned=options.learned_sharpness and comparison == "aligned")
        self.pool: PositionPool = pool
        self.comparison: Comparison = comparison

    def project_proposals(self, features: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B K CD h w"]:
        """Proposals in the common space; computed once a frame, for all objects."""
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
            templates: projected templates of the objects, see :meth:`project_templates`.
            proposals: projected proposals of the frame, see :meth:`project_proposals`.
            position_weights: weights of the template's positions, for ``pool="masked"``.
        """
        templates, proposals = templates.flatten(3), proposals.flatten(3)
        if self.comparison == "pooled":
            return pooled_similarity(templates, proposals)
        weights = None if position_weights is None else position_weights.flatten(2)
        if self.comparison == "in_place":
            return in_place_similarity(templates, proposals, self.pool, weights)
        return aligned_similarity(templates, proposals, self.sharpness(), self.pool, weights)
