"""The stable directory of a run, and the lock that keeps a second training out of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import (
    Any,
    Literal,
    Required,  # pydantic reads these from `typing` from Python 3.12 on
)

from typing_extensions import TypedDict

from vos_lightning.app.experiments import ExperimentError, Which
from vos_lightning.io.documents import read_json
from vos_lightning.io.files import sha256_of, write_atomically

Stage = Literal["fit", "validate", "test", "predict"]


class Commit(TypedDict, total=False):
    """A commit of the library."""

    id: Required[str]
    changed: bool


class Start(TypedDict, total=False):
    """A start of a training."""

    date: str
    from_step: int
    commit: Commit | None
    hardware: str
    torch: str
    departures: list[str]


class Record(TypedDict, total=False):
    """What is read of a ``record.json``; older versions wrote fewer keys."""

    experiment: str
    fingerprint: str
    identity: str | None
    seed: Any
    data: str
    train_items: list[int] | None
    max_steps: int
    initial: Trained | None
    starts: list[Start]
    steps: int
    finished: str | None


class Trained(TypedDict, total=False):
    """A checkpoint, see :func:`provenance`."""

    checkpoint: Required[str]
    weights: Literal["last", "best"] | None
    step: Required[int]
    run: Record | None


class Run:
    """The stable directory of a run. If the run is started again, it continues where it stopped.

    It holds ``experiment.yaml``, the composed configuration; ``config.yaml``, every argument; ``record.json``, what was done
    when, on which hardware and at which commit; ``checkpoints/last.ckpt`` and ``checkpoints/best*.ckpt``; ``logs/``, CSV files
    with one folder a start; ``scores/``; ``wandb_id``; and ``finished``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint from which to resume; None if there is none."""
        path = self.directory / "checkpoints" / "last.ckpt"
        return path if path.is_file() else None

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best validation J&F."""
        best = (self.directory / "checkpoints").glob("best*.ckpt")
        found = max(best, key=lambda path: (_score_in_name(path), path.stat().st_mtime), default=None)
        if found:
            return found
        if self.last_checkpoint:
            raise ExperimentError(
                f"{self.directory} keeps no best checkpoint (it was not validated, or best_checkpoint.save_top_k is 0): take its "
                "last with --select=last"
            )
        raise ExperimentError(f"{self.directory} holds no checkpoint: train first, or pass --checkpoint FILE")

    def checkpoint(self, which: Which = "last") -> Path:
        """The last or the best checkpoint.

        Raises:
            ExperimentError: there is no checkpoint.
        """
        return (self.last_checkpoint if which == "last" else None) or self.best_checkpoint

    @property
    def identity(self) -> str | None:
        """What the training computes (:func:`vos_lightning.app.experiments.training_identity`); None if it is not recorded."""
        identity: str | None = self.record().get("identity")
        return identity

    @property
    def begun(self) -> bool:
        """Whether something was trained here."""
        return (self.directory / "record.json").is_file() or (self.directory / "checkpoints").is_dir()

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        return (self.directory / "finished").is_file()

    def record(self) -> dict[str, Any]:
        """Content of ``record.json``, see :mod:`vos_lightning.app.records`; empty where there is none, as in older runs."""
        path = self.directory / "record.json"
        mend = "this is not the record of a run: restore the file, or move the run away"
        return dict(read_json(path, Record, mend)) if path.is_file() else {}

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace ``record.json``."""
        write_text(self.directory / "record.json", json.dumps(record, indent=2) + "\n")

    def wandb_id(self) -> str:
        """The id under which every start of this run logs; it is written before training, so that a killed run keeps it."""
        path = self.directory / "wandb_id"
        if not path.is_file():
            write_text(path, secrets.token_hex(4))
        return path.read_text().strip()

    def start_number(self) -> int:
        """How often this run was started before."""
        return len(list(self.directory.glob("logs/start_*")))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second training out of the directory; the operating system releases the lock when the process ends.

        Raises:
            ExperimentError: another process trains here; the child of a killed command may still run.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ExperimentError(
                    f"{self.directory} is being trained by {file.read().strip() or 'another process'}: start this again when "
                    "that has finished, or choose another --run-dir"
                ) from None
            except OSError:  # the file system has no locks
                yield
                return
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def weights_kind(checkpoint: str | Path) -> Which | None:
    """Whether a checkpoint of a run is its last or its best one, judged by the file name; None for any other file."""
    name = Path(checkpoint).name
    return "last" if name == "last.ckpt" else "best" if name.startswith("best") else None


def starting_point(checkpoint: Path) -> Any:
    """The starting point that a checkpoint is for a training, see :func:`vos_lightning.app.experiments.training_identity`.

    Returns:
        The identity of the finished run if the checkpoint is its last or best one, else a digest of its content.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: there is no such checkpoint")
    place = checkpoint.resolve()
    run, kind = Run(place.parent.parent), weights_kind(place)
    if place.parent.name == "checkpoints" and kind and run.finished and run.identity and run.checkpoint(kind).resolve() == place:
        return after(run.identity, kind)
    return {"sha256": sha256_of(place)}


def after(identity: str, which: Which) -> dict[str, str]:
    """The weights of a finished run, described as a starting point."""
    return {"run": identity, "weights": which}


def find_run(folder: Path, identity: str, first: Path | None = None) -> Run | None:
    """The run in a folder that computes something; ``first`` is preferred, then finished runs."""
    places = sorted((path.parent for path in folder.glob("*/record.json")), key=lambda place: (place != first, place.name))
    found = [run for run in map(Run, places) if run.identity == identity]
    return next((run for run in found if run.finished), found[0] if found else None)


def _score_in_name(path: Path) -> float:
    found = re.search(r"jf=(\d\.\d+)", path.name)
    return float(found[1]) if found else -1.0


def provenance(checkpoint: Path) -> dict[str, Any]:
    """What is known of a checkpoint: its file, whether it is the last or best of its run, its step, and the run's record."""
    from vos_lightning.checkpoints.loading import checkpoint_step

    known: dict[str, Any] = {
        "checkpoint": os.fspath(checkpoint),
        "weights": weights_kind(checkpoint),
        "step": checkpoint_step(checkpoint),
    }
    record = Run(checkpoint.resolve().parent.parent).record() if checkpoint.resolve().parent.name == "checkpoints" else {}
    return {**known, "run": record or None}


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    write_atomically(path, text.encode())


def run_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run ``python -m vos_lightning ARGUMENTS`` in a separate process and return its exit code.

    Signals that ask this process to stop (SIGTERM, SIGUSR1, Ctrl-C) are passed on to the child, which saves a checkpoint; this
    process waits for it.
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
        process.wait()  # the terminal has interrupted the child too
        raise
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
