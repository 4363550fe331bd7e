"""What happens when the loss or the gradients of a training are NaN or infinite."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from vos_lightning.io.files import write_atomically
from vos_lightning.modules.processes import gather_objects, sum_over_processes
from vos_lightning.structures import ClipBatch


class FiniteNumbers(Callback):
    """Leaves out steps whose loss or gradients are not finite, and stops the training after several in a row.

    - Skip: the gradients of such a step are set to zero, so that no parameter becomes NaN. The optimiser then follows what it
      remembers of earlier steps. One damaged clip in weeks of training costs one step.
    - Stop: after ``patience`` such steps in a row, or if the last step of a training is one, the training ends with an error. It
      is not marked as finished. The checkpoints from before the series stay, see :class:`FiniteCheckpoint`.
    - ``<default_root_dir>/non_finite.json`` names the clips of every such step, in every process, with loss and gradient norm.
    - ``train/grad_norm`` is logged: the norm of all gradients before clipping.

    The processes decide alike, because they sum their losses. No step waits for the device: the results are read every
    ``trainer.log_every_n_steps`` steps, and before a checkpoint is written. With gradient scaling (``16-mixed``), infinite
    gradients are normal: the scaler leaves the step out and lowers its factor. They count once that factor has fallen to 1.

    Args:
        patience: number of steps in a row after which the training stops; 1 stops at the first.

    Raises:
        ValueError: ``patience`` is below 1; or, while training, the training was stopped.
    """

    def __init__(self, patience: int = 10) -> None:
        super().__init__()
        if patience < 1:
            raise ValueError(f"finite.patience must be at least 1 step, not {patience}")
        self.patience = patience
        self.in_a_row = 0
        """Length of the present series of such steps, as far as it was read."""
        self._clear()

    def _clear(self) -> None:
        self._loss: Tensor | None = None
        self._batches: list[ClipBatch] = []
        self._unread: list[_Step] = []

    def state_dict(self) -> dict[str, Any]:
        """The length of the present series, with which a training goes on."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a series."""
        self.in_a_row = state_dict["in_a_row"]

    # Every step -------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Forget what an interrupted training has left."""
        self._clear()

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: ClipBatch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Remember which clips the step sees."""
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Take the loss of a batch."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradient norm, and set the gradients to zero if the step is to be left out."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        assert self._loss is not None
        norm = torch.nn.utils.get_total_norm(gradients).to(self._loss)
        pl_module.log("train/grad_norm", norm, batch_size=1)
        good = sum_over_processes(self._loss).isfinite()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() <= 1:
            good = good & norm.isfinite()
        for gradient in gradients:
            gradient.masked_fill_(~good, 0.0)
        clips = [(batch.video_names, batch.frame_indices) for batch in self._batches]
        self._unread.append(_Step(trainer.global_step, clips, torch.stack([good.to(norm), self._loss, norm])))
        self._loss, self._batches = None, []

    # Every few steps --------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ARG002
        """Read the results where the logs are written."""
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self.read(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Keep the present series with the checkpoint."""
        self.read(trainer)
        if "callbacks" in checkpoint:  # Lightning has asked for the state before
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """A training does not end well with a step that was left out."""
        self.read(trainer)
        if self.in_a_row and trainer.global_step >= trainer.max_steps:
            self._stop(trainer, trainer.global_step - self.in_a_row, self.in_a_row)

    def read(self, trainer: Trainer) -> int:
        """Read the results of all steps since the last time, and act on them.

        Returns:
            How many of the latest steps in a row were left out.

        Raises:
            ValueError: the training stops.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return self.in_a_row
        longest, begin, left_out = 0, 0, []
        for step, (good, loss, norm) in zip(steps, torch.stack([step.numbers for step in steps]).tolist(), strict=True):
            self.in_a_row = 0 if good else self.in_a_row + 1
            if self.in_a_row > longest:
                longest, begin = self.in_a_row, step.number - self.in_a_row + 1
            if not good:
                left_out.append(_describe(step, loss, norm, trainer))
        if not left_out:
            return self.in_a_row
        # Every process is here, because they all decided alike.
        everywhere = [entry for entries in gather_objects(left_out) for entry in entries]
        if trainer.is_global_zero:
            _keep(_record_of(trainer), everywhere)
        if longest >= self.patience:
            self._stop(trainer, begin, longest)
        numbers = ", ".join(str(entry["step"]) for entry in left_out)
        rank_zero_info(f"Loss or gradients are not finite: left out step {numbers}, see {_record_of(trainer)}")
        return self.in_a_row

    def _stop(self, trainer: Trainer, begin: int, count: int) -> None:
        trainer.strategy.barrier()  # the record is written before any process ends
        if not trainer.is_global_zero:
            raise SystemExit(2)  # the first process says why
        raise ValueError(
            f"the training was stopped: its loss or gradients are not finite (NaN or infinity) in {count} step"
            f"{'s in a row' if count > 1 else ''}, from step {begin} on; {_record_of(trainer)} names the clips. "
            "Checkpoints stay as they are. Lower the learning rate, set trainer.gradient_clip_val, or look at the clips"
        )


def in_a_row(trainer: Trainer) -> int:
    """How many of the latest steps in a row were left out; this waits for the device.

    Raises:
        ValueError: too many, see :class:`FiniteNumbers`.
    """
    watch = next((callback for callback in trainer.callbacks if isinstance(callback, FiniteNumbers)), None)  # type: ignore[attr-defined]
    return watch.read(trainer) if watch else 0


class FiniteCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which keeps its files as they are while steps are left out.

    Weights whose loss is not finite may be finite themselves, and would replace the last good ones.
    """

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not in_a_row(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not in_a_row(trainer):
            super()._save_last_checkpoint(trainer, monitor_candidates)


@dataclass(frozen=True)
class _Step:
    """A step whose results are still on the device."""

    number: int
    clips: list[tuple[tuple[str, ...], Tensor]]
    """Video names and frame indices of every batch."""
    numbers: Tensor
    """Whether the step counts, loss of this process, gradient norm."""


def _record_of(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "non_finite.json"


def _describe(step: _Step, loss: float, norm: float, trainer: Trainer) -> dict[str, Any]:
    data = getattr(trainer, "datamodule", None)
    return {
        "step": step.number,
        "rank": trainer.global_rank,
        "loss": _plain(loss),
        "gradient_norm": _plain(norm),
        "seed": [os.environ.get("PL_GLOBAL_SEED"), getattr(getattr(data, "loading", None), "seed", None)],
        "clips": [
            {"video": name, "frames": frames}
            for names, indices in step.clips
            for name, frames in zip(names, indices.tolist(), strict=True)
        ],
    }


def _plain(number: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else str(number)


def _keep(path: Path, entries: list[dict[str, Any]]) -> None:
    """Add entries to the record, which earlier starts of a training have begun."""
    before = json.loads(path.read_text()) if path.is_file() else []
    write_atomically(path, (json.dumps([*before, *entries], indent=1) + "\n").encode())
