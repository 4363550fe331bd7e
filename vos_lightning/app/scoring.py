"""The commands ``validate``, ``test`` and ``predict EXP``: an experiment's videos, segmented with its checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vos_lightning.app.composition import ExperimentError, value_at, with_overrides
from vos_lightning.app.experiments import Experiment, digest, load_experiment, selection, without_neutral
from vos_lightning.app.runs import Run, Stage, Which
from vos_lightning.app.stages import trained_run
from vos_lightning.app.training import build
from vos_lightning.io.files import sha256_of

INCOMPLETE = 3
"""Exit code of a prediction that has passed over videos."""


def main(stage: Stage, argv: Sequence[str]) -> int:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(
        prog=f"vos {stage}",
        description={
            "validate": "Score the validation videos of an experiment with a checkpoint.",
            "test": "Score the test videos of an experiment with a checkpoint; writes PNGs, overlay videos and a contact sheet.",
            "predict": "Segment the prediction videos of an experiment; writes PNGs, overlay videos and a contact sheet.",
        }[stage],
        epilog="Every other option overrides the experiment, as in `train`.",
    )
    parser.add_argument("experiment", metavar="EXP", help="name from `list`, or a YAML file")
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    add_weight_options(parser)
    if stage == "test":
        parser.add_argument("--baselines", action="store_true", help="also score copying and flow-warping the first mask")
    known, overrides = parser.parse_known_args(argv)
    trained = load_trained(known, overrides, stage)
    cli = trained.cli
    if stage == "predict":
        return _predict(trained, overrides)
    getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule, verbose=False)
    _report(trained, stage, baselines=getattr(known, "baselines", False))
    return 0


def _predict(trained: Trained, overrides: Sequence[str]) -> int:
    """Segment the videos; name those that cannot be, and return :data:`INCOMPLETE` if there are any."""
    from vos_lightning.callbacks.predictions import PredictionWriter

    cli = trained.cli
    writer = next(callback for callback in cli.trainer.callbacks if isinstance(callback, PredictionWriter))
    options = with_overrides({}, overrides)
    root = value_at(options, "data.init_args.loading.predict_root")
    weights = sha256_of(Path(trained.context["trained"]["checkpoint"]))
    writer.source = digest([trained.asked.fingerprint, weights, without_neutral(options), root])
    cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    if not writer.missing:  # which only the first process knows; the code of another one would end it early
        return 0
    for name, reason in writer.missing.items():
        sys.stderr.write(f"missing: {name}: {reason}\n")
    total = len(cli.datamodule.videos("predict"))
    sys.stderr.write(
        f"error: {len(writer.missing)} of {total} videos are missing; all others are written. Mend them and start the command "
        "again with --predictions.resume=true\n"
    )
    return INCOMPLETE


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint`` and ``--select``: which weights of a run."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, help="default: the run's checkpoint, see --select")
    weights.add_argument(
        "--select",
        choices=("last", "best"),
        help="the run's last weights, or those with the best validation score (an optimistic choice where the same videos are "
        "scored); default: what the experiment says, else last",
    )


@dataclass(frozen=True)
class Trained:
    """An experiment with the weights of a checkpoint."""

    cli: Any
    run: Run
    asked: Experiment
    context: dict[str, Any]


def load_trained(known: argparse.Namespace, overrides: Sequence[str], stage: Stage) -> Trained:
    """Build an experiment and load its checkpoint: the one that is named, else the last or best one of its run."""
    asked = experiment = load_experiment(known.experiment)
    run = Run(known.run_dir or Path("runs") / experiment.name)
    checkpoint = known.checkpoint or _checkpoint_of(experiment, run.directory, known.select)
    if experiment.stages:
        experiment = load_experiment(experiment.stages[-1])
    if not checkpoint.is_file():
        raise ExperimentError(f"there is no checkpoint {checkpoint}")
    from vos_lightning.app.records import evaluated
    from vos_lightning.checkpoints.loading import load_weights

    builds_own = not experiment.fine_tunes
    if not builds_own:
        from vos_lightning.app.finetuning import with_model_of

        experiment = with_model_of(checkpoint, experiment)
    cli = build(experiment, run, overrides, stage)
    if builds_own:
        _require_same_system(checkpoint, experiment, overrides, asked.name)
    load_weights(cli.model, checkpoint)
    return Trained(cli, run, asked, evaluated(experiment, overrides, cli.trainer, checkpoint))


def _checkpoint_of(experiment: Experiment, directory: Path, select: Which | None) -> Path:
    """The last or best checkpoint of the run that an experiment evaluates: its own, its last stage's, or another experiment's."""
    return trained_run(experiment, directory).checkpoint(select or selection(experiment))


def _require_same_system(checkpoint: Path, experiment: Experiment, overrides: Sequence[str], name: str) -> None:
    """Refuse a checkpoint whose system differs from what the experiment describes.

    Differences are allowed where the command line sets a value, or where an experiment that evaluates another experiment's
    checkpoint overrides that experiment.

    Raises:
        ValueError: there is any other difference; the message names it with both values.
    """
    from vos_lightning.app.composition import differing_keys
    from vos_lightning.app.lightning_cli import condense
    from vos_lightning.app.records import departures
    from vos_lightning.checkpoints.loading import decisive_arguments, describe_model

    trained = load_experiment(experiment.checkpoint_of) if experiment.checkpoint_of else experiment
    if trained.stages:
        trained = load_experiment(trained.stages[-1])
    said, expected = (
        {"model": decisive_arguments(with_overrides(each.config, overrides)["model"])} for each in (experiment, trained)
    )
    described = describe_model(checkpoint)
    ours, theirs = (_classes(section) for section in (expected["model"], described))
    other = [place for place, name in ours.items() if theirs.get(place, name) != name]
    if other:
        given, wanted = (" with ".join(names[place].rpartition(".")[2] for place in other) for names in (theirs, ours))
        raise ExperimentError(f"{checkpoint} is of {given}, but {name} evaluates {wanted}")
    try:
        found = {"model": decisive_arguments(described)}
    except ValueError as error:
        raise ExperimentError(f"{checkpoint} does not fit this version of the library: {condense(str(error))}") from error
    meant = departures(overrides)
    unmeant = [
        key
        for key in differing_keys(expected, found)
        if value_at(said, key) == value_at(expected, key)
        and not any(key == option or key.startswith(f"{option}.") or option.startswith(f"{key}.") for option in meant)
    ]
    if unmeant:
        differences = ", ".join(f"{key} ({_plain(value_at(found, key))}, not {_plain(value_at(said, key))})" for key in unmeant)
        options = " ".join(f"--{key}={_plain(value_at(found, key))}" for key in unmeant)
        raise ExperimentError(
            f"{checkpoint} is of another system than {name}: {differences}. Choose an experiment that fits, or say on "
            f"the command line what is meant; to evaluate as the checkpoint says: {options}"
        )


def _classes(section: Any, where: str = "") -> dict[str, str]:
    """Class paths that a section names, by their place in it."""
    if not isinstance(section, dict):
        return {}
    found = {where: section["class_path"]} if isinstance(section.get("class_path"), str) else {}
    for key, value in section.items():
        found |= _classes(value, f"{where}.{key}")
    return found


def _plain(value: Any) -> str:
    """A value as it is written on the command line."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, (dict, list, bool)) or value is None else str(value)


