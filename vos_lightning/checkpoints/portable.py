"""Weights to pass on: one small safetensors file that says what it is, how it was trained, on what data, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Required

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from vos_lightning.checkpoints.files import LITE
from vos_lightning.io.documents import checked
from vos_lightning.io.files import regular_file, write_atomically
from vos_lightning.io.texts import parse_json
from vos_lightning.io.weights import require_finite

SUFFIX = ".safetensors"
LITE_FILE = Path(__file__).parents[1] / "weights" / f"lite{SUFFIX}"
_KEY = "vos_lightning"
"""Key of the model card in the file's metadata."""


class ModelCard(TypedDict, total=False):
    """What a file of weights says about itself.

    Attributes:
        model: ``class_path`` and ``init_args`` of the LightningModule, as in an experiment.
        step: number of optimiser steps.
        training: record of the training: experiment, configuration, data sets, hardware, versions.
        licences: terms of the code and of all data that the weights were made from.
        scores: what was measured with exactly these weights, by data set and by video.
    """

    model: Required[dict[str, Any]]
    step: Required[int]
    training: dict[str, Any]
    licences: dict[str, str]
    scores: dict[str, Any]


def resolve(checkpoint: str | Path) -> Path:
    """The file of weights with a name: ``lite`` stands for those that come with the library, anything else for a path."""
    return LITE_FILE if str(checkpoint) == LITE else Path(checkpoint)


def describe_lite() -> str:
    """One line about the weights that come with the library."""
    card = read_card(LITE_FILE)
    system = card["model"]["class_path"].rpartition(".")[2].removesuffix("Module")
    return f"weights: {LITE} ({system}, a small network that comes with the library; --checkpoint takes others)"


def write_portable(path: Path, state: Mapping[str, Tensor], card: ModelCard, dtype: torch.dtype = torch.float16) -> None:
    """Write weights with their model card, atomically.

    Args:
        path: file to write, ``.safetensors``.
        state: parameters and buffers; floating-point ones are rounded to ``dtype``.
        card: what the file says about itself.
        dtype: type of the floating-point tensors.

    Raises:
        OSError: the file cannot be written.
        ValueError: a tensor is not finite, also after rounding.
    """
    rounded = {name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in state.items()}
    require_finite(rounded, path)
    content = safetensors.torch.save(rounded, metadata={_KEY: json.dumps(card, ensure_ascii=False)})
    write_atomically(path, content)


def read_card(path: Path) -> ModelCard:
    """The model card of a file of weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no model card.
    """
    return _read(path, with_tensors=False)[0]


def read_portable(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The model card and the weights of a file; floating-point tensors are returned in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no model card.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        with safe_open(regular_file(path), "pt", "cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: this is no file of safetensors, or it is damaged") from error
    if _KEY not in metadata:
        raise ValueError(f"{path}: the file does not say which network its weights belong to; make one with vos export")
    card: ModelCard = checked(parse_json(metadata[_KEY], path), ModelCard, path, "make the file again with vos export")
    return card, {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
