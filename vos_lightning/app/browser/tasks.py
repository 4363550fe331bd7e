"""What takes long and runs beside the page: following the objects, and exporting."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vos_lightning.app.browser.planning import Plan
from vos_lightning.app.browser.session import Session
from vos_lightning.arrays import to_array
from vos_lightning.io.files import one_line, write_atomically
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.predictions.drift import DriftIndex
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.propagation.cuts import AtCut
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.structures import FrameProposals

SAVE_SECONDS = 2.0
"""Seconds between two times at which a run writes down how far it is."""
RATE_SECONDS = 4.0
"""Seconds of the past over which frames a second are counted."""
RATE_FRAMES = 3
"""Least number of the latest frames over which they are counted."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        title: what is done.
        done: frames that are done.
        total: frames in all.
        frame: the frame of the video that was done last; None before.
        rate: frames a second now; None where it is not known yet.
        stopping: whether it was asked to stop.
        result: what has come out, in a sentence, when it is over; None before.
        failed: whether that sentence says what went wrong.
    """

    title: str
    done: int = 0
    total: int = 0
    frame: int | None = None
    rate: float | None = None
    stopping: bool = False
    result: str | None = None
    failed: bool = False


class Task(ABC):
    """Something that runs in a thread of its own and can be stopped between two frames.

    Args:
        session: it cannot be changed meanwhile.
        title: what is done.
    """

    def __init__(self, session: Session, title: str) -> None:
        self.session = session
        self.progress = Progress(title, total=session.length)
        self._stop = threading.Event()
        self._times: deque[float] = deque()
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)

    def start(self) -> None:
        """Begin.

        Raises:
            ValueError: something else is being done with the session.
        """
        self.session.claim(self.progress.title)
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end after the present frame."""
        self._stop.set()
        self._tell(stopping=True)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.progress.result is not None

    @abstractmethod
    def run(self) -> str:
        """Do it, and say in a sentence what has come out."""

    def _work(self) -> None:
        try:
            result, failed = self.run(), False
        except Exception as error:  # whatever it is, the page has to show it
            result, failed = one_line(error), True
            if not isinstance(error, (ValueError, OSError)):
                result = f"this is a fault of vos_lightning ({type(error).__name__}: {result}), please report it"
        self.session.release()
        self._tell(result=result, failed=failed)

    def _advance(self, done: int, frame: int, counts: bool = True) -> None:
        """Tell how far it is.

        Args:
            done: frames that are done.
            frame: the frame that was done last.
            counts: whether it says something of the speed.
        """
        now = time.monotonic()
        if counts:
            self._times.append(now)
        while len(self._times) > RATE_FRAMES and now - self._times[0] > RATE_SECONDS:
            self._times.popleft()
        span = now - self._times[0] if len(self._times) > 1 else 0.0
        self._tell(done=done, frame=frame, rate=(len(self._times) - 1) / span if span > 0 else None)

    def _tell(self, **changes: object) -> None:
        self.progress = dataclasses.replace(self.progress, **changes)  # type: ignore[arg-type]


