"""A large data set has thousands of folders, which a network drive lists slowly: a stage lists each of them once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.davis import DAVISDataModule
from data_modules.datasets.mixed import MixedDataModule
from data_modules.datasets.own_videos import OwnVideosDataModule
from data_modules.datasets.static_images import StaticImagesDataModule
from data_modules.datasets.vost import VOSTDataModule
from data_modules.datasets.youtube_vos import YouTubeVOSDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth
from tests.layouts import (
    write_davis_layout,
    write_static_images,
    write_video_folders,
    write_vost_layout,
    write_youtube_vos_layout,
)
from tests.unit.data_modules.helpers import Recorder, trainer
from vos_lightning.app import records
from vos_lightning.app.experiments import Experiment
from vos_lightning.app.runs import Run
from vos_lightning.io import files

RECIPE = ClipRecipe(num_frames=2, crop_size=24, short_side=None, min_object_pixels=0, swap_probability=0.0)
LOADING = Loading(batch_size=2, num_workers=0)
COMMON: dict[str, Any] = {"recipe": RECIPE, "loading": LOADING}


def davis(root: Path) -> VOSDataModule:
    write_davis_layout(root, 4)
    return DAVISDataModule(str(root), **COMMON)


def youtube_vos(root: Path) -> VOSDataModule:
    write_youtube_vos_layout(root)
    return YouTubeVOSDataModule(str(root), num_held_out=1, **COMMON)


def own_videos(root: Path) -> VOSDataModule:
    write_video_folders(root, ".", 4)
    return OwnVideosDataModule(str(root), **COMMON)


def static_images(root: Path) -> VOSDataModule:
    write_static_images(root, 3)
    return StaticImagesDataModule(str(root / "images"), str(root / "masks"), **COMMON)


def mixture(root: Path) -> VOSDataModule:
    members: list[VOSDataModule] = [davis(root / "davis"), static_images(root / "static")]
    write_vost_layout(root / "vost", 1)
    return MixedDataModule(members, [2, 1], VOSTDataModule(str(root / "vost")), loading=LOADING)


def with_proposals(root: Path) -> VOSDataModule:
    return ProposalsDataModule(davis(root), ProposalsFromTruth(), loading=LOADING)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    scan = files._scan

    def counting(folder: str | Path) -> Any:
        counts[str(folder)] += 1
        return scan(folder)

    monkeypatch.setattr(files, "_scan", counting)
    return counts


@pytest.mark.parametrize("make", [davis, youtube_vos, own_videos, mixture, with_proposals])
def test_a_training_lists_every_folder_once(make: Any, tmp_path: Path, listed: Counter[str]) -> None:
    data = make(tmp_path / "data")
    fit = trainer(tmp_path, max_steps=2, val_check_interval=1, num_sanity_val_steps=1)
    module = Recorder()
    cli = SimpleNamespace(config={}, datamodule=data, trainer=fit, model=module)
    records.started(Run(tmp_path / "run"), Experiment("one", tmp_path, {}), [], cli, 0)
    fit.fit(module, datamodule=data)
    assert len(module.batches) == 2
    assert listed
    assert {folder: count for folder, count in listed.items() if count > 1} == {}


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_lists_every_folder_once(stage: str, tmp_path: Path, listed: Counter[str]) -> None:
    data = davis(tmp_path / "data")
    module = Recorder()
    getattr(trainer(tmp_path), stage)(module, datamodule=data)
    assert module.videos == ["video-02", "video-03"]
    assert listed
    assert {folder: count for folder, count in listed.items() if count > 1} == {}
