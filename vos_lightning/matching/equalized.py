"""Equalized matching: every memory pixel has the same total influence on the query frame."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from vos_lightning.matching.surjective import surjective_match


def equalized_match(
    similarity: Float[Tensor, "B S Q"],
    masks: Float[Tensor, "B N S"],
    readable: Bool[Tensor, "B N S"],
    scale: float = 1.0,
) -> Float[Tensor, "B N 2 Q"]:
    r"""Surjective matching of similarities that are normalised over the query pixels.

    .. math:: s_k[q] = \max_p m_k[p] \, \mathrm{softmax}_q(\mathrm{scale} \cdot E[p, q])

    A memory pixel that resembles large parts of the query frame (a distractor) is weak everywhere, because its row sums to 1.

    Args:
        similarity: ``(B, S, Q)``, inner products of keys that are not normalised.
        masks: ``(B, N, S)``, foreground of every object at the memory pixels, in [0, 1].
        readable: ``(B, N, S)``, which memory pixels an object may read.
        scale: factor of the similarity before the softmax. The published value 1 leaves the inner products of all channels
            unscaled; ``C ** -0.5`` is the usual one of attention.

    Returns:
        Scores ``(B, N, 2, Q)`` of (background, foreground), in [0, 1].

    Reference: EMVOS (Cho et al., arXiv 2209.03139) equations 4 and 5.
    """
    if scale != 1.0:
        similarity = similarity * scale
    return surjective_match(similarity.softmax(dim=2), masks, readable)
