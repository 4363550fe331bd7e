"""File names and folders: one order of frames, and one way to write.

All code that lists frames, masks or videos uses this module, so that a video has the same order everywhere. All code that writes
files uses :class:`Replacement` or :func:`write_atomically`, so that a file is complete or not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

_DIGITS = re.compile(r"(\d+)")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp", re.DOTALL)

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


# Writing --------------------------------------------------------------------------------------------------------------


class Replacement:
    """A new file, which takes the place of what is at its path when it is complete, and not before.

    Everything that writes a file goes through this class. The content is written to :attr:`temporary`, a hidden file in the same
    folder, and :meth:`commit` gives it its name. As a context manager it commits at the end, or discards on an exception::

        with Replacement(path) as new:
            new.temporary.write_bytes(content)

    Where anything fails, the old file stays, the temporary one is removed, and errors of the operating system name ``path``.

    Args:
        path: the file; missing parent folders are created.
        durable: whether content and name are on the disk when :meth:`commit` returns, so that they survive a power cut. Without
            it, a power cut can leave an empty file, which costs nothing where files are many and easily made again.

    Attributes:
        path: the file.
        temporary: path of the temporary file, which the caller creates.

    Raises:
        OSError: a parent folder cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], durable: bool = True) -> None:
        self.path = Path(path)
        self.durable = durable
        # tempfile is not used, as its files can be read by their owner only.
        self.temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        with naming(self.path):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:  # a file has the name of the folder
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error

    def commit(self) -> None:
        """Give the file its name.

        Raises:
            OSError: it cannot be written; the old file is as it was.
        """
        try:
            with naming(self.path):
                if self.durable:
                    with self.temporary.open("r+b") as file:
                        os.fsync(file.fileno())
                os.replace(self.temporary, self.path)
        finally:
            self.discard()
        if self.durable:
            _flush_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary file, if there is one."""
        with contextlib.suppress(OSError):  # it would hide the error because of which the file is discarded
            self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.commit()
            return
        self.discard()
        named = _named(error, self.path)
        if named is not None:
            raise named from error


def write_atomically(path: str | os.PathLike[str], content: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all, see :class:`Replacement`."""
    with Replacement(path, durable) as new:
        new.temporary.write_bytes(content)


def target_of_temporary(name: str) -> str | None:
    """Name of the file that a temporary file was to become; None for the name of any other file.

    A process that is killed leaves its temporary file behind.
    """
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the operating system that do not name it, such as a full disk.

    Errors that name its temporary file, or a folder in which it lies, name the file instead. Those that name another file stay.
    """
    try:
        yield
    except OSError as error:
        named = _named(error, path)
        if named is None:
            raise
        raise named from error


def _named(error: BaseException, path: Path) -> OSError | None:
    """The error with the name of the file; None if it says enough, or does not come from the operating system."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename:
        named, target = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
        own = named.parent == target.parent and target_of_temporary(named.name) == target.name
        if not own and named not in target.parents:
            return None
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def _flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk; without it, a power cut could bring the old file back."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """The message of an error for the user; for one that a data loader's worker passed on, the last line of its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1].strip()
    return " ".join(line.strip() for line in lines) or type(error).__name__
