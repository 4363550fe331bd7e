"""Reading scores, and deciding which published row they count for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Required,  # pydantic reads these from `typing` from Python 3.12 on
)

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import Experiment, Which, load_experiment, parts_of, selection
from vos_lightning.app.results.rows import Row, Score
from vos_lightning.app.runs import Commit, Trained, provenance, weights_kind
from vos_lightning.io.documents import read_document

EVALUATIONS: dict[str, tuple[str, int, int]] = {
    "DAVIS 2016 val": ("DAVIS 2016", 20, 20),
    "DAVIS 2017 val": ("DAVIS 2017 semi-supervised", 30, 61),
}
"""Published data set -> protocol, videos and objects of its whole evaluation. Any other data set is scored by a server."""


class _Evaluated(TypedDict, total=False):
    date: str
    commit: Commit | None
    hardware: str
    data: str
    departures: list[str]
    trained: Trained


class _Test(TypedDict, total=False):
    """What is read of a ``test.json``."""

    experiment: Required[str]
    protocol: Required[str]
    summary: Required[dict[str, float]]
    fingerprint: str
    evaluation: _Evaluated | None


class _Server(TypedDict):
    """Content of a ``server.json``."""

    experiment: str
    dataset: str
    date: str
    metrics: dict[str, FiniteFloat]
    checkpoint: str


# Reading --------------------------------------------------------------------------------------------------------------


def read_scores(folder: Path) -> Iterator[Score]:
    """Every ``scores/test.json`` and ``scores/server.json`` below a folder.

    Raises:
        ValueError: a file is not JSON, or lacks a required key; the message names both.
    """
    for path in sorted(folder.rglob("scores/*.json")):
        if path.name not in ("test.json", "server.json") or path.parent.parent.name == "before":
            continue
        yield _server_score(path) if path.name == "server.json" else _test_score(path)


def _test_score(path: Path) -> Score:
    content = read_document(path, _Test, "this is not a file of scores: score the run again, or remove the file")
    return Score(
        path=path,
        experiment=content["experiment"],
        metrics={name: 100 * value for name, value in content["summary"].items()},
        evaluation=content.get("evaluation") or {},
        fingerprint=content.get("fingerprint", ""),
        description=content["protocol"],
    )


def _server_score(path: Path) -> Score:
    content = read_document(path, _Server, "this is not a file of a server's scores: experiments/README.md says what it holds")
    try:
        experiment, trained = load_experiment(content["experiment"]), provenance(Path(content["checkpoint"]))
    except (ValueError, OSError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    return Score(
        path=path,
        experiment=experiment.name,
        metrics={name: float(value) for name, value in content["metrics"].items()},
        evaluation={
            "date": content["date"],
            "data": content["dataset"],
            "departures": [],
            "trained": trained,
        },
        fingerprint=experiment.fingerprint,
        description=content["dataset"],
        server=True,
    )


def covered(description: str) -> tuple[str, int, int] | None:
    """Protocol, videos and objects that the description of an evaluation names."""
    found = re.fullmatch(r"(.*): .* (\d+) objects? in (\d+) videos?", description)
    return (found[1], int(found[3]), int(found[2])) if found else None


# Judging --------------------------------------------------------------------------------------------------------------


def why_not_ours(score: Score, experiment: Experiment) -> str | None:
    """Why a score does not count for the published row of its experiment; None if it does."""
    published = experiment.published
    dataset = str(published.get("dataset", ""))
    if score.server:
        if score.description != dataset:
            return f"scored on {score.description}, not on {dataset}"
    else:
        if dataset not in EVALUATIONS:
            return f"{dataset} is scored by its server; measured here on other data: {score.description}"
        _, videos, objects = EVALUATIONS[dataset]
        if covered(score.description) != EVALUATIONS[dataset]:
            return f"measured on other data: {score.description} (published: {videos} videos, {objects} objects)"
    if score.evaluation.get("departures"):
        return f"evaluated with {', '.join(score.evaluation['departures'])} changed"
    if score.fingerprint != experiment.fingerprint:
        return "the experiment has changed since"
    reason = _why_not_its_training(score.trainings, experiment)
    if not reason and not _is(selection(experiment), score.evaluation["trained"]):
        reason = f"evaluates other weights than the {selection(experiment)} of its training: {score.weights}"
    if reason:
        return reason
    return f"departs from the paper: {published['departs']}" if published.get("departs") else None


def _why_not_its_training(trainings: Sequence[Mapping[str, Any]], experiment: Experiment) -> str | None:
    while experiment.checkpoint_of:
        experiment = load_experiment(experiment.checkpoint_of)
    expected = parts_of(experiment)[::-1]
    if not trainings:
        return "no record of the training of its checkpoint (imported weights, or a run of an older version)"
    # Trainings under different names are the same if they compute the same.
    known = [training.get("fingerprint") == one.fingerprint for training, one in zip(trainings, expected, strict=False)]
    names = [
        one.name if same else training.get("experiment") for training, one, same in zip(trainings, expected, known, strict=False)
    ]
    names += [training.get("experiment") for training in trainings[len(names) :]]
    if names != [one.name for one in expected]:
        return f"its checkpoint was trained by {' after '.join(map(str, names))}, not {' after '.join(e.name for e in expected)}"
    for training, one in zip(trainings, expected, strict=True):
        if not training.get("finished"):
            return f"its training of {one.name} is not finished (step {training.get('steps')} of {training.get('max_steps')})"
        changed = sorted({option for start in training.get("starts", []) for option in start.get("departures", [])})
        if changed:
            return f"{one.name} was trained with {', '.join(changed)} changed"
        if training.get("fingerprint") != one.fingerprint:
            return f"{one.name} has changed since its training"
        handed = training.get("initial")
        if handed and not _is(experiment.hand_over, handed):
            return f"{one.name} started from other weights than the {experiment.hand_over} of the stage before"
    return None


def _is(which: Which, trained: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the last or the best of its finished run; a copy of the last one is recognised by its step."""
    kind = weights_kind(trained["checkpoint"])
    return kind == which or (kind is None and which == "last" and trained["step"] == trained["run"].get("steps"))


def collect(rows: Sequence[Row], scores: Sequence[Score]) -> list[tuple[Score, str]]:
    """Assign every score to its row, or return it with the reason why it counts for none.

    If several scores have the same seeds, the latest one counts.
    """
    by_name = {row.experiment.name: row for row in rows}
    rest: list[tuple[Score, str]] = []
    for score in sorted(scores, key=lambda one: str(one.evaluation.get("date", ""))):
        row = by_name.get(score.experiment)
        if row is None:
            rest.append((score, "no published row"))
            continue
        reason = why_not_ours(score, row.experiment)
        if reason:
            row.others.append((score, reason))
            rest.append((score, reason))
            continue
        row.ours = [one for one in row.ours if one.seed != score.seed] + [score]
    return rest
