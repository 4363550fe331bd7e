"""Speed while a network trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from tests.unit.callbacks.helpers import Data, FakeWandb, fit, make_clips
from tests.unit.dummies import DummyModule
from vos_lightning.callbacks import throughput as throughput_module
from vos_lightning.callbacks.throughput import Throughput


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
            log_every_n_steps, global_step = 2, 11
            loggers = (Recorder(),)

            def __init__(self) -> None: ...

        module, batch, trainer = DummyModule(), make_clips(), FakeTrainer()
        callback.on_train_start(trainer, module)
        for index in range(5):
            callback.on_train_batch_start(trainer, module, batch, index)
            callback.on_train_batch_end(trainer, module, None, batch, index)
        # Each batch after the first: 1 s of waiting, 3 s of work, 2 clips of 3 frames.
        expected = {"train/clips_per_second": 0.5, "train/frames_per_second": 1.5, "train/data_wait": 0.25}
        assert logged == [(expected, 11), (expected, 11)]

    def test_processes_are_put_together(self) -> None:
        together = throughput_module._together([[0.5, 1.5, 0.25, 3.0], [0.5, 1.5, 0.125, 7.0]])
        assert together == {
            "train/clips_per_second": 1.0,
            "train/frames_per_second": 3.0,
            "train/data_wait": 0.25,
            "train/peak_memory_gib": 7.0,
        }

    def test_in_a_training(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path, name="", version="")
        fit(tmp_path, Throughput(), logger, Data(batches=5), val_check_interval=3, log_every_n_steps=2)
        content = (tmp_path / "metrics.csv").read_text().splitlines()
        column = content[0].split(",").index("train/clips_per_second")
        values = [line.split(",")[column] for line in content[1:]]
        assert len([value for value in values if value and float(value) > 0]) == 2
