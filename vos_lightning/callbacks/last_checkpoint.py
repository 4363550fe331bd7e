"""The checkpoint from which a training goes on, and how it goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn

from vos_lightning.callbacks.finite import FiniteCheckpoint, in_a_row
from vos_lightning.callbacks.stopping import Stopped, StopRequest
from vos_lightning.modules.base import VOSModule
from vos_lightning.structures import FramePrediction, VideoSample


class LastCheckpoint(FiniteCheckpoint):
    """Saves ``checkpoints/last.ckpt`` at regular steps, before and after every validation, and when a signal asks to stop.

    A validation is announced in the checkpoint before it and counts as done in the checkpoint after it, which holds its score.
    If the training ends in between, :class:`ResumingTrainer` begins with that validation, so that no score is lost.

    After a signal (:class:`vos_lightning.callbacks.stopping.StopRequest`; SLURM: ``--signal=SIGUSR1@90``) the training finishes
    the step, or the frame of a validation, and stops; it begins no validation. The processes of a training agree on the step,
    as each may receive the signal at another one. While steps are left out, the earlier checkpoint stays, as in
    :class:`vos_lightning.callbacks.finite.FiniteCheckpoint`.
    """

    validation_due = False
    """Whether the validation of this step has not ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = StopRequest()
        """Signals that this process has received; the command sets it."""
        self._stopping = False

    @property
    def state_key(self) -> str:
        """Without the options, so that the state is found after one of them was changed."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this object."""
        return {**super().state_dict(), "validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint keeps."""
        super().load_state_dict(state_dict)
        self.validation_due = state_dict["validation_due"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came before the first step."""
        super().on_train_start(trainer, pl_module)
        self._agree(trainer)
        self._check()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ARG002
        """Stop here, where the step before is saved and logged, if it was agreed on."""
        if self._stopping:
            self._check()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save after a whole step; the gradients of a part of one would be lost."""
        if trainer.fit_loop._should_accumulate():
            return
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        self.validation_due = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        self._agree(trainer)
        if self.validation_due or self._stopping:
            self._save_last(trainer)
        else:
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin no validation after a signal, and hear of one in every frame."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._check()
            if isinstance(pl_module, VOSModule):
                pl_module.frame_listeners.append(self._check)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save that the validation is done, with its score and with what ``ModelCheckpoint`` knows of the best."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._stop_listening(pl_module)
        if not trainer.sanity_checking:
            for logger in trainer.loggers:  # which would else keep the score in memory
                logger.save()
            self.validation_due = False
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._stop_listening(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def _save_last(self, trainer: Trainer) -> None:
        if not in_a_row(trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            self._save_checkpoint(trainer, str(Path(self.dirpath) / "last.ckpt"))

    def _agree(self, trainer: Trainer) -> None:
        self._stopping = trainer.strategy.reduce_boolean_decision(self.request.number is not None, all=False)

    def _check(self, video: VideoSample | None = None, prediction: FramePrediction | None = None) -> None:  # noqa: ARG002
        """Stop; it is a frame listener as well."""
        self.request.check()
        if self._stopping:  # another process has received the signal
            raise Stopped(signal.SIGTERM)

    def _stop_listening(self, module: LightningModule) -> None:
        if isinstance(module, VOSModule) and self._check in module.frame_listeners:
            module.frame_listeners.remove(self._check)


class ResumingTrainer(Trainer):
    """A trainer that begins with the validation in which the training was stopped, and leaves signals to the command."""

    def _run_stage(self) -> Any:
        # Lightning would leave this validation out; at the last step it would not even enter its loop.
        callbacks = self.callbacks  # type: ignore[attr-defined]
        if self.training and any(isinstance(callback, LastCheckpoint) and callback.validation_due for callback in callbacks):
            self._validate_first()
        return super()._run_stage()

    def _validate_first(self) -> None:
        loop = self.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        self.strategy.barrier("validate-first")
        self.validating = True
        first = self._logger_connector._first_loop_iter
        loop.run()
        self._logger_connector._first_loop_iter = first
        self.training = True


class NoSignals(_SignalConnector):
    """Takes no signal.

    Lightning's handler of SIGTERM ends the process with exit code 0, without a checkpoint, and speaks to the other processes
    in the middle of whatever they exchange.
    """

    def register_signal_handlers(self) -> None:
        """Leave the handlers as they are."""
