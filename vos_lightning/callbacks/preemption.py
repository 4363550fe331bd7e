"""Stop cleanly when a cluster asks for it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vos_lightning.callbacks.finite import in_a_row


class StopOnSignal(Callback):
    """On SIGUSR1 (SLURM: ``--signal=SIGUSR1@90``), finish the step, save ``checkpoints/last.ckpt`` and stop.

    If that step was left out (:class:`vos_lightning.callbacks.finite.FiniteNumbers`), the earlier checkpoint stays. The handler
    only sets a flag: saving inside a signal handler can hang or leave an incomplete file. The same command, started again,
    continues from the checkpoint.
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
        """Save and stop if asked to. The processes agree first, as each may receive the signal at a different step."""
        if trainer.strategy.reduce_boolean_decision(self.stopped, all=False):
            self.stopped = True
            if not in_a_row(trainer):
                trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restore the earlier signal handler."""
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
