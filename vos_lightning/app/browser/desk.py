"""What the app works on: one session and one task at a time, whatever pages are open. Nothing here knows of browsers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vos_lightning.app.browser.session import Session
from vos_lightning.app.browser.tasks import Export, Follow, Progress, Task
from vos_lightning.app.own_videos import OF_THE_NETWORK, settings_of
from vos_lightning.app.torch_backend import open_engine, open_proposals
from vos_lightning.io.files import list_everything
from vos_lightning.io.frames import FRAME_SUFFIXES
from vos_lightning.io.sources import VIDEO_SUFFIXES, find_sources
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.structures import FrameProposals

MOST_LOOKED_AT = 200
"""Files of a folder that are looked at to find out whether it holds the frames of a video."""


@dataclass(frozen=True)
class Choice:
    """Something in a folder that can be opened."""

    name: str
    path: Path
    is_video: bool
    """Whether it is a video; otherwise it is a folder with more choices."""


class Desk:
    """The state of the app.

    Args:
        arguments: those of ``vos app``.

    Attributes:
        session: the video that is open; None before one is.
        task: what runs, or ran last; None before.
        version: a number that changes whenever pictures may have changed.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.output: Path = arguments.output
        self.session: Session | None = None
        self.task: Task | None = None
        self.version = 0
        self._engine: InferenceEngine | None = None

    def open(self, text: str) -> Session:
        """Open a video, and go on with its session if there is one.

        Args:
            text: what ``vos segment`` takes for a video.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: it cannot be used, there are several, or something is still running.
        """
        if self.is_busy:
            raise ValueError("something is still running: stop it first, or wait for its end")
        sources = find_sources([os.path.expanduser(text.strip())])
        if len(sources) > 1:
            raise ValueError(f"{text}: there are {len(sources)} videos; open one of them")
        source = sources[0]
        network = settings_of(self._arguments, (*OF_THE_NETWORK, "at_cut"))
        self.session, self.task = Session(source, self.output / source.name / "session", network), None
        self.version += 1
        return self.session

    @property
    def is_busy(self) -> bool:
        """Whether something is running."""
        return self.task is not None and not self.task.is_over

    @property
    def progress(self) -> Progress | None:
        """How far the task is, or what came out of the last one."""
        return None if self.task is None else self.task.progress

    def follow(self) -> None:
        """Follow the objects, in a thread of its own.

        Raises:
            ValueError: something else is running.
        """
        self._start(Follow(self._open(), self._prepare, self._arguments.at_cut))

    def export(self, folder: Path, formats: Sequence[str], dim: float = 0.0, ids: bool = False) -> None:
        """Export, in a thread of its own.

        Args:
            folder: folder to write to.
            formats: keys of :data:`vos_lightning.app.segment.FORMATS`.
            dim: see :class:`Renderings`.
            ids: see :class:`Renderings`.

        Raises:
            ValueError: there is nothing to export, the folder cannot be used, or something else is running.
        """
        self._start(Export(self._open(), folder, Renderings(tuple(formats), dim, ids)))

    def stop(self) -> None:
        """Ask the task to stop after the present frame."""
        if self.task is not None:
            self.task.stop()

    def close(self) -> None:
        """Stop, and wait until everything is on disk."""
        if self.task is not None and not self.task.is_over:
            self.task.stop()
            self.task.join()

    def _open(self) -> Session:
        if self.session is None:
            raise ValueError("open a video first")
        return self.session

    def _start(self, task: Task) -> None:
        task.start()
        self.task = task

    def _prepare(self) -> tuple[InferenceEngine, FrameProposals | None]:
        if self._engine is None:
            self._engine = open_engine(self._arguments)
        frames = self._open().source.open()
        return self._engine, open_proposals(self._engine.network, frames, self._arguments.proposals, self._arguments.detector)


def choices_in(folder: Path) -> list[Choice]:
    """The videos and folders of a folder, in natural order; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    found = []
    for path in list_everything(folder):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found.append(Choice(path.name, path, _holds_images(path)))
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(Choice(path.name, path, True))
    return sorted(found, key=lambda choice: not choice.is_video)


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(MOST_LOOKED_AT), entries, strict=False):
                if Path(entry.name).suffix.lower() in FRAME_SUFFIXES and not entry.name.startswith("."):
                    return True
    except OSError:  # a folder of somebody else
        pass
    return False
