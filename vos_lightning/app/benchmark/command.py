"""The command ``benchmark``: how fast networks segment, as a table and as JSON."""

from __future__ import annotations

import argparse
import inspect
import json
import pkgutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vos_lightning.app.benchmark.options import Options, add_arguments, options_of
from vos_lightning.app.experiments import Experiment, load_experiment
from vos_lightning.app.runs import Run, write_text
from vos_lightning.app.training import build
from vos_lightning.io.overlaps import claim_file

if TYPE_CHECKING:
    import torch

    from vos_lightning.app.benchmark.measure import Result


def main(argv: Sequence[str]) -> int:
    """Measure how fast networks segment."""
    parser = argparse.ArgumentParser(
        prog="vos benchmark",
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
    if known.json is not None:
        claim_file(known.json, (), known.overwrite)
    if not known.experiments and not known.network:
        raise ValueError("benchmark what? name experiments, or --network vos_lightning.networks.emvos.EMVOS")
    if overrides and not known.experiments:
        raise ValueError(f"unknown option {overrides[0]}")

    import torch

    from vos_lightning.app.benchmark.measure import run
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
    given = section.get("init_args") or {}
    takes = argument in inspect.signature(pkgutil.resolve_name(section["class_path"])).parameters
    # A copier start needs two projections.
    places = [where] if takes and not given.get("shared_projection") else []
    for key, value in given.items():
        if isinstance(value, Mapping) and "class_path" in value:
            places += _taking(argument, value, f"{where}.init_args.{key}")
    return places


def report(results: Sequence[Result], options: Options, device: torch.device, file: Path | None) -> None:
    """Print the table and write the JSON file."""
    from vos_lightning.app.benchmark.measure import environment

    height, width = options.size
    about = environment(device)
    table = Table(
        *("network", "parameters", "objects", "precision", "s/frame", "quartiles", "cpu", "ratio", "MiB"),
        title=f"{height}x{width}, {about['device_name']}, {about['threads']} threads, torch {about['torch']}, "
        f"convolutions at {about['convolution_gflops']:.0f} GFLOP/s",
        caption="s/frame: median; cpu: CPU time a thread; ratio: median over that of the first network; MiB: peak memory",
    )
    for r in results:
        table.add_row(
            r.network,
            f"{r.parameters / 1e6:.2f} M",
            str(r.objects),
            r.precision,
            f"{r.median:.4f}",
            f"{r.first_quartile:.4f}-{r.third_quartile:.4f}",
            f"{r.cpu:.4f}",
            f"{r.ratio:.2f}",
            "?" if r.peak_memory is None else f"{r.peak_memory / 2**20:.0f}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log has no width
    console.print(table)
    if options.sections:
        parts = Table("network", "objects", "precision", "part", "ms/frame")
        for r in results:
            for part, seconds in sorted(r.sections.items()):
                parts.add_row(r.network, str(r.objects), r.precision, part, f"{1000 * seconds:.2f}")
        console.print(parts)
    if file is not None:
        content = {"environment": about, "options": asdict(options), "results": [asdict(result) for result in results]}
        write_text(file, json.dumps(content, indent=1) + "\n")
