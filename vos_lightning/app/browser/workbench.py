"""The page of an open video: objects and tools at the left, the picture and the timeline at the right."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import events, ui

from vos_lightning.app.browser.desk import Desk
from vos_lightning.app.browser.drawing import Stroke
from vos_lightning.app.browser.elements import Board, Timeline, tell
from vos_lightning.app.browser.exporting import ExportDialog
from vos_lightning.app.browser.pictures import colour_of, next_step, run_title, timeline, warnings_of
from vos_lightning.app.browser.session import Session
from vos_lightning.io.frames import time_code

TOOLS = (
    ("box", "crop_free", "Box: draw a box around the object; its contour is found"),
    ("inside", "add_circle", "Inside: a stroke on the object adds what belongs to it"),
    ("outside", "remove_circle", "Outside: a stroke beside the object takes away what does not belong to it"),
    ("brush", "brush", "Brush: paint the mask"),
    ("eraser", "auto_fix_off", "Eraser: wipe the mask out"),
)
LEGEND = (("#2e9e6b", "found"), ("#75809a", "outdated"), ("#ffb300", "look here"))
PLAYED = 0.1
"""Seconds between two frames that are played."""


class Workbench:
    """What is shown of a session, and what is clicked there.

    Args:
        desk: runs tasks.
        session: the session.
        attempt: calls a function beside the page, and shows its error.
    """

    def __init__(self, desk: Desk, session: Session, attempt: Callable[..., Awaitable[Any]]) -> None:
        self.desk, self.session, self._attempt = desk, session, attempt
        self.index = 0
        self.object_id: int | None = next(iter(session.marks.names), None)
        self.tool = "box"
        self._watching = False
        self._seen: tuple[Any, ...] = ()
        self._told: str | None = None
        with ui.element("div").classes("vos-bench"):
            with ui.column().classes("vos-side"):
                self._build_side()
            with ui.column().classes("vos-main"):
                self._build_main()
        self._player = ui.timer(PLAYED, self._play, active=False)
        self.refresh()

    # Building ---------------------------------------------------------------------------------------------------------

    def _build_side(self) -> None:
        ui.label("Objects").classes("vos-step")
        self._objects = ui.column().classes("w-full gap-1")
        self._add = _button("Add an object", "add", self._add_object, "add", "outline")
        ui.label("Mark it in this frame").classes("vos-step")
        with ui.row().classes("w-full justify-between no-wrap"):
            self._tools = {}
            for name, icon, text in TOOLS:
                self._tools[name] = ui.button(icon=icon, on_click=functools.partial(self._choose_tool, name))
                self._tools[name].props(f"data-testid=tool-{name} aria-label={name} padding=8px").tooltip(text)
        self._tool_text = ui.label().classes("vos-dim text-sm")
        with ui.row().classes("w-full items-center no-wrap"):
            ui.label("Size").classes("text-sm")
            self._size = ui.slider(min=0.005, max=0.2, step=0.005, value=0.03, on_change=self.refresh)
        with ui.row().classes("gap-1"):
            self._undo = _button("Undo", "undo", self._take_back, "undo", "flat dense")
            self._clear = _button("Clear", "clear", self._clear_mark, "clear", "flat dense")
            self._clear.tooltip("Take back what you drew of this object in this frame")
            self._gone = _button("Gone", "visibility_off", self._say_gone, "gone", "flat dense")
            self._gone.tooltip("The object is not there any more from this frame on")
        ui.label("Follow").classes("vos-step")
        self._both = ui.checkbox("Also backwards", on_change=self._choose_ways).props("dense data-testid=both")
        self._both.tooltip("Each frame follows its nearest mask, before or after it; otherwise the masks before it")
        self._run = _button("Follow the objects", "play_arrow", self._follow, "run", "").classes("w-full")
        self._stop = _button("Stop", "stop", self.desk.stop, "stop", "color=negative").classes("w-full")
        self._bar = ui.linear_progress(0, show_value=False, size="10px").props("rounded instant-feedback")
        self._rate = ui.label().classes("text-sm vos-dim").props("data-testid=rate")
        ui.label("Check and export").classes("vos-step")
        with ui.row().classes("w-full items-center no-wrap gap-1"):
            self._doubt = ui.label().classes("grow text-sm").props("data-testid=flagged")
            self._before = ui.button(icon="skip_previous", on_click=functools.partial(self._jump, -1))
            self._after = ui.button(icon="skip_next", on_click=functools.partial(self._jump, 1))
            self._before.props("dense flat data-testid=previous aria-label=previous").tooltip("The doubtful frames before (P)")
            self._after.props("dense flat data-testid=next aria-label=next").tooltip("The next doubtful frames (N)")
        self._export = _button("Export …", "download", self._show_export, "export", "outline").classes("w-full")

    def _build_main(self) -> None:
        self._hint = ui.label().classes("vos-hint").props("data-testid=hint")
        height, width = self.session.size
        self._board = Board(width, height, self._draw)
        self._warning = ui.label().classes("vos-warn").props("data-testid=warning")
        self._timeline = Timeline(self.go)
        with ui.row().classes("w-full items-center no-wrap"):
            self._playing = ui.button(icon="play_arrow", on_click=self._toggle_play).props("flat round dense aria-label=play")
            self._playing.tooltip("Play (space)")
            self._where = ui.label().classes("vos-line").props("data-testid=where")
            ui.space()
            with ui.row().classes("vos-legend"):
                for colour, text in LEGEND:
                    ui.html(f'<i style="background: {colour}"></i>{text}', sanitize=False)
                ui.html("◆ drawn by you", sanitize=False)
                ui.html('<i class="vos-cut"></i>scene cut', sanitize=False)
            ui.label("Darken the rest").classes("text-sm vos-dim vos-line")
            self._dim = ui.slider(min=0, max=0.9, step=0.1, value=0, on_change=self.refresh).style("width: 110px; flex: none")

    # Showing ----------------------------------------------------------------------------------------------------------

    def go(self, index: int) -> None:
        """Show a frame."""
        self._watching = False
        self.index = min(max(index, 0), self.session.length - 1)
        self.refresh()

    def tick(self) -> None:
        """Look at what is running, and whether another tab has changed something."""
        progress = self.desk.progress
        state = (self.desk.version, progress, self.session.changes, self.session.busy)
        if state == self._seen:
            return
        self._seen = state
        if progress is not None and self.desk.is_busy and self._watching and progress.frame is not None:
            self.index = min(progress.frame, self.session.length - 1)
        if progress is not None and progress.result is not None and progress.result != self._told:
            tell(progress.result, progress.failed)
            if self._watching and progress.frame is not None:
                self.index = min(progress.frame, self.session.length - 1)
            self._watching = False
        self._told = None if progress is None else progress.result
        self.refresh()

    def refresh(self) -> None:
        """Show the state as it is now."""
        session, desk = self.session, self.desk
        names, busy, progress = session.marks.names, desk.is_busy, desk.progress
        if self.object_id not in names:
            self.object_id = max(names, default=None)
        self._show_objects()
        chosen = self.object_id is not None
        said = session.marks.given.get(self.index, {})
        for name, _, text in TOOLS:
            self._tools[name].props(f"color={'primary' if name == self.tool else 'grey-9'}")
            if name == self.tool:
                self._tool_text.set_text(text)
        _enable(not busy, self._add, *self._tools.values())
        _enable(not busy and session.can_undo, self._undo)
        _enable(not busy and self.object_id in said, self._clear)
        _enable(not busy and chosen, self._gone)
        self._both.set_value(session.findings.both)
        _enable(not busy, self._both)
        self._run.set_text(run_title(session))
        self._run.set_visibility(not busy)
        _enable(bool(session.marks.first_frames()) and not session.is_done(), self._run)
        self._stop.set_visibility(busy)
        self._bar.set_visibility(busy)
        self._rate.set_visibility(busy)
        if busy and progress is not None:
            self._bar.set_value(progress.done / max(progress.total, 1))
            rate = "" if progress.rate is None else f" · {progress.rate:.1f} frames a second"
            how = "Stopping …" if progress.stopping else f"{progress.title}: {progress.done} of {progress.total}{rate}"
            self._rate.set_text(how if progress.done else "Loading the network …")
        rows = timeline(session)
        count = sum(last - first + 1 for first, last in rows["flagged"])
        found = bool(rows["fresh"] or rows["old"])
        self._doubt.set_text(f"{count} doubtful frame{'s' * (count != 1)}" if found else "Nothing found yet")
        _enable(bool(count), self._before, self._after)
        _enable(found and not busy, self._export)
        self._hint.set_text("Watch the objects being followed; stop when they go wrong." if busy else next_step(session))
        warnings = warnings_of(session, self.index)
        self._warning.set_text(" ".join(warnings))
        self._warning.classes(add="vos-none" if not warnings else "", remove="vos-none" if warnings else "")
        self._where.set_text(f"Frame {session.name_of(self.index)} · {time_code(session.time_of(self.index))}")
        self._timeline.show(rows, self.index)
        colour = colour_of(self.object_id or session.marks.last_id + 1)
        source = f"/picture/{self.index}?dim={self._dim.value}&v={desk.version}-{session.changes}"
        self._board.show(source, self.tool, self._size.value, colour, not busy)

    def _show_objects(self) -> None:
        key = (dict(self.session.marks.names), self.object_id, self.desk.is_busy)
        if getattr(self, "_listed", None) == key:
            return
        self._listed = key
        self._objects.clear()
        with self._objects:
            if not self.session.marks.names:
                ui.label("None yet: the first box adds one.").classes("vos-dim text-sm")
            for object_id, name in self.session.marks.names.items():
                row = ui.row().classes("vos-object").classes("vos-chosen" if object_id == self.object_id else "")
                row.props(f"data-testid=object-{object_id}").on("click", functools.partial(self._choose_object, object_id))
                with row:
                    ui.element("div").classes("vos-chip").style(f"background: {colour_of(object_id)}")
                    field = ui.input(value=name).props("dense borderless").classes("grow")
                    field.on("blur", functools.partial(self._rename, object_id, field))
                    field.on("keydown.enter", functools.partial(self._rename, object_id, field))
                    delete = ui.button(icon="delete", on_click=functools.partial(self._remove, object_id))
                    delete.props("flat dense size=sm color=grey-5 aria-label=remove").tooltip("Remove it from all frames")
                    _enable(not self.desk.is_busy, delete, field)

    # Acting -----------------------------------------------------------------------------------------------------------

    async def _change(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = await self._attempt(function, *arguments)
        self.refresh()
        return result

    def _choose_tool(self, name: str) -> None:
        self.tool = name
        self.refresh()

    def _choose_object(self, object_id: int) -> None:
        if object_id != self.object_id:
            self.object_id = object_id
            self.refresh()

    async def _add_object(self) -> None:
        added = await self._attempt(self.session.add_object)
        if added is not None:
            self.object_id, self.tool = added, "box"
        self.refresh()

    async def _rename(self, object_id: int, field: ui.input) -> None:
        if field.value != self.session.marks.names.get(object_id, field.value):
            await self._change(self.session.rename, object_id, str(field.value))

    async def _remove(self, object_id: int) -> None:
        await self._change(self.session.remove, object_id)

    async def _draw(self, values: dict[str, Any]) -> None:
        if self.object_id is None:
            await self._add_object()
        if self.object_id is not None:
            if values.get("tool") not in ("brush", "eraser"):
                self._hint.set_text("Finding the contour …")
            await self._change(lambda: self.session.draw(self.index, self.object_id or 0, Stroke.read(values)))

    async def _take_back(self) -> None:
        await self._change(self.session.undo)

    async def _clear_mark(self) -> None:
        await self._change(self.session.clear, self.index, self.object_id)

    async def _say_gone(self) -> None:
        await self._change(self.session.gone, self.index, self.object_id)

    async def _choose_ways(self) -> None:
        if self._both.value != self.session.findings.both:
            await self._change(self.session.follow_both_ways, self._both.value)

    async def _follow(self) -> None:
        self._player.deactivate()
        await self._change(self.desk.follow)
        self._watching = True

    def _show_export(self) -> None:
        ExportDialog(self.desk, self.session, self._dim.value, self._attempt).open()

    # Moving -----------------------------------------------------------------------------------------------------------

    def _jump(self, step: int) -> None:
        """Go to the beginning of the next row of doubtful frames, or of the one before."""
        starts = [first for first, _ in timeline(self.session)["flagged"]]
        there = [t for t in starts if (t > self.index if step > 0 else t < self.index)]
        if there:
            self.go(there[0] if step > 0 else there[-1])
        elif starts:
            tell(f"There are no doubtful frames {'after' if step > 0 else 'before'} this one.", kind="info")

    def _toggle_play(self) -> None:
        self._player.active = not self._player.active
        if self._player.active and self.index == self.session.length - 1:
            self.index = 0
        self._playing.props(f"icon={'pause' if self._player.active else 'play_arrow'}")

    def _play(self) -> None:
        if self.index + 1 >= self.session.length:
            self._toggle_play()
        else:
            self.go(self.index + 1)

    async def press(self, event: events.KeyEventArguments) -> None:
        """A key was pressed outside of a field."""
        far = 10 if event.modifiers.shift else 1
        if event.key.arrow_left:
            self.go(self.index - far)
        elif event.key.arrow_right:
            self.go(self.index + far)
        elif event.key.space:
            self._toggle_play()
        elif event.key == "z" and (event.modifiers.ctrl or event.modifiers.meta):
            await self._take_back()
        elif event.key in ("n", "p"):
            self._jump(1 if event.key == "n" else -1)


def _button(text: str, icon: str, click: Callable[[], object], name: str, look: str) -> ui.button:
    return ui.button(text, icon=icon, on_click=click).props(f"no-caps data-testid={name} {look}")


def _enable(on: bool, *elements: Any) -> None:
    for element in elements:
        element.set_enabled(on)
