"""Checkpoints that authors have released, as checkpoints of this library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from vos_lightning.checkpoints.released import emvos, pmvos, stcn, stm
from vos_lightning.checkpoints.released.format import build, describe
from vos_lightning.io.tensors import read_tensors
from vos_lightning.io.weights import require_finite

FORMATS = {"emvos": emvos.FORMAT, "pmvos": pmvos.FORMAT, "stcn": stcn.FORMAT, "stm": stm.FORMAT}


def import_released(file: Path, paper: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a checkpoint file of the authors.

    Only tensors and plain values are unpickled (``weights_only=True``).

    Args:
        file: a state dict as the authors have published it: alone, from a network in ``DataParallel``, or as ``network`` beside
            the state of an optimiser.
        paper: ``pmvos``, ``emvos``, ``stcn`` or ``stm``.

    Returns:
        A checkpoint for :func:`vos_lightning.checkpoints.loading.load_engine`, and the keys of the file that were not used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a state dict, its keys or shapes are not those of the paper's network, or its weights are not
            finite.
    """
    released_format = FORMATS[paper]
    released, found = released_format.adapt(_read(file))
    network = describe(released_format.network, **released_format.describe(**found))
    with torch.device("meta"):
        own = build(network).state_dict()
    state: dict[str, Tensor] = {}
    unknown, wrong, dropped = [], [], []
    for key, value in released.items():
        name = released_format.rename(key)
        if key in released_format.dropped:
            dropped.append(key)
            expected = released_format.dropped[key]
        elif name in own:
            assert name is not None
            state[f"network.{name}"] = value.to(own[name].dtype)
            expected = tuple(own[name].shape)
        else:
            unknown.append(key)
            continue
        if tuple(value.shape) != expected:
            wrong.append(f"{key} is {tuple(value.shape)} instead of {expected}")
    missing = [name for name in own if f"network.{name}" not in state]
    problems = [f"{text} {_some(names)}" for text, names in (
        ("unknown keys", unknown), ("wrong shapes:", wrong), ("nothing for", missing)
    ) if names]  # fmt: skip
    if problems:
        raise ValueError(f"{file}: this is no released checkpoint of {paper}: {'; '.join(problems)}")
    require_finite(released, file)
    checkpoint = {
        "state_dict": state,
        "hyper_parameters": {
            "network": network,
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": released_format.module,
        },
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    return checkpoint, tuple(dropped)


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such checkpoint")
    content = read_tensors(file, "this is no PyTorch file of plain tensors, or it is damaged or truncated")
    # Some files are training checkpoints of STCN, or networks that were saved inside DataParallel.
    if isinstance(content, dict) and isinstance(content.get("network"), dict) and "optimizer" in content:
        content = content["network"]
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise ValueError(f"{file}: this is no released checkpoint: it must hold parameter names and tensors and nothing else")
    wrapped = all(str(key).startswith("module.") for key in content)
    return {str(key).removeprefix("module.") if wrapped else str(key): value for key, value in content.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
