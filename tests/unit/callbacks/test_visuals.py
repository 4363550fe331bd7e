"""Pictures of validation while a network trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from tests.unit.callbacks.helpers import Data, FakeWandb, fit
from tests.unit.dummies import DummyModule, make_video
from vos_lightning.callbacks.visuals import EvaluationPictures
from vos_lightning.io.videos import open_frames


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
