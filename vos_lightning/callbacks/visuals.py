"""Pictures of validation while a network trains: always on disk, and in Weights & Biases if its logger is attached."""

from __future__ import annotations

from dataclasses import astuple, fields
from pathlib import Path

from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from vos_lightning.io.files import inside
from vos_lightning.io.pictures import write_png
from vos_lightning.io.videos import VideoWriter
from vos_lightning.metrics.scores import ObjectScores
from vos_lightning.modules.base import VOSModule
from vos_lightning.structures import FramePrediction, VideoSample
from vos_lightning.visualization.overlays import overlay
from vos_lightning.visualization.sheets import sheet, spread, thumbnail

PICTURE_HEIGHT = 240
PICTURES_PER_ROW = 3


class EvaluationPictures(Callback):
    """Shows the same few validation videos after every validation.

    ::

        <default_root_dir>/pictures/step=000500_<video>.png   frames with prediction in colour, annotation outlined in white
        <default_root_dir>/pictures/<video>.mp4               the latest validation, every frame

    If a ``WandbLogger`` is attached, it receives the pictures, the videos at the end of training (as files, which it only
    copies), and a table with the scores of every object. The first process draws; sanity checks are skipped.

    Args:
        videos: number of videos that are shown: the first ones that the first process validates.
        frames: number of frames in a picture, evenly spaced over the video.
        every_n_validations: draw in the first validation and every n-th after it.
    """

    def __init__(self, videos: int = 2, frames: int = 6, every_n_validations: int = 1) -> None:
        super().__init__()
        self.videos = videos
        self.frames = frames
        self.every_n_validations = every_n_validations
        self._count = 0
        self._active = False
        self._names: list[str] = []
        self._pictures: dict[str, list[UInt8[Tensor, "3 h w"]]] = {}
        self._writer: VideoWriter | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening, if pictures of this validation are due."""
        # Other modules, such as that of a detector, segment no videos.
        if trainer.sanity_checking or not isinstance(pl_module, VOSModule):
            return
        self._active = self._count % self.every_n_validations == 0
        self._count += 1
        if self._active and trainer.is_global_zero:
            self._folder = Path(trainer.default_root_dir) / "pictures"
            pl_module.frame_listeners.append(self._take)

    def _take(self, video: VideoSample, prediction: FramePrediction) -> None:
        """Frame listener: draw a frame of a shown video."""
        index, label_map = prediction.frame_index, prediction.label_map
        if video.name not in self._names:
            if len(self._names) == self.videos:
                return
            self._names.append(video.name)
        frame = prediction.frame
        if index == 0:
            self._pictures[video.name] = []
            self._drop_video()
            self._writer = VideoWriter(inside(self._folder, f"{video.name}.mp4"), video.fps)
        assert self._writer is not None
        self._writer.write(overlay(frame, label_map))
        if index in spread(video.length or 0, self.frames):
            picture = thumbnail(frame, label_map, video.name_of(index), video.targets.get(index), PICTURE_HEIGHT)
            self._pictures[video.name].append(picture)
        if index + 1 == video.length:
            self._writer.close()
            self._writer = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pictures, and log them and the scores. Callbacks run before the module resets its metric."""
        if not self._active:
            return
        self._active = False
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        rows = _scores(pl_module) if loggers else []
        if not trainer.is_global_zero:
            return
        self._stop(pl_module)
        step = trainer.global_step
        for name, pictures in self._pictures.items():
            path = inside(self._folder, f"step={step:06d}_{name}.png")
            write_png(path, sheet([pictures[i : i + PICTURES_PER_ROW] for i in range(0, len(pictures), PICTURES_PER_ROW)]))
            for logger in loggers:
                logger.log_image(f"pictures/{name}", [str(path)], step=step)
        self._pictures = {}
        for logger in loggers:
            columns = [field.name for field in fields(ObjectScores)]
            data = [[*astuple(row), (row.J + row.F) / 2] for row in rows]
            logger.log_table("val/objects", columns=[*columns, "J&F"], data=data, step=step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Log the last validation as videos."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                for name in self._names:
                    logger.log_video(f"videos/{name}", [str(self._folder / f"{name}.mp4")], step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Remove unfinished files."""
        self._stop(pl_module)

    def _stop(self, module: LightningModule) -> None:
        if isinstance(module, VOSModule) and self._take in module.frame_listeners:
            module.frame_listeners.remove(self._take)
        self._drop_video()

    def _drop_video(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None


def _scores(module: LightningModule) -> list[ObjectScores]:
    """Rows of the running validation; every process must call this."""
    assert isinstance(module, VOSModule)
    rows: list[ObjectScores] = module.metrics["val"].rows()  # type: ignore[operator]
    return rows
