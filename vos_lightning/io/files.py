"""File names and folders: one order of frames, and atomic writing.

All code that lists frames, masks or videos uses this module, so that a video has the same order everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

_DIGITS = re.compile(r"(\d+)")

NaturalKey = tuple[tuple[str | int, ...], str]


def natural_key(name: str) -> NaturalKey:
    """Sorting key of the natural order: ``frame_2`` comes before ``frame_10``.

    A name is split into texts and numbers, which are compared one after the other, numbers by their value (decimal digits of any
    script). A number at the beginning comes before text. A sign or a decimal point is text. Names that differ only in leading
    zeros (``1``, ``01``) have equal first parts of the key; the name itself, its second part, decides between them.

    Args:
        name: stem of a file, name of a folder, or relative path with ``/``.
    """
    # Texts and numbers alternate, beginning with a text that may be empty, so that equal positions have equal types.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(name))), name


def list_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> dict[str, Path]:
    """Stem -> path of the files of a folder in natural order; hidden files (``._00000.jpg``) are left out.

    Args:
        folder: folder that is searched without its sub-folders.
        suffixes: suffixes of the wanted files, in lower case, with the dot.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files stand for the same frame: ``1.jpg`` beside ``1.png``, or ``1.jpg`` beside ``01.jpg``.
    """
    found = []
    for entry in _scan(folder):
        stem, suffix = os.path.splitext(entry.name)
        # A dangling link is kept: the error of reading it names the missing file.
        if suffix.lower() in suffixes and not entry.name.startswith(".") and not entry.is_dir():
            found.append((natural_key(stem), entry.name))
    found.sort()
    for (before, name), (after, other) in itertools.pairwise(found):
        if before[0] == after[0]:
            raise ValueError(f"{Path(folder) / other} and {name} are the same frame: remove or rename one of them")
    return {stem: Path(folder, name) for (_, stem), name in found}


def list_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in a folder in natural order; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = [entry.name for entry in _scan(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=natural_key)


def list_everything(folder: str | os.PathLike[str]) -> list[Path]:
    """Files and folders of a folder in natural order, hidden ones too.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return [Path(folder, name) for name in sorted((entry.name for entry in _scan(folder)), key=natural_key)]


def find_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[Path]:
    """Files of a folder and its sub-folders in the natural order of their relative paths; hidden files and folders are left out.

    Args:
        folder: folder that is searched with its sub-folders.
        suffixes: suffixes of the wanted files, in lower case, with the dot.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    _scan(folder)
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(place).relative_to(folder)
        found += [
            (inner / name).as_posix()
            for name in names
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
        ]
    return [Path(folder, name) for name in sorted(found, key=natural_key)]


def _scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{os.fspath(folder)} is not a folder")
    with os.scandir(folder) as entries:
        return list(entries)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of a file, which is given the file's name at the end of the ``with`` block.

    The file appears whole or not at all; after an error, nothing is left. Missing parent folders are created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # tempfile is not used, as its files can be read by their owner only.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file as a whole or not at all, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
