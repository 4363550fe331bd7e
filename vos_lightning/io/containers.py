"""How long a video file says that it is: FFmpeg reads a truncated Matroska file up to its end without an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_MP4_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"styp", b"meta", b"mfra"}
)
_SEGMENT = 0x18538067


def declared_size(path: Path, kind: str) -> int:
    """Number of bytes that a container claims; 0 if it claims none, or is of another kind.

    Args:
        path: the file.
        kind: FFmpeg's name of the container.
    """
    with path.open("rb") as file:
        if "mp4" in kind:
            return _size_of_mp4(file, path.stat().st_size)
        if "matroska" in kind:
            return _size_of_matroska(file)
        if kind == "avi":
            start = file.read(8)
            return 8 + int.from_bytes(start[4:], "little") if start[:4] == b"RIFF" else 0
    return 0


def _size_of_mp4(file: BinaryIO, size: int) -> int:
    """End of the last box at the top level; data that some cameras append, which are no box, do not count."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if head[4:8] not in _MP4_BOXES or length < 8:  # 0: to the end of the file
            break
        end += length
    return end


def _size_of_matroska(file: BinaryIO) -> int:
    """End of the segment; 0 if its length is unknown (a recording that was streamed)."""
    while True:
        element = _read_number(file, keep_length=True)
        length = _read_number(file)
        if element is None or length is None:
            return 0
        if element == _SEGMENT:
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)


def _read_number(file: BinaryIO, keep_length: bool = False) -> int | None:
    """A number of EBML: the leading zeros of the first byte count the following bytes; None if unknown (all ones) or cut off."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    following = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(following), "big")
    if keep_length:
        return value
    bits = 7 * (following + 1)
    value &= (1 << bits) - 1
    return None if value == (1 << bits) - 1 else value
