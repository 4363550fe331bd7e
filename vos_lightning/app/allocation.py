"""Memory that the process frees and soon needs again."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of the settings in the C library's ``malloc.h``."""
LARGEST = 2**30
"""Blocks up to this number of bytes are kept; the largest tensors of a frame are far below."""


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones, instead of giving it back to the system.

    A network on a CPU frees and allocates the same large blocks in every frame and every training step. glibc gives each block
    above 32 MiB back at once, and the system then has to clear and map every page of the next one: more than a quarter of the
    time of a small network. Where memory peaks, it stays with the process until the end.

    Returns:
        False if the C library is not glibc; nothing is changed then.

    Reference: ``mallopt(3)``; PyTorch's performance tuning guide says the same of other allocators.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_THRESHOLD, LARGEST)) and bool(libc.mallopt(TRIM_THRESHOLD, 2**31 - 1))
