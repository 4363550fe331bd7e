"""Bijective matching: memory pixels choose too. Filters of similarity rows that precede surjective matching at inference.

The papers filter the mask-weighted similarities of one object and class. Within a row (one memory pixel) the mask is a
non-negative constant, and every filter here commutes with such a factor. The filtered similarities are therefore shared by all
objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class GaussianKernel:
    """Weaken query pixels far from a memory pixel's best match (see :func:`gaussian_kernel`).

    EMVOS does not state the unit of its 16, 32 and 64; the only public kernel of these authors (HMMN) uses cells.
    """

    std: float
    unit: Literal["cells", "pixels"] = "cells"
    """``cells`` of the feature map, or ``pixels`` of the image (``stride`` pixels a cell)."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"GaussianKernel.std must be positive, not {self.std}")
        if self.unit not in ("cells", "pixels"):
            raise ValueError(f"GaussianKernel.unit must be 'cells' or 'pixels', not {self.unit!r}")


@dataclass(frozen=True)
class TopK:
    """Keep the best query pixels of every memory pixel (see :func:`top_k`)."""

    k: int
    fill: Literal["zero", "minimum"] = "zero"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"TopK.k must be at least 1, not {self.k}")
        if self.fill not in ("zero", "minimum"):
            raise ValueError(f"TopK.fill must be 'zero' or 'minimum', not {self.fill!r}")


RowFilter = GaussianKernel | TopK


def filter_rows(
    similarity: Float[Tensor, "B S Q"], row_filter: RowFilter | None, grid: tuple[int, int], stride: int
) -> Float[Tensor, "B S Q"]:
    """Apply a filter to every row of the similarity.

    Args:
        similarity: similarity ``(B, S, Q)``, not negative.
        row_filter: the filter; None leaves the similarity unchanged.
        grid: height and width of the query in cells, ``Q = height * width``.
        stride: number of pixels a cell.

    Returns:
        ``(B, S, Q)``.
    """
    if row_filter is None:
        return similarity
    if isinstance(row_filter, TopK):
        return top_k(similarity, row_filter.k, row_filter.fill)
    std = row_filter.std if row_filter.unit == "cells" else row_filter.std / stride
    return similarity * gaussian_kernel(similarity, grid, std)


def gaussian_kernel(similarity: Float[Tensor, "B S Q"], grid: tuple[int, int], std: float) -> Float[Tensor, "B S Q"]:
    r"""Gaussian of height 1 around the best query pixel of every memory pixel.

    .. math:: f_p[q] = \exp\left(-\frac{\|q - \arg\max_{q'} A[p, q']\|^2}{2\sigma^2}\right)

    Args:
        similarity: ``(B, S, Q)``.
        grid: height and width of the query in cells, ``Q = height * width``.
        std: standard deviation in cells.

    Returns:
        Factors ``(B, S, Q)`` in [0, 1].

    Reference: KMN (Seong et al., ECCV 2020); EMVOS (Cho et al., arXiv 2209.03139) equation 3.
    """
    height, width = grid
    best = similarity.argmax(dim=2, keepdim=True)
    rows = torch.arange(height, device=similarity.device) - best // width
    columns = torch.arange(width, device=similarity.device) - best % width
    # A Gaussian is separable: two short exponentials a memory pixel instead of one over the whole grid.
    along_rows, along_columns = (torch.exp(d.to(similarity.dtype).square() * (-0.5 / std**2)) for d in (rows, columns))
    return (along_rows.unsqueeze(3) * along_columns.unsqueeze(2)).flatten(2)


def top_k(similarity: Float[Tensor, "B S Q"], k: int, fill: Literal["zero", "minimum"] = "zero") -> Float[Tensor, "B S Q"]:
    """Keep the ``k`` best query pixels of every memory pixel, and those that tie with the last of them.

    Args:
        similarity: ``(B, S, Q)``, not negative.
        k: number of query pixels that are kept; all are kept if there are no more than ``k``.
        fill: value of the other query pixels. ``zero``: 0, the filter of the EMVOS paper; ``minimum``: the smallest value of the
            row, as the released BMVOS does.

    Returns:
        ``(B, S, Q)``.

    Reference: EMVOS (Cho et al., arXiv 2209.03139) equation 3; BMVOS (Cho et al., WACV 2022), released code.
    """
    if k >= similarity.shape[2]:
        return similarity
    last = similarity.topk(k, dim=2).values[..., -1:]
    replacement = similarity.amin(dim=2, keepdim=True) if fill == "minimum" else similarity.new_zeros(())
    return torch.where(similarity >= last, similarity, replacement)
