"""Losses of matching objects to proposals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def soft_iou_loss(
    masks: Float[Tensor, "B N y x"], truth: Float[Tensor, "B N y x"], objects: Bool[Tensor, "B N"]
) -> Float[Tensor, " B"]:
    r"""One minus soft intersection over union, :math:`1 - \sum m t / \sum (m + t - m t)`, averaged over the objects of each clip.

    Args:
        masks: predicted masks in [0, 1].
        truth: true masks in [0, 1], on the same grid.
        objects: which objects count.

    Returns:
        One value a clip; 0 without an object.

    Reference: DMM-Net (Zeng et al., ICCV 2019).
    """
    masks, truth = masks.float(), truth.float()  # the sums leave the range of half precision
    both = (masks * truth).flatten(2).sum(dim=2)
    either = (masks + truth).flatten(2).sum(dim=2) - both
    return _mean(1 - both / either.clamp_min(1e-6), objects)


def matching_loss(
    similarity: Float[Tensor, "B N K"],
    proposal_masks: Float[Tensor, "B K y x"],
    truth: Float[Tensor, "B N y x"],
    objects: Bool[Tensor, "B N"],
    proposals: Bool[Tensor, "B K"],
) -> Float[Tensor, " B"]:
    """Squared difference between the similarities and the greedy assignment by overlap with the true masks.

    Args:
        similarity: similarity of every object and proposal.
        proposal_masks: masks of the proposals in [0, 1].
        truth: true masks in [0, 1], on the same grid.
        objects: which objects count.
        proposals: which proposals exist.

    Returns:
        Mean over the pairs of each clip; 0 without a pair.

    Reference: DMM-Net (Zeng et al., ICCV 2019), released code.
    """
    # The products count cells, which half precision cannot.
    with torch.no_grad(), torch.autocast(similarity.device.type, enabled=False):
        found, true = (proposal_masks > 0.5).flatten(2).float(), (truth > 0.5).flatten(2).float()
        both = true @ found.transpose(1, 2)
        either = true.sum(dim=2, keepdim=True) + found.sum(dim=2).unsqueeze(1) - both
        pairs = objects.unsqueeze(2) & proposals.unsqueeze(1)
        target = greedy_assignment(both / either.clamp_min(1e-6) * pairs)
    error = (similarity.float() - target).square() * pairs
    return error.flatten(1).sum(dim=1) / pairs.flatten(1).sum(dim=1).clamp_min(1)


def greedy_assignment(overlap: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
    """One-hot rows: the pair with the largest overlap is assigned first, then the largest among the remaining ones, and so on.

    Args:
        overlap: overlap of true objects and proposals, at least 0; pairs with 0 are never assigned.

    Returns:
        An assignment of zeros and ones, the target of a matching loss.

    Reference: DMM-Net (Zeng et al., ICCV 2019), released code.
    """
    chosen = torch.zeros_like(overlap)
    num_objects, num_proposals = overlap.shape[1:]
    for _ in range(min(num_objects, num_proposals)):
        flat = overlap.flatten(1)
        best, index = flat.max(dim=1)
        pick = F.one_hot(index, flat.shape[1]).view_as(overlap) * (best > 0)[:, None, None]
        chosen = chosen + pick
        taken = (pick.sum(dim=2, keepdim=True) > 0) | (pick.sum(dim=1, keepdim=True) > 0)
        overlap = overlap.masked_fill(taken, 0.0)
    return chosen


def _mean(values: Float[Tensor, "B N"], objects: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    return (values * objects).sum(dim=1) / objects.sum(dim=1).clamp_min(1)
