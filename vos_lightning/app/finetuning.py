"""Fine-tuning of any system from any checkpoint on the user's own videos, with the scores before and after."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict  # pydantic reads it from `typing` from Python 3.12 on

from vos_lightning.app.composition import ExperimentError, merge
from vos_lightning.app.devices import launched_processes
from vos_lightning.app.experiments import Experiment, experiment_files
from vos_lightning.app.runs import Run, run_command, write_text
from vos_lightning.callbacks.stopping import StopRequest
from vos_lightning.io.documents import read_document


class _Row(TypedDict):
    video: str
    J: float
    F: float


class _Scored(TypedDict):
    """What is read of a ``test.json`` to compare it."""

    protocol: str
    checkpoint: str
    rows: list[_Row]
    baseline_rows: dict[str, list[_Row]]


def with_model_of(checkpoint: str | Path, experiment: Experiment) -> Experiment:
    """A fine-tuning experiment with the system of a checkpoint; the experiment's own model arguments override it.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file does not describe its system.
    """
    from vos_lightning.checkpoints.loading import describe_model

    model = describe_model(checkpoint)
    own = (experiment.config.get("model") or {}).get("init_args") or {}
    section = {"class_path": model["class_path"], "init_args": merge(model["init_args"], own, experiment.path, "model.init_args")}
    return dataclasses.replace(experiment, config={**experiment.config, "model": section})


def fine_tune(
    experiment: Experiment,
    run: Run,
    checkpoint: Path | None,
    overrides: Sequence[str],
    train: Callable[[Experiment, Run, Sequence[str], StopRequest], int],
    request: StopRequest,
) -> int:
    """Score a checkpoint on the held-out videos, train from it, score again; print and write the comparison.

    If it is started again, it continues where it stopped; finished steps are not repeated.

    Args:
        experiment: an experiment without a model class.
        run: receives ``before/scores/test.json``, the training, ``scores/test.json`` and ``comparison.json``.
        checkpoint: checkpoint to start from; None for the one that the run was started from.
        overrides: options of the command line.
        train: function that runs a training in this process.
        request: signals that ask to stop.

    Returns:
        The exit code of the step that failed, or 0.
    """
    source = run.directory / "started_from"
    known = Path(source.read_text().strip()) if source.is_file() else None
    checkpoint = checkpoint or known
    if checkpoint is None:
        raise ExperimentError(f"{experiment.name} fine-tunes: name what it starts from with --checkpoint FILE")
    if known and known.resolve() != checkpoint.resolve():
        raise ExperimentError(f"{run.directory} was started from {known}: choose another --run-dir")
    if run.directory.resolve() in checkpoint.resolve().parents:
        raise ExperimentError(f"{checkpoint} lies in {run.directory}, which the training writes into: choose another --run-dir")
    complete = with_model_of(checkpoint, experiment)  # an unusable checkpoint is reported before anything is written
    write_text(source, f"{checkpoint}\n")
    environment = dict(os.environ)  # a training on several devices changes it
    name = experiment.name if experiment.name in experiment_files() else str(experiment.path)
    before = Run(run.directory / "before")

    def test(scored: Run, weights: Path, *options: str) -> int:
        if _scores(scored).is_file():
            return 0
        command = ["test", name, "--run-dir", str(scored.directory), "--checkpoint", str(weights), *options, *overrides]
        return run_command(command, environment, request)

    code = test(before, checkpoint, "--baselines")
    code = code or train(complete, run, [f"--initial_weights={checkpoint}", *overrides], request)
    # Processes that a cluster has started all take part in every step; those that the training has started beside it do not.
    if code or not (_first_process() or launched_processes()):
        return code
    code = test(run, run.directory / "checkpoints" / "last.ckpt")
    if code or not _first_process():
        return code
    comparison = compare(before, run)
    write_text(run.directory / "comparison.json", json.dumps(comparison, indent=2) + "\n")
    Console().print(comparison_table(comparison))
    return 0


def _first_process() -> bool:
    """Whether this is the process that was started first, and not one that the training started beside it."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def compare(before: Run, after: Run) -> dict[str, Any]:
    """J&F of every held-out video and of all objects: with the first mask copied, before and after the training."""
    mend = "remove the file, and the same command scores again"
    old, new = (read_document(_scores(run), _Scored, mend) for run in (before, after))
    if "copy" not in old["baseline_rows"]:
        raise ExperimentError(f"{_scores(before)}: baseline_rows.copy is missing; {mend}")
    columns = {"copy": old["baseline_rows"]["copy"], "before": old["rows"], "after": new["rows"]}
    videos = list(dict.fromkeys(row["video"] for row in old["rows"]))
    return {
        "protocol": new["protocol"],
        "checkpoints": {"before": old["checkpoint"], "after": new["checkpoint"]},
        "videos": {
            video: {name: _mean(row for row in rows if row["video"] == video) for name, rows in columns.items()}
            for video in videos
        },
        "all": {name: _mean(rows) for name, rows in columns.items()},
    }


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The comparison for the terminal, J&F in percent."""
    table = Table(caption=comparison["protocol"])
    table.add_column("held-out video", no_wrap=True)
    for name in ("J&F copy", "J&F before", "J&F after", "gain"):
        table.add_column(name, justify="right")
    for video, scores in [*comparison["videos"].items(), ("mean over objects", comparison["all"])]:
        if video == "mean over objects":
            table.add_section()
        values = [100 * scores[name] for name in ("copy", "before", "after")]
        table.add_row(video, *(f"{value:.1f}" for value in values), f"{values[2] - values[1]:+.1f}")
    return table


def _scores(run: Run) -> Path:
    return run.directory / "scores" / "test.json"


def _mean(rows: Iterable[_Row]) -> float:
    values = [(row["J"] + row["F"]) / 2 for row in rows]
    return sum(values) / len(values) if values else math.nan
