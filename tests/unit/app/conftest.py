"""A checkpoint, a video and a mask for the commands that read them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from tests.unit.dummies import DummyModule, DummyNetwork, make_frames, make_label_map
from vos_lightning.io.videos import VideoWriter
from vos_lightning.modules.base import VOSModule

MODULE = f"{DummyModule.__module__}.DummyModule"
NETWORK = f"{DummyNetwork.__module__}.DummyNetwork"


class NoData(LightningDataModule):
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a recipe run writes it: hyperparameters are those that LightningCLI has parsed."""
    folder = tmp_path_factory.mktemp("run")
    network = {"class_path": NETWORK, "init_args": {"scale": 7.5}}
    arguments = {
        "model": {"class_path": MODULE, "init_args": {"evaluation": {"short_side": 24}, "network": network}},
        "data": {"class_path": f"{__name__}.NoData"},
        "trainer": {"accelerator": "cpu", "logger": False, "default_root_dir": str(folder), "enable_model_summary": False},
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["train"])
        warnings.simplefilter("ignore")  # Lightning advises against saving the network's hyperparameters
        cli = LightningCLI(
            VOSModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            run=False,
            args=arguments,
        )
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "v.mp4", 12.5) as writer:
        for frame in make_frames(5, height=32, width=48):
            writer.write(frame)
    return tmp_path / "v.mp4"


@pytest.fixture
def mask() -> Tensor:
    return make_label_map((1, 2), height=32, width=48)
