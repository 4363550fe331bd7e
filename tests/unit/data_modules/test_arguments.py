"""Every data module takes what every data module takes, and hands it on."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import data_modules
from data_modules.base import Loading, VOSDataModule
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.synthetic import SyntheticDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth

LOADING = Loading(batch_size=6, max_device_batch=2, num_workers=3, seed=17, pin_memory=True, predict_root="somewhere")
COMMON = {"loading": LOADING, "recipe": ClipRecipe(num_frames=5, swap_probability=0.0)}


def all_data_modules() -> dict[str, type[VOSDataModule]]:
    """Every data module of the package: a new file is found without an edit here."""
    return {
        name: value
        for info in pkgutil.walk_packages(data_modules.__path__, "data_modules.")
        for name, value in vars(importlib.import_module(info.name)).items()
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


def test_all_data_modules_are_found() -> None:
    assert {"DAVISDataModule", "OwnVideosDataModule", "ProposalsDataModule", "YouTubeVOSDataModule"} <= DATA_MODULES.keys()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("max_device_batch", 0, "max_device_batch must be at least 1, not 0"),
        ("num_workers", -1, "num_workers must be at least 0, not -1"),
        ("seed", -1, "seed must be at least 0, not -1"),
    ],
)
def test_loading_refuses(option: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loading(**{option: value})
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LOADING, **{option: value})


def test_loading_may_be_as_small_as_this() -> None:
    assert Loading(batch_size=1, max_device_batch=1, num_workers=0, seed=0).max_device_batch == 1
    assert Loading().max_device_batch is None


@pytest.mark.parametrize("name", sorted(DATA_MODULES))
def test_every_data_module_takes_them(name: str, tmp_path: Path) -> None:
    kind = DATA_MODULES[name]
    # Where another data module makes the clips, its recipe counts.
    given = {key: value for key, value in COMMON.items() if key != "recipe" or kind is not ProposalsDataModule}
    built = kind(**required(kind, tmp_path), **given)
    for key, value in COMMON.items():
        assert getattr(built, key) == value, key
