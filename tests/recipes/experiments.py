"""Build and run experiments inside the test process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from vos_lightning.app.cli import build
from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment
from vos_lightning.app.runs import Run

NAMES = list(experiment_files())
SMOKE = [name for name in NAMES if name.endswith("_smoke")]


def without_pretrained(experiment: Experiment) -> list[str]:
    """Options by which no part of an experiment's system starts from pretrained weights: no test downloads.

    The real loader of them is tested with the backbones.
    """
    return [f"--{place}=null" for place in _pretrained_places(experiment.config.get("model") or {}, "model")]


def _pretrained_places(section: Mapping[str, Any], where: str) -> list[str]:
    found = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            found += _pretrained_places(value, f"{where}.{key}")
        elif key in ("weights", "pretrained"):
            found.append(f"{where}.{key}")
    return found


class RecordLosses(Callback):
    """Keeps the training loss of every step on the module."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.recorded_losses = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        pl_module.recorded_losses.append(float(outputs["loss"]))


def fit(name: str, directory: Path, *overrides: str, record: bool = False) -> Any:
    cli = build(load_experiment(name), Run(directory), ["--trainer.enable_progress_bar=false", *overrides], "fit")
    if record:
        cli.trainer.callbacks.append(RecordLosses())
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli
