"""Slow, literal matching: loops over clips, objects, classes and pixels, in Python numbers."""

import math

import torch
from torch import Tensor


def similarity(memory_key: Tensor, query_key: Tensor, kind: str) -> Tensor:
    batch, _, size = memory_key.shape
    out = torch.zeros(batch, size, query_key.shape[2])
    for b in range(batch):
        for p in range(size):
            for q in range(query_key.shape[2]):
                x, y = memory_key[b, :, p].tolist(), query_key[b, :, q].tolist()
                inner = math.fsum(i * j for i, j in zip(x, y, strict=True))
                if kind == "cosine":
                    inner /= math.sqrt(math.fsum(i * i for i in x)) * math.sqrt(math.fsum(j * j for j in y))
                elif kind == "l2":
                    inner = -math.fsum((i - j) ** 2 for i, j in zip(x, y, strict=True))
                out[b, p, q] = inner
    return out


def classes(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Background and foreground."""
    return 1 - mask, mask


def surjective(affinity: Tensor, masks: Tensor, readable: Tensor) -> Tensor:
    """``(B, S, Q), (B, N, S), (B, N, S) -> (B, N, 2, Q)``."""
    batch, size, queries = affinity.shape
    out = torch.zeros(batch, masks.shape[1], 2, queries)
    for b in range(batch):
        for n in range(masks.shape[1]):
            for k, mask in enumerate(classes(masks[b, n])):
                for q in range(queries):
                    out[b, n, k, q] = max(float(mask[p] * affinity[b, p, q]) if readable[b, n, p] else 0.0 for p in range(size))
    return out


def equalized(inner: Tensor, masks: Tensor, readable: Tensor, scale: float = 1.0) -> Tensor:
    affinity = torch.zeros_like(inner)
    for b in range(inner.shape[0]):
        for p in range(inner.shape[1]):
            row = [math.exp(scale * float(v)) for v in inner[b, p]]
            affinity[b, p] = torch.tensor([v / math.fsum(row) for v in row])
    return surjective(affinity, masks, readable)


def kernel_row(row: list[float], width: int, std: float) -> list[float]:
    """A Gaussian of height 1 at the best query pixel, multiplied to the row."""
    best = max(range(len(row)), key=lambda q: row[q])
    by, bx = divmod(best, width)
    return [v * math.exp(-((q // width - by) ** 2 + (q % width - bx) ** 2) / (2 * std**2)) for q, v in enumerate(row)]


def top_k_row(row: list[float], k: int, fill: str) -> list[float]:
    last = sorted(row, reverse=True)[k - 1]
    other = min(row) if fill == "minimum" else 0.0
    return [v if v >= last else other for v in row]


def bijective(affinity: Tensor, masks: Tensor, filter_row) -> Tensor:
    """As the papers: the filter works on the mask-weighted affinity of one class of one object. Everything is readable."""
    batch, size, queries = affinity.shape
    out = torch.zeros(batch, masks.shape[1], 2, queries)
    for b in range(batch):
        for n in range(masks.shape[1]):
            for k, mask in enumerate(classes(masks[b, n])):
                rows = [filter_row((mask[p] * affinity[b, p]).tolist()) for p in range(size)]
                for q in range(queries):
                    out[b, n, k, q] = max(row[q] for row in rows)
    return out
