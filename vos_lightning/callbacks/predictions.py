"""Prediction files: label-map PNGs, overlay videos and a contact sheet of a test or prediction run."""

from __future__ import annotations

import functools
from pathlib import Path

from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vos_lightning.io.label_maps import overlay, write_label_map
from vos_lightning.io.outputs import OutputFolder, naming
from vos_lightning.io.pictures import write_png
from vos_lightning.io.videos import VideoWriter
from vos_lightning.modules.base import VOSModule
from vos_lightning.structures import FramePrediction, VideoSample
from vos_lightning.visualization.sheets import sheet, spread, thumbnail

SHEET_FRAMES = 8
SHEET_VIDEOS = 40
"""Number of first videos whose frames the contact sheet shows; a picture of 500 videos would be too large to open."""


class PredictionWriter(Callback):
    """Writes the predictions of ``test`` and ``predict`` frame by frame, so that memory does not grow with a video's length.

    ::

        <output_dir>/<video>/<frame>.png          indexed PNGs in original ids and size, as evaluation and servers read them
        <output_dir>_overlays/<video>.mp4         every frame with the objects coloured
        <output_dir>_overlays/contact_sheet.png   a row of frames for each video; white outlines are annotations

    Both folders hold the files of one run and nothing else, see :class:`vos_lightning.io.outputs.OutputFolder`: the files of an
    earlier run are removed first. With several processes, each one writes its own videos and its own contact sheet
    (``contact_sheet_rank1.png``).

    Args:
        output_dir: folder of the PNGs; ``<trainer.default_root_dir>/predictions/<test or predict>`` if None.
        overwrite: replace what an earlier run has written into ``output_dir``; the folder of a run is always replaced.
        overlay_video: write the overlays.
        contact_sheet: write the contact sheet.
        all_frames: write a PNG for every frame instead of the required ones.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overwrite: bool = False,
        overlay_video: bool = True,
        contact_sheet: bool = True,
        all_frames: bool = False,
    ) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.overlay_video = overlay_video
        self.contact_sheet = contact_sheet
        self.all_frames = all_frames

    def _start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, VOSModule)
        root = Path(trainer.default_root_dir)
        labels = Path(self.output_dir) if self.output_dir else root / "predictions" / stage
        self._labels, self._overlays = (
            OutputFolder(
                folder,
                stage,
                overwrite=self.overwrite or self.output_dir is None,
                how="--predictions.overwrite=true",
                part=trainer.global_rank,
            )
            for folder in (labels, labels.with_name(f"{labels.name}_overlays"))
        )
        if trainer.is_global_zero:
            self._labels.start()
            if self.overlay_video or self.contact_sheet:
                self._overlays.start()
        trainer.strategy.barrier()  # no process writes before the files of an earlier run are removed
        self._sheet_name = f"contact_sheet_rank{trainer.global_rank}.png" if trainer.world_size > 1 else "contact_sheet.png"
        self._writer: VideoWriter | None = None
        self._rows: dict[str, list[UInt8[Tensor, "3 h w"]]] = {}
        module.frame_listeners.append(self._take)

    def _take(self, video: VideoSample, prediction: FramePrediction) -> None:
        """Frame listener: write the prediction of one frame."""
        index, label_map = prediction.frame_index, prediction.label_map
        name = video.frame_names[index]
        if self.all_frames or index in video.required_frames:
            self._labels.put(f"{video.name}/{name}.png", functools.partial(write_label_map, label_map=label_map))
        on_sheet = self.contact_sheet and self._on_sheet(video, index)
        if not (on_sheet or self.overlay_video):
            return
        frame = video.frames[index].cpu()
        if on_sheet:
            caption = f"{video.name} {name}" if index == 0 else name
            self._rows.setdefault(video.name, []).append(thumbnail(frame, label_map, caption, video.targets.get(index)))
        if self.overlay_video:
            if index == 0:
                self._abandon()
                self._writer = VideoWriter(self._overlays.place(f"{video.name}.mp4"))
            assert self._writer is not None
            with naming(self._writer.path):
                self._writer.write(overlay(frame, label_map))
                if index == len(video.frames) - 1:
                    self._writer.close()
                    self._writer = None
                    self._overlays.keep(f"{video.name}.mp4")

    def _on_sheet(self, video: VideoSample, index: int) -> bool:
        if index == 0:
            self._rows.pop(video.name, None)  # a sampler may repeat a video, so that all processes get equally many
        known = video.name in self._rows
        return index in spread(len(video.frames), SHEET_FRAMES) and (known or (index == 0 and len(self._rows) < SHEET_VIDEOS))

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _finish(self, module: LightningModule, complete: bool = True) -> None:
        assert isinstance(module, VOSModule)
        if self._take not in module.frame_listeners:
            return
        module.frame_listeners.remove(self._take)
        self._abandon()
        if self._rows:
            picture = sheet(list(self._rows.values()))
            self._overlays.put(self._sheet_name, functools.partial(write_png, picture=picture))
        self._rows = {}
        if complete:
            self._labels.finish()
            if self.overlay_video or self.contact_sheet:
                self._overlays.finish()

    # Lightning hooks --------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, "predict")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the contact sheet and stop listening."""
        self._finish(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the contact sheet and stop listening."""
        self._finish(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Drop the unfinished video; what is complete stays."""
        self._finish(pl_module, complete=False)
