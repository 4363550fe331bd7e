"""Every data module takes what every data module takes, and hands it on."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import data_modules
from data_modules.base import VOSDataModule
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.synthetic import SyntheticDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth

COMMON = {
    "batch_size": 6,
    "num_workers": 3,
    "seed": 17,
    "recipe": ClipRecipe(num_frames=5, swap_probability=0.0),
    "pin_memory": True,
    "predict_root": "somewhere",
    "max_device_batch": 2,
}


def all_data_modules() -> dict[str, type[VOSDataModule]]:
    """Every data module of the package: a new file is found without an edit here."""
    return {
        name: value
        for info in pkgutil.iter_modules(data_modules.__path__)
        for name, value in vars(importlib.import_module(f"data_modules.{info.name}")).items()
        if inspect.isclass(value) and issubclass(value, VOSDataModule) and value is not VOSDataModule
    }


DATA_MODULES = all_data_modules()


def required(kind: type[VOSDataModule], root: Path) -> dict[str, Any]:
    """A value for every argument without a default."""
    values: dict[str, Any] = {
        "root": str(root),
        "image_root": str(root),
        "mask_root": str(root),
        "annotation_file": str(root / "annotations.json"),
        "dataset": "ecssd",
        "train": [SyntheticDataModule(recipe=COMMON["recipe"])],
        "repeats": [1],
        "evaluation": SyntheticDataModule(),
        "source": SyntheticDataModule(recipe=COMMON["recipe"]),
        "proposals": ProposalsFromTruth(),
    }
    parameters = inspect.signature(kind).parameters
    return {name: values[name] for name, parameter in parameters.items() if parameter.default is parameter.empty}


def test_these_are_all_arguments() -> None:
    assert COMMON.keys() == inspect.signature(VOSDataModule).parameters.keys()


@pytest.mark.parametrize("name", sorted(DATA_MODULES))
def test_every_data_module_takes_them(name: str, tmp_path: Path) -> None:
    kind = DATA_MODULES[name]
    # Where another data module makes the clips, its recipe counts.
    given = {key: value for key, value in COMMON.items() if key != "recipe" or kind is not ProposalsDataModule}
    built = kind(**required(kind, tmp_path), **given)
    for key, value in COMMON.items():
        assert getattr(built, key) == value, key
