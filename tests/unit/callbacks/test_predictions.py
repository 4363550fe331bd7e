"""Prediction files of a test or prediction run, with a network that repeats the given mask."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader

from tests.unit.callbacks.helpers import make_trainer
from tests.unit.dummies import DummyModule, make_video
from vos_lightning.callbacks.predictions import PredictionWriter
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.videos import open_frames
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.structures import VideoSample
from vos_lightning.visualization.sheets import CAPTION_HEIGHT


class Videos(LightningDataModule):
    def __init__(self, videos: list[VideoSample]) -> None:
        super().__init__()
        self.videos = videos

    def test_dataloader(self) -> DataLoader:
        return DataLoader(dataset=self.videos, batch_size=None)

    predict_dataloader = val_dataloader = test_dataloader


@pytest.mark.filterwarnings("ignore:predict returned None.*")
class TestWriter:
    def test_writes_label_maps_overlays_and_a_sheet(self, tmp_path: Path) -> None:
        videos = [make_video("first", length=5), make_video("second", length=3, ids=(2, 7))]
        module = DummyModule()
        make_trainer(tmp_path, PredictionWriter()).test(module, datamodule=Videos(videos), verbose=False)
        root = tmp_path / "predictions"
        for video in videos:
            for index, name in enumerate(video.frame_names):
                written = read_label_map(root / "test" / "masks" / video.name / f"{name}.png")
                assert torch.equal(written, video.targets[0]), (video.name, index)
            assert len(list(open_frames(root / "test" / "overlays" / f"{video.name}.mp4"))) == video.length
        with Image.open(root / "test" / "masks" / "first" / "f00000.png") as image:
            assert image.mode == "P"
        with Image.open(root / "test" / "contact_sheet.png") as image:
            assert image.size[1] > 2 * (160 + CAPTION_HEIGHT)
        assert module.frame_listeners == []
        assert not list(tmp_path.rglob("*.tmp"))

    @pytest.mark.parametrize(("all_frames", "expected"), [(False, ["f00002.png"]), (True, [f"f{i:05d}.png" for i in range(4)])])
    def test_writes_required_frames_only_unless_told(self, tmp_path: Path, all_frames: bool, expected: list[str]) -> None:
        video = make_video("v", length=4, required=(2,))
        callback = PredictionWriter(str(tmp_path / "out"), overlays=False, contact_sheet=False, all_frames=all_frames)
        make_trainer(tmp_path, callback).predict(DummyModule(), datamodule=Videos([video]))
        assert sorted(p.name for p in (tmp_path / "out" / "masks" / "v").iterdir()) == expected
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index", "masks", "written.jsonl"]

    def test_does_not_listen_in_validation(self, tmp_path: Path) -> None:
        make_trainer(tmp_path, PredictionWriter()).validate(DummyModule(), datamodule=Videos([make_video("v")]), verbose=False)
        assert not (tmp_path / "predictions").exists()

    def test_a_failure_leaves_complete_files_only_and_no_listener(self, tmp_path: Path) -> None:
        broken = make_video("broken", length=6, fail_at=3)
        module = DummyModule()
        with pytest.raises(OSError, match="frame 3"):
            make_trainer(tmp_path, PredictionWriter()).test(module, datamodule=Videos([make_video("good"), broken]))
        assert module.frame_listeners == []
        root = tmp_path / "predictions" / "test"
        assert sorted(p.name for p in (root / "masks" / "broken").iterdir()) == [f"f{i:05d}.png" for i in range(3)]
        assert len(list(open_frames(root / "overlays" / "broken.mp4"))) == 3
        assert len((root / "index" / "broken.csv").read_text().splitlines()) == 1 + 3 * 2
        assert '"finished": false' in (root / "written.jsonl").read_text()

    def test_a_second_run_replaces_the_first(self, tmp_path: Path) -> None:
        for ids, names in (((1, 2), "vw"), ((3, 4), "v")):
            videos = [make_video(name, length=6 if len(names) == 2 else 3, ids=ids) for name in names]
            make_trainer(tmp_path, PredictionWriter()).predict(DummyModule(), datamodule=Videos(videos))
        root = tmp_path / "predictions"
        assert torch.equal(read_label_map(root / "predict" / "masks" / "v" / "f00001.png"), videos[0].targets[0])
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*.*")) == [
            "predict/contact_sheet.png",
            "predict/index/v.csv",
            *(f"predict/masks/v/f0000{index}.png" for index in range(3)),  # neither the longer video nor the second one is left
            "predict/overlays/v.mp4",
            "predict/written.jsonl",
        ]
        assert '"finished": true' in (root / "predict" / "written.jsonl").read_text()

    def test_a_folder_in_which_another_run_is_writing_is_left_alone(self, tmp_path: Path) -> None:
        """Such a run would replace what the other one has just written; afterwards, and after an error, the way is free."""
        root = tmp_path / "predictions" / "test"
        broken = make_video("broken", length=6, fail_at=3)
        with OutputFolder(root, "test", alone=True) as other:
            other.start()
            with pytest.raises(ValueError, match="another run is writing into this folder"):
                make_trainer(tmp_path, PredictionWriter()).test(
                    DummyModule(), datamodule=Videos([make_video("v")]), verbose=False
                )
            assert [path.name for path in root.iterdir()] == ["written.jsonl"]
        trainer = make_trainer(tmp_path, PredictionWriter())
        with pytest.raises(OSError, match="frame 3"):
            trainer.test(DummyModule(), datamodule=Videos([broken]), verbose=False)
        make_trainer(tmp_path, PredictionWriter()).test(DummyModule(), datamodule=Videos([make_video("v")]), verbose=False)
        assert [path.name for path in (root / "masks").iterdir()] == ["v"]

    def test_masks_that_it_has_not_written_stay(self, tmp_path: Path) -> None:
        """As when the ground truth is named as the output."""
        drawn = tmp_path / "Annotations" / "v" / "f00001.png"
        drawn.parent.mkdir(parents=True)
        drawn.write_bytes(b"drawn")
        for overwrite in (False, True):
            callback = PredictionWriter(str(tmp_path / "Annotations"), overwrite=overwrite)
            with pytest.raises(ValueError, match=r"Annotations: the folder holds what `test` has not written \(v\)"):
                make_trainer(tmp_path, callback).test(DummyModule(), datamodule=Videos([make_video("v")]), verbose=False)
        assert drawn.read_bytes() == b"drawn"
        assert [path.name for path in tmp_path.rglob("*.*")] == ["f00001.png"]

    def test_a_folder_of_ones_own_is_replaced_on_request_only(self, tmp_path: Path) -> None:
        videos = Videos([make_video("v")])
        make_trainer(tmp_path, PredictionWriter(str(tmp_path / "mine"))).predict(DummyModule(), datamodule=videos)
        with pytest.raises(ValueError, match=r"mine: .* or pass --predictions.overwrite=true"):
            make_trainer(tmp_path, PredictionWriter(str(tmp_path / "mine"))).predict(DummyModule(), datamodule=videos)
        make_trainer(tmp_path, PredictionWriter(str(tmp_path / "mine"), overwrite=True)).predict(DummyModule(), datamodule=videos)


@pytest.mark.filterwarnings("ignore:predict returned None.*")
class TestResume:
    def predict(self, root: Path, *videos: VideoSample, resume: bool = True, source: str | None = None) -> PredictionWriter:
        callback = PredictionWriter(resume=resume)
        callback.source = source
        make_trainer(root, callback).predict(DummyModule(), datamodule=Videos(list(videos)), return_predictions=False)
        return callback

    def written(self, root: Path) -> dict[str, int]:
        """Files of the predictions and when they were written, without the record."""
        folder = root / "predictions" / "predict"
        files = sorted(path for path in folder.rglob("*.*") if path.suffix != ".jsonl")
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}

    def test_a_video_that_fails_leaves_nothing_and_keeps_no_other_back(self, tmp_path: Path) -> None:
        callback = self.predict(tmp_path, make_video("a"), make_video("broken", length=6, fail_at=3), make_video("c"))
        assert callback.missing == {"broken": "frame 3 cannot be read"}
        assert not [name for name in self.written(tmp_path) if "broken" in name]
        assert {"masks/a/f00003.png", "overlays/a.mp4", "index/a.csv", "masks/c/f00003.png"} <= self.written(tmp_path).keys()
        record = (tmp_path / "predictions" / "predict" / "written.jsonl").read_text().splitlines()
        assert '"finished": true' in record[0]
        assert '{"item": "broken", "error": "frame 3 cannot be read"}' in record

    def test_what_is_missing_is_done_and_the_rest_kept(self, tmp_path: Path) -> None:
        self.predict(tmp_path, make_video("a"), make_video("b", fail_at=2))
        before = self.written(tmp_path)
        for _ in range(2):  # the second time there is nothing left to do
            callback = self.predict(tmp_path, make_video("a"), make_video("b"))
            assert callback.missing == {}
            after = self.written(tmp_path)
            assert {name: after[name] for name in before} == before
            assert after.keys() - before.keys() == {
                "contact_sheet_start2.png",
                "index/b.csv",
                "overlays/b.mp4",
                *(f"masks/b/f0000{index}.png" for index in range(4)),
            }

    def test_after_a_kill(self, tmp_path: Path) -> None:
        """In the middle of the second video of each of two processes, of which one goes on alone."""
        folder = tmp_path / "predictions" / "predict"
        for part, names in enumerate((("a", "b"), ("c", "d"))):
            files = PredictionFiles(OutputFolder(folder, "predict", overwrite=True, part=part))
            for video in map(make_video, names):
                for index, prediction in enumerate(DummyModule().engine().run(video)):
                    if video.name == names[0] or index < 2:
                        files.take(video, prediction)
        before = self.written(tmp_path)
        assert "masks/d/f00001.png" in before
        self.predict(tmp_path, *map(make_video, "abcd"))
        after = self.written(tmp_path)
        for name, time in before.items():
            assert (after[name] == time) == ("/a" in name or "/c" in name), name
        assert len([name for name in after if name.startswith("masks/")]) == 16
        assert sorted(path.name for path in folder.glob("*.jsonl")) == ["written.jsonl"]

    def test_a_file_that_was_removed_is_made_again(self, tmp_path: Path) -> None:
        self.predict(tmp_path, make_video("a"), make_video("b"))
        before = self.written(tmp_path)
        (tmp_path / "predictions" / "predict" / "masks" / "a" / "f00002.png").unlink()
        self.predict(tmp_path, make_video("a"), make_video("b"))
        after = self.written(tmp_path)
        assert before.keys() <= after.keys()
        assert after["masks/b/f00002.png"] == before["masks/b/f00002.png"]

    def test_results_of_another_checkpoint_are_not_mixed_in(self, tmp_path: Path) -> None:
        self.predict(tmp_path, make_video("a"), source="one")
        before = self.written(tmp_path)
        with pytest.raises(ValueError, match=r"holds results of another checkpoint, or with other options; .*overwrite=true"):
            self.predict(tmp_path, make_video("a"), source="other")
        assert self.written(tmp_path) == before
        self.predict(tmp_path, make_video("a"), source="other", resume=False)

    def test_a_disk_that_is_full_is_not_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("vos_lightning.predictions.writer.write_label_map", full)
        with pytest.raises(OSError, match="No space left"):
            self.predict(tmp_path, make_video("a"))

    def test_a_score_needs_all_videos(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"--predictions\.resume goes with predict, not with test"):
            make_trainer(tmp_path, PredictionWriter(resume=True)).test(DummyModule(), datamodule=Videos([make_video("v")]))
