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
        largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content[content.index(largest) + len(largest) // 2] ^= 1
    return bytes(content)
