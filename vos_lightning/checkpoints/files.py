"""The checkpoints that commands look for before they import PyTorch, which this module therefore does not."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

LITE = "lite"
"""Name of the weights that come with the library, in place of a file's path."""
LAST, BEFORE_LAST = "last.ckpt", "before_last.ckpt"
"""Names of the checkpoint from which a training goes on, and of the one before, which serves if that is damaged."""


def is_whole(checkpoint: Path) -> bool:
    """Whether a file is a checkpoint of which no byte has changed: the checksums that PyTorch stores in it are right."""
    state = checkpoint.stat()
    return _is_whole(checkpoint, state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _is_whole(checkpoint: Path, modified: int, size: int) -> bool:  # noqa: ARG001
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False
