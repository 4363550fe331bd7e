"""Locks that the operating system releases when a process ends: one at a time trains or writes in a folder."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def lock(descriptor: int) -> bool:
    """Lock an open file or folder against other processes that lock it.

    Returns:
        Whether it is locked now; not where the system or the file system has no such locks, as on Windows.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # the file system has no locks
        return False
    return True


class FolderLock:
    """Keeps other processes out of a folder that take the same lock.

    The folder itself is locked, so that no file of the lock can be left over. The operating system releases the lock when the
    process ends, however it ends. Where the system or the file system has no such locks, as on Windows, nothing is locked.

    Args:
        folder: the folder; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._process = os.getpid()

    def take(self) -> None:
        """Take the lock, if the folder exists and it is not taken yet.

        Raises:
            ValueError: another process has it.
        """
        if self._descriptor is not None or not self._folder.is_dir():
            return
        try:
            descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError:  # a folder that may not be read is named by what is done with it next
            return
        try:
            if lock(descriptor):
                self._descriptor = descriptor
        except BlockingIOError:
            raise ValueError(
                f"{self._folder}: another run is writing into this folder; wait until it has ended, or choose another folder"
            ) from None
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def release(self) -> None:
        """Give the lock back, also for processes that were forked meanwhile and share it, such as loaders of data."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if os.getpid() == self._process:
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def __del__(self) -> None:
        if self._descriptor is not None and not sys.is_finalizing():  # the end of the process gives it back
            self.release()
