"""Pictures of what a network computes for chosen videos and frames, in every validation."""

from __future__ import annotations

from pathlib import Path

from tests.unit.callbacks.helpers import FakeWandb, fit
from vos_lightning.callbacks.panels import FramePanels


class TestFramePanels:
    def test_validation_and_weights_and_biases(self, tmp_path: Path) -> None:
        logger = FakeWandb()
        module = fit(tmp_path, FramePanels(), logger)
        folder = tmp_path / "panels"
        names = [f"step={step:06d}_one_f00003.png" for step in (2, 4)]
        assert sorted(p.name for p in folder.iterdir()) == names
        assert logger.calls == [("image", "panels/one_f00003", [str(folder / name)]) for name in names]
        assert module.frame_listeners == []

    def test_chosen_videos_and_frames(self, tmp_path: Path) -> None:
        fit(tmp_path, FramePanels(["two", "three"], [1, 5, 99]), val_check_interval=4)
        names = sorted(p.name for p in (tmp_path / "panels").iterdir())
        assert names == [f"step=000004_{video}_f0000{t}.png" for video in ("three", "two") for t in (1, 5)]
        fit(tmp_path / "none", FramePanels([]))
        assert not (tmp_path / "none" / "panels").exists()
