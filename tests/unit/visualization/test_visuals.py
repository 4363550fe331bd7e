"""Pictures and speed while a network trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from PIL import Image
from torch.utils.data import DataLoader

from tests.unit.dummies import DummyModule, make_frames, make_label_map, make_video
from vos_lightning.callbacks import throughput as throughput_module
from vos_lightning.callbacks.throughput import Throughput
from vos_lightning.callbacks.visuals import EvaluationPictures
from vos_lightning.io.videos import open_frames
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


def fit(root: Path, callback: Callback, logger: Logger | bool = False, data: Data | None = None, **options: Any) -> DummyModule:
    module = DummyModule()
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **{"max_epochs": 1, "val_check_interval": 2, "log_every_n_steps": 1, **options},
    )
    trainer.fit(module, datamodule=data or Data())
    return module


class TestPictures:
    def test_same_videos_after_every_validation(self, tmp_path: Path) -> None:
        module = fit(tmp_path, EvaluationPictures(videos=2, frames=4))
        folder = tmp_path / "pictures"
        pictures = [f"step={step:06d}_{name}.png" for step in (2, 4) for name in ("one", "two")]
        assert sorted(p.name for p in folder.iterdir()) == sorted([*pictures, "one.mp4", "two.mp4"])
        assert len(list(open_frames(folder / "one.mp4"))) == 7
        with Image.open(folder / pictures[0]) as image:  # 3 frames, then 1
            assert image.size[0] > 3 * 360
            assert 2 * 240 < image.size[1] < 3 * 240
        assert module.frame_listeners == []

    def test_every_other_validation(self, tmp_path: Path) -> None:
        fit(tmp_path, EvaluationPictures(videos=1, every_n_validations=2), val_check_interval=1)
        names = sorted(p.name for p in (tmp_path / "pictures").glob("*.png"))
        assert names == ["step=000001_one.png", "step=000003_one.png"]

    def test_weights_and_biases_gets_paths_and_scores(self, tmp_path: Path) -> None:
        logger = FakeWandb()
        fit(tmp_path, EvaluationPictures(videos=1), logger, val_check_interval=4)
        (image, table, video) = logger.calls
        assert image[:2] == ("image", "pictures/one")
        assert image[2] == [str(tmp_path / "pictures" / "step=000004_one.png")]
        assert video == ("video", "videos/one", [str(tmp_path / "pictures" / "one.mp4")])
        columns, *rows = table[2]
        assert [(row[0], row[1]) for row in rows] == [(name, i) for name in ("one", "three", "two") for i in (1, 2)]
        assert [row[columns.index("J&F")] for row in rows] == [1.0] * 6

    def test_a_failure_leaves_no_listener(self, tmp_path: Path) -> None:
        class Failing(Data):
            def val_dataloader(self) -> DataLoader:
                return DataLoader(dataset=[make_video("one", length=7, fail_at=3)], batch_size=None)

        module = DummyModule()
        trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[EvaluationPictures()], enable_progress_bar=False)
        with pytest.raises(OSError, match="frame 3"):
            trainer.validate(module, datamodule=Failing(), verbose=False)
        assert module.frame_listeners == []
        assert list((tmp_path / "pictures").iterdir()) == []


class TestThroughput:
    def test_values(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 9.0, 10.0, *(t for i in range(4) for t in (11.0 + 4 * i, 14.0 + 4 * i))])
        monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: next(times))
        callback = Throughput()
        logged: list[tuple[dict[str, float], int | None]] = []

        class Recorder(FakeWandb):
            def log_metrics(self, metrics: Any, step: int | None = None) -> None:
                logged.append((metrics, step))

        class FakeTrainer(Trainer):
            world_size, log_every_n_steps, global_step = 3, 2, 11
            loggers = (Recorder(),)

            def __init__(self) -> None: ...

        module, batch, trainer = DummyModule(), make_clips(), FakeTrainer()
        callback.on_train_start(trainer, module)
        for index in range(5):
            callback.on_train_batch_start(trainer, module, batch, index)
            callback.on_train_batch_end(trainer, module, None, batch, index)
        # Each batch after the first: 1 s of waiting, 3 s of work, 2 clips of 3 frames in each of 3 processes.
        expected = {"train/clips_per_second": 1.5, "train/frames_per_second": 4.5, "train/data_wait": 0.25}
        assert logged == [(expected, 11), (expected, 11)]

    def test_in_a_training(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path, name="", version="")
        fit(tmp_path, Throughput(), logger, Data(batches=5), val_check_interval=3, log_every_n_steps=2)
        content = (tmp_path / "metrics.csv").read_text().splitlines()
        column = content[0].split(",").index("train/clips_per_second")
        values = [line.split(",")[column] for line in content[1:]]
        assert len([value for value in values if value and float(value) > 0]) == 2
