"""The command ``slurm``: submit the training of an experiment, or print the job."""

from __future__ import annotations

import argparse
import importlib.resources
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vos_lightning.app.composition import ExperimentError, value_at, with_overrides
from vos_lightning.app.devices import share_batch
from vos_lightning.app.experiments import Experiment, load_experiment, parts_of
from vos_lightning.app.options import at_least
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build

OWN = ("trainer.devices", "trainer.num_nodes")
MARGIN = 30
"""Seconds of the grace period that are kept for requeueing a training that has not stopped."""


def main(argv: Sequence[str]) -> int:
    """Submit the training of an experiment to SLURM.

    The experiment is composed and its options are checked before anything is submitted.

    Args:
        argv: arguments after ``slurm``.

    Returns:
        The exit code.

    Raises:
        ExperimentError: the experiment, an option or the number of devices is wrong, or SLURM refuses the job.
    """
    known, rest = _parser().parse_known_args(argv)
    script = job(known, rest)
    if known.dry_run:
        sys.stdout.write(script)
        return 0
    Path(known.logs).mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["sbatch"], input=script, text=True, check=False)
    except FileNotFoundError:
        raise ExperimentError(
            "there is no sbatch here: submit from a node that has it, or print the job with --dry-run"
        ) from None
    if done.returncode:
        raise ExperimentError(f"sbatch refused the job (exit code {done.returncode}); --dry-run prints it")
    return 0


def job(known: argparse.Namespace, rest: Sequence[str]) -> str:
    """The batch script of a training.

    Args:
        known: options of this command.
        rest: options of ``train``.

    Raises:
        ExperimentError: see :func:`main`.
    """
    import jinja2

    experiment = load_experiment(known.experiment)
    if experiment.checkpoint_of:
        raise ExperimentError(
            f"{experiment.name} evaluates the checkpoint of {experiment.checkpoint_of}: submit the training of that"
        )
    train = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    train.add_argument("--run-dir", type=Path)
    train.add_argument("--checkpoint", type=Path)
    paths, overrides = train.parse_known_args(rest)
    given = with_overrides({}, overrides)
    for key in OWN:
        if value_at(given, key) is not None:
            raise ExperimentError(f"--{key}: the number of nodes and devices is that of --nodes and --gpus")
    devices = [f"--trainer.num_nodes={known.nodes}", f"--trainer.devices={known.gpus}"]
    configs = list(_composed(experiment, paths.checkpoint, [*overrides, *devices]))
    for config in configs:
        _check_devices(config, known)
    workers = max(_loading(config).get("num_workers", 0) for config in configs)
    on_cpu = all(config["trainer"]["accelerator"] == "cpu" for config in configs)
    command = [sys.executable, "-m", "vos_lightning", "train", known.experiment, *devices, *rest]
    template = importlib.resources.files(__package__).joinpath("slurm.sh.j2").read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(
        name=shlex.quote(experiment.name),
        nodes=known.nodes,
        tasks=known.gpus,
        gpus=0 if on_cpu else known.gpus,
        cpus=workers + 1,
        time=shlex.quote(known.time),
        folder=shlex.quote(os.getcwd()),
        log=shlex.quote(f"{known.logs}/slurm-%x-%j.log"),
        grace=known.grace,
        patience=known.grace - MARGIN,
        options=known.sbatch,
        variables=[f"{key}={shlex.quote(value)}" for key, value in sorted(os.environ.items()) if key.startswith("VOS_")],
        command=shlex.join(command),
    )


def _composed(experiment: Experiment, checkpoint: Path | None, overrides: Sequence[str]) -> Iterator[Any]:
    """Every argument of every training of an experiment, as the command line of the training would check them."""
    for each in parts_of(experiment):
        if each.fine_tunes:
            from vos_lightning.app.finetuning import with_model_of

            if checkpoint is None:
                raise ExperimentError(f"{each.name} fine-tunes: name what it starts from with --checkpoint FILE")
            each = with_model_of(checkpoint, each)
        yield build(each, Run(Path("runs") / each.name), overrides, None).config.as_dict()  # which writes nothing


def _loading(config: Any) -> dict[str, Any]:
    """Options of the loading; a data module of the user's own may have none."""
    return config["data"]["init_args"].get("loading") or {}


def _check_devices(config: Any, known: argparse.Namespace) -> None:
    batch_size = _loading(config).get("batch_size")
    if batch_size is not None:
        share_batch(config["trainer"], batch_size, config["scale_batch"], launched=known.nodes * known.gpus)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos slurm",
        description="Submit the training of an experiment to SLURM: a task for each device, requeued until the training is "
        "finished when it is preempted or out of time. See docs/clusters.md.",
        epilog="Every other option is passed on to `train`.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", metavar="EXP", help="name from `list`, or a YAML file")
    parser.add_argument("--nodes", type=at_least(1), default=1, metavar="N", help="number of nodes; default: 1")
    parser.add_argument(
        "--gpus", type=at_least(1), default=1, metavar="N", help="number of devices, and tasks, a node; default: 1"
    )
    parser.add_argument("--time", default="24:00:00", help="time limit of one start; default: 24:00:00")
    parser.add_argument(
        "--grace",
        type=at_least(2 * MARGIN),
        default=120,
        metavar="SECONDS",
        help="how long before the time limit the training is asked to stop; default: 120",
    )
    parser.add_argument("--logs", default="runs", metavar="DIR", help="folder of slurm-EXP-JOB.log; default: runs")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any option of sbatch: --sbatch=--partition=gpu; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    return parser
