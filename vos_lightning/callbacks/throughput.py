"""How fast training is, and whether it waits for data."""

from __future__ import annotations

import time
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vos_lightning.modules.processes import gather_over_processes
from vos_lightning.structures import ClipBatch


class Throughput(Callback):
    """Logs training speed, averaged over ``trainer.log_every_n_steps`` batches, of all processes together.

    - ``train/clips_per_second`` and ``train/frames_per_second``: sums over the processes, not counting the time of validations;
    - ``train/data_wait``: fraction of the time spent waiting between two batches, in [0, 1], of the process that waits longest
      (the others wait for it while they work); near 0 if loading keeps up;
    - ``train/peak_memory_gib``: most memory of any process's CUDA device since the last value.

    No step waits for the device: over many batches, host time equals device time, and the processes exchange their numbers only
    when these are logged. The first batch, which compiles and warms up, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._clear()
        self._mark = 0.0
        self._warm = False

    def _clear(self) -> None:
        self._batches = self._clips = self._frames = 0
        self._waited = self._worked = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset the sums."""
        self._clear()
        self._warm = False
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Do not count validation as waiting."""
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: ClipBatch,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count the time since the last mark as waiting."""
        now = time.perf_counter()
        self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: ClipBatch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count the time since the last mark as work."""
        now = time.perf_counter()
        self._worked += now - self._mark
        self._mark = now
        if not self._warm:
            self._warm = True
            self._clear()
            return
        clips, length = batch.frames.shape[:2]
        self._batches += 1
        self._clips += clips
        self._frames += clips * length
        if self._batches == trainer.log_every_n_steps:  # type: ignore[attr-defined]
            values = _together(gather_over_processes(self._numbers(pl_module.device)).tolist())
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self._clear()

    def _numbers(self, device: torch.device) -> Float[Tensor, " 4"]:
        """Clips and frames a second, fraction of waiting, and peak memory in GiB (0 where it is not measured)."""
        elapsed, peak = self._waited + self._worked, 0.0
        backend = torch.get_device_module(device)
        if hasattr(backend, "max_memory_allocated"):
            peak = backend.max_memory_allocated(device) / 2**30
            backend.reset_peak_memory_stats(device)
        return torch.tensor([self._clips / elapsed, self._frames / elapsed, self._waited / elapsed, peak], device=device)


def _together(rows: list[list[float]]) -> dict[str, float]:
    clips, frames, waits, peaks = zip(*rows, strict=True)
    values = {"train/clips_per_second": sum(clips), "train/frames_per_second": sum(frames), "train/data_wait": max(waits)}
    return {**values, "train/peak_memory_gib": max(peaks)} if any(peaks) else values
