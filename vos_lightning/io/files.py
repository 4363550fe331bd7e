"""File names and folders: one order of frames, names that stay in their folder, and one way to write.

All code that lists frames, masks or videos uses this module, so that a video has the same order everywhere. All code that makes
paths of names that stand in a file uses :func:`inside`, so that a data set from elsewhere cannot lead out of its folder. All code
that writes files uses :class:`Replacement` or :func:`write_atomically`, so that a file is complete or not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import stat
import uuid
from collections.abc import Collection, Iterator, Sequence
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


# Names that stand in files --------------------------------------------------------------------------------------------

LONGEST_NAME = 255
"""Most bytes of the name of a file or folder in the file systems that are common."""
_DRIVE = re.compile(r"[A-Za-z]:")


def check_name(name: str, source: str | os.PathLike[str] = "") -> str:
    """Refuse a name that cannot be the name of one file or folder, or that leads to another folder.

    Args:
        name: a name that was read from a file.
        source: where the name stands, for the message.

    Returns:
        The name.

    Raises:
        ValueError: the name is empty, ``.`` or ``..``, holds a slash, a backslash or a NUL, is the letter of a drive (``C:``), or
            is too long.
    """
    wrong = (
        "is empty" if not name
        else "leads to another folder" if name in (".", "..") or set(name) & set("/\\\0") or _DRIVE.fullmatch(name)
        else f"is longer than {LONGEST_NAME} bytes" if len(os.fsencode(name)) > LONGEST_NAME
        else None
    )  # fmt: skip
    if wrong:
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        where = f"{os.fspath(source)}: " if source else ""
        raise ValueError(f"{where}the name {shown!r} {wrong}; a name of a file or folder is needed")
    return name


def inside(
    root: str | os.PathLike[str],
    path: str,
    source: str | os.PathLike[str] = "",
    links_into: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """The path of a name that was read from a file, which never lies outside of a folder.

    The folder itself may be reached through links, as its user has named it. A link below it, which may come with the data, is
    followed only if it leads into the folder or into one of ``links_into``.

    Args:
        root: the folder.
        path: name of a file or folder, or several with ``/`` between them; nothing of it need exist.
        source: where the name stands, for the message; the folder if it is not given.
        links_into: further folders that links may lead to.

    Raises:
        ValueError: the path leads out of the folder, see :func:`check_name`, or by a link.
    """
    for part in path.split("/"):
        check_name(part, source or root)
    found = Path(root, path)
    refuse_link(found, (root, *links_into))
    return found


def refuse_link(path: Path, roots: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse a path that links lead out of all of some folders.

    Raises:
        ValueError: the path lies elsewhere; the message names the folder in which it should lie.
    """
    real = os.path.realpath(path)
    if not any(_is_in(real, os.path.realpath(root)) for root in roots):
        raise ValueError(
            f"{path}: a link leads out of {os.fspath(roots[-1])}, which is not followed; put a copy in its place (cp -L)"
        )


def _is_in(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def regular_file(path: str | os.PathLike[str]) -> Path:
    """Refuse what is no file of content, before it is opened: reading a pipe or a device may never end.

    Args:
        path: a file, or a link to one.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{os.fspath(path)}: there is no such file") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{os.fspath(path)}: this is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")
    return Path(path)


# Listing --------------------------------------------------------------------------------------------------------------


def list_files(
    folder: str | os.PathLike[str], suffixes: Collection[str], links_into: Sequence[str | os.PathLike[str]] | None = None
) -> dict[str, Path]:
    """Stem -> path of the files of a folder in natural order; hidden files (``._00000.jpg``) are left out.

    Args:
        folder: folder that is searched without its sub-folders.
        suffixes: suffixes of the wanted files, in lower case, with the dot.
        links_into: folders that links to files may lead to; None allows any place.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files stand for the same frame: ``1.jpg`` beside ``1.png``, or ``1.jpg`` beside ``01.jpg``; a link leads
            elsewhere.
    """
    found = []
    for entry in _scan(folder):
        stem, suffix = os.path.splitext(entry.name)
        # A dangling link is kept: the error of reading it names the missing file.
        if suffix.lower() in suffixes and not entry.name.startswith(".") and not entry.is_dir():
            if links_into is not None and entry.is_symlink():
                refuse_link(Path(folder, entry.name), links_into)
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


def find_files(
    folder: str | os.PathLike[str], suffixes: Collection[str], links_into: Sequence[str | os.PathLike[str]] | None = None
) -> list[Path]:
    """Files of a folder and its sub-folders in the natural order of their relative paths; hidden files and folders are left out.

    Args:
        folder: folder that is searched with its sub-folders; links to folders are not followed.
        suffixes: suffixes of the wanted files, in lower case, with the dot.
        links_into: folders that links to files may lead to; None allows any place.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a link leads elsewhere.
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
    paths = [Path(folder, name) for name in sorted(found, key=natural_key)]
    for path in paths if links_into is not None else ():
        if path.is_symlink():
            refuse_link(path, links_into or ())
    return paths


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
        before: where the file that is replaced is kept; None keeps it nowhere.

    Attributes:
        path: the file.
        temporary: path of the temporary file, which the caller creates.

    Raises:
        OSError: a parent folder cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], durable: bool = True, before: Path | None = None) -> None:
        self.path = Path(path)
        self.durable = durable
        self.before = before
        # tempfile is not used, as its files can be read by their owner only.
        self.temporary = self.path.with_name(name_of_temporary(self.path.name))
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
                if self.before is not None:
                    _keep(self.path, self.before)
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


def name_of_temporary(name: str) -> str:
    """A new name for the temporary file of a file; it is longer than the name of the file."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def move_away(path: Path, to: Path) -> None:
    """Give a file another name, under which a file is replaced.

    Raises:
        OSError: it cannot be renamed, or is not there.
    """
    os.replace(path, to)


def _keep(path: Path, to: Path) -> None:
    """Give a file, if there is one, a second name, so that it can be replaced under its first one."""
    if not path.is_file():
        return
    try:
        with Replacement(to, durable=False) as second:
            try:
                os.link(path, second.temporary)
            except OSError:  # the file system has no second names: for a moment there is no file with the first one
                move_away(path, second.temporary)
    except OSError as error:  # it is the file that cannot be replaced
        raise OSError(error.errno, error.strerror) from error


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
