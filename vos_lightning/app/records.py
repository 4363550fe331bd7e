"""What a run did: data, seed, steps, hardware, date and commit, so that every number can be traced to its origin."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vos_lightning.app.composition import with_overrides
from vos_lightning.app.devices import device_name
from vos_lightning.app.experiments import Experiment, digest, training_identity, without_neutral
from vos_lightning.app.runs import Run, provenance, starting_point

_NOT_DATA = ("recipe", "loading")
_PACKAGES = (
    "vos-lightning", "torch", "torchvision", "lightning", "torchmetrics", "numpy", "opencv-python-headless", "albumentations",
    "av", "wandb",
)  # fmt: skip


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> dict[str, Any] | None:
    """Commit of this library's checkout and whether files differ from it; None outside a checkout."""
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a virtual environment may lie inside another repository
        return {"id": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no", ":/"))}
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Versions of Python, of this library and of the packages on which its numbers depend."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware(trainer: Any) -> str:
    """Devices, their number over all nodes, and the precision."""
    device = trainer.strategy.root_device
    count = torch.get_num_threads()
    threads = f", {count} {'thread' if count == 1 else 'threads'}" if device.type == "cpu" else ""
    precision = str(trainer.precision)
    return f"{trainer.world_size} x {device_name(device)}{threads}" + ("" if precision == "32-true" else f", {precision}")


def describe_data(section: Mapping[str, Any]) -> str:
    """The ``data`` section in one line: classes and where their files lie, without clip recipes and loaders."""
    arguments = section.get("init_args") or {}
    members = [describe_data(member) for member in arguments.get("train") or []]
    name = str(section.get("class_path", "")).rpartition(".")[2]
    if members:
        repeats = arguments.get("repeats") or [1] * len(members)
        return " + ".join(f"{count} x {member}" if count != 1 else member for count, member in zip(repeats, members, strict=True))
    plain = {key: value for key, value in arguments.items() if key not in _NOT_DATA and isinstance(value, (str, int, float))}
    return name + "".join(f" {key}={value}" for key, value in plain.items())


def departures(overrides: Sequence[str]) -> list[str]:
    """Dotted options of the command line that change what an experiment computes."""
    return _dotted(without_neutral(with_overrides({}, overrides)))


def _dotted(options: Mapping[str, Any], where: str = "") -> list[str]:
    found: list[str] = []
    for key, value in options.items():
        here = f"{where}.{key}" if where else str(key)
        found += _dotted(value, here) if isinstance(value, Mapping) else [here]
    return found


def started(run: Run, experiment: Experiment, overrides: Sequence[str], cli: Any, from_step: int) -> dict[str, Any]:
    """Write ``record.json`` when a training starts or continues, and return its content."""
    record = run.record()
    start_of_weights, identity = _identity(record, experiment, overrides, cli.config.get("initial_weights"), from_step)
    config = with_overrides(experiment.config, overrides)
    loading = getattr(cli.datamodule, "loading", None)
    parts = getattr(cli.datamodule, "training_parts", [])
    initial = cli.config.get("initial_weights")
    start = {
        "date": now(),
        "from_step": from_step,
        "commit": commit(),
        "hardware": hardware(cli.trainer),
        "processes": cli.trainer.world_size,
        "nodes": cli.trainer.num_nodes,
        "packages": packages(),
        "departures": departures(overrides),
    }
    written = {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint,
        "identity": identity,
        "start": start_of_weights,
        "seed": [
            cli.config.get("seed_everything"),
            cli.datamodule.loading.seed if hasattr(cli.datamodule, "loading") else None,
        ],
        "data": describe_data(config.get("data") or {}),
        "train_items": [len(source) for source, _ in parts],
        "batch_size": loading.batch_size if loading else None,
        "max_steps": cli.trainer.max_steps,
        "initial": record.get("initial") if from_step else provenance(Path(initial)) if initial else None,
        "starts": [*record.get("starts", []), start],
        "steps": from_step,
        "finished": None,
    }
    run.write_record(written)
    return written


def configuration(record: Mapping[str, Any], experiment: Experiment, overrides: Sequence[str], arguments: str) -> dict[str, Any]:
    """What the loggers of a training are told about it: the record of this start, and every argument.

    Args:
        record: content of ``record.json``, see :func:`started`.
        experiment: the experiment.
        overrides: options of the command line.
        arguments: content of ``config.yaml``.

    Returns:
        The content of ``record.json``, with ``start`` in place of the list of all starts and ``starting_point`` for its weights;
        ``overrides``, the options of the command line; and the sections of ``config.yaml`` under ``config``.
    """
    described = {key: value for key, value in record.items() if key != "starts"}
    starts = record["starts"]
    described |= {"starting_point": record["start"], "start": starts[-1], "number_of_starts": len(starts)}
    config = yaml.safe_load(arguments)
    return {**described, "description": experiment.description, "overrides": list(overrides), "config": config}


def _identity(
    record: Mapping[str, Any], experiment: Experiment, overrides: Sequence[str], initial: str | None, from_step: int
) -> tuple[Any, str | None]:
    """What a training starts from and what it computes; None where a run of an older version did not record it."""
    if not from_step:
        start = starting_point(Path(initial)) if initial else None
        return start, training_identity(experiment, overrides, start)
    start, before = record.get("start"), record.get("identity")
    current = training_identity(experiment, overrides, start)
    if before is None or before == current:
        return start, before
    return start, digest([before, current])  # it continued with other settings, so its identity is unique


def ended(run: Run, steps: int, finished: bool) -> None:
    """Record how far the training got."""
    run.write_record({**run.record(), "steps": steps, "finished": now() if finished else None})


def evaluated(experiment: Experiment, overrides: Sequence[str], trainer: Any, checkpoint: Path) -> dict[str, Any]:
    """What is stored with scores beside the scores themselves."""
    data = with_overrides(experiment.config, overrides).get("data") or {}
    return {
        "date": now(),
        "commit": commit(),
        "hardware": hardware(trainer),
        "data": describe_data((data.get("init_args") or {}).get("evaluation") or data),
        "departures": departures(overrides),
        "trained": provenance(checkpoint),
    }
