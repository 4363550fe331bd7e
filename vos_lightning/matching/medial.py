"""Medial matching: one template for each class, averaged over the pixels of a frame and over time."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

MedialForm = Literal["paper", "released"]
_CLAMP = 1e-7


def medial_template(
    key: Float[Tensor, "B CK *cells"], masks: Float[Tensor, "B N *cells"], form: MedialForm = "paper"
) -> Float[Tensor, "B N 2 CK"]:
    r"""Templates of (background, foreground) of every object in one frame.

    .. math::
        t_k = \frac{\sum_p m_k[p] \, x_p}{\sum_p m_k[p]} \;\text{(paper)}, \quad
        t_k = \frac{u_k}{\|u_k\|}, \; u_k = \max\Big(\sum_p m_k[p] \, x_p, \, 10^{-7}\Big) \;\text{(released)}

    The two forms are not proportional, as the released one drops channels whose sum is negative.

    Args:
        key: keys of unit length, ``(B, CK, h, w)`` or ``(B, CK, S)``.
        masks: foreground of every object in the same cells, ``(B, N, ...)`` in [0, 1].
        form: form of the templates, ``paper`` or ``released``.

    Returns:
        ``(B, N, 2, CK)`` in float32. For a class without a pixel: zero (paper) or a constant vector of unit length (released).

    Reference: PMVOS (Cho et al., arXiv 2009.08855) equation 2; released code.
    """
    if form not in get_args(MedialForm):
        raise ValueError(f"medial must be one of {get_args(MedialForm)}, not {form!r}")
    with torch.autocast(key.device.type, enabled=False):
        masks = masks.flatten(2).float()
        weights = torch.stack([1 - masks, masks], dim=2)
        total = (weights.flatten(1, 2) @ key.flatten(2).float().transpose(1, 2)).unflatten(1, weights.shape[1:3])
        if form == "released":
            return F.normalize(total.clamp_min(_CLAMP), dim=3)
        return total / weights.sum(dim=3, keepdim=True).clamp_min(_CLAMP)


def update_template(
    old: Float[Tensor, "B N 2 CK"], new: Float[Tensor, "B N 2 CK"], restart: Bool[Tensor, "B N"], rate: float = 0.1
) -> Float[Tensor, "B N 2 CK"]:
    r"""Moving average :math:`t \leftarrow (1 - \alpha) \, t + \alpha \, t_{new}`, without normalisation.

    Args:
        old: templates before this frame.
        new: templates of this frame.
        restart: objects whose template begins in this frame (:math:`\alpha = 1`).
        rate: :math:`\alpha` of the other objects.

    Returns:
        ``(B, N, 2, CK)``.

    Reference: PMVOS (Cho et al., arXiv 2009.08855) equation 3.
    """
    return torch.where(restart[:, :, None, None], new, old + rate * (new - old))


def medial_match(templates: Float[Tensor, "B N 2 CK"], query_key: Float[Tensor, "B CK Q"]) -> Float[Tensor, "B N 2 Q"]:
    r"""Inner product of every query pixel with the template of a class, :math:`s_k[q] = \langle t_k, y_q \rangle`.

    Args:
        templates: templates of (background, foreground) of every object.
        query_key: keys of unit length.

    Returns:
        Scores ``(B, N, 2, Q)`` of (background, foreground).

    Reference: PMVOS (Cho et al., arXiv 2009.08855) section 3.2.
    """
    with torch.autocast(query_key.device.type, enabled=False):
        scores = templates.float().flatten(1, 2) @ query_key.float()
    return scores.unflatten(1, templates.shape[1:3])
