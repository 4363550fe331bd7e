"""Label maps from plain PNG files, without PyTorch and OpenCV, whose import takes longer than scoring a data set.

A plain file is a usual label map: a palette or 8 bits of grey, not interlaced, with correct checksums, and without anything that
turns or animates the picture. All other files are left to :func:`vos_lightning.io.label_maps.read_label_map`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vos_lightning.io.files import regular_file

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3
"""PNG's numbers of the colour types."""
_HEADER = struct.Struct(">IIBBBBB")
_PASSED_OVER = {b"gAMA": 4, b"sRGB": 1, b"cHRM": 32, b"pHYs": 9, b"tIME": 7}
"""Chunks that change no index, with the only length that each one may have."""
_TEXTS = (b"Software\0", b"Comment\0", b"Title\0", b"Author\0", b"Creation Time\0", b"date:")
"""Beginnings of text chunks that change nothing; other texts may carry an orientation."""


def read_plain_png(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W"] | None:
    """Read the indices of a palette or the values of a grey PNG.

    Args:
        path: any file.

    Returns:
        ``(H, W)`` ids, or None if the file is not plain, is damaged or does not exist.
    """
    try:
        content = regular_file(path).read_bytes()
    except (OSError, ValueError):
        return None
    return decode_plain_png(content)


def decode_plain_png(content: bytes) -> UInt8[np.ndarray, "H W"] | None:
    """:func:`read_plain_png` for the content of a file."""
    parsed = _parse(content)
    if parsed is None:
        return None
    (height, width), is_direct, packed = parsed
    if is_direct:
        rows = _unpack(packed, height, width + 1)
        if rows is None:
            return None
        if not rows[:, 0].any():
            return rows[:, 1:].copy()
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            return np.array(image)
    except Exception:  # broken files make decoders raise almost anything
        return None


def _unpack(packed: bytes, height: int, stride: int) -> UInt8[np.ndarray, "H W1"] | None:
    """Rows with their filter types in front, or None if the stream is damaged or has another length."""
    unpacker, size = zlib.decompressobj(), height * stride
    try:
        unpacked = unpacker.decompress(packed, size + 1)
    except zlib.error:
        return None
    if len(unpacked) != size or not unpacker.eof or unpacker.unused_data:
        return None
    return np.frombuffer(unpacked, dtype=np.uint8).reshape(height, stride)


def _parse(content: bytes) -> tuple[tuple[int, int], bool, bytes] | None:
    """Height and width, whether unpacked bytes should be indices without filters, and the packed bytes of a plain file.

    Writers do not filter the rows of 8-bit palette images, so the unpacked bytes are the indices; grey rows are filtered.
    """
    if content[:8] != _SIGNATURE:
        return None
    chunks = _chunks(content)
    if chunks is None or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != _HEADER.size or chunks[-1] != (b"IEND", b""):
        return None
    width, height, bits, colour_type, packing, filtering, interlace = _HEADER.unpack(chunks[0][1])
    if bits not in {_GREY: (8,), _INDEXED: (1, 2, 4, 8)}.get(colour_type, ()) or packing or filtering or interlace:
        return None
    if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
        return None
    pixels: list[bytes] = []
    palettes = 0
    for place, (kind, data) in enumerate(chunks[1:-1], start=1):
        if kind == b"IDAT":
            if pixels and chunks[place - 1][0] != b"IDAT":
                return None
            pixels.append(data)
        elif kind == b"PLTE" and colour_type == _INDEXED and not pixels and 0 < len(data) <= 768 and len(data) % 3 == 0:
            palettes += 1
        elif not _is_passed_over(kind, data, colour_type):
            return None
    if not pixels or palettes != (colour_type == _INDEXED):
        return None
    return (height, width), colour_type == _INDEXED and bits == 8, b"".join(pixels)


def _is_passed_over(kind: bytes, data: bytes, colour_type: int) -> bool:
    """Whether a chunk changes no index, at any position."""
    if kind == b"tRNS":
        return colour_type == _INDEXED and 0 < len(data) <= 256
    if kind == b"tEXt":
        return len(data) <= 1024 and data.startswith(_TEXTS)
    return len(data) == _PASSED_OVER.get(kind)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]] | None:
    """Kind and data of every chunk; None if a chunk is cut off or fails its checksum, or if data follow the last chunk."""
    chunks, start = [], len(_SIGNATURE)
    while start < len(content):
        kind_at, end = start + 4, start + 12 + int.from_bytes(content[start : start + 4], "big")
        if (
            end > len(content)
            or end < kind_at
            or zlib.crc32(content[kind_at : end - 4]) != int.from_bytes(content[end - 4 : end], "big")
        ):
            return None
        chunks.append((content[kind_at : kind_at + 4], content[kind_at + 4 : end - 4]))
        start = end
        if chunks[-1][0] == b"IEND" and start != len(content):
            return None
    return chunks or None
