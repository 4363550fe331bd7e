"""Damage to files that a reader has to notice."""

from __future__ import annotations

import zipfile
from pathlib import Path


def with_a_wrong_bit(checkpoint: Path) -> bytes:
    """The content of a checkpoint with one bit of its largest tensor changed.

    A byte at a fixed place may lie in the padding between two tensors, where no reader looks.
    """
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    header = content[largest.header_offset : largest.header_offset + 30]
    start = largest.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    content[start + largest.file_size // 2] ^= 1
    return bytes(content)
