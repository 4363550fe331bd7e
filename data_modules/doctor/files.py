"""Checks of single files, and what a check reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vos_lightning.io.files import list_everything, natural_key, refuse_link
from vos_lightning.io.images import IMAGE_SUFFIXES, Header, read_header, read_image
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.structures import IGNORE_LABEL

MAX_IDS = 32
"""A label map with more different values than this holds grey levels, not ids."""
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
LEFT_BEHIND = "a file manager left it; programs that list folders take it for data"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (``problem``) or worth knowing (``note``)."""

    kind: str
    path: str
    message: str
    level: Literal["problem", "note"] = "problem"
    fixable: bool = False


@dataclass
class Report:
    """Content of a split, or of one of its videos."""

    frames: int = 0
    masks: int = 0
    objects: int = 0
    findings: list[Finding] = field(default_factory=list)
    order: str = ""
    """First frames and last frame of the video, if other programs may sort its names differently."""

    def add(
        self, kind: str, path: Path, message: str, level: Literal["problem", "note"] = "problem", fixable: bool = False
    ) -> None:
        """Append a finding."""
        self.findings.append(Finding(kind, str(path), message, level, fixable))


def find_images(folder: Path, report: Report, links_into: Sequence[Path]) -> dict[str, Path]:
    """Image files of a folder by stem, in natural order; every other file is reported.

    Args:
        folder: the folder.
        report: what is wrong is added to it.
        links_into: folders that links may lead to.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    files: dict[str, Path] = {}
    for path in list_everything(folder):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            report.add("hidden-file", path, LEFT_BEHIND, fixable=True)
        elif path.is_symlink() and not _stays(path, report, links_into):
            continue
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            report.add("unexpected-file", path, "neither a frame nor a mask", "note")
        elif path.stem in files or (files and natural_key(path.stem)[0] == natural_key(next(reversed(files)))[0]):
            report.add("duplicate-frame", path, f"the same frame as {next(reversed(files.values())).name}; remove one of them")
        else:
            files[path.stem] = path
    return files


def _stays(path: Path, report: Report, links_into: Sequence[Path]) -> bool:
    """Whether a link leads to one of some folders; another one is reported."""
    try:
        refuse_link(path, links_into)
    except ValueError as error:
        report.add("leads-outside", path, str(error).removeprefix(f"{path}: "))
        return False
    return True


def check_image(path: Path, report: Report, deep: bool) -> Header | None:
    """Header of an image; None if it is damaged, which is reported.

    Only the header and the end of the file are read, unless it looks truncated or ``deep`` asks for all of it.
    """
    try:
        header = read_header(path)
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 64, 0))
            whole = ENDS.get(header.format, b"") in file.read()
        if deep or not whole:
            read_image(path)
    except (OSError, ValueError) as error:
        detail = str(error).removeprefix(f"{path}: ")
        readable = "mode" in detail or "animation" in detail
        report.add("unreadable-image" if readable else "damaged-file", path, detail)
        return None
    if FORMATS[path.suffix.lower()] != header.format:
        report.add("wrong-suffix", path, f"the file is {header.format}, not {FORMATS[path.suffix.lower()]}")
    return header


def check_label(path: Path, binary: bool, report: Report) -> tuple[tuple[int, int], frozenset[int]] | None:
    """Size (width, height) in pixels and values of a label map; None if they cannot be read, which is reported.

    Args:
        path: the file.
        binary: whether the only values are to be 0 and 255, as in DAVIS 2016.
        report: what is wrong is added to it.
    """
    try:
        size, _, actual, mode = read_header(path)
        counts = np.bincount(read_label_map(path).numpy().ravel(), minlength=256).tolist()
    except (OSError, ValueError) as error:
        detail = str(error).removeprefix(f"{path}: ")
        if "stray colours" in detail:
            report.add("stray-colours", path, detail)
        elif "damaged" in detail:
            report.add("damaged-file", path, detail)
        else:
            report.add("mask-format", path, detail)
        return None
    if actual != "PNG":
        report.add("wrong-suffix", path, f"the file is {actual}, not PNG: its ids are not exact")
    values = frozenset(value for value, count in enumerate(counts) if count)
    if mode in ("P", "L", "1"):
        grey = (
            values - {0, max(values)} if binary and IGNORE_LABEL in values else values if len(values) > MAX_IDS else frozenset()
        )
        if grey:
            pixels = sum(counts[value] for value in grey)
            message = f"{len(grey)} stray grey levels in {pixels} pixels: smoothed or resized with interpolation; save it without"
            report.add("stray-colours", path, message)
            return None
    else:
        report.add("colour-mask", path, f"mode {mode}: colours of the palette where indices are expected", fixable=True)
    return size, values
