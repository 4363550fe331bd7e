"""Build and run experiments inside the test process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build
from vos_lightning.structures import ClipBatch

EXPERIMENTS = {name: load_experiment(name) for name in experiment_files()}
NAMES = list(EXPERIMENTS)
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
    """Keeps the training loss of every step on the command line object."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit(
    name: str,
    directory: Path,
    *overrides: str,
    batches: Sequence[ClipBatch] | None = None,
    prepare: Callable[[Any], None] = lambda model: None,
) -> Any:
    """Train an experiment.

    Args:
        name: of the experiment.
        directory: of the run.
        overrides: options.
        batches: train on these, without validation, instead of on what the experiment's data module draws.
        prepare: called with the model before it is trained.

    Returns:
        LightningCLI objects, and the losses of all steps as ``.recorded_losses``.
    """
    cli = build(EXPERIMENTS[name], Run(directory), ["--trainer.enable_progress_bar=false", *overrides], "fit")
    record = RecordLosses()
    cli.trainer.callbacks.append(record)
    prepare(cli.model)
    if batches is None:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    else:
        cli.trainer.fit(cli.model, DataLoader(batches, batch_size=None), [])
    cli.recorded_losses = record.losses
    return cli
