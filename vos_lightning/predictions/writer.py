"""The one writer of predictions: for data sets and for videos of one's own, in one folder tree."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Iterable
from types import TracebackType

from jaxtyping import UInt8

from vos_lightning.arrays import Tensor
from vos_lightning.io.files import write_atomically
from vos_lightning.io.frames import time_code
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.outputs import MASKS, OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.predictions.drift import DriftIndex, ObjectRow, is_flagged
from vos_lightning.predictions.renderings import Rendering, Renderings, time_of
from vos_lightning.structures import FramePrediction, VideoSample

SHEET_FRAMES = 8
SHEET_VIDEOS = 40
"""Number of first videos whose frames the contact sheet shows; a picture of 500 videos would be too large to open."""
OVERLAY = Renderings()


class PredictionFiles:
    """Writes the predictions of videos frame by frame, so that memory does not grow with the length of a video.

    ::

        <output>/masks/<video>/<frame>.png   indexed PNGs in original ids and size, as `evaluate`, `curves` and `submit` read them
        <output>/overlays/<video>.mp4        every frame with the objects coloured, as many frames a second as the video has
        <output>/index/<video>.csv           area, confidence, drift flags and time of every object, see :class:`ObjectRow`
        <output>/contact_sheet.png           a row of frames for each video; white outlines are annotations
        <output>/written.jsonl               what was written, and whether the run has finished, see :class:`OutputFolder`

    and the other renderings of :mod:`vos_lightning.predictions.renderings`. Label maps are written as frames come. Renderings
    need the order of time: where frames come in another one, all of them are made at the end, from the video and the label maps.

    It is a context manager. On an error, everything up to that frame is kept, also the overlay and the index, and the record says
    that the run has not finished. The files of an earlier run stay until the first frame is there.

    Args:
        output: where to write.
        renderings: what is made of every video beside label maps and index.
        index: write the index.
        contact_sheet: write the contact sheet; it has no row for a video whose length is known only at its end.
        all_frames: write label maps of all frames instead of the required ones.
        sheet_name: name of the contact sheet; each of several processes that write into one folder has one of its own.
    """

    def __init__(
        self,
        output: OutputFolder,
        renderings: Renderings = OVERLAY,
        index: bool = True,
        contact_sheet: bool = True,
        all_frames: bool = False,
        sheet_name: str = "contact_sheet.png",
    ) -> None:
        self.output = output
        self.renderings = renderings
        self.contact_sheet = contact_sheet
        self.all_frames = all_frames
        self.sheet_name = sheet_name
        self.num_frames = 0
        """Number of frames of all videos so far."""
        self.num_flagged = 0
        """Number of these frames with at least one drift flag."""
        self.drift = DriftIndex() if index else None
        """Flags of the current, or the last, video."""
        self.rows: list[ObjectRow] = []
        """Lines of the index of the current, or the last, video."""
        self._video: VideoSample | None = None
        self._taken = 0
        self._in_order = True
        self._rendered: list[Rendering] = []
        self._pictures: dict[str, dict[int, UInt8[Tensor, "3 h w"]]] = {}

    def take(
        self, video: VideoSample, prediction: FramePrediction, stored: bool = False, rows: list[ObjectRow] | None = None
    ) -> None:
        """Write a frame of a video; a frame of another video, or the first one again, begins a new video.

        Args:
            video: the video.
            prediction: one of its frames; each comes once.
            stored: whether an earlier run has written the label map already.
            rows: the lines of the index, where they are known; otherwise the frame is measured.
        """
        index, label_map, frame = prediction.frame_index, prediction.label_map, prediction.frame
        if video is not self._video:
            self._begin(video)
        name = video.name_of(index)
        self.num_frames += 1
        if not stored and (self.all_frames or video.required_frames is None or index in video.required_frames):
            self.output.put(f"{MASKS}/{video.name}/{name}.png", functools.partial(write_label_map, label_map=label_map))
        self._in_order = self._in_order and index == self._taken
        self._taken += 1
        if self._in_order:
            for rendering in self._rendered:
                rendering.take(index, frame, label_map)
        if self.drift is not None:
            rows = self.drift.rows(name, prediction) if rows is None else rows
            self.rows += rows
            self.num_flagged += is_flagged(rows)
        if video.name in self._pictures:
            from vos_lightning.visualization.sheets import spread, thumbnail  # these draw with PyTorch, others without

            if index in spread(video.length or 0, SHEET_FRAMES):
                caption = f"{video.name} {name}" if index == 0 else name
                self._pictures[video.name][index] = thumbnail(frame, label_map, caption, video.targets.get(index))
        if self._taken == video.length:
            self.end_video()

    def end_video(self, made_from: str | None = None) -> None:
        """Finish the files of the current video, if there is one; called automatically where its length is known.

        The record says that the video is complete, unless :meth:`finish` ends it because of an error.

        Args:
            made_from: what the video was made from, see :meth:`OutputFolder.close_item`.
        """
        video = self._finish_video()
        if video is not None:
            self.output.close_item(video.name, made_from=made_from)

    def pass_over(self, name: str, reason: str, keep: bool = False) -> None:
        """Record that a video cannot be segmented.

        Args:
            name: name of the video.
            reason: why, in one line.
            keep: keep what was written of it, as far as it goes; otherwise it is removed.
        """
        if keep:
            self._finish_video(complete=False)
        video, self._video = self._video, None
        self._pictures.pop(name, None)
        if video is not None:
            self._close(self._rendered)
        self.output.close_item(name, reason, keep=keep)

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
                    self._finish_video(complete=False)
                finally:
                    self._write_sheet()

    def __enter__(self) -> PredictionFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(error)

    def _finish_video(self, complete: bool = True) -> VideoSample | None:
        video, self._video = self._video, None
        if video is not None:
            try:
                if self.drift is not None:
                    self._write_index(video)
            finally:
                if self._in_order:
                    self._close(self._rendered)
                elif complete:
                    self._render_again(video)
                else:
                    for rendering in self._rendered:
                        rendering.discard()
        return video

    def _render_again(self, video: VideoSample) -> None:
        """Make the renderings in the order of time, from the video and the label maps."""
        for rendering in self._rendered:
            rendering.discard()
        again = self.renderings.begin(self.output, video)
        try:
            for index, frame in enumerate(video.frames if again else ()):
                label_map = read_label_map(self.output.check(f"{MASKS}/{video.name}/{video.name_of(index)}.png"))
                for rendering in again:
                    rendering.take(index, frame, label_map)
        finally:
            self._close(again)

    @staticmethod
    def _close(renderings: Iterable[Rendering]) -> None:
        """Close all of them, and raise the first error after the last."""
        with contextlib.ExitStack() as stack:
            for rendering in renderings:
                stack.callback(rendering.close)

    def _write_sheet(self) -> None:
        pictures = [[row[index] for index in sorted(row)] for row in self._pictures.values() if row]
        if pictures:
            from vos_lightning.visualization.sheets import sheet

            self.output.put(self.sheet_name, functools.partial(write_png, picture=sheet(pictures)))

    def _begin(self, video: VideoSample) -> None:
        self.end_video()
        # Names come from data sets. All of them are checked before the first file replaces one of an earlier run.
        for name in (f"overlays/{video.name}.mp4", f"index/{video.name}.csv"):
            self.output.check(name)
        for name in video.frame_names or (video.name_of(0),):
            self.output.check(f"{MASKS}/{video.name}/{name}.png")
        self._video, self._taken, self._in_order = video, 0, True
        self._rendered = self.renderings.begin(self.output, video)
        if self.drift is not None:
            self.drift = DriftIndex()
            self.rows = []
        # A sampler may repeat a video, so that all processes get equally many: what was drawn of it first is forgotten.
        if self.contact_sheet and video.length and (video.name in self._pictures or len(self._pictures) < SHEET_VIDEOS):
            self._pictures[video.name] = {}

    def _write_index(self, video: VideoSample) -> None:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow((*ObjectRow.__dataclass_fields__, "time"))
        for row in sorted(self.rows, key=lambda row: row.frame):
            writer.writerow((*vars(row).values(), time_code(time_of(video, row.frame))))
        self.output.put(f"index/{video.name}.csv", functools.partial(write_atomically, content=table.getvalue().encode()))
