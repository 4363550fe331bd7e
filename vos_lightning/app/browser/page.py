"""The page of the browser app, on NiceGUI. It shows the desk and passes on what is clicked; what that means is decided there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Response
from nicegui import app, events, run, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vos_lightning.app.browser.desk import Desk
from vos_lightning.app.browser.elements import tell
from vos_lightning.app.browser.pictures import picture
from vos_lightning.app.browser.start import StartPage
from vos_lightning.app.browser.workbench import Workbench
from vos_lightning.io.files import one_line

ICON = "✂️"
SECONDS = 0.25
"""Seconds between two looks at what is running."""


def serve(desk: Desk, host: str, port: int, browser: bool, shelf: Path) -> None:
    """Serve the page until the process is asked to end.

    Args:
        desk: what is shown.
        host: address that is listened to.
        port: port that is listened to.
        browser: open a browser.
        shelf: folder from which videos are chosen first.
    """
    # Other sites cannot read the pictures through a name of their own that leads to this machine.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"])

    @app.get("/picture/{index}")
    def send_picture(index: int, dim: float = 0.0) -> Response:
        session = desk.session
        if session is None or not 0 <= index < session.length or not 0 <= dim <= 1:
            return Response(status_code=404)
        try:
            content = picture(session, index, dim)
        except (ValueError, OSError, IndexError) as error:
            return Response(str(error), status_code=500)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @ui.page("/", title="vos app", favicon=ICON, dark=True)
    def build() -> None:
        ui.add_css(Path(__file__).with_name("page.css"))
        ui.colors(primary="#3b8cff", positive="#2e9e6b", negative="#c0392b", warning="#ffb300")
        Page(desk, shelf)

    app.on_shutdown(desk.close)
    ui.run(host=host, port=port, show=browser, reload=False, show_welcome_message=False, title="vos app", dark=True)


class Page:
    """What one tab of a browser shows: the start page, or the workbench of the video that is open.

    Args:
        desk: what is shown; all tabs share it.
        shelf: folder from which videos are chosen first.
    """

    def __init__(self, desk: Desk, shelf: Path) -> None:
        self.desk = desk
        self._shelf = shelf if shelf.is_dir() else Path()
        self._bench: Workbench | None = None
        with ui.row().classes("vos-head"):
            ui.label(f"{ICON} vos app").classes("vos-title")
            self._name = ui.label().classes("vos-dim")
            ui.space()
            self._other = ui.button("Open another video", icon="folder_open", on_click=self.show_start)
            self._other.props("flat dense no-caps data-testid=another")
        self._body = ui.element("div").classes("w-full")
        if desk.session is None:
            self.show_start()
        else:
            self.show_bench()
        ui.timer(SECONDS, self._tick)
        ui.keyboard(self._press)

    def show_start(self) -> None:
        """Let a video be chosen."""
        self._bench = None
        self._name.set_text("")
        self._other.set_visibility(False)
        self._body.clear()
        with self._body:
            StartPage(self._shelf, self._open, self.desk.session, self.show_bench)

    def show_bench(self) -> None:
        """Show the video that is open."""
        session = self.desk.session
        if session is None:
            return
        height, width = session.size
        self._name.set_text(f"{session.source.text} · {session.length} frames · {width}×{height}")
        self._other.set_visibility(True)
        self._body.clear()
        with self._body:
            self._bench = Workbench(self.desk, session, attempt)

    async def _open(self, text: str) -> None:
        waiting = ui.notification("Opening the video …", spinner=True, timeout=None)
        try:
            session = await attempt(self.desk.open, text)
        finally:
            waiting.dismiss()
        if session is not None:
            self.show_bench()
            for note in session.notes:
                tell(note, kind="warning")

    def _tick(self) -> None:
        if self._bench is None:
            return
        if self._bench.session is not self.desk.session:  # another tab has opened another video
            self.show_bench()
        else:
            self._bench.tick()

    async def _press(self, event: events.KeyEventArguments) -> None:
        if self._bench is not None and event.action.keydown:
            await self._bench.press(event)


async def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function beside the page, and show its error in words; the result is None then."""
    try:
        return await run.io_bound(function, *arguments)
    except (ValueError, OSError, IndexError) as error:
        tell(one_line(error), failed=True)
        return None
