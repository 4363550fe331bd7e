"""Small Lightning modules that record what they are given."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from vos_lightning.structures import ClipBatch, VideoSample


class Recorder(lightning.LightningModule):
    """Trains one number; remembers a fingerprint of every batch and the names of every video."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[float, ...]] = []
        self.videos: list[str] = []

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        self.batches.append(fingerprint(batch))
        return self.weight * batch.frames.mean()

    def validation_step(self, batch: VideoSample, batch_idx: int) -> None:
        self.videos.append(batch.name)

    def test_step(self, batch: VideoSample, batch_idx: int) -> None:
        self.videos.append(batch.name)

    def predict_step(self, batch: VideoSample, batch_idx: int) -> str:
        self.videos.append(batch.name)
        return batch.name

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fingerprint(batch: ClipBatch) -> tuple[float, ...]:
    """Numbers that tell batches apart, one or two a clip."""
    pixels = batch.frames.double().flatten(1)
    weights = torch.linspace(0.5, 1.5, pixels.shape[1], dtype=torch.float64)
    return tuple((pixels * weights).mean(dim=1).tolist()) + tuple(batch.label_maps.double().mean(dim=(1, 2, 3)).tolist())


def trainer(tmp_path: Any, **kwargs: Any) -> lightning.Trainer:
    """Quiet CPU trainer that counts in steps."""
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
        "val_check_interval": 1000,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(tmp_path),
        "log_every_n_steps": 1,
    }
    return lightning.Trainer(**{**arguments, **kwargs})
