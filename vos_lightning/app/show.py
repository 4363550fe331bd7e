"""The command ``show``: the composed configuration of an experiment."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from vos_lightning.app.composition import ExperimentError, with_overrides
from vos_lightning.app.experiments import load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build


def main(argv: Sequence[str]) -> int:
    """Print the composed configuration of an experiment."""
    parser = argparse.ArgumentParser(prog="vos show", description=main.__doc__)
    parser.add_argument("experiment", metavar="EXP")
    parser.add_argument("--options", action="store_true", help="every argument with its value, as --trainer... accepts them")
    known, overrides = parser.parse_known_args(argv)
    experiment = load_experiment(known.experiment)
    if known.options:
        if experiment.stages:
            raise ExperimentError(f"{experiment.name} has no options of its own, its stages do: {', '.join(experiment.stages)}")
        if experiment.fine_tunes:
            raise ExperimentError(f"{experiment.name} takes its system, and so its options, from a checkpoint")
        with tempfile.TemporaryDirectory() as folder:
            cli = build(experiment, Run(Path(folder)), overrides, None)
            sys.stdout.write(cli.parser.dump(cli.config, skip_none=False))
    else:
        sys.stdout.write(yaml.safe_dump(with_overrides(experiment.config, overrides), sort_keys=False))
    return 0
