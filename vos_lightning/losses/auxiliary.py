"""Losses besides the segmentation loss: for uncertainty maps and refined points."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

HardestBy = Literal["predicted", "loss", "target"]


def uncertainty_loss(
    predicted: Float[Tensor, "B N h w"],
    target: Float[Tensor, "B N h w"],
    counted: Bool[Tensor, "B N h w"],
    ratio: float = 1.0,
    hardest_by: HardestBy = "predicted",
) -> Float[Tensor, " B"]:
    r"""Smooth L1 between predicted and true uncertainty over the most uncertain cells of every object.

    .. math:: \frac{1}{\sum_i w_i} \sum_i w_i\, \mathrm{smoothL1}(U_i, U^*_i)

    with :math:`w_i = 1` for the top ``ratio`` of an object's counted cells and 0 for the others. Both maps lie in [0, 1], where
    smooth L1 is half the squared difference.

    Args:
        predicted: predicted uncertainty :math:`U`.
        target: true uncertainty :math:`U^* = |P - M|`, without gradient.
        counted: cells whose truth is known, of objects that exist.
        ratio: share of the cells, in (0, 1].
        hardest_by: what ranks the cells: the uncertainty as ``predicted``, the ``loss``, or the ``target``.

    Returns:
        One value a clip: the mean over its objects that have a counted cell; 0 if there is none.

    Raises:
        ValueError: ``ratio`` or ``hardest_by`` is out of range.

    Reference: PMNet equation 1.
    """
    if hardest_by not in get_args(HardestBy):
        raise ValueError(f"hardest_by must be one of {get_args(HardestBy)}, not {hardest_by!r}")
    loss = F.smooth_l1_loss(predicted.float(), target.float(), reduction="none")
    order = {"predicted": predicted, "loss": loss, "target": target}[hardest_by]
    return mean_over_objects(loss.flatten(2), _top(order.flatten(2), counted.flatten(2), ratio))


def point_loss(
    logits: Float[Tensor, "B N K"], target: Float[Tensor, "B N K"], counted: Bool[Tensor, "B N K"]
) -> Float[Tensor, " B"]:
    r"""Binary cross-entropy of refined points, :math:`\frac{1}{K} \sum_k \mathrm{CE}(l_k, M_k)`.

    Args:
        logits: foreground log-odds at the points of each object.
        target: 1 where the object is, else 0.
        counted: points that exist and whose truth is known.

    Returns:
        One value a clip: the mean over its objects that have a counted point; 0 if there is none.

    Reference: PMNet equation 4, second term.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return mean_over_objects(loss, counted)


def mean_over_objects(loss: Float[Tensor, "B N K"], counted: Bool[Tensor, "B N K"]) -> Float[Tensor, " B"]:
    """Mean over the counted entries of each object, then over the objects that have one; 0 if there is none."""
    number = counted.sum(dim=2)
    # A plain product would keep a NaN of an entry that does not count.
    mean = loss.float().masked_fill(~counted, 0.0).sum(dim=2) / number.clamp_min(1)
    return mean.sum(dim=1) / (number > 0).sum(dim=1).clamp_min(1)


def _top(order: Float[Tensor, "B N K"], counted: Bool[Tensor, "B N K"], ratio: float) -> Bool[Tensor, "B N K"]:
    """The share of the counted entries that comes first in descending order, at least one of them."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    if ratio == 1:
        return counted
    index = order.detach().masked_fill(~counted, float("-inf")).sort(dim=2, descending=True, stable=True).indices
    kept = (counted.sum(dim=2, keepdim=True) * ratio).round().clamp_min(1)
    first = torch.arange(order.shape[2], device=order.device) < kept
    return torch.zeros_like(counted).scatter(2, index, first) & counted


def falling_fraction(step: int, start: int, end: int, last: float) -> float:
    """A fraction that is 1 until ``start``, then falls linearly to ``last`` at ``end``.

    Args:
        step: number of optimiser steps done.
        start: last step at which the fraction is 1.
        end: first step at which the fraction is ``last``.
        last: final value of the fraction, in (0, 1].

    Reference: the bootstrapped cross-entropy of MiVOS and STCN (released code), with steps 20,000 and 70,000 and 0.15.
    """
    if step < start:
        return 1.0
    return last if step >= end else last + (1 - last) * (end - step) / (end - start)
