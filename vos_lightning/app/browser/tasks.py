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

from vos_lightning.app.browser.session import Session
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
        rate: frames a second now; None where it is not known yet.
        stopping: whether it was asked to stop.
        result: what has come out, in a sentence, when it is over; None before.
        failed: whether that sentence says what went wrong.
    """

    title: str
    done: int = 0
    total: int = 0
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

    def _advance(self, done: int, counts: bool = True) -> None:
        """Tell how far it is.

        Args:
            done: frames that are done.
            counts: whether the latest frame says something of the speed.
        """
        now = time.monotonic()
        if counts:
            self._times.append(now)
        while len(self._times) > RATE_FRAMES and now - self._times[0] > RATE_SECONDS:
            self._times.popleft()
        span = now - self._times[0] if len(self._times) > 1 else 0.0
        self._tell(done=done, rate=(len(self._times) - 1) / span if span > 0 else None)

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
        """Follow the objects to the end of the video, or until :meth:`stop`."""
        session, results = self.session, self.session.results
        engine, proposals = self._open_engine()
        plan = session.plan(proposals)
        first = 0 if plan.stored is None else plan.stored.snapshot.frame_index + 1
        drift, saved = DriftIndex(), time.monotonic()
        try:
            for prediction in engine.run(plan.video, plan.stored, at_cut=self._at_cut):
                index = prediction.frame_index
                rows = drift.rows(plan.video.name_of(index), prediction)
                if index >= plan.start:
                    session.keep(prediction, rows, plan.said)
                    if results.is_due():
                        results.keep_state(engine.snapshot())
                    if time.monotonic() - saved > SAVE_SECONDS:
                        session.save()
                        saved = time.monotonic()
                self._advance(index + 1, counts=index >= first)
                if self._stop.is_set() or (index >= plan.start and session.asked() is not None):
                    break
            else:
                session.length = results.computed  # a container may claim another number of frames
            if results.computed:
                results.keep_state(engine.snapshot())
        finally:
            engine.reset()
            session.save()
        return self._say(plan.start)

    def _say(self, start: int) -> str:
        session = self.session
        asked = session.asked()
        if asked is not None:
            frame, names = asked
            what = f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'} let go"
            return f"Another scene begins in frame {session.name_of(frame)}: {what}, so that nothing else is followed instead."
        if session.results.computed < session.length:
            return f"Stopped after {session.results.computed} of {session.length} frames; the button goes on from there."
        flagged = [t for t in session.flagged() if t >= start]
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
                files.take(video, stored(done - 1, frame))
                self._advance(done)
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
    valid, found = session.valid(), session.found()
    if valid < session.length:
        late: Sequence[int] = [t for t in found if t >= valid]
        if late:
            return f"The frames from {session.name_of(valid)} on were found before your last change; run again to update them."
        return f"Only {valid} of {session.length} frames are found so far."
    return None
