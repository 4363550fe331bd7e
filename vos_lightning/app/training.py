"""The command ``train``: runs that continue where they stopped, one after the other where an experiment has stages."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vos_lightning.app.composition import ExperimentError, differing_keys, read_mapping, with_overrides
from vos_lightning.app.devices import share_batch
from vos_lightning.app.experiments import Experiment, load_experiment, training_identity
from vos_lightning.app.runs import Run, Stage, find_run, run_command, write_text
from vos_lightning.app.stages import PlannedStage, claim, plan
from vos_lightning.callbacks.stopping import STOPPED, Stopped, StopRequest
from vos_lightning.checkpoints.files import LAST


def build(
    experiment: Experiment, run: Run, overrides: Sequence[str], stage: Stage | None, request: StopRequest | None = None
) -> Any:
    """LightningCLI objects (``.model``, ``.datamodule``, ``.trainer``) of an experiment; with ``stage`` None it only parses.

    Raises:
        ExperimentError: an option does not exist or has a wrong value (the message names it), or pretrained weights from which a
            training starts are missing.
    """
    from vos_lightning.app.lightning_cli import VOSCommandLine  # imported here, as torch and lightning take seconds to import

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{experiment.name}.yaml"
        file.write_text(yaml.safe_dump(with_overrides(experiment.config, overrides), sort_keys=False))
        return VOSCommandLine(file, run, experiment.name, stage, request)


def main(argv: Sequence[str]) -> int:
    """Train an experiment, or continue where it stopped. The exit codes are in the text of ``--help``."""
    request = StopRequest()
    with request.listening():
        try:
            return _main(argv, request)
        except Stopped as stopped:
            Console(stderr=True).print(f"Stopped by {stopped}; the same command goes on.", highlight=False, soft_wrap=True)
            return STOPPED


def _main(argv: Sequence[str], request: StopRequest) -> int:
    parser = argparse.ArgumentParser(
        prog="vos train",
        description="Train an experiment. If it is started again, it continues from its last checkpoint; a finished one is not "
        "repeated. The stages of an experiment are runs beside its directory, which other experiments can share.",
        epilog="Every other option overrides the experiment: --trainer.devices=8 --trainer.precision=bf16-mixed "
        "--model.init_args.optimisation.learning_rate=1e-5 ... --scale_batch=true uses devices that cannot share the batch. "
        "`vos show EXP --options` lists them all. SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and stop; a "
        "second Ctrl-C stops at once. Exit codes: 0 finished; 2 an error that you can mend, in one line; 75 stopped by a signal, "
        "and 71 a process of the training has died: the same command goes on; 128 + n ended at once by the signal n: the same "
        "command goes on from the last checkpoint.",
    )
    parser.add_argument("experiment", metavar="EXP", help="name from `list`, or a YAML file")
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint from which a fine-tuning experiment starts")
    known, overrides = parser.parse_known_args(argv)
    experiment = load_experiment(known.experiment)
    run = Run(known.run_dir or Path("runs") / experiment.name)
    if experiment.checkpoint_of:
        raise ExperimentError(
            f"{experiment.name} evaluates the checkpoint of {experiment.checkpoint_of}: train that, then test {experiment.name}"
        )
    if known.checkpoint and not experiment.fine_tunes:
        raise ExperimentError(f"{experiment.name} builds its own network: --initial_weights=FILE starts it from a checkpoint")
    if experiment.stages:
        return _train_stages(experiment, run.directory, overrides, request)
    if experiment.fine_tunes:
        from vos_lightning.app.finetuning import fine_tune

        return fine_tune(experiment, run, known.checkpoint, overrides, _train_one, request)
    if known.run_dir is None and not run.begun:
        identity = training_identity(experiment)
        same = find_run(run.directory.parent, identity)
        if same and same.finished and training_identity(experiment, overrides) == identity:
            Console(stderr=True).print(
                f"{same.directory} has trained the same: not repeated (--run-dir={run.directory} trains it again)",
                highlight=False,
                soft_wrap=True,
            )
            return 0
    return _train_one(experiment, run, overrides, request)


def _train_stages(experiment: Experiment, directory: Path, overrides: Sequence[str], request: StopRequest) -> int:
    """Every stage is a separate run and process that starts from the weights of the stage before; see :mod:`.stages`."""
    console = Console(stderr=True)
    planned = plan(experiment, directory.parent, overrides)
    for stage in planned:
        _check_devices(stage, overrides)  # the devices of all stages are checked before hours of training
    claim(experiment, directory, planned)
    weights: Path | None = None
    for number, stage in enumerate(planned, start=1):
        run, name = stage.run, stage.experiment.name
        title = f"Stage {number} of {len(planned)}, {name}: {run.directory}"
        if run.finished:
            console.print(f"{title} is finished, not repeated", highlight=False, soft_wrap=True)
        else:
            console.print(title + (f", from {weights}" if weights else ""), highlight=False, soft_wrap=True)
            before = [f"--initial_weights={weights}"] if weights else []
            group = f"--wandb.group={experiment.name}"
            code = run_command(["train", name, "--run-dir", str(run.directory), group, *overrides, *before], request=request)
            if code:
                return code
            request.check()
            if not run.finished:
                raise RuntimeError(
                    f"{run.directory} does not record that it is finished, though its training ended without an error"
                )
        weights = run.checkpoint(experiment.hand_over)
    write_text(directory / "finished", f"{weights}\n")
    return 0


def _check_devices(stage: PlannedStage, overrides: Sequence[str]) -> None:
    config = with_overrides(stage.experiment.config, overrides)
    batch_size = ((config.get("data") or {}).get("init_args") or {}).get("loading", {}).get("batch_size")
    if isinstance(batch_size, int) and not stage.run.finished:
        share_batch(config.get("trainer") or {}, batch_size, bool(config.get("scale_batch")))


def _train_one(experiment: Experiment, run: Run, overrides: Sequence[str], request: StopRequest) -> int:
    from vos_lightning.app import records
    from vos_lightning.app.lightning_cli import LogConfiguration, fit
    from vos_lightning.checkpoints.loading import checkpoint_step

    console = Console(stderr=True)
    settings = {"experiment": experiment.name, "config": dict(experiment.config), "overrides": list(overrides)}
    record = run.directory / "experiment.yaml"
    if record.is_file():
        changed = differing_keys(read_mapping(record), settings)
        if changed:
            console.print(f"[yellow]{run.directory} was started with other settings: {', '.join(changed)}.[/yellow]")
    if run.finished:
        console.print(f"{run.directory} is finished: remove it or choose another --run-dir to train again.")
        return 0
    cli = build(experiment, run, overrides, "fit", request)
    first = cli.trainer.is_global_zero
    with run.lock() if first else contextlib.nullcontext(), request.deferred():
        resume = run.resumed_checkpoint
        if first:
            damaged = run.set_damaged_aside()
            if damaged:
                console.print(f"[yellow]{damaged}[/yellow]", highlight=False, soft_wrap=True)
            write_text(record, yaml.safe_dump(settings, sort_keys=False))
            arguments = cli.parser.dump(cli.config, skip_none=False)
            write_text(run.directory / "config.yaml", arguments)
            start = (
                f", going on from {resume}"
                if resume
                else ", which has no checkpoint yet: from the first step"
                if run.begun
                else ""
            )
            console.print(f"Run directory {run.directory}{start}", highlight=False, soft_wrap=True)
            written = records.started(run, experiment, overrides, cli, checkpoint_step(resume) if resume else 0)
            cli.trainer.callbacks.append(LogConfiguration(records.configuration(written, experiment, overrides, arguments)))
        try:
            fit(cli, resume, request)
        except Stopped:
            if first:
                last = run.last_checkpoint
                records.ended(run, checkpoint_step(last) if last else 0, finished=False)
                place = f"step {checkpoint_step(last)} is saved in {last}" if last else "there is no checkpoint yet"
                console.print(f"{run.directory}: {place}.", highlight=False, soft_wrap=True)
            raise
        if run.last_checkpoint is None or checkpoint_step(run.last_checkpoint) < cli.trainer.global_step:
            # The number of steps need not be a multiple of the checkpoint interval, so the last step is saved here.
            cli.trainer.save_checkpoint(run.directory / "checkpoints" / LAST)
        if first:
            records.ended(run, cli.trainer.global_step, finished=True)
            write_text(run.directory / "finished", f"{cli.trainer.global_step}\n")
    return 0
