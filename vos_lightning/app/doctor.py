"""The command ``doctor``: check data sets and stored proposals, in folders or as experiments read them."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment, parts_of


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 if there is no problem, 1 if there is one. Notes do not count as problems.

    Raises:
        FileNotFoundError: there is neither such a folder nor such an experiment.
        ValueError: a folder holds neither a data set in a known layout nor proposals; or an option of an experiment is wrong.
    """
    known, overrides = _parser().parse_known_args(argv)
    folders = [Path(target) for target in known.targets if os.path.isdir(target)]
    names = [target for target in known.targets if not os.path.isdir(target)]
    there = experiment_files() if names else {}
    lost = next((name for name in names if not name.endswith(".yaml") and name not in there), None)
    if lost is not None:
        raise FileNotFoundError(f"{lost}: there is no such folder, and no such experiment (`vos list --plain` prints all names)")
    if overrides and not names:
        raise ValueError(f"unknown option {overrides[0]}")
    # Data sets are referred to by name only, as in experiments: the library does not import them.
    diagnosis = importlib.import_module("data_modules.doctor.diagnosis")
    readings = [diagnosis.Reading(*_reading(each, overrides)) for each in _parts(names)]
    options = (known.workers, known.deep, known.fix, known.all, known.json)
    return 0 if diagnosis.diagnose(folders, *options, readings) else 1


def _parts(names: Sequence[str]) -> list[Experiment]:
    """The experiments, or their stages, each once."""
    found = [part for one in map(load_experiment, names) for part in parts_of(one)]
    return list({part.name: part for part in found}.values())


def _reading(experiment: Experiment, overrides: Sequence[str]) -> tuple[str, Any, tuple[Path, ...], bool]:
    """Name of an experiment, its data module, the folders of its data sets, and whether it is trained."""
    from vos_lightning.app.data import data_of  # imported here, as torch and lightning take seconds to import

    data, section = data_of(experiment, overrides)
    return experiment.name, data, tuple(map(Path, dict.fromkeys(_roots(section)))), not experiment.checkpoint_of


def _roots(section: Any) -> Iterator[str]:
    """Folders of data sets that a section names: ``root``, or the folder of ``image_root`` and ``mask_root``."""
    if isinstance(section, Mapping):
        if isinstance(section.get("root"), str):
            yield section["root"]
        if isinstance(section.get("image_root"), str):
            yield os.path.dirname(section["image_root"].rstrip("/"))
    for value in section.values() if isinstance(section, Mapping) else section if isinstance(section, list) else ():
        yield from _roots(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos doctor",
        allow_abbrev=False,  # unknown arguments are options of the experiment
        description="Check data sets and stored proposals on disk: counts beside the published figures, missing, damaged and "
        "hidden files, files that are not valid masks, sizes, ids; proposals of other frames or detectors, wrong boxes. An "
        "experiment stands for all data sets and proposals that it reads. Exit code 1 if there is a problem.",
        epilog="With EXP, --data... overrides options of its data, as in `train`.",
    )
    parser.add_argument(
        "targets",
        metavar="DIR|EXP",
        nargs="+",
        help="root of a data set, folder of proposals, or folder of these; or an experiment: a name from `list`, or a YAML file",
    )
    parser.add_argument("--fix", action="store_true", help="repair what is safe; originals are kept beside the folder")
    parser.add_argument("--deep", action="store_true", help="decode every frame (default: its header and its end)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--all", action="store_true", help="print every finding")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: number of CPUs)")
    return parser
