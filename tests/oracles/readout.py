"""Memory readout, pixel by pixel, from the formulas of STM and STCN."""

import math

import torch
from torch import Tensor


def similarity(x: list[float], y: list[float], kind: str) -> float:
    inner = math.fsum(i * j for i, j in zip(x, y, strict=True))
    if kind == "l2":
        return -math.fsum((i - j) ** 2 for i, j in zip(x, y, strict=True))
    if kind == "cosine":
        return inner / (math.hypot(*x) * math.hypot(*y))
    return inner


def read(
    memory_key: Tensor,
    query_key: Tensor,
    values: Tensor,
    readable: Tensor,
    kind: str,
    scale: float,
    top_k: int | None,
    prior: Tensor,
) -> Tensor:
    """``(B, N, CK, S), (B, CK, Q), (B, N, CV, S), (B, N, S), (B, N, S, Q) -> (B, N, CV, Q)``; prior weights, not logarithms."""
    batch, objects, channels, size = values.shape
    out = torch.zeros(batch, objects, channels, query_key.shape[2])
    for b in range(batch):
        for n in range(objects):
            for q in range(query_key.shape[2]):
                terms = {}
                for p in range(size):
                    if readable[b, n, p]:
                        s = similarity(memory_key[b, n, :, p].tolist(), query_key[b, :, q].tolist(), kind)
                        terms[p] = float(prior[b, n, p, q]) * math.exp(scale * s)
                kept = sorted(terms, key=lambda p: -terms[p])[:top_k]
                total = math.fsum(terms[p] for p in kept)
                for p in kept:
                    out[b, n, :, q] += values[b, n, :, p] * (terms[p] / total)
    return out
