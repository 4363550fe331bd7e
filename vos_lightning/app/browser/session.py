"""A session: a video, what a person has said of its objects, and what was found. Nothing here knows of browsers."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import TypedDict

from vos_lightning.app.browser.drawing import Stroke, draw
from vos_lightning.app.browser.marks import Digests, Marks, Mask, Said
from vos_lightning.app.browser.reader import FrameReader
from vos_lightning.app.browser.results import Results
from vos_lightning.app.own_videos import facts_of_video
from vos_lightning.io.documents import read_document
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.outputs import refuse_overlap
from vos_lightning.io.sources import Source
from vos_lightning.io.videos import count_frames
from vos_lightning.predictions.drift import SCENE_CUT, ObjectRow
from vos_lightning.predictions.stored import StoredPredictions
from vos_lightning.propagation.snapshots import Stored
from vos_lightning.propagation.videos import as_video
from vos_lightning.structures import FramePrediction, FrameProposals, VideoSample

MOST_UNDONE = 100
"""Number of changes that can be undone."""


class _Document(TypedDict):
    """``session.json``."""

    video: str
    names: list[list[Any]]
    last_id: int
    said: list[list[Any]]
    results: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin."""

    video: VideoSample
    stored: Stored | None
    """What is known before; None where the run begins with the first frame."""
    start: int
    """First frame that changes."""
    said: Digests
    """What the results are made from."""


