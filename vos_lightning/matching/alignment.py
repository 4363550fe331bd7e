"""Alignment by appearance: every position of one feature map gathers similar positions of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vos_lightning.matching.similarity import cosine, l2_normalize

PositionPool = Literal["mean", "flat", "masked"]
"""``mean``: mean of the cosines of all positions; ``flat``: cosine of the whole maps, each as one vector; ``masked``: mean of
the cosines weighted by position."""


def correspondence(
    query: Float[Tensor, "B C Q"], source: Float[Tensor, "B C S"], sharpness: float | Float[Tensor, ""]
) -> Float[Tensor, "B S Q"]:
    r"""How much every query position takes from each source position.

    .. math:: S_{ij} = \frac{\exp(\alpha \cos(i, j))}{\sum_k \exp(\alpha \cos(i, k))}

    Args:
        query: features of the map to which the source is aligned (template, current frame).
        source: features of the map that is aligned (proposal, reference frame).
        sharpness: factor :math:`\alpha` of the cosines.

    Returns:
        Weights that sum to 1 over ``S``, float32.

    Reference: DMN-AOA (Liang et al., ICCV 2021), equation 2.
    """
    return (cosine(source, query) * sharpness).softmax(dim=1)


@dataclass(frozen=True)
class Moves:
    """From which source positions every query position is composed, and with which weights."""

    weights: Float[Tensor, "B K Q"]
    index: Int64[Tensor, "B K Q"] | None
    """Source position of every weight; None if all source positions take part, in their order."""

    @classmethod
    def of(cls, weights: Float[Tensor, "B S Q"], top_k: int | None = None) -> Moves:
        """The moves of a correspondence, with its ``top_k`` largest weights for every query position or with all of them.

        Args:
            weights: weights of the source positions, see :func:`correspondence`.
            top_k: number of weights that are kept, at least 1; they are divided by their sum, which is the softmax over the kept
                positions. None keeps all.
        """
        if top_k is None or top_k >= weights.shape[1]:
            return cls(weights, None)
        largest, index = weights.topk(top_k, dim=1, sorted=False)
        return cls(largest / largest.sum(dim=1, keepdim=True), index)


def move_blocks(moves: Moves, source: Float[Tensor, "B C H W"], block: int) -> Float[Tensor, "B C H W"]:
    """Move blocks of ``block x block`` pixels by the weights of coarse positions.

    A correspondence between maps at stride 16 would be too large at stride 4, as its size grows with the fourth power. Here every
    coarse position passes on its pixels in their order.

    Args:
        moves: weights of the coarse positions, of which there are ``S = Q = (H / block) * (W / block)``.
        source: map to move.
        block: side in source pixels of the block that belongs to one position of the weights.

    Returns:
        The moved map, in the type of ``source``.

    Reference: DMN-AOA (Liang et al., ICCV 2021), equation 3, for features that are finer than the correspondence.
    """
    blocks = F.pixel_unshuffle(source, block)
    flat, weights = blocks.flatten(2), moves.weights.to(source.dtype)
    if moves.index is None:
        moved = flat @ weights
    else:
        # One table holds the blocks of all clips, and each clip reads its own part.
        batch, kept, queries = weights.shape
        first = torch.arange(batch, device=source.device).view(-1, 1, 1) * flat.shape[2]
        rows, share = ((x.transpose(1, 2).reshape(-1, kept)) for x in (moves.index + first, weights))
        table = flat.transpose(1, 2).reshape(-1, flat.shape[1])
        read = F.embedding_bag(rows, table, per_sample_weights=share, mode="sum")
        moved = read.view(batch, queries, -1).transpose(1, 2)
    return F.pixel_shuffle(moved.reshape(blocks.shape), block)


def aligned_similarity(
    template: Float[Tensor, "B N C P"],
    proposals: Float[Tensor, "B K C P"],
    sharpness: float | Float[Tensor, ""],
    pool: PositionPool = "mean",
    position_weights: Float[Tensor, "B N P"] | None = None,
) -> Float[Tensor, "B N K"]:
    r"""Cosine similarity of object templates and proposals, where every proposal is first aligned to the template.

    .. math:: P''_i = \sum_j S_{ij} P'_j, \qquad s = \frac{1}{HW} \sum_i \cos(T'_i, P''_i)

    Args:
        template: projected templates of ``N`` objects at ``P`` positions.
        proposals: projected features of ``K`` proposals.
        sharpness: factor of the cosines in the alignment, see :func:`correspondence`.
        pool: how the cosines of the positions become one number, see :data:`PositionPool`.
        position_weights: weights of the template's positions for ``masked``, at least 0.

    Returns:
        Similarities in [-1, 1], float32.

    Raises:
        ValueError: ``pool`` is unknown, or is ``masked`` without weights.

    Reference: DMN-AOA (Liang et al., ICCV 2021), equations 2 and 3; they do not state the pooling.
    """
    batch, num_objects, _, cells = template.shape
    num_proposals = proposals.shape[1]
    with torch.autocast(template.device.type, enabled=False):
        # All pairs are computed as products of whole matrices, so neither templates nor proposals are repeated.
        unit = l2_normalize(template.transpose(1, 2).flatten(2))  # (B, C, N*P)
        source = proposals.float()
        flat = l2_normalize(source.transpose(1, 2).flatten(2))  # (B, C, K*P)
        angles = (flat.transpose(1, 2) @ unit).view(batch, num_proposals, cells, num_objects * cells)
        weights = (angles * sharpness).softmax(dim=2)
        moved = source @ weights  # (B, K, C, N*P)
        inner = (moved * unit[:, None]).sum(dim=2).unflatten(2, (num_objects, cells))
        squares = moved.square().sum(dim=2).unflatten(2, (num_objects, cells))
        return _pool(inner, squares, template, pool, position_weights)


def in_place_similarity(
    template: Float[Tensor, "B N C P"],
    proposals: Float[Tensor, "B K C P"],
    pool: PositionPool = "mean",
    position_weights: Float[Tensor, "B N P"] | None = None,
) -> Float[Tensor, "B N K"]:
    r"""Cosine similarity of object templates and proposals, position by position: :func:`aligned_similarity` without alignment.

    .. math:: s = \frac{1}{HW} \sum_i \cos(T'_i, P'_i)

    Args:
        template: projected templates of ``N`` objects at ``P`` positions.
        proposals: projected features of ``K`` proposals.
        pool: as in :func:`aligned_similarity`.
        position_weights: as in :func:`aligned_similarity`.

    Returns:
        Similarities in [-1, 1], float32.

    Raises:
        ValueError: ``pool`` is unknown, or is ``masked`` without weights.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.1 without section 3.3 (rows A1 and A2).
    """
    with torch.autocast(template.device.type, enabled=False):
        source = proposals.float()
        inner = torch.einsum("bkcp,bncp->bknp", source, l2_normalize(template.flatten(0, 1)).view_as(template))
        squares = source.square().sum(dim=2).unsqueeze(2).expand_as(inner)
        return _pool(inner, squares, template, pool, position_weights)


def _pool(
    inner: Float[Tensor, "B K N P"],
    squares: Float[Tensor, "B K N P"],
    template: Float[Tensor, "B N C P"],
    pool: PositionPool,
    position_weights: Float[Tensor, "B N P"] | None,
) -> Float[Tensor, "B N K"]:
    """One similarity for each pair, from inner products with normalised templates and from squared lengths of proposals."""
    if pool not in get_args(PositionPool):
        raise ValueError(f"pool must be one of {get_args(PositionPool)}, not {pool!r}")
    if pool == "flat":
        # The template is not normalised here, so its cells are weighted by their length.
        size = template.float().norm(dim=2)[:, None]
        norms = size.square().sum(dim=3).sqrt() * squares.sum(dim=3).sqrt()
        similarity = (inner * size).sum(dim=3) / norms.clamp_min(1e-6)
    else:
        cosines = inner / squares.clamp_min(1e-12).sqrt()
        if pool == "masked":
            if position_weights is None:
                raise ValueError("pool 'masked' needs position_weights")
            share = position_weights.float() / position_weights.float().sum(dim=2, keepdim=True).clamp_min(1e-6)
            similarity = (cosines * share[:, None]).sum(dim=3)
        else:
            similarity = cosines.mean(dim=3)
    return similarity.transpose(1, 2)


def pooled_similarity(template: Float[Tensor, "B N C P"], proposals: Float[Tensor, "B K C P"]) -> Float[Tensor, "B N K"]:
    """Cosine of the spatial means of templates and proposals: matching without alignment.

    Args:
        template: features of ``N`` objects at ``P`` positions.
        proposals: features of ``K`` proposals.

    Returns:
        Similarities in [-1, 1], float32.

    Reference: DMM-Net (Zeng et al., ICCV 2019); the base model of DMN-AOA (Liang et al., ICCV 2021), Table 3.
    """
    # "cosine" compares columns: the means over positions, one column for each object or proposal.
    return cosine(template.float().mean(dim=3).transpose(1, 2), proposals.float().mean(dim=3).transpose(1, 2))