def _report(trained: Trained, stage: Stage, baselines: bool) -> None:
    """Print a table of the scores and write it to the run directory."""
    import dataclasses

    from vos_lightning.evaluation.reports import report, score_baselines, write_scores
    from vos_lightning.metrics.protocols import describe, summarize

    cli, asked, context = trained.cli, trained.asked, trained.context
    rows, protocol = cli.model.scored_rows, cli.model.evaluation.protocol
    if not cli.trainer.is_global_zero:
        return
    others = score_baselines(cli.datamodule.videos(stage), protocol) if baselines else {}
    Console().print(report(asked.name, rows, protocol, others))
    weights = context["trained"]
    kind = f"{weights['weights']}, " if weights["weights"] else ""
    Console(stderr=True).print(f"weights: {kind}step {weights['step']}, {weights['checkpoint']}", highlight=False, soft_wrap=True)
    write_scores(
        trained.run.directory / "scores" / f"{stage}.json",
        {
            "experiment": asked.name,
            "fingerprint": asked.fingerprint,
            "checkpoint": context["trained"]["checkpoint"],
            "weights": context["trained"]["weights"],
            "protocol": describe(protocol, rows),
            "summary": summarize(rows, protocol),
            "rows": [dataclasses.asdict(row) for row in rows],
            "baselines": {name: summarize(group, protocol) for name, group in others.items()},
            "baseline_rows": {name: [dataclasses.asdict(row) for row in group] for name, group in others.items()},
            "evaluation": context,
        },
    )
