"""The command line: ``python -m vos_lightning COMMAND``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from vos_lightning.experiments import (
    Experiment,
    ExperimentError,
    differing_keys,
    experiment_files,
    load_experiment,
    with_overrides,
)
from vos_lightning.runs import Run, Stage, write_text

# Building a trainer, a module and a data module -----------------------------------------------------------------------


def build(experiment: Experiment, run: Run, overrides: Sequence[str], stage: Stage) -> Any:
    """LightningCLI objects (``.model``, ``.datamodule``, ``.trainer``) of an experiment.

    Raises:
        ExperimentError: an option that does not exist or has a wrong value; the message names it.
    """
    from vos_lightning.lightning_cli import VOSCommandLine  # torch and lightning take seconds to import

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{experiment.name}.yaml"
        file.write_text(yaml.safe_dump(with_overrides(experiment.config, overrides), sort_keys=False))
        return VOSCommandLine(file, run, experiment.name, stage)


def train(argv: Sequence[str]) -> int:
    """Train an experiment, or go on where it stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning train",
        description="Train an experiment. Started again, it goes on from its last checkpoint; a finished one is not repeated.",
        epilog="Every other option overrides the experiment: --trainer.devices=8 --trainer.precision=bf16-mixed "
        "--model.init_args.learning_rate=1e-5 ... `python -m vos_lightning show EXP --options` lists them all.",
    )
    parser.add_argument("experiment", metavar="EXP", help="name from `list`, or a YAML file")
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    known, overrides = parser.parse_known_args(argv)
    experiment = load_experiment(known.experiment)
    directory = known.run_dir or Path("runs") / experiment.name
    if experiment.stages:
        return _train_stages(experiment, directory, overrides)
    return _train_one(experiment, Run(directory), overrides)


def _train_stages(experiment: Experiment, directory: Path, overrides: Sequence[str]) -> int:
    """Each stage is a run of its own in a sub-directory and a process of its own, from the weights of the one before."""
    weights: Path | None = None
    for number, stage in enumerate(experiment.stages, start=1):
        load_experiment(stage)  # a misspelt name shows before hours of training
        run = Run(directory / f"{number}_{stage}")
        if not run.finished:
            initial = [f"--initial_weights={weights}"] if weights else []
            command = [sys.executable, "-m", "vos_lightning", "train", stage, "--run-dir", str(run.directory)]
            code = subprocess.run([*command, *initial, *overrides], check=False).returncode
            if code:
                return code
        weights = run.best_checkpoint
    write_text(directory / "finished", f"{weights}\n")
    return 0


def _train_one(experiment: Experiment, run: Run, overrides: Sequence[str]) -> int:
    console = Console(stderr=True)
    if run.finished:
        console.print(f"{run.directory} is finished: remove it or choose another --run-dir to train again.")
        return 0
    settings = {"experiment": experiment.name, "config": dict(experiment.config), "overrides": list(overrides)}
    record = run.directory / "experiment.yaml"
    if record.is_file():
        changed = differing_keys(yaml.safe_load(record.read_text()), settings)
        if changed:
            console.print(f"[yellow]{run.directory} was started with other settings: {', '.join(changed)}.[/yellow]")
    cli = build(experiment, run, overrides, "fit")
    resume = run.last_checkpoint
    if cli.trainer.is_global_zero:
        write_text(record, yaml.safe_dump(settings, sort_keys=False))
        write_text(run.directory / "config.yaml", cli.parser.dump(cli.config, skip_none=False))
        console.print(f"Run directory {run.directory}" + (f", going on from {resume}" if resume else ""))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(resume) if resume else None, weights_only=True)
    if cli.stop_on_signal.stopped or cli.trainer.interrupted:
        console.print(f"Stopped at step {cli.trainer.global_step}; the same command goes on from there.")
        return 75  # "try again": a scheduler may requeue
    if cli.trainer.is_global_zero:
        write_text(run.directory / "finished", f"{cli.trainer.global_step}\n")
    return 0


