"""The browser app on this machine: ``vos app [VIDEO]``."""

from __future__ import annotations

import argparse
import importlib.util
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from vos_lightning.app.options import add_cut_option, add_engine_options, add_proposal_options

HOST = "127.0.0.1"
"""The app is reached from this machine alone."""
PORT = 8080
"""First port that is tried."""
MOST_PORTS = 50
"""Number of ports that are tried."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app until it is ended with Ctrl-C.

    Args:
        argv: arguments after ``app``; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        ValueError: the video cannot be used, the port is taken, or the extra ``app`` is not installed.
        OSError: a file cannot be read or written.
    """
    arguments = _parser().parse_args(argv)
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("the browser app needs NiceGUI, which is not installed: pip install 'vos_lightning[app]'")
    port = find_port(arguments.port)

    from vos_lightning.app.browser.desk import Desk

    desk = Desk(arguments)
    if arguments.video is not None and not _is_shelf(arguments.video):
        desk.open(arguments.video)

    from vos_lightning.app.browser.page import serve

    sys.stdout.write(f"open http://{HOST}:{port} in a browser; Ctrl-C ends the app, and everything is kept in {desk.output}\n")
    sys.stdout.flush()
    serve(desk, HOST, port, arguments.browser, Path(arguments.video or "."))
    return 0


def find_port(wanted: int | None) -> int:
    """A port of this machine that is free.

    Args:
        wanted: the port that the user asks for; None for any.

    Raises:
        ValueError: it is taken.
    """
    tried = range(PORT, PORT + MOST_PORTS) if wanted is None else [wanted]
    for port in tried:
        with socket.socket() as attempt:
            try:
                attempt.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ValueError(f"port {wanted or PORT} is taken by another program: choose another one with --port")


def _is_shelf(text: str) -> bool:
    """Whether it is a folder to choose a video from."""
    from vos_lightning.io.files import list_files
    from vos_lightning.io.frames import FRAME_SUFFIXES

    return Path(text).is_dir() and not list_files(text, FRAME_SUFFIXES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos app",
        description="Cut objects out of a video in the browser: mark them, follow them, correct them, export them. "
        "Everything stays on this machine.",
    )
    parser.add_argument(
        "video",
        nargs="?",
        metavar="VIDEO",
        help="video file or folder of images; a folder of videos to choose from; default: choose in the current folder",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("vos_app"),
        help="folder for sessions and exports, a folder for each video (default: vos_app)",
    )
    parser.add_argument("--port", type=int, metavar="N", help=f"port (default: the first free one from {PORT} on)")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="do not open a browser")
    add_cut_option(parser, "ask", "default: ask")
    add_engine_options(parser)
    add_proposal_options(parser)
    parser.set_defaults(backend="torch")  # marks and corrections are steps of PyTorch's engine
    return parser
