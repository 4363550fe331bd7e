"""The state of an engine between two frames as a file, so that an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vos_lightning.arrays import Tensor, torch
from vos_lightning.io.files import regular_file, write_atomically
from vos_lightning.propagation.memory import State
from vos_lightning.structures import FramePrediction, map_tensors


@dataclass(frozen=True)
class Snapshot:
    """What an engine knows after a frame; tensors are on the host."""

    state: State[Any, Any] | None
    ids: tuple[int, ...]
    size: tuple[int, int] | None
    frame_index: int
    keep_size: bool


@dataclass(frozen=True)
class Stored:
    """The beginning of a run that was interrupted."""

    snapshot: Snapshot
    prediction: Callable[[int, Tensor], FramePrediction]
    """Gives the prediction of a frame up to that of the snapshot, from its index and its picture."""


def write_snapshot(path: Path, snapshot: Snapshot, notes: dict[str, Any]) -> None:
    """Write a snapshot atomically.

    Args:
        path: file to write.
        snapshot: the state.
        notes: plain values that are kept beside it.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    # A copy without the views that are cached in it, which are computed again when they are needed.
    torch.save({"snapshot": map_tensors(lambda tensor: tensor.cpu().clone(), snapshot), "notes": notes}, buffer)
    write_atomically(path, buffer.getvalue(), durable=False)


def read_snapshot(path: Path) -> tuple[Snapshot, dict[str, Any]]:
    """Read a snapshot, and what was kept beside it.

    Only tensors, plain values and dataclasses are made, and only dataclasses of modules that this process has imported: those of
    the network, which is loaded before. A file from elsewhere can run no code.

    Raises:
        ValueError: the file is damaged, or belongs to another network; the message names it.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(regular_file(path))
        allowed: list[Any] = [found for name in names if (found := _dataclass(name)) is not None]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        snapshot, notes = content["snapshot"], content["notes"]
    except Exception as error:  # PyTorch raises almost anything for files that it has not written
        raise ValueError(f"{path}: the state of the interrupted run cannot be read") from error
    if not isinstance(snapshot, Snapshot) or not isinstance(notes, dict):
        raise ValueError(f"{path}: the state of the interrupted run cannot be read")
    return snapshot, notes


def _dataclass(name: str) -> type[Any] | None:
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None
