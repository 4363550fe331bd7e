"""The stable directory of a run, and the lock that keeps a second training out of it."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Literal,
    Required,  # pydantic reads these from `typing` from Python 3.12 on
)

import yaml
from typing_extensions import TypedDict

from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import Which
from vos_lightning.callbacks.stopping import STOPPED, StopRequest
from vos_lightning.checkpoints.files import BEFORE_LAST, LAST, is_whole
from vos_lightning.io.documents import read_document
from vos_lightning.io.files import move_away, sha256_of, write_atomically
from vos_lightning.io.folder_lock import lock

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
    when, on which hardware and at which commit; ``checkpoints/last.ckpt``, the one before it, ``checkpoints/before_last.ckpt``,
    and ``checkpoints/best*.ckpt``; ``logs/``, CSV files with one folder a start; ``scores/``; ``wandb_id``;
    ``non_finite.json``, if a step was left out; and ``finished``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def last_checkpoint(self) -> Path | None:
        """The last checkpoint; None if there is none."""
        path = self.directory / "checkpoints" / LAST
        return path if path.is_file() else None

    @property
    def resumed_checkpoint(self) -> Path | None:
        """The checkpoint from which to go on: the last one, or the one before if that is damaged; None for a new training.

        Raises:
            ExperimentError: all are damaged, or the run had checkpoints which are not there any more.
        """
        places = [self.directory / "checkpoints" / name for name in (LAST, BEFORE_LAST)]
        there = [path for path in places if path.is_file()]
        whole = next((path for path in there if is_whole(path)), None)
        if whole is None and (there or self._has_saved()):
            what = "damaged" if there else "missing"
            raise ExperimentError(
                f"{(there or places)[0]} is {what}, and there is no whole checkpoint before it: put back a copy of it, or move "
                f"{self.directory} away to train again from the first step"
            )
        return whole

    def _has_saved(self) -> bool:
        """Whether there was a checkpoint: others are left, a start went on from one, or steps are logged that come after one."""
        record, config = self.record(), self.directory / "config.yaml"
        if any(self.directory.glob("checkpoints/[!.]*")) or any(start["from_step"] for start in record.get("starts", [])):
            return True
        options = yaml.safe_load(config.read_text()) if config.is_file() else {}
        interval = (options.get("last_checkpoint") or {}).get("every_n_train_steps") or math.inf
        return any(
            step + 1 > interval for path in self.directory.glob("logs/start_*/metrics.csv") for step in _logged_steps(path)
        )

    def set_damaged_aside(self) -> str | None:
        """Rename a damaged last checkpoint, so that it does not take the place of the one before; the message that says so."""
        last = self.last_checkpoint
        if last is None or is_whole(last):
            return None
        aside = last.with_name(f"{last.name}.damaged")
        move_away(last, aside)
        return f"{last} is damaged (now {aside.name}): the training goes on from the checkpoint before it"

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
        return dict(read_document(path, Record, mend)) if path.is_file() else {}

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
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as file:
            try:
                locked = lock(file.fileno())
            except BlockingIOError:
                file.seek(0)
                raise ExperimentError(
                    f"{self.directory} is being trained by {file.read().strip() or 'another process'}: start this again when "
                    "that has finished, or choose another --run-dir"
                ) from None
            if locked:
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


def _logged_steps(path: Path) -> list[int]:
    with path.open(newline="", errors="replace") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]


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


def run_command(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, request: StopRequest | None = None
) -> int:
    """Run ``python -m vos_lightning ARGUMENTS`` in a separate process and return its exit code.

    Args:
        arguments: the command and its options.
        environment: variables of the process; None for those of this one.
        request: signals that ask this process to stop. They are passed on to the child, which saves a checkpoint, and this
            process waits for it. A second Ctrl-C ends both at once.

    Returns:
        The exit code, 128 + n for a process that the signal n has ended, as a shell says it; ``STOPPED`` where that was the
        signal that was passed on.

    Raises:
        Stopped: a signal came before the child was started.
    """
    request = request or StopRequest()
    with request.deferred():
        process = subprocess.Popen([sys.executable, "-m", "vos_lightning", *arguments], env=environment)
        with request.passed_on(process.send_signal):
            code = process.wait()
    if code < 0:
        return STOPPED if request.number == -code else 128 - code
    return code
