"""Freed memory is kept for the next tensors."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, torch
from vos_lightning.app.allocation import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12 * 2**20)
before = pages()
for _ in range(10):
    torch.ones(12 * 2**20)
print(pages() - before)
"""
"""The pages that the system had to map for ten blocks of 48 MiB, one after the other."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_are_mapped_once():
    mapped = {
        keep: int(subprocess.run([sys.executable, "-c", PAGES.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    }
    # A page has 4 KiB to 2 MiB, so the ten blocks have at least 240.
    assert mapped[False] >= 240
    assert mapped[True] < mapped[False] / 20, mapped
