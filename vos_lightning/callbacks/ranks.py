"""The processes of a training on several devices: when one of them has died, the others do not wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher, subprocess_script

from vos_lightning.callbacks.stopping import LOST_PROCESS, STOPPED

_GRACE = 30.0
"""Seconds that the other processes have to stop, when one of them has been stopped by a signal."""
_PERIOD = 0.5


def watch_ranks(trainer: Trainer) -> None:
    """Watch the processes that Lightning starts for the other devices, and in these, the process that has started them.

    Lightning's own watch kills the first process with SIGKILL as soon as another one ends with any code but 0, also with that of
    a stop that was asked for. Where ``torchrun`` or SLURM starts the processes, these watch them.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    subprocess_script._launch_process_observer = _watch_children
    if launcher.cluster_environment.creates_processes_externally and os.environ.get(_STARTED_BY) == str(os.getppid()):
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    os.environ[_STARTED_BY] = str(os.getpid())


_STARTED_BY = "VOS_STARTED_BY"
"""Name of the variable that tells a process for another device the id of the process that has started it."""


def pass_on(trainer: Trainer, number: int) -> None:
    """Send a signal to the processes that Lightning has started for the other devices."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(number)


def end_ranks(trainer: Trainer) -> None:
    """Wait for the processes that Lightning has started for other devices, and kill what waits for this one in an exchange."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        _end(launcher.procs, 10.0)


def lost_rank(error: BaseException, trainer: Trainer) -> bool:
    """Whether an error says that another process of a training has gone."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return trainer.world_size > 1 and (
        isinstance(error, torch.distributed.DistError)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def _end(processes: Sequence[subprocess.Popen[Any]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _watch_children(child_processes: list[subprocess.Popen[Any]]) -> None:
    threading.Thread(target=_wait_for_children, args=(child_processes,), daemon=True).start()


def _wait_for_children(processes: Sequence[subprocess.Popen[Any]]) -> None:
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        failed = next((code for code in codes if code), None)
        if failed is not None:
            break
        time.sleep(_PERIOD)
    # This process may notice by itself and end in an orderly way; it may also wait for the other one for ever.
    time.sleep(_GRACE if failed == STOPPED else 5.0)
    if failed < 0:
        name = signal.Signals(-failed).name
        sys.stderr.write(f"error: the process of another device was ended by {name}: start the same command again\n")
        sys.stderr.flush()
    for process in processes:
        process.kill()
    os._exit(LOST_PROCESS if failed < 0 else failed)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    os._exit(LOST_PROCESS)
