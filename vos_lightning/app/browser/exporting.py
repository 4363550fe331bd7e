"""The dialog that asks what to export."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from vos_lightning.app.browser.desk import Desk
from vos_lightning.app.browser.session import Session
from vos_lightning.app.browser.tasks import free_folder, outdated
from vos_lightning.app.segment import FORMATS


class ExportDialog:
    """Asks for formats and a folder, and exports.

    Args:
        desk: exports.
        session: what is exported.
        dim: how dark the rest of the overlay is at first.
        attempt: calls a function beside the page, and shows its error.
    """

    def __init__(self, desk: Desk, session: Session, dim: float, attempt: Callable[..., Awaitable[Any]]) -> None:
        self._desk, self._attempt, self._dim = desk, attempt, dim
        with ui.dialog() as self._dialog, ui.card().style("min-width: 480px"):
            ui.label("Export").classes("text-xl")
            ui.label("Label maps as indexed PNGs and a table of all objects are always written. Besides:").classes("vos-dim")
            self._formats = {
                name: ui.checkbox(f"{name}: {text}", value=name == "overlay").props(f"dense data-testid=format-{name}")
                for name, text in FORMATS.items()
                if name != "masks"
            }
            self._ids = ui.checkbox("write the objects' numbers into the overlay", value=False).props("dense")
            self._folder = ui.input("Folder", value=str(free_folder(desk.output / session.name, "export"))).classes("w-full")
            self._folder.props("outlined dense data-testid=folder")
            warning = outdated(session)
            if warning is not None:
                ui.label(warning).classes("vos-warn")
            with ui.row().classes("w-full justify-end"):
                ui.button("Cancel", on_click=self._dialog.close).props("flat no-caps")
                ui.button("Export", on_click=self._export).props("no-caps data-testid=export-now")

    def open(self) -> None:
        """Show it."""
        self._dialog.open()

    async def _export(self) -> None:
        formats = [name for name, box in self._formats.items() if box.value]
        self._dialog.close()
        await self._attempt(self._desk.export, Path(self._folder.value).expanduser(), formats, self._dim, self._ids.value)
