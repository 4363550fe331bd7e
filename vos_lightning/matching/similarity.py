"""Similarity of memory and query pixels. No other module computes similarities of flattened keys.

Every function takes flattened keys, ``(B, C, S)`` of the memory and ``(B, C, Q)`` of the query, and returns ``(B, S, Q)``: one
row for each memory pixel, shared by all objects. The arithmetic is float32, whatever the keys' type and whether or not autocast
is on, because maxima and softmaxes over thousands of entries lose too much in half precision.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Similarity = Literal["dot", "cosine", "l2"]
"""``dot``: inner product; ``cosine``: cosine; ``l2``: negative squared distance."""


def dot(memory_key: Float[Tensor, "B C S"], query_key: Float[Tensor, "B C Q"]) -> Float[Tensor, "B S Q"]:
    r"""Inner product of every memory pixel and every query pixel, :math:`\langle x_p, y_q \rangle`.

    Args:
        memory_key: ``(B, C, S)``.
        query_key: ``(B, C, Q)``.

    Returns:
        ``(B, S, Q)``, at least float32.
    """
    with torch.autocast(memory_key.device.type, enabled=False):
        return at_least_float32(memory_key).transpose(1, 2) @ at_least_float32(query_key)


def l2_normalize(key: Float[Tensor, "B C *cells"]) -> Float[Tensor, "B C *cells"]:
    """Scale the key of every pixel to unit length, in at least float32; a zero key stays zero.

    The released PMVOS and EMVOS divide without a guard (a zero key gives NaN). The guard here has an effect only below a norm of
    1e-12.
    """
    return F.normalize(at_least_float32(key), dim=1, eps=1e-12)


def cosine(memory_key: Float[Tensor, "B C S"], query_key: Float[Tensor, "B C Q"]) -> Float[Tensor, "B S Q"]:
    """Cosine of the angle between every memory pixel and every query pixel.

    For keys of unit length (see :func:`l2_normalize`), :func:`dot` gives the same without normalising them again.

    Args:
        memory_key: ``(B, C, S)``.
        query_key: ``(B, C, Q)``.

    Returns:
        ``(B, S, Q)`` in [-1, 1]; 0 where a key is zero.
    """
    return dot(l2_normalize(memory_key), l2_normalize(query_key))


def negative_squared_l2(memory_key: Float[Tensor, "B C S"], query_key: Float[Tensor, "B C Q"]) -> Float[Tensor, "B S Q"]:
    r"""Negative squared distance, :math:`-\|x_p - y_q\|^2`, without scaling.

    Args:
        memory_key: ``(B, C, S)``.
        query_key: ``(B, C, Q)``.

    Returns:
        ``(B, S, Q)``, at most 0, except for rounding.

    Reference: STCN (Cheng et al., NeurIPS 2021), which leaves out the query's norm: it cancels in a softmax over S.
    """
    memory_key, query_key = at_least_float32(memory_key), at_least_float32(query_key)
    memory_norm = memory_key.square().sum(dim=1).unsqueeze(2)
    query_norm = query_key.square().sum(dim=1).unsqueeze(1)
    return 2 * dot(memory_key, query_key) - memory_norm - query_norm


def memory_logits(
    memory_key: Float[Tensor, "B C S"], query_key: Float[Tensor, "B C Q"], kind: Similarity, scale: float
) -> Float[Tensor, "B Q S"]:
    r"""Scaled similarity, up to a term that depends on the query alone and cancels in a softmax over the memory.

    The result is :math:`c \langle x_p, y_q \rangle`, :math:`c \cos(x_p, y_q)` or :math:`c\,(2 \langle x_p, y_q \rangle -
    \|x_p\|^2)`, where the last is :math:`-c\,\|x_p - y_q\|^2` without the term :math:`-c\,\|y_q\|^2`. It takes one product and no
    further pass over the result. The memory of one query is a contiguous row, along which softmax and top-k run.

    Args:
        memory_key: ``(B, C, S)``.
        query_key: ``(B, C, Q)``.
        kind: name of the similarity.
        scale: factor :math:`c` of the similarity.

    Returns:
        ``(B, Q, S)``, at least float32.

    Raises:
        ValueError: ``kind`` is unknown.

    Reference: STCN (Cheng et al., NeurIPS 2021) section 4.1 for ``l2``.
    """
    return part_logits(memory_part(memory_key.transpose(1, 2), kind, scale), query_part(query_key.transpose(1, 2), kind))


def part_logits(memory: Float[Tensor, "B S C1"], query: Float[Tensor, "B Q C1"]) -> Float[Tensor, "B Q S"]:
    """The same as :func:`memory_logits`, from what :func:`memory_part` and :func:`query_part` have prepared."""
    with torch.autocast(memory.device.type, enabled=False):
        return query @ memory.transpose(1, 2)


def memory_part(memory_key: Float[Tensor, "*cells C"], kind: Similarity, scale: float) -> Float[Tensor, "*cells C1"]:
    """Keys of the memory, with one more channel, whose inner products with :func:`query_part` are those of :func:`memory_logits`.

    A memory that is compared many times, or whose cells are gathered, is so prepared once. The last channel is added to every
    similarity of the cell: minus the norm with ``l2``, else 0. Channels are last here.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {get_args(Similarity)}, not {kind!r}")
    key = at_least_float32(memory_key)
    if kind == "l2":
        return torch.cat([2 * scale * key, -scale * key.square().sum(dim=-1, keepdim=True)], dim=-1)
    return F.pad(scale * (F.normalize(key, dim=-1, eps=1e-12) if kind == "cosine" else key), (0, 1))


def query_part(query_key: Float[Tensor, "*cells C"], kind: Similarity) -> Float[Tensor, "*cells C1"]:
    """Keys of the query for :func:`memory_part`."""
    key = at_least_float32(query_key)
    return F.pad(F.normalize(key, dim=-1, eps=1e-12) if kind == "cosine" else key, (0, 1), value=1.0)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; one of higher precision stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
