"""Build and run experiments inside the test process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from vos_lightning.app.cli import build
from vos_lightning.app.experiments import experiment_files, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.structures import ClipBatch

EXPERIMENTS = {name: load_experiment(name) for name in experiment_files()}
NAMES = list(EXPERIMENTS)
SMOKE = [name for name in NAMES if name.endswith("_smoke")]


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
