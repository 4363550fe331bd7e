"""Short trainings with a callback, and a logger that keeps what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from torch.utils.data import DataLoader

from tests.unit.dummies import DummyModule, make_frames, make_label_map, make_video
from vos_lightning.structures import ClipBatch


def make_clips() -> ClipBatch:
    frames = torch.stack(make_frames(3)).float() / 255
    label_maps = make_label_map().expand(3, -1, -1)
    return ClipBatch(
        frames=frames.expand(2, -1, -1, -1, -1),
        label_maps=label_maps.expand(2, -1, -1, -1),
        object_valid=torch.ones(2, 2, dtype=torch.bool),
        video_names=("a", "b"),
        frame_indices=torch.zeros(2, 3, dtype=torch.int64),
    )


class Data(LightningDataModule):
    def __init__(self, batches: int = 4, names: tuple[str, ...] = ("one", "two", "three")) -> None:
        super().__init__()
        self.batches, self.names = batches, names

    def train_dataloader(self) -> DataLoader:
        return DataLoader(dataset=[make_clips()] * self.batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(dataset=[make_video(name, length=7) for name in self.names], batch_size=None)


class FakeWandb(WandbLogger):
    """Takes what the real one takes, without the package."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []

    name = version = save_dir = None
    experiment = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...
    def log_hyperparams(self, params: Any) -> None: ...
    def save(self) -> None: ...
    def finalize(self, status: str) -> None: ...
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append(("image", key, images))

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append(("video", key, videos))

    def log_table(self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None) -> None:  # type: ignore[override]
        self.calls.append(("table", key, [columns, *data]))


def make_trainer(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"logger": False, **options},
    )


def fit(root: Path, callback: Callback, logger: Logger | bool = False, data: Data | None = None, **options: Any) -> DummyModule:
    module = DummyModule()
    usual = {"max_epochs": 1, "val_check_interval": 2, "log_every_n_steps": 1}
    trainer = make_trainer(root, callback, logger=logger, **{**usual, **options})
    trainer.fit(module, datamodule=data or Data())
    return module