class Session:
    """The state of the app for one video. All methods may be called from several threads.

    Everything is on disk at once, so that the app can be closed at any time::

        <folder>/session.json, marks/<index>.png, masks/, states/

    Args:
        source: the video; it is only read.
        folder: folder of this session; one that exists is gone on with.
        network: what says which network runs, and how; results of another one are not up to date.

    Attributes:
        name: name of the video in outputs.
        length: number of frames.
        size: height and width of the frames in pixels.
        notes: lines about the video that its user should know.
        marks: what was said.
        results: what was found.
        changes: a number that grows with every change of what is shown.
        busy: what is being done with the session, in words; None while it can be changed.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the video cannot be read, or comes only once; the folder lies in the video's, or belongs to another video.
    """

    def __init__(self, source: Source, folder: Path, network: str) -> None:
        if source.path is None:
            raise ValueError(f"{source.text}: cameras and streams come only once; record a file, and open that")
        self.source, self.folder, self.name = source, folder, source.name
        self._frames = source.open()
        self.size = self._frames.size()
        self.notes = self._frames.notes()
        known = self._frames.names
        self.length = len(known) if known is not None else count_frames(source.path)
        refuse_overlap([folder], [source.path])
        self.marks = Marks()
        self.results = Results(folder, self.size, network)
        self.changes = 0
        self.busy: str | None = None
        self._facts = json.dumps(facts_of_video(source))
        self._before: list[Marks] = []
        self._reader = FrameReader(source.open())
        self._lock, self._drawing = threading.RLock(), threading.Lock()
        if (folder / "session.json").is_file():
            self._restore()

    # Looking ----------------------------------------------------------------------------------------------------------

    def frame(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """A frame; see :class:`FrameReader`."""
        return self._reader[index]

    def name_of(self, index: int) -> str:
        """Name of a frame in outputs."""
        return self._sample().name_of(index)

    def time_of(self, index: int) -> Fraction:
        """Seconds from the beginning of the video to a frame."""
        return self._frames.time_of(index)

    def shown(self, index: int) -> UInt8[Tensor, "H W"]:
        """The objects of a frame: what was said, over what was found."""
        with self._lock:
            label_map = self.results.label_map(index, self.marks.names)
            said = self.marks.given.get(index, {})
        if label_map is None:
            label_map = torch.zeros(self.size, dtype=torch.uint8)
        for object_id in said:
            label_map[label_map == object_id] = 0
        for object_id, mask in said.items():
            if mask is not None:
                label_map[torch.from_numpy(mask.pixels())] = object_id
        return label_map

    def valid(self) -> int:
        """Number of frames, from the first one on, whose results are up to date."""
        with self._lock:
            return self.results.valid(self.marks)

    def found(self) -> list[int]:
        """Frames that have a result, whether it is up to date or not."""
        with self._lock:
            return sorted(self.results.rows)

    def flagged(self) -> list[int]:
        """Frames to look at."""
        with self._lock:
            return self.results.flagged(self.marks.names)

    def rows_of(self, index: int) -> list[ObjectRow]:
        """What is known of the objects that were found in a frame."""
        with self._lock:
            return [row for row in self.results.rows.get(index, []) if row.object_id in self.marks.names]

    def cuts(self) -> list[int]:
        """Frames in which another scene begins, as far as an object was there to be followed."""
        with self._lock:
            rows = sorted(self.results.rows.items())
            return [t for t, of_frame in rows if any(SCENE_CUT in row.flags.split() for row in of_frame)]

    def asked(self) -> tuple[int, list[str]] | None:
        """The frame in which the latest run has stopped at a scene cut, and the names of the objects that it has let go there.

        Returns:
            None where it has not stopped at a cut, and where a run has gone on from there.
        """
        with self._lock:
            frame = self.valid() - 1
            if not 0 <= frame < self.length - 1 or frame != self.results.computed - 1 or frame + 1 in self.results.rows:
                return None
            let_go = [row.object_id for row in self.results.rows[frame] if row.is_let_go]
            names = [self.marks.names[i] for i in let_go if i in self.marks.names]
            return (frame, names) if names else None

    # Saying -----------------------------------------------------------------------------------------------------------

    def add_object(self) -> int:
        """Add an object; it has no mask yet.

        Returns:
            Its id.
        """
        self._change(Marks.added)
        return self.marks.last_id

    def rename(self, object_id: int, name: str) -> None:
        """Give an object another name."""
        self._change(lambda marks: marks.renamed(object_id, name))

    def remove(self, object_id: int) -> None:
        """Remove an object from all frames; results of the other ones stay as they are."""
        self._change(lambda marks: marks.removed(object_id))

    def draw(self, index: int, object_id: int, stroke: Stroke) -> None:
        """Change the mask of an object in a frame; what is seen there of it becomes its given mask.

        Raises:
            ValueError: something is being done with the session, or the object is not there any more.
        """
        with self._drawing:  # one after the other, and without keeping those waiting who only look
            frame, now = self.frame(index).permute(1, 2, 0).numpy(), self.shown(index).numpy()
            self._check_idle()
            given = [i for i, mask in self.marks.given.get(index, {}).items() if mask is not None and i != object_id]
            mask = draw(frame, now == object_id, stroke, np.isin(now, given))
            self._change(lambda marks: marks.marked(index, object_id, mask))

    def gone(self, index: int, object_id: int) -> None:
        """Say that an object is gone from a frame on."""
        self._change(lambda marks: marks.gone(index, object_id))

    def clear(self, index: int, object_id: int) -> None:
        """Take back what was said of an object in a frame."""
        self._change(lambda marks: marks.cleared(index, object_id))

    def undo(self) -> bool:
        """Take back the last change.

        Returns:
            Whether there was one.
        """
        with self._lock:
            self._check_idle()
            if not self._before:
                return False
            last_id = self.marks.last_id
            self._set(dataclasses.replace(self._before.pop(), last_id=last_id))
            return True

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._before)

    def _change(self, change: Callable[[Marks], Marks]) -> None:
        with self._lock:
            self._check_idle()
            changed = change(self.marks)
            if changed != self.marks:
                self._before = [*self._before[-MOST_UNDONE + 1 :], self.marks]
                self._set(changed)

    def _check_idle(self) -> None:
        if self.busy is not None:
            raise ValueError(f"{self.busy}: stop it first, or wait for its end")

    def _set(self, marks: Marks) -> None:
        before, self.marks = self.marks, marks
        self.changes += 1
        for index in before.given.keys() | marks.given.keys():
            if before.given.get(index) != marks.given.get(index):
                self._write_marks(index, marks.given.get(index, {}))
        self.save()

    def claim(self, what: str) -> None:
        """Let nobody change the session until :meth:`release`.

        Args:
            what: what is being done with it, for the message to those who try.

        Raises:
            ValueError: something else is being done.
        """
        with self._lock:
            self._check_idle()
            self.busy = what

    def release(self) -> None:
        """Let it be changed again."""
        self.busy = None

    # Following --------------------------------------------------------------------------------------------------------

    def plan(self, proposals: FrameProposals | None = None) -> Plan:
        """Begin a run over all frames whose results are not up to date.

        Args:
            proposals: proposals of the frames, for networks that match them.

        Raises:
            ValueError: no object is marked, or all results are up to date.
        """
        with self._lock:
            given, names = self.marks.given, self.marks.names
            if not self.marks.first_frames():
                raise ValueError("mark an object first: draw a box around it")
            if self.valid() == self.length:
                raise ValueError("all frames are up to date; correct one, or export")
            masks = {t: _label_map(said, self.size) for t, said in given.items() if any(said.values())}
            gone = {t: tuple(i for i, mask in said.items() if mask is None) for t, said in given.items()}
            video = as_video(self._sample(), masks, gone={t: ids for t, ids in gone.items() if ids}, proposals=proposals)
            start = self.results.begin(self.marks)
            snapshot = self.results.latest_state()
            stored = None
            if snapshot is not None:
                stored = Stored(snapshot, self.stored())
                # Objects that were removed since are known to the network still.
                removed = tuple(i for i in snapshot.ids if i not in names)
                after = snapshot.frame_index + 1
                video = dataclasses.replace(video, gone={**video.gone, after: (*video.gone.get(after, ()), *removed)})
            self.save()
            return Plan(video, stored, start, self.marks.digests())

    def keep(self, prediction: FramePrediction, rows: list[ObjectRow], said: Digests) -> None:
        """Keep the next frame of a run, see :meth:`Results.put`."""
        with self._lock:
            self.results.put(prediction, rows, said)
            self.changes += 1

    def stored(self) -> StoredPredictions:
        """The results as predictions, without objects that were removed."""
        with self._lock:
            names = self.marks.names
            rows = [row for of_frame in self.results.rows.values() for row in of_frame if row.object_id in names]
        return StoredPredictions(functools.partial(self._found, names=dict(names)), rows)

    def sample(self) -> VideoSample:
        """The video with its objects, for the writer."""
        return dataclasses.replace(self._sample(), object_ids=tuple(sorted(self.marks.first_frames())))

    def _found(self, index: int, names: dict[int, str]) -> Tensor:
        label_map = self.results.label_map(index, names)
        assert label_map is not None
        return label_map

    def _sample(self) -> VideoSample:
        frames = self._frames
        numbering = (frames.first, frames.stride)
        return VideoSample(self.name, frames, {}, {}, (), self.size, frames.names, fps=frames.fps, numbering=numbering)

    # On disk ----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write ``session.json``.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            marks = self.marks
            content: _Document = {
                "video": self._facts,
                "names": [[i, name] for i, name in marks.names.items()],
                "last_id": marks.last_id,
                "said": [[t, i, mask is not None] for t, said in marks.given.items() for i, mask in said.items()],
                "results": self.results.plain(),
            }
            write_atomically(self.folder / "session.json", json.dumps(content).encode(), durable=False)

    def _write_marks(self, index: int, said: Said) -> None:
        path = self.folder / "marks" / f"{index:06d}.png"
        if any(said.values()):
            write_label_map(path, _label_map(said, self.size))
        else:
            path.unlink(missing_ok=True)

    def _restore(self) -> None:
        path = self.folder / "session.json"
        mend = "choose another --output, or move this folder away"
        content = read_document(path, _Document, mend)
        if content["video"] != self._facts:
            raise ValueError(f"{self.folder}: this is the session of another video, or the video has changed since; {mend}")
        try:
            names = {int(i): str(name) for i, name in content["names"]}
            given: dict[int, dict[int, Mask | None]] = {}
            for t, i, is_mask in content["said"]:
                given.setdefault(int(t), {})[int(i)] = self._read_mark(int(t), int(i)) if is_mask else None
            self.results.restore(content["results"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path}: the session cannot be read ({error}); {mend}") from error
        self.marks = Marks(names, given, content["last_id"])

    def _read_mark(self, index: int, object_id: int) -> Mask:
        label_map = read_label_map(self.folder / "marks" / f"{index:06d}.png")
        return Mask.of((label_map == object_id).numpy())


def _label_map(said: Said, size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    label_map = torch.zeros(size, dtype=torch.uint8)
    for object_id, mask in said.items():
        if mask is not None:
            label_map[torch.from_numpy(mask.pixels())] = object_id
    return label_map


def spans(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last index of every row of neighbours in ascending indices."""
    for position, index in enumerate(indices):
        if position == 0 or indices[position - 1] != index - 1:
            first = index
        if position == len(indices) - 1 or indices[position + 1] != index + 1:
            yield first, index
