"""Numbers of a training step, put together over all processes. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, distributed


def sum_over_processes(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum of a tensor over all processes, on every one of them; the tensor itself in a training of one process.

    Lightning's ``sync_dist`` is not used: it waits at a barrier for every value of every step.
    """
    if not _several():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gather_over_processes(values: Float[Tensor, " n"]) -> Float[Tensor, "P n"]:
    """The vectors of all processes, a row each, on every one of them."""
    if not _several():
        return values.unsqueeze(0)
    rows = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, values.contiguous())
    return torch.stack(rows)


def gather_objects(value: Any) -> list[Any]:
    """The objects of all processes, in the order of their ranks, on every one of them; this waits for the device."""
    if not _several():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class StepMeans:
    """Means of named values over everything that an optimiser step sees: its batches, and those of all processes."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(
        self, values: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, Num[Tensor, ""]], first: bool
    ) -> dict[str, Float[Tensor, ""]]:
        """Take the values of a batch, and return the means of the step so far.

        Every process has to give the same names in the same order.

        Args:
            values: means over the batch.
            weights: how much a value counts, such as the number of objects that it is a mean of; 1 for other values.
            first: whether an optimiser step begins with this batch.

        Returns:
            The means by name; 0 for a value whose weights sum to 0.
        """
        numbers = torch.stack([value.detach().float() for value in values.values()])
        counts = torch.stack([weights[name].float() if name in weights else numbers.new_ones(()) for name in values])
        part = torch.stack([numbers * counts, counts])
        self._sums = part if first or self._sums is None else self._sums + part
        total, count = sum_over_processes(self._sums)
        return dict(zip(values, (total / count.clamp_min(1)).unbind(), strict=True))
