"""Stages: separate trainings that experiments share, and how the run of each stage is found.

A stage is identified by what it computes (:func:`vos_lightning.app.experiments.training_identity`): its configuration, the
options of the command line that change the result, seeds, and the stages before it. Its run lies beside the directory of the
experiment (``runs/emvos_coco`` beside ``runs/emvos_davis17``). The run has the plain name of the stage if ``train STAGE`` alone
would compute the same; otherwise the first 8 digits of its identity are appended. ``stages.json`` in the directory of the
experiment lists the runs of its stages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic reads it from `typing` from Python 3.12 on

from vos_lightning.app.composition import ExperimentError, with_overrides
from vos_lightning.app.experiments import Experiment, load_experiment, training_identity
from vos_lightning.app.runs import Run, after, find_run, starting_point, write_text
from vos_lightning.io.documents import read_document


class _Entry(TypedDict):
    experiment: str
    identity: str
    run: str


class _Listed(TypedDict):
    """Content of ``stages.json``."""

    stages: list[_Entry]


@dataclass(frozen=True)
class PlannedStage:
    """A stage and its run."""

    experiment: Experiment
    identity: str
    run: Run


def plan(experiment: Experiment, folder: Path, overrides: Sequence[str] = ()) -> list[PlannedStage]:
    """The stages of an experiment and their runs, whether they are trained already or not.

    Args:
        experiment: an experiment with stages.
        folder: folder of all runs.
        overrides: options of the command line, for all stages; ``--initial_weights`` applies to the first stage.

    Raises:
        ExperimentError: a stage is not a training, or its folder holds a run that does not record what it computes.
    """
    weights = with_overrides({}, overrides).get("initial_weights")
    start: Any = starting_point(Path(weights)) if weights else None
    planned = []
    for name in experiment.stages:
        stage = load_experiment(name)
        if stage.stages or stage.checkpoint_of or stage.fine_tunes:
            raise ExperimentError(f"{experiment.name} has the stage {name}, which is not a training with its own configuration")
        identity = training_identity(stage, overrides, start)
        planned.append(PlannedStage(stage, identity, _place(stage, identity, folder)))
        start = after(identity, experiment.hand_over)
    return planned


def _place(stage: Experiment, identity: str, folder: Path) -> Run:
    plain, own = Run(folder / stage.name), Run(folder / f"{stage.name}-{identity[:8]}")
    found = find_run(folder, identity, plain.directory)
    if found:
        return found
    if identity == training_identity(stage):
        if not plain.begun:
            return plain
        if plain.identity is None:
            raise ExperimentError(
                f"{plain.directory} is a run of an older version, which does not say what it computed: use its weights with "
                "--checkpoint or --initial_weights, or move it away to train the stage again"
            )
    if own.begun:
        raise ExperimentError(f"{own.directory} does not hold the stage any more that it is named after: move it away")
    return own


def claim(experiment: Experiment, directory: Path, planned: Sequence[PlannedStage]) -> None:
    """Write ``stages.json``.

    Raises:
        ExperimentError: the directory belongs to other stages, or was written by an older version.
    """
    _refuse_old_folder(experiment, directory)
    known = _listed(directory)
    if known and [entry["identity"] for entry in known] != [stage.identity for stage in planned]:
        raise ExperimentError(
            f"{directory} belongs to a training of {experiment.name} with other settings (see its stages.json): choose another "
            "--run-dir, or move it away"
        )
    entries = [
        {
            "experiment": stage.experiment.name,
            "identity": stage.identity,
            "run": Path(os.path.relpath(stage.run.directory, directory)).as_posix(),
        }
        for stage in planned
    ]
    content = {"experiment": experiment.name, "hand_over": experiment.hand_over, "stages": entries}
    write_text(directory / "stages.json", json.dumps(content, indent=2) + "\n")


def trained_run(experiment: Experiment, directory: Path) -> Run:
    """The run that holds the weights of an experiment: the run of its last stage, or of the experiment that it evaluates.

    Args:
        experiment: the experiment that is evaluated.
        directory: directory of its run; other runs are looked for beside it.

    Raises:
        ExperimentError: there is no such run.
    """
    evaluated = bool(experiment.checkpoint_of)
    while experiment.checkpoint_of:
        experiment = load_experiment(experiment.checkpoint_of)
        directory = directory.parent / experiment.name
    if experiment.stages:
        return _last_stage(experiment, directory)
    own = Run(directory)
    if experiment.fine_tunes or (own.begun and not evaluated):
        return own
    return find_run(directory.parent, training_identity(experiment), directory) or own


def _last_stage(experiment: Experiment, directory: Path) -> Run:
    listed = _listed(directory)
    if listed:
        last = listed[-1]
        run = Run(Path(os.path.normpath(directory / last["run"])))
        if run.identity != last["identity"]:
            found = find_run(directory.parent, last["identity"])
            if found is None:
                raise ExperimentError(
                    f"{run.directory} does not hold the training of {last['experiment']} that {directory / 'stages.json'} names: "
                    "train first, or pass --checkpoint FILE"
                )
            return found
        return run
    _refuse_old_folder(experiment, directory)
    return plan(experiment, directory.parent)[-1].run


def _listed(directory: Path) -> list[_Entry]:
    path = directory / "stages.json"
    if not path.is_file():
        return []
    return read_document(path, _Listed, "this is not a list of stages: move the file away")["stages"]


def _refuse_old_folder(experiment: Experiment, directory: Path) -> None:
    old = [directory / f"{number}_{stage}" for number, stage in enumerate(experiment.stages, start=1)]
    found = [place for place in old if place.is_dir()]
    if found:
        raise ExperimentError(
            f"{directory} holds stages as an older version laid them out ({', '.join(place.name for place in found)}): evaluate "
            f"them with --checkpoint {found[-1]}/checkpoints/last.ckpt, or choose another --run-dir to train again"
        )
