"""The command line: ``python -m vos_lightning COMMAND``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vos_lightning.app.experiments import Experiment, ExperimentError, load_experiment, selection, with_overrides
from vos_lightning.app.runs import Run, Stage, Which
from vos_lightning.app.stages import trained_run
from vos_lightning.app.training import build, train


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
    _add_weights(parser)
    if stage == "test":
        parser.add_argument("--baselines", action="store_true", help="also score copying and flow-warping the first mask")
    known, overrides = parser.parse_known_args(argv)
    trained = _trained(known, overrides, stage)
    cli = trained.cli
    getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule, **({"verbose": False} if stage != "predict" else {}))
    if stage != "predict":
        _report(trained, stage, baselines=getattr(known, "baselines", False))
    return 0


def _add_weights(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, help="default: the run's checkpoint, see --select")
    weights.add_argument(
        "--select",
        choices=("last", "best"),
        help="the run's last weights, or those with the best validation score (an optimistic choice where the same videos are "
        "scored); default: what the experiment says, else last",
    )


@dataclass(frozen=True)
class _Trained:
    """An experiment with the weights of a checkpoint."""

    cli: Any
    run: Run
    asked: Experiment
    context: dict[str, Any]


def _trained(known: argparse.Namespace, overrides: Sequence[str], stage: Stage) -> _Trained:
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
    return _Trained(cli, run, asked, evaluated(experiment, overrides, cli.trainer, checkpoint))


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
    from vos_lightning.app.experiments import differing_keys, value_at
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


def _report(trained: _Trained, stage: Stage, baselines: bool) -> None:
    """Print a table of the scores and write it to the run directory."""
    import dataclasses

    from vos_lightning.evaluation.reports import report, score_baselines, write_scores
    from vos_lightning.metrics.protocols import describe, summarize

    cli, asked, context = trained.cli, trained.asked, trained.context
    rows, protocol = cli.model.scored_rows, cli.model.evaluation.protocol
    if not cli.trainer.is_global_zero:
        return
    videos = cli.datamodule.test_videos() if stage == "test" else cli.datamodule.val_videos()
    others = score_baselines(videos, protocol) if baselines else {}
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


def predict(argv: Sequence[str]) -> int:
    """``predict EXP`` for an experiment's videos, ``predict --checkpoint FILE --video FILE ...`` for the user's own videos."""
    if argv and not argv[0].startswith("-"):
        return _evaluation("predict", argv)
    from vos_lightning.app.predict import main as predict_video

    return predict_video(argv)


def visualize(argv: Sequence[str]) -> int:
    """Draw intermediate results of a network for frames of a video."""
    from vos_lightning.app.given_masks import GivenMasks, add_arguments
    from vos_lightning.io.outputs import OutputFolder

    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning visualize",
        allow_abbrev=False,  # unknown arguments are options of the experiment
        description="Draw intermediate results of a network (score maps ...) for frames of a video: one of an experiment's "
        "test or validation videos, or your own.",
        epilog="With EXP, every other option overrides the experiment, as in `train`.",
    )
    parser.add_argument(
        "experiment", metavar="EXP", nargs="?", help="name from `list`, or a YAML file; leave it out for your own video"
    )
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    _add_weights(parser)
    parser.add_argument("--video", required=True, metavar="NAME", help="name in the data set; without EXP: a file or folder")
    parser.add_argument("--masks", type=Path, help="without EXP: PNG for the first frame, or folder of PNGs, as for `predict`")
    parser.add_argument("--proposals", type=Path, metavar="FILE", help="without EXP: as for `predict`")
    parser.add_argument("--detector", metavar="FILE", help="without EXP: as for `predict`")
    parser.add_argument("--frame", type=int, nargs="+", required=True, metavar="T", help="frame indices, counted from 0")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run of visualize")
    add_arguments(parser)
    known, overrides = parser.parse_known_args(argv)
    if min(known.frame) < 0:
        raise ValueError(f"--frame {min(known.frame)}: frames count from 0")
    proposals = None
    if known.experiment is None:
        if known.checkpoint is None or known.masks is None:
            raise ValueError("without an experiment, --checkpoint and --masks are needed")
        if overrides:
            raise ValueError(f"unknown option {overrides[0]}")
        from vos_lightning.app.predict import open_proposals
        from vos_lightning.app.visualize import draw, of_files
        from vos_lightning.checkpoints.loading import load_module
        from vos_lightning.io.videos import open_frames

        frames = open_frames(known.video)
        inputs = (Path(known.video), known.masks, known.checkpoint, known.proposals)
        output = OutputFolder(known.output, "visualize", inputs, known.overwrite)
        masks = GivenMasks(known.masks, frames, known.first_number, known.allow_rims)
        sys.stdout.write("".join(f"{line}\n" for line in masks.report()))
        module = load_module(known.checkpoint)
        proposals = open_proposals(module.network, frames, known.proposals, known.detector)
        segmented = of_files(module.engine(), frames, masks, proposals)
    else:
        if known.proposals is not None or known.detector is not None:
            raise ValueError("--proposals and --detector are for a video of your own; an experiment's data have their proposals")
        output = OutputFolder(known.output, "visualize", (known.checkpoint,), known.overwrite)
        cli = _trained(known, overrides, "test").cli
        from vos_lightning.app.visualize import draw, of_sample

        module = cli.model.eval()
        videos = {video.name: video for split in (cli.datamodule.test_videos, cli.datamodule.val_videos) for video in split()}
        if known.video not in videos:
            raise ValueError(f"--video {known.video}: there are {', '.join(list(videos)[:20])} ...")
        segmented = of_sample(module.engine(), videos[known.video])
    for sheet in draw(module, segmented, known.frame, output):
        sys.stdout.write(f"{sheet}\n")
    if proposals is not None and proposals.note is not None:
        sys.stdout.write(f"{proposals.note}\n")
    return 0


def benchmark(argv: Sequence[str]) -> int:
    """Measure how fast networks segment."""
    from vos_lightning.app.benchmark import add_arguments, options_of

    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning benchmark",
        allow_abbrev=False,  # unknown arguments are options of the experiments
        description="Run networks with random weights on synthetic frames: seconds a frame and peak memory. Several networks "
        "take turns; ratios compare with the first one.",
        epilog="Every other option overrides the experiments: --model.init_args.network.init_args.attention=false ...",
    )
    parser.add_argument("experiments", metavar="EXP", nargs="*", help="names from `list`, or YAML files")
    parser.add_argument(
        "--network",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="network classes with their default arguments, in addition to experiments",
    )
    add_arguments(parser)
    known, overrides = parser.parse_known_args(argv)
    options = options_of(known)
    if not known.experiments and not known.network:
        raise ValueError("benchmark what? name experiments, or --network vos_lightning.networks.emvos.EMVOS")
    if overrides and not known.experiments:
        raise ValueError(f"unknown option {overrides[0]}")

    import torch

    from vos_lightning.app.benchmark import report, run
    from vos_lightning.checkpoints.loading import module_of_network, resolve_device

    if known.threads is not None:
        if known.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {known.threads}")
        torch.set_num_threads(known.threads)
    device = resolve_device(known.device)
    modules = {}
    for name in known.experiments:
        experiment = load_experiment(name)
        if experiment.stages:
            experiment = load_experiment(experiment.stages[-1])
        if experiment.fine_tunes:
            raise ValueError(f"{name} takes its system from a checkpoint: benchmark the experiment that trained that")
        with tempfile.TemporaryDirectory() as folder:
            modules[name] = build(experiment, Run(Path(folder)), [*_copier_start(experiment), *overrides], "test").model
    modules |= {name.rpartition(".")[2]: module_of_network(name) for name in known.network}
    modules = {name: module.to(device).eval().requires_grad_(False) for name, module in modules.items()}
    report(run(modules, options), options, device, known.json)
    return 0


def _copier_start(experiment: Experiment) -> list[str]:
    """Overrides with which networks of random weights produce masks that follow the objects.

    The cost of a part may depend on the masks: PMNet refines a share of each object's box.
    """
    places = _taking("copier_start", experiment.config["model"]["init_args"]["network"], "model.init_args.network")
    return [f"--{place}.init_args.copier_start=true" for place in places]


def _taking(argument: str, section: Mapping[str, Any], where: str) -> list[str]:
    """Places in a section whose classes take an argument in their constructor."""
    import inspect
    import pkgutil

    given = section.get("init_args") or {}
    takes = argument in inspect.signature(pkgutil.resolve_name(section["class_path"])).parameters
    # A copier start needs two projections.
    places = [where] if takes and not given.get("shared_projection") else []
    for key, value in given.items():
        if isinstance(value, Mapping) and "class_path" in value:
            places += _taking(argument, value, f"{where}.init_args.{key}")
    return places


def show(argv: Sequence[str]) -> int:
    """Print the composed configuration of an experiment."""
    parser = argparse.ArgumentParser(prog="python -m vos_lightning show", description=show.__doc__)
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


def _module_main(module: str) -> Callable[[Sequence[str]], int]:
    def call(argv: Sequence[str]) -> int:
        import importlib

        entry: Callable[[Sequence[str]], int] = importlib.import_module(module).main
        return entry(argv)

    return call


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train an experiment, or continue where it stopped"),
    "test": (lambda argv: _evaluation("test", argv), "score an experiment's test videos with its checkpoint"),
    "validate": (lambda argv: _evaluation("validate", argv), "score an experiment's validation videos with its checkpoint"),
    "predict": (predict, "segment an experiment's videos, or your own: predict --checkpoint C --video V --masks M --output D"),
    "visualize": (
        visualize,
        "draw score maps and other intermediate results: visualize EXP --video NAME --frame T --output D",
    ),
    "benchmark": (benchmark, "seconds a frame and peak memory: benchmark EXP ... --objects 1 3 --precision 32-true bf16-mixed"),
    "evaluate": (
        _module_main("vos_lightning.evaluation.folders"),
        "score a folder of PNGs: evaluate --truth D --predictions D --protocol davis17|...",
    ),
    "curves": (
        _module_main("vos_lightning.visualization.curves"),
        "J of every frame over time: curves --truth D --predictions NAME=D ... --output D",
    ),
    "import-checkpoint": (
        _module_main("vos_lightning.checkpoints.released.conversion"),
        "turn the authors' weights into a checkpoint: import-checkpoint FILE --paper emvos|pmvos|stcn|stm --output OUT.ckpt",
    ),
    "precompute-proposals": (
        _module_main("vos_lightning.app.precompute"),
        "find object proposals, one file a video: precompute-proposals --images D --output D --pretrained COCO_V1",
    ),
    # Data sets are referred to by name only, as in experiments: the library does not import them.
    "doctor": (_module_main("data_modules.doctor.command"), "check data sets on disk: doctor DIR ... [--fix] [--json]"),
    "submit": (_module_main("data_modules.submission"), "check predictions and zip them for an evaluation server"),
    "results": (
        _module_main("vos_lightning.app.results.command"),
        "compare published results with the runs' scores, as Markdown and HTML",
    ),
    "list": (
        _module_main("vos_lightning.app.results.listing"),
        "list the experiments and the published results that they reproduce",
    ),
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
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        sys.stdout = None  # type: ignore[assignment]  # nothing is left to flush
        return 141
    except (ValueError, OSError) as error:
        return _fail(_one_line(error))
    except KeyboardInterrupt:
        return 130


def _one_line(error: Exception) -> str:
    """The message of an error; for one that a data loader's worker passed on, the last line of its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1].strip()
    return " ".join(line.strip() for line in lines) or type(error).__name__


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _help() -> None:
    console = Console()
    console.print("usage: python -m vos_lightning COMMAND [options]\n", highlight=False, markup=False)
    for name, (_, text) in COMMANDS.items():
        console.print(f"  {name:<21} {text}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nEvery command has --help. VOS_TRACEBACK=1 shows where an error came from.", highlight=False, soft_wrap=True)
