"""The stable directory of a run."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal

from vos_lightning.experiments import ExperimentError
from vos_lightning.label_io import write_atomically

Stage = Literal["fit", "validate", "test", "predict"]


class Run:
    """The stable directory of a run: started again, it goes on where it was.

    ``experiment.yaml`` the composed configuration, ``config.yaml`` every argument, ``checkpoints/last.ckpt`` and
    ``checkpoints/best*.ckpt``, ``logs/`` CSV files (one folder a start), ``wandb_id``, ``finished``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def last_checkpoint(self) -> Path | None:
        """Where to resume."""
        path = self.directory / "checkpoints" / "last.ckpt"
        return path if path.is_file() else None

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best validation J&F, else the last one."""
        best = sorted((self.directory / "checkpoints").glob("best*.ckpt"), key=lambda path: path.stat().st_mtime)
        if best:
            return best[-1]
        if self.last_checkpoint:
            return self.last_checkpoint
        raise ExperimentError(f"{self.directory} holds no checkpoint: train first, or pass --checkpoint FILE")

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        return (self.directory / "finished").is_file()

    def wandb_id(self) -> str:
        """The id under which every start of this run logs; written before training, so that a killed run keeps it."""
        path = self.directory / "wandb_id"
        if not path.is_file():
            write_text(path, secrets.token_hex(4))
        return path.read_text().strip()

    def start_number(self) -> int:
        """How often this run was started before."""
        return len(list(self.directory.glob("logs/start_*")))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    write_atomically(path, text.encode())
