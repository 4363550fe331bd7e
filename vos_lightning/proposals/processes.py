"""Proposals of many videos, computed by several processes of one machine."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from vos_lightning.proposals.detector import ProposalDetector
from vos_lightning.proposals.precomputing import Computed, precompute

_OWN: list[Callable[[], ProposalDetector]] = []
"""The detector of this process, which is made when it is first called."""


def precompute_in_processes(
    make: Callable[[], ProposalDetector],
    videos: Sequence[tuple[str, Path]],
    output: Path,
    devices: Sequence[torch.device],
    batch_size: int = 4,
) -> Iterator[Computed]:
    """The same as :func:`vos_lightning.proposals.precomputing.precompute`, with a process for each device.

    Every video is computed by one of the processes. The files are those of one process, byte by byte, where all devices are of
    one kind and CPUs use equally many threads.

    Args:
        make: makes the detector, in every process; it has to be possible to pickle it.
        videos: pairs of name and path.
        output: output folder.
        devices: device of every process; a device may be named several times.
        batch_size: number of frames that a detector processes together.

    Yields:
        What was done for every video, in order.

    Raises:
        ValueError: a file exists but was made with other settings, or a frame cannot be read.
        concurrent.futures.process.BrokenProcessPool: a process has died.
    """
    context = multiprocessing.get_context("spawn")  # an accelerator cannot be used in a process that is forked
    free = context.Queue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(len(devices), context, _start, (make, free)) as pool:
        computed = [pool.submit(_precompute_one, video, output, batch_size) for video in videos]
        try:
            yield from (one.result() for one in computed)
        except BaseException:  # also Ctrl-C: nobody waits for what the others have begun
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start(make: Callable[[], ProposalDetector], free: Queue[torch.device]) -> None:
    """Begin a process. Its parent alone hears Ctrl-C, and it ends with its parent, whatever ends that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The detector is made with the first video, so that its error reaches the parent as that of a video does.
    _OWN.append(functools.cache(lambda: make().to(free.get())))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _precompute_one(video: tuple[str, Path], output: Path, batch_size: int) -> Computed:
    return next(precompute(_OWN[0](), [video], output, batch_size))
