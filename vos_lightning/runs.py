"""The stable directory of a run, and the processes that work in it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from vos_lightning.experiments import ExperimentError
from vos_lightning.io.files import write_atomically

Stage = Literal["fit", "validate", "test", "predict"]
Which = Literal["best", "last"]


class Run:
    """The stable directory of a run: started again, it goes on where it was.

    ``experiment.yaml`` the composed configuration, ``config.yaml`` every argument, ``record.json`` what was done when, on what
    and at which commit, ``checkpoints/last.ckpt`` and ``checkpoints/best*.ckpt``, ``logs/`` CSV files (one folder a start),
    ``scores/``, ``wandb_id``, ``finished``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def last_checkpoint(self) -> Path | None:
        """Where to resume."""
        path = self.directory / "checkpoints" / "last.ckpt"
        return path if path.is_file() else None

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best validation J&F, else the last one."""
        best = sorted((self.directory / "checkpoints").glob("best*.ckpt"), key=lambda path: path.stat().st_mtime)
        if best:
            return best[-1]
        if self.last_checkpoint:
            return self.last_checkpoint
        raise ExperimentError(f"{self.directory} holds no checkpoint: train first, or pass --checkpoint FILE")

    def checkpoint(self, which: Which) -> Path:
        """The best or the last checkpoint."""
        return self.last_checkpoint or self.best_checkpoint if which == "last" else self.best_checkpoint

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        return (self.directory / "finished").is_file()

    def record(self) -> dict[str, Any]:
        """Content of ``record.json`` (see :mod:`vos_lightning.records`); empty if there is none, as in runs of older versions."""
        path = self.directory / "record.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace ``record.json``."""
        write_text(self.directory / "record.json", json.dumps(record, indent=2) + "\n")

    def wandb_id(self) -> str:
        """The id under which every start of this run logs; written before training, so that a killed run keeps it."""
        path = self.directory / "wandb_id"
        if not path.is_file():
            write_text(path, secrets.token_hex(4))
        return path.read_text().strip()

    def start_number(self) -> int:
        """How often this run was started before."""
        return len(list(self.directory.glob("logs/start_*")))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second training out of the directory; the lock falls with the process, however it ends.

        Raises:
            ExperimentError: another process trains here, as the child of a killed command may.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ExperimentError(
                    f"{self.directory} is being trained by {file.read().strip() or 'another process'}: "
                    "stop that first, or choose another --run-dir"
                ) from None
            except OSError:  # a file system without locks
                yield
                return
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    write_atomically(path, text.encode())


def run_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run ``python -m vos_lightning ARGUMENTS`` in a process of its own and return its exit code.

    What asks this process to stop (SIGTERM, SIGUSR1, Ctrl-C) reaches the child, which saves a checkpoint, and is waited for.
    """
    process = subprocess.Popen([sys.executable, "-m", "vos_lightning", *arguments], env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        names = [name for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), pass_on) for name in names}
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has interrupted it too
        raise
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
