"""Elements of the page that NiceGUI does not have: the picture to draw on, the timeline, and messages that hide neither."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from nicegui import ui


class Board(ui.element, component="board.js"):
    """The picture, and what is drawn on it.

    Args:
        width: width of the frames in pixels.
        height: height of the frames in pixels.
        draw: gets every stroke, as :meth:`vos_lightning.app.browser.drawing.Stroke.read` takes it.
    """

    def __init__(self, width: int, height: int, draw: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        super().__init__()
        self.props["width"], self.props["height"] = width, height
        self.classes("w-full").style("display: flex; justify-content: center")
        self.on("stroke", lambda event: draw(event.args))

    def show(self, source: str, tool: str, size: float, colour: str, enabled: bool) -> None:
        """Show a picture, and let it be drawn on with a tool."""
        wanted = {"src": source, "tool": tool, "size": size, "colour": colour, "enabled": enabled}
        if any(self.props.get(key) != value for key, value in wanted.items()):
            self.props.update(wanted)
            self.update()


class Timeline(ui.element, component="timeline.js"):
    """All frames in a row.

    Args:
        pick: gets the index of a frame that is clicked.
    """

    def __init__(self, pick: Callable[[int], None]) -> None:
        super().__init__()
        self.classes("w-full")
        self.on("pick", lambda event: pick(int(event.args)), throttle=0.05)

    def show(self, rows: dict[str, Any], index: int) -> None:
        """Show the rows of :func:`vos_lightning.app.browser.pictures.timeline`, and where the present frame is."""
        if self.props.get("rows") != rows or self.props.get("index") != index:
            self.props.update({"rows": rows, "index": index})
            self.update()


def tell(text: str, failed: bool = False, kind: Literal["positive", "info", "warning"] = "positive") -> None:
    """Show a message beside the title, where it hides neither picture nor timeline, for some seconds or until it is clicked away.

    Args:
        text: the message.
        failed: whether it says what went wrong; it then stays longer.
        kind: what it is otherwise.
    """
    seconds = 15 if failed else 8
    button = [{"label": "OK", "color": "black" if kind == "warning" and not failed else "white"}]
    shown: Literal["positive", "info", "warning", "negative"] = "negative" if failed else kind
    replaced: dict[str, Any] = {"group": "vos", "badgeStyle": "display: none"}  # a new message takes the place of the one before
    ui.notify(text, type=shown, position="top-right", timeout=1000 * seconds, actions=button, **replaced)
