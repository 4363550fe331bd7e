"""Writing of checkpoints: whole or not at all, and on the disk when the training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vos_lightning.checkpoints.files import BEFORE_LAST, LAST
from vos_lightning.io.files import Replacement, list_everything, target_of_temporary
from vos_lightning.io.weights import first_non_finite, require_finite


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint atomically; missing parent folders are created. The one before the last is kept beside it.

    Raises:
        OSError: it cannot be written; the old checkpoint stays, and the error names the file.
        ValueError: its weights are not finite; the old checkpoint stays.
    """
    name = first_non_finite(checkpoint.get("state_dict", {}))
    if name is not None:
        raise ValueError(
            f"{path}: this checkpoint is not written, because the weights {name} are not finite (NaN or infinity); an older one "
            "stays as it is"
        )
    before = path.with_name(BEFORE_LAST) if path.name == LAST else None
    with Replacement(path, before=before) as new, new.temporary.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # PyTorch closes its archive after a failed write and reports that the archive has the wrong length.
            cause = error.__context__
            if isinstance(cause, OSError) and cause.errno is not None:
                raise OSError(cause.errno, cause.strerror) from error
            raise


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes the checkpoints of a training with :func:`write_checkpoint`.

    Lightning writes to the system's temporary folder first. Where that is another file system, as on many clusters, the move is a
    copy, and a process that is killed during it leaves an incomplete checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ARG002
        """Save to ``path``, and remove what a killed process has left of the same checkpoint.

        Raises:
            OSError: it cannot be written, see :func:`write_checkpoint`.
        """
        target = Path(path)
        if target.parent.is_dir():
            # Nobody else writes here: a run is locked, and one process of a training saves.
            for place in list_everything(target.parent):
                if target_of_temporary(place.name) in (target.name, BEFORE_LAST):
                    place.unlink(missing_ok=True)
        write_checkpoint(target, checkpoint)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint from which a training goes on.

        Raises:
            ValueError: its weights are not finite, as older versions could write them.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        require_finite(checkpoint.get("state_dict", {}), path)
        return checkpoint
