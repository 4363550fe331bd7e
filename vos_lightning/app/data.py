"""The data of an experiment, without its network: for commands that look at clips, videos and proposals alone."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from vos_lightning.app.composition import ExperimentError, with_overrides
from vos_lightning.app.experiments import Experiment
from vos_lightning.app.lightning_cli import condense, quiet


def data_of(experiment: Experiment, overrides: Sequence[str] = ()) -> tuple[LightningDataModule, dict[str, Any]]:
    """The data module of an experiment without stages. Nothing is read or looked for on disk yet.

    Args:
        experiment: the experiment.
        overrides: options of its data, ``--data.init_args.loading.seed=1``.

    Returns:
        The data module, and the section ``data`` that it is made from.

    Raises:
        ExperimentError: an option is not one of the data, does not exist or has a wrong value, or the experiment has no data.
    """
    other = next((option for option in overrides if option.startswith("--") and not option.startswith("--data.")), None)
    if other is not None:
        raise ExperimentError(f"{other.partition('=')[0]}: only the data of {experiment.name} are read, with options --data...")
    section = with_overrides(experiment.config, overrides).get("data")
    if not section:
        raise ExperimentError(f"{experiment.name} has no data of its own")
    quiet()
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        # The parser writes into what it is given.
        data: LightningDataModule = parser.instantiate_classes(parser.parse_object({"data": copy.deepcopy(section)})).data
    except (argparse.ArgumentError, ValueError) as error:
        raise ExperimentError(condense(str(error))) from error
    return data, section
