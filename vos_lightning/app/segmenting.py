"""One of the user's own videos after the other is segmented, and an interrupted one goes on."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vos_lightning.app.backends import Backend, LightBackend
from vos_lightning.app.own_videos import Job
from vos_lightning.arrays import Tensor
from vos_lightning.callbacks.stopping import StopRequest
from vos_lightning.io.annotation_files import ANNOTATION_SUFFIXES
from vos_lightning.io.frames import time_code
from vos_lightning.io.given_masks import own_video
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.outputs import MASKS, OutputFolder
from vos_lightning.predictions.drift import SCENE_CUT, ObjectRow
from vos_lightning.predictions.renderings import Renderings, time_of
from vos_lightning.predictions.stored import StoredPredictions
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.propagation.snapshots import Stored, read_snapshot
from vos_lightning.structures import VideoSample

SNAPSHOT_SECONDS = 15.0
"""Least seconds between two snapshots of a run, from which it goes on after a kill."""
SAVING_SHARE = 0.05
"""Largest share of the time that is spent on snapshots."""
MOST_CUTS = 10
"""Most scene cuts that are listed at the end of a video."""


class SegmentRun:
    """Segments videos one after the other with one network, into one folder.

    Args:
        arguments: those of ``vos segment``.
        output: where to write.
        stop: tells when a signal asks for the end.
    """

    def __init__(self, arguments: argparse.Namespace, output: OutputFolder, stop: StopRequest) -> None:
        self._arguments, self._output, self._stop = arguments, output, stop
        self._backend = _open_backend(arguments)
        if self._backend.title:
            sys.stdout.write(f"{self._backend.title}\n")
        formats = [name for name in dict.fromkeys(arguments.formats) if name != "masks"]
        self._files = PredictionFiles(output, Renderings(formats, arguments.dim, arguments.labels), contact_sheet=False)
        self._saved, self._interval = time.monotonic(), SNAPSHOT_SECONDS

    def segment(self, job: Job) -> None:
        """Segment a video, or what is left of it.

        Raises:
            ValueError: the video cannot be read to its end, or the network cannot segment it.
            OSError: a file cannot be read or written.
            Stopped: a signal has asked for the end; what was written is complete.
        """
        arguments, backend, files = self._arguments, self._backend, self._files
        if job.name in self._output.done:
            if job.made_from is not None and self._output.done[job.name] == job.made_from:
                sys.stdout.write(f"{job.name}: done already, kept\n")
                return
            sys.stdout.write(f"{job.name}: the video or its masks have changed; it is segmented anew\n")
            self._output.drop(job.name)
        proposals = backend.proposals(job.frames)
        video = own_video(job.frames, job.masks, proposals, job.name)
        stored, side = self._begun(job, video) if self._output.begun else (None, None)
        last = -1 if stored is None else stored.snapshot.frame_index
        left = None if job.frames.length is None else job.frames.length - 1 - last
        sys.stdout.write("".join(f"{line}\n" for line in backend.plan(video, left, stored is not None, side)))
        before, flagged = files.num_frames, files.num_flagged
        self._saved = time.monotonic()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(job.source.text, total=job.frames.length)
            for prediction in backend.predictions(video, stored, job.at_cut):
                forward = arguments.direction == "forward"
                files.take(video, prediction, stored=forward and prediction.frame_index <= last)
                progress.update(task, completed=files.num_frames - before)
                if self._stopped(job, forward):
                    break
        self._output.remove(self._snapshot_name(job.name))
        files.end_video(job.made_from)
        self._tell(job, video, files.num_frames - before, files.num_flagged - flagged, proposals)

    def give_up(self, name: str, reason: str) -> None:
        """Record that a video is passed over; what was written of it is kept."""
        self._files.pass_over(name, reason, keep=True)

    def finish(self, error: BaseException | None) -> None:
        """Finish all files, see :meth:`PredictionFiles.finish`."""
        self._files.finish(error)

    # Details ----------------------------------------------------------------------------------------------------------

    def _stopped(self, job: Job, forward: bool) -> bool:
        """Whether a stream ends here because of a signal; a file is stopped by an exception, after its state was saved."""
        ends = self._stop.number is not None
        if ends and job.frames.live:
            return True
        due = ends or time.monotonic() - self._saved > self._interval
        if forward and self._backend.saves and job.made_from is not None and due:
            self._save(job)
        self._stop.check()
        return False

    # Going on after the end -------------------------------------------------------------------------------------------

    @staticmethod
    def _snapshot_name(name: str) -> str:
        return f"resume/{name}.pt"

    def _save(self, job: Job) -> None:
        start = time.monotonic()
        rows = [list(vars(row).values()) for row in self._files.rows]
        notes = {"made_from": job.made_from, "rows": rows, "chosen_side": self._backend.chosen_side}
        self._output.put(self._snapshot_name(job.name), functools.partial(self._backend.save, notes=notes))
        self._saved = time.monotonic()
        self._interval = max(SNAPSHOT_SECONDS, (self._saved - start) / SAVING_SHARE)

    def _begun(self, job: Job, video: VideoSample) -> tuple[Stored | None, int | None]:
        """The beginning of the video from an interrupted run, and the short side that this run has chosen.

        Files of another video, or of changed inputs, are removed.
        """
        name = self._snapshot_name(job.name)
        if f"{MASKS}/{job.name}/{video.name_of(0)}.png" not in self._output.begun:
            self._output.drop()
            return None, None
        if name not in self._output.begun or job.made_from is None:
            why = "a stream cannot be resumed" if job.made_from is None else "its state was not saved"
            if not self._backend.saves:
                why = "only PyTorch saves the state inside a video"
            if self._arguments.direction != "forward":
                why = f"the direction {self._arguments.direction!r} looks at the whole video"
        else:
            try:
                snapshot, notes = read_snapshot(self._output.check(name))
            except ValueError:
                notes, why = {}, "its state cannot be read"
            else:
                why = "the video or its masks have changed"
            if notes.get("made_from") == job.made_from:
                sys.stdout.write(f"{job.name}: goes on after frame {video.name_of(snapshot.frame_index)}\n")
                rows = [ObjectRow(*values) for values in notes["rows"]]
                stored = Stored(snapshot, StoredPredictions(functools.partial(self._label_map, video), rows))
                return stored, notes.get("chosen_side")
        sys.stdout.write(f"{job.name}: begins anew, as {why}\n")
        self._output.drop()
        return None, None

    def _label_map(self, video: VideoSample, index: int) -> Tensor:
        return read_label_map(self._output.check(f"{MASKS}/{video.name}/{video.name_of(index)}.png"))

    def _tell(self, job: Job, video: VideoSample, num_frames: int, num_flagged: int, proposals: Any) -> None:
        counts = _count(num_frames, "frame"), _count(len(video.object_ids), "object"), _count(num_flagged, "frame")
        index = self._output.folder / "index" / f"{video.name}.csv"
        sys.stdout.write(f"{video.name}: {', '.join(counts)} to look at (flags in {index})\n")
        drift = self._files.drift
        for line in (
            *_ask(job, video, self._files.rows),
            drift.advice() if drift is not None else None,
            None if proposals is None else proposals.note,
        ):
            if line is not None:
                sys.stdout.write(f"{line}\n")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _ask(job: Job, video: VideoSample, rows: Sequence[ObjectRow]) -> list[str]:
    """Lines about scene cuts at which objects were let go."""
    cuts: dict[int, list[str]] = {}
    for row in rows:
        if row.is_let_go:
            cuts.setdefault(row.frame, []).append(str(row.object_id))
    if not cuts:
        return []
    shown = [
        f"frame {video.name_of(t)} ({time_code(time_of(video, t))}) object{'s' * (len(ids) > 1)} {', '.join(ids)}"
        for t, ids in sorted(cuts.items())[:MOST_CUTS]
    ]
    more = [f"{len(cuts) - MOST_CUTS} more, which have the flag {SCENE_CUT} in the index"] if len(cuts) > MOST_CUTS else []
    lines = [f"{video.name}: let go at a scene cut: {'; '.join([*shown, *more])}"]
    if job.made_from is None:
        return [*lines, "to follow objects through cuts of a stream, leave --at-cut out"]
    name, path = f"{job.mask_name(min(cuts))}.png", job.masks.path
    if path.is_dir():
        how = f"as {name} in {path}"
    elif path.suffix.lower() in ANNOTATION_SUFFIXES:
        how = f"in {path}"
    else:
        how = f"as {name} in a folder that --mask names, with {path.name} as {job.mask_name(0)}.png in it"
    return [
        *lines,
        f"to follow an object in the new scene, add a mask of that frame ({how}) and run again with --resume; "
        "where it is the same scene, --at-cut follow --overwrite goes on through it",
    ]


def _open_backend(arguments: argparse.Namespace) -> Backend:
    if arguments.backend == "onnxruntime":
        return LightBackend(arguments)
    from vos_lightning.app.torch_backend import TorchBackend

    return TorchBackend(arguments)
