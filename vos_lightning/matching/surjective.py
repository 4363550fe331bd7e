"""Surjective matching: every query pixel takes its best memory pixel."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MAX_ELEMENTS = 2**26
"""Most weighted similarities at a time (256 MiB in float32); larger problems are split over the memory pixels."""
MAX_ELEMENTS_ON_CPU = 2**18
"""The same limit on CPUs, where a part that stays in the cache takes a tenth of the time."""


def surjective_match(
    similarity: Float[Tensor, "B S Q"], masks: Float[Tensor, "B N S"], readable: Bool[Tensor, "B N S"]
) -> Float[Tensor, "B N 2 Q"]:
    r"""Best similarity of every query pixel to the background and to the foreground of each object.

    .. math:: s_k[q] = \max_p m_k[p] \, A[p, q], \quad m_{fg} = m, \; m_{bg} = 1 - m

    A memory pixel that an object may not read counts as neither background nor foreground (:math:`m_{bg} = m_{fg} = 0`), so it
    adds a candidate of 0. With similarities in [0, 1] (EMVOS) it can never win against a readable one. With raw cosines (PMVOS),
    the score of a class that is absent from some memory pixel is floored at 0 in the same way, as in the published system.

    The gradient goes to the winning memory pixel (to one of them if several tie), to its similarity and to its mask. Only the
    indices of the winners are kept for the backward pass, not the weighted similarities of all objects.

    Args:
        similarity: ``(B, S, Q)``, one row a memory pixel.
        masks: ``(B, N, S)``, foreground of every object at the memory pixels, in [0, 1].
        readable: ``(B, N, S)``, which memory pixels an object may read.

    Returns:
        Scores ``(B, N, 2, Q)`` of (background, foreground).

    Reference: EMVOS (Cho et al., arXiv 2209.03139) equations 1 and 2; PMVOS (Cho et al., arXiv 2009.08855).
    """
    weights = torch.stack([1 - masks, masks], dim=2) * readable.unsqueeze(2)
    differentiable = torch.is_grad_enabled() and (similarity.requires_grad or weights.requires_grad)
    with torch.no_grad():
        best, winners = _best(similarity, weights, need_winners=differentiable)
    if winners is None:
        return best
    won = similarity.gather(1, winners.flatten(1, 2)).view(winners.shape)
    return won * weights.gather(3, winners)


def _best(
    similarity: Float[Tensor, "B S Q"], weights: Float[Tensor, "B N 2 S"], need_winners: bool
) -> tuple[Float[Tensor, "B N 2 Q"], Int64[Tensor, "B N 2 Q"] | None]:
    """Largest weighted similarity of every query pixel, and the first memory pixel that has it."""
    elements = math.prod(weights.shape[:3]) * similarity.shape[2]
    limit = MAX_ELEMENTS_ON_CPU if similarity.device.type == "cpu" else MAX_ELEMENTS
    rows = max(1, limit // max(1, elements))
    best: Tensor | None = None
    winners: Tensor | None = None
    for number, (part, of_part) in enumerate(zip(similarity.split(rows, dim=1), weights.split(rows, dim=3), strict=True)):
        weighed = of_part.unsqueeze(4) * part[:, None, None]
        if need_winners:
            # ``max`` with its indices was faster than ``argmax``.
            value, index = weighed.max(dim=3)
            index = index + number * rows
            winners = index if best is None or winners is None else torch.where(value > best, index, winners)
        else:
            value = weighed.amax(dim=3)
        best = value if best is None else torch.maximum(best, value)
    assert best is not None
    return best, winners
