"""Outputs of commands: they never overwrite inputs, and never mix with the outputs of another run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vos_lightning.io.files import (
    LONGEST_NAME,
    inside,
    list_everything,
    name_of_temporary,
    naming,
    target_of_temporary,
    write_atomically,
)
from vos_lightning.io.folder_lock import FolderLock
from vos_lightning.io.output_records import RECORD_NAME, Item, digest_of, lines_of, read_record
from vos_lightning.io.overlaps import refuse_overlap

MASKS = "masks"
"""Folder inside an output of predictions that holds a folder of label maps for each video."""


def mask_folder(folder: Path) -> Path:
    """The folder of video folders inside an output of predictions; any other folder is returned as it is."""
    masks = folder / MASKS
    return masks if masks.is_dir() and any(RECORD_NAME.fullmatch(path.name) for path in list_everything(folder)) else folder


class OutputFolder:
    """A folder that one run of a command fills: it holds files of that run and nothing else.

    ``written.jsonl`` in the folder records which command wrote, whether it has finished, and every file: one line with its name
    and the digest of its content. A run that failed leaves complete files and ``"finished": false``. An earlier run of the same
    command is removed on request, file by file as it was recorded. A file that was added or changed since is never removed; the
    folder is refused instead.

    A run may consist of items, such as videos: :meth:`close_item` follows on the files of an item and records that they are all
    there. A run that resumes another one keeps the items that are closed and removes everything else.

    Constructing an object only checks and changes nothing; the earlier run is removed when the first file is written, or by
    :meth:`start`. Names of files that lead out of the folder are refused, wherever they come from.

    Args:
        folder: output folder; it must be new, empty, or the output of the same command.
        command: name of the command.
        inputs: files and folders that are read, see :func:`vos_lightning.io.overlaps.refuse_overlap`.
        overwrite: whether the output of an earlier run may be removed.
        how: option with which the user allows that, for the message.
        part: number of this process, if several write into the folder; only process 0 checks and removes.
        resume: keep the closed items of an earlier run, whatever ``overwrite`` says.
        source: what the files are made from; a run resumes only one with the same source.
        keep_begun: keep the files of an item that was not finished, when a run is resumed.
        alone: keep out every other run that wants to be alone in the folder, until :meth:`release`.

    Attributes:
        done: names of the items that are kept of an earlier run, with what they were made from; of process 0 only.
        begun: files of the earlier run that belong to no closed item, if they are kept too: its last item was not finished.

    Raises:
        ValueError: the folder overlaps an input or holds other files; the message names the file. Or another run is alone in it.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        inputs: Iterable[Path | None] = (),
        overwrite: bool = False,
        how: str = "--overwrite",
        part: int = 0,
        resume: bool = False,
        source: str | None = None,
        keep_begun: bool = False,
        alone: bool = False,
    ) -> None:
        self.folder = folder
        self.command = command
        self.source = source
        self.done: dict[str, str | None] = {}
        self.begun: dict[str, str | None] = {}
        self._keep_begun = keep_begun
        self._closed: list[Item] = []
        self._record = folder / ("written.jsonl" if part == 0 else f"written-{part}.jsonl")
        self._written: dict[str, str | None] = {}
        self._started = False
        self._earlier: list[Path] = []
        self._lock = FolderLock(folder) if alone and part == 0 else None
        refuse_overlap([folder], inputs)
        if part == 0:
            self._take_lock()
            try:
                self._earlier = self._check(overwrite, how, resume)
            except BaseException:
                self.release()
                raise

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other runs into the folder again; nothing may be written after that."""
        if self._lock is not None:
            self._lock.release()

    def start(self) -> None:
        """Remove the files of the earlier run and create the folder; called automatically before the first file."""
        if self._started:
            return
        self._started = True
        records = [path for path in self._earlier if RECORD_NAME.fullmatch(path.name)]
        with naming(self.folder):
            # A process that is killed in between leaves no file without a record.
            self._remove([path for path in self._earlier if path not in records])
            self._written = dict(self.begun)
            if self._closed or self.begun:
                write_atomically(self._record, self._content(finished=False))
                self._remove([path for path in records if path != self._record])
                return
            self._remove(records)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                with self._record.open("x") as file:
                    file.write(self._head(finished=False))
            except FileExistsError:
                raise ValueError(f"{self.folder}: another run has begun to write into this folder; choose another one") from None

    def put(self, name: str, write: Callable[[Path], object]) -> Path:
        """Write a file.

        Args:
            name: path of the file, relative to the folder.
            write: function that writes a file atomically to the path that it is given.

        Returns:
            Path of the file.

        Raises:
            OSError: it cannot be written; the error names the file.
            ValueError: the file would lie outside of the folder.
        """
        path = self.place(name)
        with naming(path):
            write(path)
        self.keep(name)
        return path

    def place(self, name: str) -> Path:
        """Path of a file that takes longer to write; call :meth:`keep` when it is complete.

        Raises:
            ValueError: the file would lie outside of the folder, or its name is too long, see :meth:`check`.
        """
        path = self.check(name)
        self.start()
        self._note(name, None)
        return path

    def check(self, name: str) -> Path:
        """Path of a file that will be written, without writing anything or removing an earlier run.

        Raises:
            ValueError: the file would lie outside of the folder, where no command may write, or its name is too long.
        """
        path = inside(self.folder, name)
        if len(os.fsencode(name_of_temporary(path.name))) > LONGEST_NAME:
            raise ValueError(f"{path.parent}: the name {path.name[:60]!r}... is too long for a file; choose a shorter one")
        return path

    def keep(self, name: str) -> None:
        """Record a file that is complete; a file that does not exist is removed from the record."""
        path = self.folder / name
        if path.is_file():
            self._note(name, digest_of(path))

    def remove(self, name: str) -> None:
        """Remove a file that is not needed any more, if it was written."""
        if name in self._written:
            self.check(name).unlink(missing_ok=True)
            self._note(name, None)
            self._remove([self.folder / name])

    def close_item(self, name: str | None, error: str | None = None, keep: bool = False, made_from: str | None = None) -> None:
        """Record that the files since the last call are all files of an item, or that the item has failed.

        Args:
            name: name of the item; None for files that belong to no item.
            error: why the item has failed, in one line; the files that were written of it are removed.
            keep: keep the files of an item that has failed; a run that resumes this one removes them.
            made_from: what the item was made from, see :attr:`done`.
        """
        self.start()
        item = Item(name, {} if error and not keep else self._written, error, made_from)
        if error and not keep:
            self._remove([self.folder / file for file in self._written])
        self._written = {}
        self._closed.append(item)
        with naming(self._record), self._record.open("a") as file:
            file.write(item.end())

    def drop(self, name: str | None = None) -> None:
        """Remove the files of a kept item, or of the item that was not finished, to make them anew.

        Args:
            name: a name of :attr:`done`; None stands for :attr:`begun`.
        """
        self.start()
        if name is None:
            self._remove([self.folder / file for file in self.begun])
            self.begun, self._written = {}, {}
        else:
            for item in [item for item in self._closed if item.name == name]:
                self._remove([self.folder / file for file in item.files])
                self._closed.remove(item)
            del self.done[name]
        write_atomically(self._record, self._content(finished=False))

    def failures(self) -> dict[str, str]:
        """Name and error of every item that has failed, of all processes that write into the folder."""
        records = [path for path in list_everything(self.folder) if RECORD_NAME.fullmatch(path.name)]
        items = [item for path in records for item in read_record(path).items]
        return {item.name: item.error for item in items if item.name is not None and item.error is not None}

    def finish(self) -> None:
        """Record that the run is complete."""
        self.start()
        write_atomically(self._record, self._content(finished=True))

    # Details ----------------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        """Be alone in the folder from now on, or as soon as it exists."""
        if self._lock is not None:
            self._lock.take()

    def _remove(self, paths: Sequence[Path]) -> None:
        """Remove files, and the folders in which nothing is left."""
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in sorted({p for path in paths for p in path.parents if self.folder in p.parents}, reverse=True):
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()

    def _note(self, name: str, digest: str | None) -> None:
        self._written[name] = digest
        with naming(self._record), self._record.open("a") as file:
            file.write(json.dumps([name, digest]) + "\n")

    def _head(self, finished: bool) -> str:
        return json.dumps({"command": self.command, "finished": finished, "source": self.source}) + "\n"

    def _content(self, finished: bool) -> bytes:
        items = "".join(lines_of(item.files) + item.end() for item in self._closed)
        return (self._head(finished) + items + lines_of(self._written)).encode()

    def _check(self, overwrite: bool, how: str, resume: bool) -> list[Path]:
        """All files of the earlier run that are removed."""
        if not self.folder.exists():
            return []
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: the output is a file; name a folder")
        there = list_everything(self.folder)
        records = [path for path in there if RECORD_NAME.fullmatch(path.name)]
        strange = next((path for path in there if not path.name.startswith(".")), None)
        if strange and not records:
            raise ValueError(
                f"{self.folder}: the folder holds what `{self.command}` has not written ({strange.name}); choose a new folder"
            )
        recorded: dict[str, str | None] = {}
        kept: set[Path] = set()
        for path in records:
            record = read_record(path)
            if record.command != self.command:
                raise ValueError(f"{self.folder}: the folder holds the output of `{record.command}`; choose another one")
            recorded |= record.files
            if resume:
                if record.source != self.source:
                    raise ValueError(
                        f"{self.folder}: the folder holds results of another checkpoint, or with other options; choose another "
                        f"one, or pass {how} to replace it"
                    )
                items = [item for item in record.items if item.error is None and item.name not in self.done]
                items = [
                    item for item in items if all((self.folder / name).is_file() for name, digest in item.files.items() if digest)
                ]
                self._closed += items
                self.done |= {item.name: item.made_from for item in items if item.name is not None}
                kept |= {self.folder / name for item in items for name in item.files}
                if self._keep_begun:
                    self.begun |= {name: digest for name, digest in record.begun.items() if digest is not None}
                    kept |= {self.folder / name for name in self.begun}
        files = list(_files(self.folder))
        others = [path for path in files if path not in records and path not in kept and not path.name.startswith(".")]
        if records and not overwrite and not resume:
            go_on = "--resume to go on with it, or " if self._keep_begun else ""
            raise ValueError(
                f"{self.folder}: the folder holds the output of an earlier run; choose another one, or pass {go_on}{how} to "
                "replace it"
            )
        for path in others:
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or name not in recorded or recorded[name] not in (None, digest_of(path)):
                raise ValueError(
                    f"{path}: the earlier run of `{self.command}` has not written this file, or it was changed since; move it "
                    "away first, or choose another output folder"
                )
        return [path for path in files if path in others or path in records or target_of_temporary(path.name)]


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder; links are not followed."""
    for path in list_everything(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path
