"""A session: a video, what a person has said of its objects, and what was found. Nothing here knows of browsers."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from vos_lightning.app.browser.drawing import Stroke, draw
from vos_lightning.app.browser.findings import Findings
from vos_lightning.app.browser.marks import Marks
from vos_lightning.app.browser.planning import Plan, begin_run
from vos_lightning.app.browser.reader import FrameReader
from vos_lightning.app.browser.saving import drop_marks, lay_over, read_session, write_marks, write_session
from vos_lightning.app.own_videos import facts_of_video
from vos_lightning.io.overlaps import refuse_overlap
from vos_lightning.io.sources import Source
from vos_lightning.io.videos import count_frames
from vos_lightning.predictions.drift import ObjectRow
from vos_lightning.predictions.stored import StoredPredictions
from vos_lightning.structures import FramePrediction, FrameProposals, VideoSample

MOST_UNDONE = 100
"""Number of changes that can be undone."""


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
        findings: what was found.
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
        self.findings = Findings(folder, self.size, network)
        self.changes = 0
        self.busy: str | None = None
        self._facts = json.dumps(facts_of_video(source))
        self._before: list[Marks] = []
        self._reader = FrameReader(source.open())
        self._lock, self._drawing = threading.RLock(), threading.Lock()
        if (folder / "session.json").is_file():
            self.marks = read_session(folder, self._facts, self.findings.restore)

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
            label_map = self.findings.label_map(index, self.marks, self.length)
            said = self.marks.given.get(index, {})
        if label_map is None:
            label_map = torch.zeros(self.size, dtype=torch.uint8)
        for object_id in said:
            label_map[label_map == object_id] = 0
        return lay_over(label_map, said)

    def fresh(self) -> Bool[np.ndarray, " T"]:
        """For every frame, whether its result is up to date."""
        with self._lock:
            return self.findings.fresh(self.marks, self.length)

    def waiting(self) -> Bool[np.ndarray, " T"]:
        """For every frame, whether an object in it has still to be followed backwards for the first time."""
        with self._lock:
            return self.findings.waiting(self.marks, self.length)

    def valid(self) -> int:
        """Number of frames, from the first one on, whose results are up to date."""
        fresh = self.fresh()
        return self.length if fresh.all() else int(fresh.argmin())

    def is_done(self) -> bool:
        """Whether all results are up to date."""
        return bool(self.fresh().all())

    def found(self) -> list[int]:
        """Frames that have a result, whether it is up to date or not."""
        with self._lock:
            return self.findings.frames()

    def flagged(self) -> list[int]:
        """Frames to look at."""
        with self._lock:
            return self.findings.flagged(self.marks, self.length)

    def rows_of(self, index: int) -> list[ObjectRow]:
        """What is known of the objects that were found in a frame."""
        with self._lock:
            return self.findings.rows(index, self.marks, self.length)

    def cuts(self) -> list[int]:
        """Frames in which another scene begins, as far as an object was there to be followed."""
        with self._lock:
            return self.findings.cuts()

    def asked(self) -> tuple[int, list[str]] | None:
        """The frame in which the latest run has stopped at a scene cut, and the names of the objects that it has let go there.

        Returns:
            None where it has not stopped at a cut, and where a run has gone on from there.
        """
        with self._lock:
            forward = self.findings.forward
            frame = forward.valid(self.marks) - 1
            if not 0 <= frame < self.length - 1 or frame != forward.computed - 1 or frame + 1 in forward.rows:
                return None
            back = self.findings.uses(self.marks, self.length)  # these are not asked for: a later mask shows them
            let_go = [row.object_id for row in forward.rows[frame] if row.is_let_go]
            names = [self.marks.names[i] for i in let_go if i in self.marks.names and not (i in back and back[i][frame])]
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
            others = [i for i in self.marks.given.get(index, {}) if i != object_id]
            mask = draw(frame, now == object_id, stroke, np.isin(now, others))
            self._change(lambda marks: marks.marked(index, object_id, mask))

    def gone(self, index: int, object_id: int) -> None:
        """Say that an object is gone from a frame on."""
        self._change(lambda marks: marks.gone(index, object_id))

    def clear(self, index: int, object_id: int) -> None:
        """Take back what was said of an object in a frame."""
        self._change(lambda marks: marks.cleared(index, object_id))

    def follow_both_ways(self, both: bool) -> None:
        """Choose whether objects are also followed backwards, see :class:`Findings`."""
        with self._lock:
            self._check_idle()
            self.findings.both = both
            self.changes += 1
            self.save()

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
        for index, said in marks.given.items():
            if before.given.get(index) != said:
                write_marks(self.folder, index, said, self.size)
        self.save()
        for index, said in before.given.items():
            if any(said.values()) and not any(marks.given.get(index, {}).values()):
                drop_marks(self.folder, index)

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
        """Begin a run over the frames whose results are not up to date, see :func:`begin_run`.

        Args:
            proposals: proposals of the frames, for networks that match them.

        Raises:
            ValueError: no object is marked, or all results are up to date.
        """
        with self._lock:
            sample = dataclasses.replace(self._sample(), proposals=proposals)
            plan = begin_run(self.findings, self.marks, sample, self.length)
            self.save()
            return plan

    def keep(self, plan: Plan, prediction: FramePrediction, rows: list[ObjectRow]) -> None:
        """Keep the next frame of a run, see :meth:`Results.put`."""
        with self._lock:
            plan.results.put(prediction, rows, plan.said)
            self.changes += 1

    def stored(self) -> StoredPredictions:
        """The results as predictions, without objects that were removed."""
        with self._lock:
            marks = self.marks
            rows = [row for t in self.findings.frames() for row in self.findings.rows(t, marks, self.length)]
        return StoredPredictions(functools.partial(self._found, marks=marks), rows)

    def sample(self) -> VideoSample:
        """The video with its objects, for the writer."""
        return dataclasses.replace(self._sample(), object_ids=tuple(sorted(self.marks.first_frames())))

    def _found(self, index: int, marks: Marks) -> Tensor:
        label_map = self.findings.label_map(index, marks, self.length)
        assert label_map is not None
        return label_map

    def _sample(self) -> VideoSample:
        frames = self._frames
        numbering = (frames.first, frames.stride)
        return VideoSample(self.name, frames, {}, {}, (), self.size, frames.names, fps=frames.fps, numbering=numbering)

    def save(self) -> None:
        """Write ``session.json``.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            write_session(self.folder, self._facts, self.marks, self.findings.plain())


def spans(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last index of every row of neighbours in ascending indices."""
    for position, index in enumerate(indices):
        if position == 0 or indices[position - 1] != index - 1:
            first = index
        if position == len(indices) - 1 or indices[position + 1] != index + 1:
            yield first, index
