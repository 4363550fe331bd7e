"""Runs that are about to begin: which frames they follow the objects through, and what is known before."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from torch import Tensor

from vos_lightning.app.browser.findings import Findings
from vos_lightning.app.browser.marks import Digests, Marks
from vos_lightning.app.browser.results import Results
from vos_lightning.app.browser.saving import label_map_of
from vos_lightning.predictions.stored import StoredPredictions
from vos_lightning.propagation.directions import reversed_video
from vos_lightning.propagation.snapshots import Stored
from vos_lightning.propagation.videos import as_video
from vos_lightning.structures import VideoSample


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin, in one direction of time. Its frame ``i`` is frame ``last - i`` of the video backwards."""

    video: VideoSample
    stored: Stored | None
    """What is known before; None where the run begins with the first frame."""
    start: int
    """First frame of the run that changes."""
    length: int
    """Number of frames of the run."""
    said: Digests
    """What the results are made from."""
    results: Results
    """Where they go."""
    last: int | None = None
    """None forwards."""

    def frame_of(self, index: int) -> int:
        """The frame of the video that a frame of the run is."""
        return index if self.last is None else self.last - index


def begin_run(findings: Findings, marks: Marks, sample: VideoSample, length: int) -> Plan:
    """Begin a run over the frames whose results are not up to date: forwards first, then backwards.

    Args:
        findings: what was found; frames that the run will change are no longer up to date.
        marks: what was said.
        sample: the video without masks.
        length: number of frames.

    Raises:
        ValueError: no object is marked, or all results are up to date.
    """
    if not marks.first_frames():
        raise ValueError("mark an object first: draw a box around it")
    if findings.forward.valid(marks) < length:
        return _begin(findings.forward, sample, marks, length, None)
    end = findings.last_needed(marks, length)
    if end is None:
        raise ValueError("all frames are up to date; correct one, or export")
    last, seen = findings.begin_backwards(marks)
    return _begin(findings.backward, reversed_video(sample, last), seen, last - end + 1, last)


def _begin(results: Results, sample: VideoSample, marks: Marks, length: int, last: int | None) -> Plan:
    given, size = marks.given, sample.original_size
    masks = {t: label_map_of(said, size) for t, said in given.items() if any(said.values())}
    gone = {t: tuple(i for i, mask in said.items() if mask is None) for t, said in given.items()}
    video = as_video(sample, masks, gone={t: ids for t, ids in gone.items() if ids})
    start = results.begin(marks)
    snapshot = results.latest_state()
    stored = None
    if snapshot is not None:
        names = dict(marks.names)
        rows = [row for of_frame in results.rows.values() for row in of_frame if row.object_id in names]
        stored = Stored(snapshot, StoredPredictions(functools.partial(_label_map, results, names), rows))
        # Objects that were removed since are known to the network still.
        removed = tuple(i for i in snapshot.ids if i not in names)
        after = snapshot.frame_index + 1
        video = dataclasses.replace(video, gone={**video.gone, after: (*video.gone.get(after, ()), *removed)})
    return Plan(video, stored, start, length, marks.digests(), results, last)


def _label_map(results: Results, names: dict[int, str], index: int) -> Tensor:
    label_map = results.label_map(index, names)
    assert label_map is not None
    return label_map
