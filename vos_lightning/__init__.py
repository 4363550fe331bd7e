"""Semi-supervised video object segmentation on PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vos_lightning.checkpoints.loading import load_engine
    from vos_lightning.propagation.engine import InferenceEngine

__all__ = ["InferenceEngine", "load_engine"]
_HOMES = {"InferenceEngine": "vos_lightning.propagation.engine", "load_engine": "vos_lightning.checkpoints.loading"}


def __getattr__(name: str) -> Any:
    # On demand: commands such as `list` should not wait for torch and lightning.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