class Follow(Task):
    """Follows the objects from the first frame that is not up to date.

    Args:
        session: the session.
        open_engine: gives the engine, and the proposals of the video for networks that match them.
        at_cut: what happens where another scene begins. With ``ask``, the run also stops where an object is let go, unless an
            earlier run has gone on from there.
    """

    def __init__(
        self,
        session: Session,
        open_engine: Callable[[], tuple[InferenceEngine, FrameProposals | None]],
        at_cut: AtCut = "ask",
    ) -> None:
        super().__init__(session, "Following the objects")
        self._open_engine, self._at_cut = open_engine, at_cut

    def run(self) -> str:
        """Follow the objects through all frames that are not up to date, or until :meth:`stop`."""
        session = self.session
        engine, proposals = self._open_engine()
        changed: set[int] = set()
        try:
            plan = session.plan(proposals)
            self._follow(engine, plan, changed)
            if plan.last is None and not self._ends() and not session.is_done():
                plan = session.plan(proposals)
                self._times.clear()
                self._tell(title="Following them backwards", done=0, total=plan.length, rate=None)
                self._follow(engine, plan, changed)
        finally:
            engine.reset()
            session.save()
        return self._say(plan, changed)

    def _ends(self) -> bool:
        return self._stop.is_set() or self.session.asked() is not None

    def _follow(self, engine: InferenceEngine, plan: Plan, changed: set[int]) -> None:
        """Follow the objects in one direction."""
        session, results = self.session, plan.results
        first = 0 if plan.stored is None else plan.stored.snapshot.frame_index + 1
        drift, saved = DriftIndex(), time.monotonic()
        for prediction in engine.run(plan.video, plan.stored, at_cut=self._at_cut):
            index = prediction.frame_index
            frame = plan.frame_of(index)
            rows = drift.rows(session.name_of(frame), prediction)
            if index >= plan.start:
                session.keep(plan, prediction, rows)
                changed.add(frame)
                if results.is_due():
                    results.keep_state(engine.snapshot())
                if time.monotonic() - saved > SAVE_SECONDS:
                    session.save()
                    saved = time.monotonic()
            self._advance(index + 1, frame, counts=index >= first)
            if self._stop.is_set() or (index >= plan.start and any(row.is_let_go for row in rows) and self._ends()):
                break
            if plan.last is not None and index + 1 == plan.length:
                break
        else:
            if plan.last is None:
                session.length = results.computed  # a container may claim another number of frames
        if results.computed:
            results.keep_state(engine.snapshot())

    def _say(self, plan: Plan, changed: set[int]) -> str:
        session = self.session
        asked = session.asked()
        if asked is not None:
            frame, names = asked
            what = f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'} let go"
            return f"Another scene begins in frame {session.name_of(frame)}: {what}, so that nothing else is followed instead."
        if not session.is_done():
            way = "" if plan.last is None else " on the way back"
            length = session.length if plan.last is None else plan.length
            return f"Stopped after {plan.results.computed} of {length} frames{way}; the button goes on from there."
        flagged = [t for t in session.flagged() if t in changed]
        if not flagged:
            return "Done. No frame is flagged, which is no promise: look through the video, then export."
        many = "frame looks" if len(flagged) == 1 else "frames look"
        return f"Done. {len(flagged)} {many} doubtful: jump to them, and correct what is wrong."


class Export(Task):
    """Writes what was found as ``vos segment`` does, without computing it again.

    Args:
        session: the session.
        folder: folder to write to, see :class:`vos_lightning.io.outputs.OutputFolder`.
        renderings: what is written beside label maps and index.

    Raises:
        ValueError: there is no result yet, or the folder cannot be used.
    """

    def __init__(self, session: Session, folder: Path, renderings: Renderings) -> None:
        super().__init__(session, "Exporting")
        self._count = next((t for t, found in enumerate(session.found()) if t != found), len(session.found()))
        if not self._count:
            raise ValueError("there is nothing to export yet: run first")
        self._output = OutputFolder(folder, "segment", [session.source.path, session.folder], how="another name of the folder")
        self._renderings = renderings

    def run(self) -> str:
        """Write everything, or until :meth:`stop` what there is so far."""
        session, output = self.session, self._output
        self._tell(total=self._count)
        video, stored = session.sample(), session.stored()
        with PredictionFiles(output, self._renderings, contact_sheet=False) as files:
            done = 0
            for done, frame in enumerate(video.frames, start=1):
                prediction = stored(done - 1, frame)
                areas = np.bincount(to_array(prediction.label_map).ravel(), minlength=256).tolist()
                rows = [dataclasses.replace(row, area=areas[row.object_id]) for row in session.rows_of(done - 1)]
                files.take(video, prediction, rows=rows)
                self._advance(done, done - 1)
                if done == self._count or self._stop.is_set():
                    break
            files.end_video()
            names = {str(i): name for i, name in session.marks.names.items()}
            content = json.dumps(names, ensure_ascii=False, indent=1).encode()
            output.put(f"names/{video.name}.json", functools.partial(write_atomically, content=content))
        part = "" if done == session.length else f" the first {done} of {session.length} frames to"
        return f"Exported{part or ' to'} {output.folder}"


def free_folder(above: Path, name: str) -> Path:
    """A folder that does not exist: ``name``, or ``name-2``, ``name-3`` ..."""
    number = 1
    while (folder := above / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def outdated(session: Session) -> str | None:
    """A sentence about results that are not up to date, for those who export; None where all are."""
    fresh, waiting, found = session.fresh(), session.waiting(), session.found()
    late: Sequence[int] = [t for t in found if t < session.length and not fresh[t] and not waiting[t]]
    if late and fresh[: late[0]].all() and not fresh[late[0] :].any():
        return f"The frames from {session.name_of(late[0])} on were found before your last change; run again to update them."
    if late:
        return f"{len(late)} frames were found before your last change; run again to update them."
    if waiting.any() and len(found) >= session.length:
        return f"In {int(waiting.sum())} frames, objects have still to be followed backwards; run on first."
    if not fresh.all():
        return f"Only {len(found)} of {session.length} frames are found so far."
    return None