def _evaluation(stage: Stage, argv: Sequence[str]) -> int:
    """Validate, test or predict with a run's checkpoint."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vos_lightning {stage}",
        description={
            "validate": "Score the validation videos of an experiment with a checkpoint.",
            "test": "Score the test videos of an experiment with a checkpoint; writes PNGs, overlay videos and a contact sheet.",
            "predict": "Segment the prediction videos of an experiment; writes PNGs, overlay videos and a contact sheet.",
        }[stage],
        epilog="Every other option overrides the experiment, as in `train`.",
    )
    parser.add_argument("experiment", metavar="EXP", help="name from `list`, or a YAML file")
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    parser.add_argument("--checkpoint", type=Path, help="default: the run's best")
    if stage == "test":
        parser.add_argument("--baselines", action="store_true", help="also score copying and flow-warping the first mask")
    known, overrides = parser.parse_known_args(argv)
    cli, run, checkpoint = _trained(known, overrides, stage)
    getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule, **({"verbose": False} if stage != "predict" else {}))
    if stage != "predict":
        _report(cli, stage, run, checkpoint, baselines=getattr(known, "baselines", False))
    return 0


def _trained(known: argparse.Namespace, overrides: Sequence[str], stage: Stage) -> tuple[Any, Run, Path]:
    """An experiment with the weights of a checkpoint: the one that is named, or the run's best."""
    experiment = load_experiment(known.experiment)
    run = Run(known.run_dir or Path("runs") / experiment.name)
    if experiment.stages and known.checkpoint is None:
        last = len(experiment.stages)
        known.checkpoint = Run(run.directory / f"{last}_{experiment.stages[-1]}").best_checkpoint
        experiment = load_experiment(experiment.stages[-1])
    checkpoint = known.checkpoint or run.best_checkpoint
    if not checkpoint.is_file():
        raise ExperimentError(f"there is no checkpoint {checkpoint}")
    cli = build(experiment, run, overrides, stage)
    from vos_lightning.modules.loading import load_weights

    load_weights(cli.model, checkpoint)
    return cli, run, checkpoint


def _report(cli: Any, stage: Stage, run: Run, checkpoint: Path, baselines: bool) -> None:
    """Print a table of the scores and write it to the run directory."""
    import dataclasses

    from vos_lightning.metrics.davis import describe, summarize
    from vos_lightning.reports import report, score_baselines, write_scores

    rows, protocol = cli.model.scored_rows, cli.model.protocol
    if not cli.trainer.is_global_zero:
        return
    videos = cli.datamodule.test_videos() if stage == "test" else cli.datamodule.val_videos()
    others = score_baselines(videos, protocol) if baselines else {}
    Console().print(report(cli.name, rows, protocol, others))
    write_scores(
        run.directory / "scores" / f"{stage}.json",
        {
            "experiment": cli.name,
            "checkpoint": str(checkpoint),
            "protocol": describe(protocol, rows),
            "summary": summarize(rows),
            "rows": [dataclasses.asdict(row) for row in rows],
            "baselines": {name: summarize(group) for name, group in others.items()},
        },
    )


def predict(argv: Sequence[str]) -> int:
    """``predict EXP`` for an experiment's videos, ``predict --checkpoint FILE --video FILE ...`` for one's own."""
    if argv and not argv[0].startswith("-"):
        return _evaluation("predict", argv)
    from vos_lightning.predict import main as predict_video

    return predict_video(argv)


def visualize(argv: Sequence[str]) -> int:
    """Draw what a network computes inside for frames of a video."""
    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning visualize",
        description="Draw what a network computes inside (score maps ...) for frames of a video: of an experiment's test or "
        "validation videos, or of your own.",
        epilog="With EXP, every other option overrides the experiment, as in `train`.",
    )
    parser.add_argument("experiment", metavar="EXP", nargs="?", help="name from `list`, or a YAML file; none for your own video")
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    parser.add_argument("--checkpoint", type=Path, help="default: the run's best")
    parser.add_argument("--video", required=True, metavar="NAME", help="name in the data set; without EXP a file or folder")
    parser.add_argument("--masks", type=Path, help="without EXP: PNG for the first frame, or folder of PNGs, as for `predict`")
    parser.add_argument("--frame", type=int, nargs="+", required=True, metavar="T", help="indices, from 0")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    known, overrides = parser.parse_known_args(argv)
    if min(known.frame) < 0:
        raise ValueError(f"--frame {min(known.frame)}: frames count from 0")
    if known.experiment is None:
        if known.checkpoint is None or known.masks is None:
            raise ValueError("without an experiment, --checkpoint and --masks are needed")
        if overrides:
            raise ValueError(f"unknown option {overrides[0]}")
        from vos_lightning.modules.loading import load_module
        from vos_lightning.visualize import draw, of_files

        module = load_module(known.checkpoint)
        segmented = of_files(module.engine(), Path(known.video), known.masks)
    else:
        cli, _, _ = _trained(known, overrides, "test")
        from vos_lightning.visualize import draw, of_sample

        module = cli.model.eval()
        videos = {video.name: video for split in (cli.datamodule.test_videos, cli.datamodule.val_videos) for video in split()}
        if known.video not in videos:
            raise ValueError(f"--video {known.video}: there are {', '.join(sorted(videos)[:20])} ...")
        segmented = of_sample(module.engine(), videos[known.video])
    for sheet in draw(module, segmented, known.frame, known.output):
        sys.stdout.write(f"{sheet}\n")
    return 0


