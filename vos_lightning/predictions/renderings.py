"""What can be made of a video and its masks: pictures, videos and files for other tools, frame by frame in the order of time."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vos_lightning.arrays import Tensor, to_array, to_tensor
from vos_lightning.io.drawings import encode_runs
from vos_lightning.io.files import Replacement, naming
from vos_lightning.io.frames import FrameSource
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.io.sound import Sound
from vos_lightning.io.videos import VideoWriter
from vos_lightning.labels import object_ids_in
from vos_lightning.structures import VideoSample
from vos_lightning.visualization.overlays import overlay

GREEN = (0, 177, 64)
"""The green that editors key out."""


def time_of(video: VideoSample, index: int) -> Fraction:
    """Seconds from the beginning of a video to a frame that was decoded."""
    return video.frames.time_of(index) if isinstance(video.frames, FrameSource) else index / video.fps


class Rendering(ABC):
    """Something that is written of one video.

    Args:
        output: where to write.
        video: the video.
    """

    def __init__(self, output: OutputFolder, video: VideoSample) -> None:
        self.output, self.video = output, video

    @abstractmethod
    def take(self, index: int, frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> None:
        """Write the next frame."""

    def close(self) -> None:  # noqa: B027
        """Finish the files; those of the frames so far are kept also when an error has ended the video."""

    def discard(self) -> None:  # noqa: B027
        """Stop, to begin again."""


class _Video(Rendering):
    """A video with the times, sound and shape of pixels of its source."""

    place: str

    def __init__(self, output: OutputFolder, video: VideoSample, paint: Callable[..., UInt8[Tensor, "C H W"]]) -> None:
        super().__init__(output, video)
        self._paint = paint
        self._name = self.place.format(video.name)
        self._writer: VideoWriter | None = None

    def take(self, index: int, frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> None:
        """Write the next frame."""
        if self._writer is None:
            self._writer = self._open()
        self._writer.write(self._paint(frame, label_map), time_of(self.video, index) - time_of(self.video, 0))

    def _open(self) -> VideoWriter:
        source = self.video.frames
        path = self.output.place(self._name)
        if not isinstance(source, FrameSource):
            return VideoWriter(path, self.video.fps)
        sound = None if source.audio is None else Sound(source.audio, source.origin + source.time_of(0))
        return VideoWriter(path, self.video.fps, pixel_aspect=source.pixel_aspect, sound=sound)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            self.output.keep(self._name)

    def discard(self) -> None:
        """Leave no file."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None


class OverlayVideo(_Video):
    """``overlays/<video>.mp4``: every frame with its objects coloured."""

    place = "overlays/{}.mp4"


class GreenScreen(_Video):
    """``green/<video>.mp4``: the objects on green, for editors without transparency."""

    place = "green/{}.mp4"


class WebmCutout(_Video):
    """``cutouts/<video>.webm``: the objects on nothing, VP9 with transparency for browsers."""

    place = "cutouts/{}.webm"


class ProresCutout(_Video):
    """``cutouts/<video>.mov``: the objects on nothing, ProRes 4444 for editors."""

    place = "cutouts/{}.mov"


