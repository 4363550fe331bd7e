"""Outputs that would touch what is read, or what is there, are refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def refuse_overlap(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse outputs that are an input, contain one or lie inside one.

    Files and folders are compared by their identity in the file system, so that symbolic links, hard links, bind mounts and other
    spellings of a name are recognised.

    Args:
        outputs: files or folders that will be written; they need not exist.
        inputs: files or folders that are read; None and files that do not exist are skipped.

    Raises:
        ValueError: an output overlaps an input; the message names both.
    """
    given = [path for path in inputs if path is not None and path.exists()]
    for output in outputs:
        above_output = _identities(output)
        for path in given:
            identity, *above_input = _identities(path)
            if output.exists() and above_output[0] == identity:
                raise ValueError(f"{output}: the output is the input {path}, which would be overwritten; choose another place")
            if identity in above_output:
                raise ValueError(f"{output}: the output lies in the input {path}; choose a place outside of it")
            if output.exists() and above_output[0] in above_input:
                raise ValueError(f"{output}: the output folder holds the input {path}; choose a folder of its own")


def _identities(path: Path) -> list[tuple[int, int]]:
    """Device and inode of a file or folder and of all folders above it; what does not exist is left out."""
    found = []
    for place in (real := Path(os.path.realpath(path)), *real.parents):
        with contextlib.suppress(OSError):
            status = place.stat()
            found.append((status.st_dev, status.st_ino))
    return found


def claim_file(path: Path, inputs: Iterable[Path | None], overwrite: bool) -> None:
    """Refuse to write a file over an input, over a folder or, without ``overwrite``, over any other file.

    Raises:
        ValueError: the file must not be written there.
    """
    if path.is_dir():
        raise ValueError(f"{path}: the output is a folder; name a file")
    refuse_overlap([path], inputs)
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: the file exists already; pass --overwrite to replace it, or choose another name")
