"""Stop cleanly when a cluster asks for it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopOnSignal(Callback):
    """On SIGUSR1 (SLURM: ``--signal=SIGUSR1@90``) finish the step, save ``checkpoints/last.ckpt`` and stop.

    The handler only raises a flag: saving inside a signal handler can hang or leave half a file. Starting the same command
    again goes on from the checkpoint.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._before: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Install the handler (signals reach the main thread only)."""
        if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.stopped = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ARG002
        """Save and stop if asked to; the processes agree first, for each may get the signal at another step."""
        if trainer.strategy.reduce_boolean_decision(self.stopped, all=False):
            self.stopped = True
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restore what was installed before."""
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