class PngCutouts(Rendering):
    """``cutouts/<video>/<frame>.png``: the objects of every frame on nothing."""

    def take(self, index: int, frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> None:
        """Write the next frame."""
        picture = Image.fromarray(np.ascontiguousarray(to_array(cut_out(frame, label_map)).transpose(1, 2, 0)))
        name = f"cutouts/{self.video.name}/{self.video.name_of(index)}.png"
        self.output.put(name, functools.partial(write_png, picture=picture))


class ObjectMasks(Rendering):
    """``objects/<video>/<id>/<frame>.png``: a black and white mask of every object in every frame, 0 and 255."""

    def take(self, index: int, frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> None:  # noqa: ARG002
        """Write the next frame."""
        for object_id in self.video.object_ids:
            picture = Image.fromarray((to_array(label_map) == object_id).astype(np.uint8) * 255)
            name = f"objects/{self.video.name}/{object_id}/{self.video.name_of(index)}.png"
            self.output.put(name, functools.partial(write_png, picture=picture))


class CocoFile(Rendering):
    """``coco/<video>.json``: run lengths of every object in every frame, as COCO stores them; ``track_id`` is the object's id.

    The file is written frame by frame, so that memory does not grow with the length of the video.
    """

    def __init__(self, output: OutputFolder, video: VideoSample) -> None:
        super().__init__(output, video)
        self._name = f"coco/{video.name}.json"
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._file: Replacement | None = None
        self._text: IO[str] | None = None

    def take(self, index: int, frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> None:
        """Write the next frame."""
        height, width = int(frame.shape[1]), int(frame.shape[2])
        if self._file is None:
            self._file = Replacement(self.output.place(self._name), durable=False)
            with naming(self._file.path):
                self._text = self._file.temporary.open("w", encoding="utf-8")
            categories = [{"id": i, "name": f"object {i}"} for i in self.video.object_ids]
            self._write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        name = f"{self.video.name_of(index)}.png"
        seconds = round(float(time_of(self.video, index)), 6)
        self._images.append({"id": index + 1, "file_name": name, "width": width, "height": height, "seconds": seconds})
        for object_id in object_ids_in(label_map):
            mask = to_array(label_map) == object_id
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": index + 1,
                "category_id": object_id,
                "track_id": object_id,
                "segmentation": encode_runs(mask),
                "area": int(mask.sum()),
                "bbox": [int(side) for side in box],
                "iscrowd": 0,
            }
            self._write((",\n" if self._count > 1 else "\n") + json.dumps(annotation))

    def _write(self, text: str) -> None:
        assert self._file is not None
        assert self._text is not None
        with naming(self._file.path):
            self._text.write(text)

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                assert self._text is not None
                self._text.write(f'],\n"images": {json.dumps(self._images)}}}\n')
                self._text.close()
            self.output.keep(self._name)

    def discard(self) -> None:
        """Leave no file."""
        if self._file is not None and self._text is not None:
            self._text.close()
            self._file.discard()
            self._file = None


# Pictures -------------------------------------------------------------------------------------------------------------


def cut_out(frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "4 H W"]:
    """The objects of a frame on nothing: the fourth channel is 255 in objects and 0 elsewhere."""
    opacity = (to_array(label_map) > 0).astype(np.uint8)[None] * 255
    return to_tensor(np.concatenate([to_array(frame), opacity]))


def on_green(frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "3 H W"]:
    """The objects of a frame on :data:`GREEN`."""
    green = np.array(GREEN, dtype=np.uint8)[:, None, None]
    return to_tensor(np.where(to_array(label_map) > 0, to_array(frame), green))


@dataclass(frozen=True)
class Renderings:
    """Which renderings are made, and how.

    Attributes:
        formats: keys of :data:`FORMATS`.
        dim: how much darker the background of the overlay is, see :func:`vos_lightning.visualization.overlays.overlay`.
        ids: write the objects' ids into the overlay.
    """

    formats: Sequence[str] = ("overlay",)
    dim: float = 0.0
    ids: bool = False

    def begin(self, output: OutputFolder, video: VideoSample) -> list[Rendering]:
        """The renderings of a video, none of which has a frame yet."""
        paint = functools.partial(overlay, dim=self.dim, ids=self.ids)
        made: Mapping[str, Callable[[], Rendering]] = {
            "overlay": lambda: OverlayVideo(output, video, paint),
            "green": lambda: GreenScreen(output, video, on_green),
            "webm": lambda: WebmCutout(output, video, cut_out),
            "prores": lambda: ProresCutout(output, video, cut_out),
            "cutouts": lambda: PngCutouts(output, video),
            "objects": lambda: ObjectMasks(output, video),
            "coco": lambda: CocoFile(output, video),
        }
        return [made[name]() for name in self.formats]
