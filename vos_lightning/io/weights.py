"""Weights that hold a number in every place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def first_non_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first floating-point tensor of a state dict that holds NaN or infinity; None if there is none."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


def require_finite(state: Mapping[str, Any], file: str | Path) -> None:
    """Refuse weights that were read from a file and are not finite.

    Raises:
        ValueError: a tensor of the state dict holds NaN or infinity; the message names the file and the first such tensor.
    """
    name = first_non_finite(state)
    if name is not None:
        raise ValueError(f"{file}: the weights {name} are not finite (NaN or infinity): take another checkpoint, or train again")
