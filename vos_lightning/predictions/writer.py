"""The one writer of predictions: for data sets and for videos of one's own, in one folder tree."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from types import TracebackType

from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.outputs import MASKS, OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.io.videos import VideoWriter
from vos_lightning.predictions.drift import DriftIndex, ObjectRow, is_flagged
from vos_lightning.structures import FramePrediction, VideoSample
from vos_lightning.visualization.overlays import overlay
from vos_lightning.visualization.sheets import sheet, spread, thumbnail

SHEET_FRAMES = 8
SHEET_VIDEOS = 40
"""Number of first videos whose frames the contact sheet shows; a picture of 500 videos would be too large to open."""


class PredictionFiles:
    """Writes the predictions of videos frame by frame, so that memory does not grow with the length of a video.

    ::

        <output>/masks/<video>/<frame>.png   indexed PNGs in original ids and size, as `evaluate`, `curves` and `submit` read them
        <output>/overlays/<video>.mp4        every frame with the objects coloured, as many frames a second as the video has
        <output>/index/<video>.csv           area, confidence and drift flags of every object, see :class:`ObjectRow`
        <output>/contact_sheet.png           a row of frames for each video; white outlines are annotations
        <output>/written.jsonl               what was written, and whether the run has finished, see :class:`OutputFolder`

    It is a context manager. On an error, everything up to that frame is kept, also the overlay and the index, and the record says
    that the run has not finished. The files of an earlier run stay until the first frame is there.

    Args:
        output: where to write.
        overlays: write the overlay videos.
        index: write the index.
        contact_sheet: write the contact sheet; it has no row for a video whose length is known only at its end.
        all_frames: write label maps of all frames instead of the required ones.
        sheet_name: name of the contact sheet; each of several processes that write into one folder has one of its own.
    """

    def __init__(
        self,
        output: OutputFolder,
        overlays: bool = True,
        index: bool = True,
        contact_sheet: bool = True,
        all_frames: bool = False,
        sheet_name: str = "contact_sheet.png",
    ) -> None:
        self.output = output
        self.overlays = overlays
        self.contact_sheet = contact_sheet
        self.all_frames = all_frames
        self.sheet_name = sheet_name
        self.num_frames = 0
        """Number of frames of all videos so far."""
        self.num_flagged = 0
        """Number of these frames with at least one drift flag."""
        self.drift = DriftIndex() if index else None
        """Flags of the current, or the last, video."""
        self._video: str | None = None
        self._overlay: VideoWriter | None = None
        self._rows: list[ObjectRow] = []
        self._pictures: dict[str, list[UInt8[Tensor, "3 h w"]]] = {}

    def take(self, video: VideoSample, prediction: FramePrediction) -> None:
        """Write the next frame of a video; frame 0 begins a new video."""
        index, label_map, frame = prediction.frame_index, prediction.label_map, prediction.frame
        if index == 0:
            self._begin(video)
        name = video.name_of(index)
        self.num_frames += 1
        if self.all_frames or video.required_frames is None or index in video.required_frames:
            self.output.put(f"{MASKS}/{video.name}/{name}.png", functools.partial(write_label_map, label_map=label_map))
        if self._overlay is not None:
            self._overlay.write(overlay(frame, label_map))
        if self.drift is not None:
            rows = self.drift.rows(name, prediction)
            self._rows += rows
            self.num_flagged += is_flagged(rows)
        if video.name in self._pictures and index in spread(video.length or 0, SHEET_FRAMES):
            caption = f"{video.name} {name}" if index == 0 else name
            self._pictures[video.name].append(thumbnail(frame, label_map, caption, video.targets.get(index)))
        if index + 1 == video.length:
            self.end_video()

    def end_video(self) -> None:
        """Finish the files of the current video, if there is one; called automatically where its length is known.

        The record says that the video is complete, unless :meth:`finish` ends it because of an error.
        """
        video = self._finish_video()
        if video is not None:
            self.output.close_item(video)

    def pass_over(self, name: str, reason: str) -> None:
        """Record that a video cannot be segmented; what was written of it is removed.

        Args:
            name: name of the video.
            reason: why, in one line.
        """
        self._video = None
        self._pictures.pop(name, None)
        self._close_overlay(name)
        self.output.close_item(name, reason)

    def finish(self, error: BaseException | None = None) -> None:
        """Finish all files.

        Args:
            error: what has ended the predictions early, if anything has.
        """
        if error is None:
            self.end_video()
            self._write_sheet()
            self.output.close_item(None)
            self.output.finish()
        else:
            with contextlib.suppress(OSError):  # the first error counts: where a disk is full, this fails too
                try:
                    self._finish_video()
                finally:
                    self._write_sheet()

    def __enter__(self) -> PredictionFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(error)

    def _finish_video(self) -> str | None:
        video, self._video = self._video, None
        if video is not None:
            try:
                if self.drift is not None:
                    self._write_index(video)
            finally:
                self._close_overlay(video)
        return video

    def _close_overlay(self, video: str) -> None:
        if self._overlay is not None:
            writer, self._overlay = self._overlay, None
            writer.close()
            self.output.keep(f"overlays/{video}.mp4")

    def _write_sheet(self) -> None:
        pictures = [row for row in self._pictures.values() if row]
        if pictures:
            self.output.put(self.sheet_name, functools.partial(write_png, picture=sheet(pictures)))

    def _begin(self, video: VideoSample) -> None:
        self.end_video()
        # Names come from data sets. All of them are checked before the first file replaces one of an earlier run.
        for name in (f"overlays/{video.name}.mp4", f"index/{video.name}.csv"):
            self.output.check(name)
        for name in video.frame_names or (video.name_of(0),):
            self.output.check(f"{MASKS}/{video.name}/{name}.png")
        self._video = video.name
        if self.overlays:
            self._overlay = VideoWriter(self.output.place(f"overlays/{video.name}.mp4"), video.fps)
        if self.drift is not None:
            self.drift = DriftIndex()
            self._rows = []
        # A sampler may repeat a video, so that all processes get equally many: what was drawn of it first is forgotten.
        if self.contact_sheet and video.length and (video.name in self._pictures or len(self._pictures) < SHEET_VIDEOS):
            self._pictures[video.name] = []

    def _write_index(self, video: str) -> None:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(ObjectRow.__dataclass_fields__)
        writer.writerows(vars(row).values() for row in self._rows)
        self.output.put(f"index/{video}.csv", functools.partial(write_atomically, content=table.getvalue().encode()))
