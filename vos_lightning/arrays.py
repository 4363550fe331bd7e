"""The type of frames, masks and predictions on the host: PyTorch's tensors, or NumPy's arrays where PyTorch is not installed.

Videos are read and predictions are written without PyTorch too. Modules that take part in this import PyTorch from here; what
they compute with it is only called where it is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import torch as torch
    from torch import Tensor as Tensor
except ModuleNotFoundError as error:
    if error.name != "torch":  # an installation that is broken
        raise
    torch = None  # type: ignore[assignment]
    Tensor = np.ndarray  # type: ignore[misc, assignment]


def to_tensor(array: np.ndarray) -> Tensor:
    """The same values in the type of this installation; memory is shared."""
    return array if torch is None else torch.from_numpy(array)  # type: ignore[return-value]


def to_array(tensor: Any) -> np.ndarray:
    """The same values as a NumPy array on the host; memory is shared where the tensor is there already."""
    return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor.detach().cpu().numpy())
