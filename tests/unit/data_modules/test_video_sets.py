"""MOSE, LVOS, VOST and folders of videos, in their layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.video_folders import LVOSDataModule, VideoFoldersDataModule
from data_modules.datasets.vost import VOSTDataModule
from tests.layouts import write_lvos_layout, write_video_folders, write_vost_layout

RECIPE = ClipRecipe(num_frames=2, short_side=None, crop="none", max_objects=2)


def test_mose(tmp_path: Path) -> None:
    sources = write_video_folders(tmp_path, "train", 3)
    write_video_folders(tmp_path, "valid", 2, first_only=True)
    module = VideoFoldersDataModule(str(tmp_path), recipe=RECIPE)
    assert len(module.clip_source()) == 3
    assert len(module.val_videos()) == 0
    videos = module.test_videos()
    assert [video.name for video in videos] == ["00000000", "00000001"]
    for video, source in zip(videos, sources, strict=False):
        assert len(video.targets) == 0
        assert (video.required_frames, video.length) == (None, 6)
        assert torch.equal(video.annotations[0], source.annotations[0])


def test_folders_with_lists_right_below_the_root(tmp_path: Path) -> None:
    sources = write_video_folders(tmp_path, ".", 3)
    (tmp_path / "train.txt").write_text("00000002\n")
    (tmp_path / "val.txt").write_text("00000001\n00000000\n")
    lists = {"train_list": str(tmp_path / "train.txt"), "val_list": str(tmp_path / "val.txt")}
    module = VideoFoldersDataModule(str(tmp_path), ".", ".", ".", merge_objects=True, **lists)
    assert [record.name for record in module.clip_source().records] == ["00000002"]
    videos = module.val_videos()
    assert [video.name for video in videos] == ["00000001", "00000000"]
    assert torch.equal(videos[0].targets[3], (sources[1].targets[3] > 0).to(torch.uint8))
    assert len(module.test_videos()) == 3
    with pytest.raises(FileNotFoundError, match=r"has no valid/JPEGImages: pass --data\.init_args\.root"):
        VideoFoldersDataModule(str(tmp_path)).setup("test")


def test_lvos(tmp_path: Path) -> None:
    sources = write_lvos_layout(tmp_path, "val", 3, seed=2)
    write_lvos_layout(tmp_path, "train", 1)
    (tmp_path / "train_meta.json").unlink()  # training needs none
    module = LVOSDataModule(str(tmp_path), recipe=RECIPE)
    assert len(module.clip_source()) == 1
    videos = module.val_videos()
    assert any(len(video.annotations) > 1 for video in videos)  # late objects
    for video, source in zip(videos, sources, strict=True):
        assert video.frame_names[:2] == ("00000001", "00000006")
        assert video.object_ids == source.object_ids
        assert sorted(video.annotations) == sorted(source.annotations)
        for t, given in source.annotations.items():
            assert torch.equal(video.annotations[t], given)
        assert len(video.targets) == len(source.targets)
    (tmp_path / "val_meta.json").rename(tmp_path / "val" / "valid_meta.json")
    assert len(LVOSDataModule(str(tmp_path)).val_videos()) == 3


def test_broken_lvos(tmp_path: Path) -> None:
    write_lvos_layout(tmp_path, "val", 1)
    path = tmp_path / "val_meta.json"
    meta = json.loads(path.read_text())["videos"]
    meta["v0000000"]["objects"]["1"]["frame_range"]["start"] = "00000003"
    path.write_text(json.dumps({"videos": meta}))
    with pytest.raises(FileNotFoundError, match=r"v0000000 has no frame 00000003, where .*val_meta\.json starts an object"):
        LVOSDataModule(str(tmp_path)).setup("test")
    path.write_text(json.dumps({"videos": {}}))
    with pytest.raises(ValueError, match=r"val_meta\.json has no video v0000000"):
        LVOSDataModule(str(tmp_path)).setup("test")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"val_meta\.json: .* this is not a meta file of LVOS"):
        LVOSDataModule(str(tmp_path)).setup("test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"val_meta\.json does not exist"):
        LVOSDataModule(str(tmp_path)).setup("test")


def test_vost(tmp_path: Path) -> None:
    sources = write_vost_layout(tmp_path, 2)
    clip = VOSTDataModule(str(tmp_path)).clip_source().draw(0, np.random.default_rng(0), RECIPE)
    assert (clip.label_maps[:, :2] == 255).all()
    for frames, count in (("JPEGImages", 3), ("JPEGImages_10fps", 6)):
        video = VOSTDataModule(str(tmp_path), frames=frames).val_videos()[1]
        assert (video.name, len(video.frames), len(video.targets)) == ("0002_cut", count, 3)
        second = sorted(video.targets)[1]
        assert video.frame_names[second] == "frame00024"
        assert torch.equal(video.targets[second][2:], sources[1].targets[2][2:])
        assert not (video.targets[second] == 255).any()
    shutil.rmtree(tmp_path / "JPEGImages_10fps")
    with pytest.raises(FileNotFoundError, match=r"VOST root .* has no JPEGImages_10fps"):
        VOSTDataModule(str(tmp_path), frames="JPEGImages_10fps").setup("test")
