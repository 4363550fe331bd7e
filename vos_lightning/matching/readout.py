"""Memory readout: every query pixel takes a weighted sum of the memory's values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vos_lightning.matching.similarity import Similarity, memory_part, part_logits, query_part

MAX_ELEMENTS = 2**24
"""Most affinities at a time (64 MiB in float32); larger problems are split over the queries."""
MAX_ELEMENTS_ON_CPU = 2**19
"""The same on a CPU (2 MiB), whose second-level caches then hold them between the product, the softmax and the sum."""


def read_memory(
    memory_key: Float[Tensor, "B *own CK S"],
    query_key: Float[Tensor, "B CK Q"],
    values: Float[Tensor, "B N CV S"],
    readable: Bool[Tensor, "B R S"] | None = None,
    *,
    similarity: Similarity = "dot",
    scale: float | None = None,
    top_k: int | None = None,
    log_prior: Float[Tensor, "B P S Q"] | None = None,
) -> Float[Tensor, "B N CV Q"]:
    r"""Values of the memory, weighted by how much each memory pixel resembles the query pixel.

    .. math:: r[q] = \sum_p v[p] \, \frac{w[p, q] \exp(c\,s[p, q])}{\sum_{p'} w[p', q] \exp(c\,s[p', q])}

    Here :math:`s` is the similarity, :math:`c` its factor and :math:`w` the prior weights. The sums run over the memory pixels
    that an object may read and, with ``top_k``, over the largest terms among them. The largest exponent is subtracted first, so
    that nothing overflows. An object that may read nothing gets a readout of zeros.

    If keys do not depend on the object, and all objects share the prior and the readable pixels, one affinity serves all objects.
    At most :data:`MAX_ELEMENTS` affinities exist at a time (on a CPU :data:`MAX_ELEMENTS_ON_CPU`), whatever the length of the
    memory. With ``top_k``, values are gathered instead of multiplied; this is fastest if the channels of a value are contiguous,
    as channels-last convolutions return them and a bank keeps them.

    Args:
        memory_key: ``(B, CK, S)``, or ``(B, N, CK, S)`` if keys depend on the object (STM).
        query_key: ``(B, CK, Q)``.
        values: ``(B, N, CV, S)``.
        readable: ``(B, N, S)``, which memory pixels an object may read, or ``(B, 1, S)`` for all objects; None for all of
            them.
        similarity: ``dot`` (STM), ``l2``, the negative squared distance (STCN), or ``cosine``.
        scale: the factor of the similarity; None for ``CK ** -0.5``, or 1 with ``cosine``.
        top_k: number of memory pixels that a query pixel reads; None for all.
        log_prior: ``(B, N, S, Q)`` or ``(B, 1, S, Q)``, logarithm of the prior weights, finite; it is fastest if ``S`` is
            innermost in memory.

    Returns:
        ``(B, N, CV, Q)``, in the type of the values. The affinities are at least float32.

    Raises:
        ValueError: ``similarity`` is unknown or ``top_k`` is below 1.

    Reference: STM (Oh et al., ICCV 2019) equation 1; STCN (Cheng et al., NeurIPS 2021); top-k: MiVOS (Cheng et
    al., CVPR 2021).
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
    if scale is None:
        scale = 1.0 if similarity == "cosine" else memory_key.shape[-2] ** -0.5
    batch, num_objects = values.shape[:2]
    own_keys = memory_key.ndim == 4
    own = own_keys or any(x is not None and x.shape[1] > 1 for x in (readable, log_prior))
    rows = num_objects if own else 1
    keys = memory_key.flatten(0, 1) if own_keys else memory_key
    limit = MAX_ELEMENTS_ON_CPU if keys.device.type == "cpu" else MAX_ELEMENTS
    queries_at_once = max(1, limit // max(1, batch * rows * keys.shape[-1]))
    memory = memory_part(keys.transpose(1, 2), similarity, scale)
    queries = query_part(query_key.transpose(1, 2), similarity)
    parts = []
    for start in range(0, query_key.shape[-1], queries_at_once):
        part = slice(start, start + queries_at_once)
        query = queries[:, part]
        if own_keys:
            query = query.unsqueeze(1).expand(-1, num_objects, -1, -1).flatten(0, 1)
        logits = part_logits(memory, query).unflatten(0, (batch, -1))
        if log_prior is not None:
            logits = logits + log_prior[..., part].transpose(-1, -2)
        if readable is not None:
            # Not -inf: where nothing is readable, the softmax would be 0 / 0.
            logits = logits.masked_fill(~readable.unsqueeze(2), torch.finfo(logits.dtype).min)
        parts.append(weigh(logits, values, top_k))
    result = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    if readable is not None:
        result = result * readable.any(dim=2)[:, :, None, None]
    return result.transpose(2, 3)


def weigh(
    logits: Float[Tensor, "B R q S"], values: Float[Tensor, "B N CV S"], top_k: int | None = None
) -> Float[Tensor, "B N q CV"]:
    """Values weighted by a softmax over the memory, see :func:`read_memory`.

    Args:
        logits: scaled similarities, one row of affinities for every object or one for all (``R`` is ``N`` or 1).
        values: values of the memory.
        top_k: number of memory pixels that a query pixel reads; None for all.
    """
    batch, num_objects, channels, size = values.shape
    rows, queries = logits.shape[1:3]
    if top_k is not None and top_k < size:
        largest, index = logits.topk(top_k, dim=3, sorted=False)
        weights = largest.softmax(dim=3).to(values.dtype).expand(-1, num_objects, -1, -1)
        # One table holds the values of all objects, and each object reads its own part.
        first = torch.arange(batch * num_objects, device=values.device).view(batch, num_objects, 1, 1) * size
        table = values.transpose(2, 3).reshape(-1, channels)
        index, weights = (index + first).reshape(-1, top_k), weights.reshape(-1, top_k)
        read = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
        return read.view(batch, num_objects, queries, channels)
    weights = logits.softmax(dim=3).to(values.dtype)
    if rows == num_objects:
        return weights @ values.transpose(2, 3)
    # One affinity serves several objects: their channels are concatenated, so that one product is enough.
    return (weights[:, 0] @ values.flatten(1, 2).transpose(1, 2)).unflatten(2, (num_objects, channels)).transpose(1, 2)
