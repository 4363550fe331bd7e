"""Relaxed assignment of objects to proposals: a linear program that is solved by differentiable projected gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

AssignmentOutput = Literal["mean_pre", "mean_post", "last"]
"""``mean_pre``: mean of the iterates before projection; ``mean_post``: mean of the projected iterates; ``last``: the last
projected iterate."""
Kept = Literal["all", "best"]
"""``all``: all weights above :data:`PRUNED`; ``best``: only the largest weight of every object."""
PRUNED = 0.01
"""Weights up to this one are dropped, as are negative ones."""


@dataclass(frozen=True)
class AssignmentOptions:
    """Options of the relaxed assignment, see :func:`relaxed_assignment`.

    Attributes:
        train_steps: number of gradient steps in training.
        eval_steps: number of gradient steps at inference.
        sweeps: number of sweeps over the projections after every gradient step.
        step_size: size of a gradient step, positive.
        output: which iterate, or mean of iterates, is the result.
        null_column: let objects stay without a proposal.
        eval_kept: the proposals that make up a coarse mask at inference, see :data:`Kept`: ``all``, as in training and as DMN-AOA
            describes it, or the ``best`` one (DMM-Net).

    Raises:
        ValueError: a value is unknown or out of range.

    Reference: DMM-Net (Zeng et al., ICCV 2019), released code, for all but ``null_column`` and ``eval_kept`` ``all``; DMN-AOA
    (Liang et al., ICCV 2021), section 3.1: "a summation (weighted by A) of masks of all the object proposals".
    """

    train_steps: int = 10
    eval_steps: int = 40
    sweeps: int = 5
    step_size: float = 0.1
    output: AssignmentOutput = "mean_pre"
    null_column: bool = False
    eval_kept: Kept = "all"

    def __post_init__(self) -> None:
        for name, allowed in (("output", get_args(AssignmentOutput)), ("eval_kept", get_args(Kept))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"assignment.{name} must be one of {allowed}, not {getattr(self, name)!r}")
        for name in ("train_steps", "eval_steps", "sweeps"):
            if getattr(self, name) < 0:
                raise ValueError(f"assignment.{name} must not be negative, not {getattr(self, name)}")
        if self.step_size <= 0:
            raise ValueError(f"assignment.step_size must be positive, not {self.step_size}")


def relaxed_assignment(
    similarity: Float[Tensor, "B N K"],
    object_valid: Bool[Tensor, "B N"],
    proposal_valid: Bool[Tensor, "B K"],
    num_steps: int = 10,
    num_sweeps: int = 5,
    step_size: float = 0.1,
    output: AssignmentOutput = "mean_pre",
    null_column: bool = False,
) -> Float[Tensor, "B N K"]:
    r"""Assign every object to one proposal, and no proposal to more than one object.

    .. math:: \min_X -\langle s, X \rangle \quad \text{subject to} \quad
              X \ge 0, \quad \sum_j X_{oj} = 1, \quad \sum_o X_{oj} \le 1

    A gradient step :math:`X \leftarrow X + \eta s` is followed by sweeps of Dykstra's algorithm over the three sets: non-negative
    entries, columns, rows. The corrections of Dykstra's algorithm are kept from step to step. The start is discrete: every column
    is assigned to its best object, and every object then takes the best of its columns.

    The mean of the start and of the iterates *before* projection (``mean_pre``) is what DMM-Net computes. It is not a
    probability: rows sum to more than 1, and entries may be negative or a little above 1. Its gradient for the chosen pair is
    about the step size, while that of the last projected iterate is almost zero.

    If there are no more proposals than objects, columns of similarity 0 are added until there is one more column than objects.
    The published layer exits early when an iterate or an objective repeats to the last bit. This is left out, because it depends
    on rounding which clip exits.

    Args:
        similarity: similarity of every object and proposal.
        object_valid: object slots that exist; rows of the others are 0.
        proposal_valid: proposals that exist; columns of the others are 0.
        num_steps: number of gradient steps (DMM-Net: 10 in training, 40 at inference).
        num_sweeps: number of sweeps over the projections after each step.
        step_size: size :math:`\eta` of a gradient step.
        output: which iterate, or mean of iterates, is the result, see :data:`AssignmentOutput`.
        null_column: let any number of objects take a column of similarity 0, which stands for no proposal.

    Returns:
        Weights of the proposals, float32. Weights of added columns are left out.

    Raises:
        ValueError: ``output`` is unknown.

    Reference: DMM-Net (Zeng et al., ICCV 2019), section 3.3; released code for the start, the order and the mean.
    """
    if output not in get_args(AssignmentOutput):
        raise ValueError(f"output must be one of {get_args(AssignmentOutput)}, not {output!r}")
    num_objects, num_proposals = similarity.shape[1:]
    if num_proposals == 0:
        return similarity.float()
    with torch.autocast(similarity.device.type, enabled=False):
        extra = max(0, num_objects + 1 - num_proposals)
        cost = F.pad(-similarity.float(), (0, extra))
        columns = _active_columns(F.pad(proposal_valid, (0, extra)), object_valid)
        # A column that stands in for a missing proposal has similarity 0.
        cost = cost * F.pad(proposal_valid, (0, extra))[:, None]
        bounded = columns
        if null_column:
            cost = F.pad(cost, (0, 1))
            columns, bounded = F.pad(columns, (0, 1), value=True), F.pad(columns, (0, 1))
        active = columns[:, None] & object_valid[:, :, None]
        cost = cost * active
        sets = _ConstraintSets(active, bounded)
        x = _discrete_start(cost, active)
        corrections = [torch.zeros_like(cost) for _ in range(3)]
        before, after = [x], [x]
        for _ in range(num_steps):
            x = x - step_size * cost
            before.append(x)
            for _ in range(num_sweeps):
                for k, project in enumerate((sets.positive, sets.columns, sets.rows)):
                    corrected = x + corrections[k]
                    x = project(corrected)
                    corrections[k] = corrected - x
            after.append(x)
        if output != "last":
            x = torch.stack(before if output == "mean_pre" else after).mean(dim=0)
    return x[:, :, :num_proposals] * proposal_valid[:, None]


def prune(assignment: Float[Tensor, "B N K"], kept: Kept) -> Float[Tensor, "B N K"]:
    """Drop weak assignments.

    Args:
        assignment: weights of the proposals, see :func:`relaxed_assignment`.
        kept: which weights are kept, with their values; DMM-Net keeps ``all`` in training and the ``best`` at inference.

    Returns:
        The assignment with dropped weights set to 0.

    Reference: DMM-Net (Zeng et al., ICCV 2019), released code.
    """
    if kept == "best":
        largest = assignment.amax(dim=2, keepdim=True) if assignment.shape[2] else assignment
        return assignment * (assignment == largest)
    return assignment * (assignment > PRUNED)


def _active_columns(proposal_valid: Bool[Tensor, "B K"], object_valid: Bool[Tensor, "B N"]) -> Bool[Tensor, "B K"]:
    """The proposals of every clip, and the first free columns if there are no more proposals than objects."""
    missing = object_valid.sum(dim=1) + 1 - proposal_valid.sum(dim=1)
    rank = (~proposal_valid).cumsum(dim=1)
    return proposal_valid | (rank <= missing[:, None])


def _discrete_start(cost: Float[Tensor, "B N K"], active: Bool[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
    infinity = float("inf")
    best_of_column = cost.masked_fill(~active, infinity).amin(dim=1, keepdim=True)
    worst = cost.masked_fill(~active, -infinity).amax(dim=(1, 2), keepdim=True)
    # Ties keep their cost, so that the order of the slots does not matter.
    left = torch.where(cost == best_of_column, cost, worst).masked_fill(~active, infinity)
    return F.one_hot(left.argmin(dim=2), cost.shape[2]).to(cost.dtype) * active


class _ConstraintSets:
    """Euclidean projections onto the three constraints, for clips with different numbers of objects and columns."""

    def __init__(self, active: Bool[Tensor, "B N K"], bounded: Bool[Tensor, "B K"]) -> None:
        self.active = active.float()
        self.per_row = self.active / self.active.sum(dim=2, keepdim=True).clamp_min(1)
        self.per_column = self.active * bounded[:, None] / self.active.sum(dim=1, keepdim=True).clamp_min(1)

    @staticmethod
    def positive(x: Tensor) -> Tensor:
        return x.clamp_min(0)

    def columns(self, x: Tensor) -> Tensor:
        """Project onto columns with sums of at most 1."""
        return x - (x.sum(dim=1, keepdim=True) - 1).clamp_min(0) * self.per_column

    def rows(self, x: Tensor) -> Tensor:
        """Project onto rows with sums of 1."""
        return x - (x.sum(dim=2, keepdim=True) - 1) * self.per_row
