"""Pictures of what a network computes for chosen videos and frames, in the run directory and in Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from vos_lightning.io.files import inside
from vos_lightning.io.pictures import write_png
from vos_lightning.modules.base import VOSModule
from vos_lightning.structures import FramePrediction, VideoSample
from vos_lightning.visualization.papers import panels_of
from vos_lightning.visualization.sheets import contact_sheet


class FramePanels(Callback):
    """Draws the panels of chosen frames in every validation and test, see :mod:`vos_lightning.visualization.papers`.

    ::

        <default_root_dir>/panels/step=000500_<video>_<frame>.png   in validation
        <default_root_dir>/panels/test_<video>_<frame>.png          in test

    If a ``WandbLogger`` is attached, it receives them as ``panels/<video>_<frame>``. Every process draws the videos that it
    evaluates; sanity checks are skipped.

    Args:
        videos: names of the videos; null for the first video that the first process evaluates, an empty list for none.
        frames: frame indices; null for the middle of the video.
    """

    def __init__(self, videos: Sequence[str] | None = None, frames: Sequence[int] | None = None) -> None:
        super().__init__()
        self.videos = videos
        self.frames = frames
        self._module: VOSModule | None = None
        self._first: str | None = None
        self._written: dict[str, Path] = {}

    def _start(self, trainer: Trainer, module: LightningModule, prefix: str) -> None:
        if trainer.sanity_checking or (self.videos is None and not trainer.is_global_zero) or not isinstance(module, VOSModule):
            return
        self._module, self._first, self._written = module, None, {}
        self._folder, self._prefix = Path(trainer.default_root_dir) / "panels", prefix
        module.frame_listeners.append(self._take)

    def _take(self, video: VideoSample, prediction: FramePrediction) -> None:
        """Frame listener: keep the panels of chosen frames."""
        self._first = self._first or video.name
        chosen = (self._first,) if self.videos is None else self.videos
        frames = ((video.length or 0) // 2,) if self.frames is None else self.frames
        if video.name not in chosen or prediction.frame_index not in frames:
            return
        assert self._module is not None
        panels = panels_of(self._module.network, prediction)
        name = f"{video.name}_{video.name_of(prediction.frame_index)}"
        path = inside(self._folder, f"{self._prefix}_{name}.png")
        if panels:
            write_png(path, contact_sheet(panels))
            self._written[name] = path

    def _finish(self, trainer: Trainer) -> None:
        self._stop()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                for name, path in self._written.items():
                    logger.log_image(f"panels/{name}", [str(path)], step=trainer.global_step)
        self._written = {}

    def _stop(self) -> None:
        if self._module is not None and self._take in self._module.frame_listeners:
            self._module.frame_listeners.remove(self._take)
        self._module = None

    # Lightning hooks --------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, f"step={trainer.global_step:06d}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Log what was drawn, and stop listening."""
        self._finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Log what was drawn, and stop listening."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Stop listening."""
        self._stop()