# Listings -------------------------------------------------------------------------------------------------------------


def list_experiments(argv: Sequence[str]) -> int:
    """Every experiment with the published result that it reproduces."""
    parser = argparse.ArgumentParser(prog="python -m vos_lightning list", description=list_experiments.__doc__)
    parser.add_argument("--plain", action="store_true", help="names only, one a line")
    known = parser.parse_args(argv)
    console = Console()
    names = list(experiment_files())
    if known.plain:
        console.print("\n".join(names), highlight=False)
        return 0
    table = Table("experiment", "paper", "table, row", "published", "what it is")
    for name in names:
        experiment = load_experiment(name)
        published = experiment.published
        row = ", ".join(str(published[key]) for key in ("table", "row") if key in published)
        scores = " ".join(f"{metric} {value}" for metric, value in (published.get("metrics") or {}).items())
        table.add_row(name, str(published.get("paper", "")), row, scores, experiment.description)
    console.print(table)
    return 0


def show(argv: Sequence[str]) -> int:
    """The composed configuration of an experiment."""
    parser = argparse.ArgumentParser(prog="python -m vos_lightning show", description=show.__doc__)
    parser.add_argument("experiment", metavar="EXP")
    parser.add_argument("--options", action="store_true", help="every argument with its value, as --trainer... accepts them")
    known, overrides = parser.parse_known_args(argv)
    experiment = load_experiment(known.experiment)
    if known.options:
        with tempfile.TemporaryDirectory() as folder:
            cli = build(experiment, Run(Path(folder)), overrides, "fit")
            sys.stdout.write(cli.parser.dump(cli.config, skip_none=False))
    else:
        sys.stdout.write(yaml.safe_dump(with_overrides(experiment.config, overrides), sort_keys=False))
    return 0


def _module_main(module: str) -> Callable[[Sequence[str]], int]:
    def call(argv: Sequence[str]) -> int:
        import importlib

        entry: Callable[[Sequence[str]], int] = importlib.import_module(f"vos_lightning.{module}").main
        return entry(argv)

    return call


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train an experiment, or go on where it stopped"),
    "test": (lambda argv: _evaluation("test", argv), "score an experiment's test videos with its checkpoint"),
    "validate": (lambda argv: _evaluation("validate", argv), "score an experiment's validation videos with its checkpoint"),
    "predict": (predict, "segment an experiment's videos, or your own: predict --checkpoint C --video V --masks M --output D"),
    "visualize": (
        visualize,
        "draw score maps and the like: visualize EXP --video NAME --frame T --output D",
    ),
    "evaluate": (
        _module_main("evaluate"),
        "score a folder of PNGs: evaluate --truth D --predictions D --protocol davis16|davis17",
    ),
    "import-checkpoint": (
        _module_main("modules.released"),
        "turn the authors' weights into a checkpoint: import-checkpoint FILE --paper pmvos|emvos --output OUT.ckpt",
    ),
    "precompute-proposals": (
        _module_main("precompute"),
        "find object proposals, one file a video: precompute-proposals --images D --output D --pretrained COCO_V1",
    ),
    "list": (list_experiments, "list the experiments and the published results that they reproduce"),
    "show": (show, "print the composed configuration of an experiment"),
}


def main(argv: Sequence[str]) -> int:
    """Run a command; every user error is one line on standard error and exit code 2."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        _help()
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        return _fail(f"there is no command {name!r}: " + (f"did you mean {close[0]}?" if close else f"use {', '.join(COMMANDS)}"))
    if os.environ.get("VOS_TRACEBACK"):
        return COMMANDS[name][0](rest)
    try:
        return COMMANDS[name][0](rest)
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        return _fail(_one_line(error))
    except KeyboardInterrupt:
        return 130


def _one_line(error: Exception) -> str:
    """The message of an error; of one that a data loader's worker passed on, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1].strip()
    return " ".join(line.strip() for line in lines) or type(error).__name__


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _help() -> None:
    console = Console()
    console.print("usage: python -m vos_lightning COMMAND [options]\n", highlight=False)
    for name, (_, text) in COMMANDS.items():
        console.print(f"  {name:<21} {text}", highlight=False, markup=False)
    console.print("\nEvery command has --help. VOS_TRACEBACK=1 shows where an error came from.", highlight=False)
