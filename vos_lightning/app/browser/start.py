"""The first thing that the app shows: what it does, and which video to open."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

from nicegui import ui

from vos_lightning.app.browser.desk import choices_in
from vos_lightning.app.browser.elements import tell
from vos_lightning.app.browser.session import Session

STEPS = (
    ("1 Open", "a video file or a folder of images. It stays where it is; nothing leaves this machine."),
    ("2 Mark", "each object once: draw a box around it, and mend the mask with brush and eraser."),
    ("3 Follow", "the objects through the video. Jump to doubtful frames, correct them, run on."),
    ("4 Export", "masks, an overlay, transparent cut-outs, a green screen, or COCO."),
)


class StartPage:
    """A field for a path, and the videos of a folder.

    Args:
        folder: folder that is shown first.
        choose: opens a video.
        session: the video that is open; None if none is.
        back: goes back to that video.
    """

    def __init__(
        self, folder: Path, choose: Callable[[str], Awaitable[None]], session: Session | None, back: Callable[[], None]
    ) -> None:
        self._choose = choose
        with ui.column().classes("vos-start"):
            ui.label("Cut objects out of a video").classes("text-2xl")
            with ui.element("div").classes("vos-steps"):
                for title, text in STEPS:
                    with ui.element("div"):
                        ui.html(f"<b>{title}</b>", sanitize=False)
                        ui.label(text)
            if session is not None:
                ui.button(f"Back to {session.name}", icon="arrow_back", on_click=back).props("flat no-caps")
            with ui.row().classes("w-full items-center no-wrap"):
                self._path = ui.input("Path of a video file or of a folder of images").classes("grow")
                self._path.props("outlined dense data-testid=path").on("keydown.enter", self._open_path)
                ui.button("Open", icon="movie", on_click=self._open_path).props("no-caps data-testid=open")
            self._list = ui.column().classes("w-full gap-1")
        self._show(folder.resolve())

    async def _open_path(self) -> None:
        if self._path.value:
            await self._choose(self._path.value)
        else:
            tell("Type the path of a video first, or choose one below.", kind="warning")

    def _show(self, folder: Path) -> None:
        self._list.clear()
        with self._list:
            ui.label(f"In {folder}").classes("vos-dim")
            try:
                choices = choices_in(folder)
            except OSError as error:
                ui.label(f"This folder cannot be read: {error.strerror}")
                choices = []
            if folder.parent != folder:
                self._row("The folder above", "arrow_upward", functools.partial(self._show, folder.parent))
            for choice in choices:
                if choice.is_video:
                    self._row(choice.name, "movie", functools.partial(self._choose, str(choice.path)))
                else:
                    self._row(choice.name, "folder", functools.partial(self._show, choice.path))
            if not any(choice.is_video for choice in choices):
                ui.label("There is no video in this folder.").classes("vos-dim")

    @staticmethod
    def _row(name: str, icon: str, click: Callable[[], object]) -> None:
        with ui.row().classes("vos-choice").on("click", click):
            ui.icon(icon)
            ui.label(name)
