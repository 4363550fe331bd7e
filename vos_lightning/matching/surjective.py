"""Surjective matching: every query pixel takes its best memory pixel."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_ELEMENTS = 2**26
"""Most elements of the similarities of one chunk of objects (256 MiB in float32); larger problems are cut over the objects."""


def surjective_match(
    similarity: Float[Tensor, "B S Q"], masks: Float[Tensor, "B N S"], readable: Bool[Tensor, "B N S"]
) -> Float[Tensor, "B N 2 Q"]:
    r"""Best similarity of every query pixel to the background and to the foreground of each object.

    .. math:: s_k[q] = \max_p m_k[p] \, A[p, q], \quad m_{fg} = m, \; m_{bg} = 1 - m

    A memory pixel that an object may not read counts as neither background nor foreground (:math:`m_{bg} = m_{fg} = 0`), so it
    adds a candidate of 0. With similarities in [0, 1] (EMVOS) it can never win against a readable one; with raw cosines
    (PMVOS) a class that is absent somewhere has its score floored at 0 in the same way, as in the published system.

    The gradient goes to the winning memory pixel (one of them, where several tie), to its similarity and to its mask. Only the
    winners' indices are kept for the backward pass, not the weighted similarities of all objects.

    Args:
        similarity: ``(B, S, Q)``, one row a memory pixel.
        masks: ``(B, N, S)``, foreground of every object at the memory pixels, in [0, 1].
        readable: ``(B, N, S)``, which memory pixels an object may read.

    Returns:
        Scores ``(B, N, 2, Q)`` of (background, foreground).

    Reference: EMVOS (Cho et al., arXiv 2209.03139) equations 1 and 2; PMVOS (Cho et al., arXiv 2009.08855).
    """
    weights = torch.stack([1 - masks, masks], dim=2) * readable.unsqueeze(2)
    chunk = max(1, MAX_ELEMENTS // max(1, 2 * similarity.numel()))
    if not (torch.is_grad_enabled() and (similarity.requires_grad or weights.requires_grad)):
        return torch.cat([_weigh(similarity, part).amax(dim=3) for part in weights.split(chunk, dim=1)], dim=1)
    # ``max`` and not ``argmax``: with its indices it was the faster of the two.
    with torch.no_grad():
        winners = torch.cat([_weigh(similarity, part).max(dim=3).indices for part in weights.split(chunk, dim=1)], dim=1)
    won = similarity.gather(1, winners.flatten(1, 2)).view(winners.shape)
    return won * weights.gather(3, winners)


def _weigh(similarity: Tensor, weights: Tensor) -> Float[Tensor, "B n 2 S Q"]:
    return weights.unsqueeze(4) * similarity[:, None, None]
