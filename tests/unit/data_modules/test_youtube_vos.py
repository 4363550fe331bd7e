"""YouTube-VOS: late objects, ids with gaps, required frames, two frame rates, and its published layout broken in many ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_modules.clips.dataset import ClipDataset, ClipKey, Draw
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.youtube_vos import LEFT_OUT_BY_STCN, YouTubeVOSDataModule
from tests.layouts import write_youtube_vos_layout
from vos_lightning.io.label_maps import read_label_map, write_label_map

RECIPE = ClipRecipe(num_frames=3, short_side=None, crop="balanced", crop_size=32, min_object_pixels=16, max_objects=2)
Truth = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    root = tmp_path_factory.mktemp("youtube")
    return root, write_youtube_vos_layout(root, seed=2)


@pytest.fixture
def youtube(written: tuple[Path, Truth], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(written[0], tmp_path / "youtube"))


def meta_of(root: Path, split: str = "valid") -> Any:
    return json.loads((root / split / "meta.json").read_text())["videos"]


def write_meta(root: Path, videos: Any, split: str = "valid") -> None:
    (root / split / "meta.json").write_text(json.dumps({"videos": videos}))


def test_the_fixture_has_the_quirks(written: tuple[Path, Truth]) -> None:
    root, truth = written
    videos = meta_of(root)
    late = [
        entry for video in videos.values() for entry in video["objects"].values() if entry["frames"][0] not in ("00000", "00110")
    ]
    assert late
    assert next(iter(truth["v000000001"])) == "00110"
    assert "2" not in videos["v000000001"]["objects"]
    assert {"1", "3"} <= set(videos["v000000001"]["objects"])
    assert not read_label_map(root / "train" / "Annotations" / "t000000001" / "00000.png").any()


@pytest.mark.parametrize("frames", ["all", "6fps"])
def test_validation_videos_are_as_meta_says(written: tuple[Path, Truth], frames: str) -> None:
    root, truth = written
    videos = YouTubeVOSDataModule(str(root), frames=frames).test_videos()
    assert [video.name for video in videos] == sorted(truth)
    for video in videos:
        objects = meta_of(root)[video.name]["objects"]
        assert video.object_ids == tuple(sorted(int(i) for i in objects))
        required = sorted({stem for entry in objects.values() for stem in entry["frames"]})
        assert [video.frame_names[i] for i in video.required_frames] == required
        # Dense frames are five times as many; the ends are the first mask and the last required frame.
        assert len(video.frames) == (21 if frames == "all" else 5)
        assert (video.frame_names[0], video.frame_names[-1]) == (required[0], required[-1])
        assert len(video.targets) == 0
        for object_id, entry in objects.items():
            index = video.frame_names.index(entry["frames"][0])
            true = truth[video.name][entry["frames"][0]]
            assert torch.equal(video.annotations[index] == int(object_id), true == int(object_id))
        assert sum(len(torch.unique(a)) - 1 for a in video.annotations.values()) == len(objects)


def test_frames_that_cannot_matter_are_cut(youtube: Path) -> None:
    videos = meta_of(youtube)
    for entry in videos["v000000000"]["objects"].values():
        entry["frames"] = [stem for stem in entry["frames"] if stem <= "00015"]
    for stem in ("00000", "00005"):  # an annotation at 00000 that no object asks for any more
        for entry in videos["v000000000"]["objects"].values():
            entry["frames"] = [s for s in entry["frames"] if s > stem]
    for object_id in list(videos["v000000000"]["objects"]):
        if not videos["v000000000"]["objects"][object_id]["frames"]:
            del videos["v000000000"]["objects"][object_id]
    write_meta(youtube, videos)
    label_map = read_label_map(youtube / "valid" / "Annotations" / "v000000000" / "00000.png")
    write_label_map(youtube / "valid" / "Annotations" / "v000000000" / "00010.png", label_map)
    video = YouTubeVOSDataModule(str(youtube)).test_videos()[0]
    assert video.frame_names == tuple(f"{t:05d}" for t in range(10, 16))
    assert video.required_frames == (0, 5)
    assert list(video.annotations) == [0]


def test_training_clips_are_of_annotated_frames(written: tuple[Path, Truth]) -> None:
    module = YouTubeVOSDataModule(str(written[0]), recipe=RECIPE)
    source = module.clip_source()
    assert len(source) == 3
    clip = source.draw(0, np.random.default_rng(0), RECIPE)
    assert clip.video_name == "t000000000"
    assert max(clip.frame_indices) <= 4  # counted in stored frames
    # The empty first frame is never a reference.
    assert all(source.draw(1, np.random.default_rng(s), RECIPE).label_maps[0].any() for s in range(10))
    assert ClipDataset(module.clip_parts(), seed=0)[ClipKey(Draw(0, 2))].frames.shape == (3, 3, 32, 32)


def test_held_out_videos_have_targets_and_start_where_objects_are_seen(written: tuple[Path, Truth]) -> None:
    root, _ = written
    module = YouTubeVOSDataModule(str(root), num_held_out=2)
    videos = module.val_videos()
    assert [video.name for video in videos] == ["t000000000", "t000000001"]
    assert len(module.clip_source()) == 1
    for video in videos:
        assert list(video.targets) == list(video.required_frames) == list(range(5))
        for object_id in video.object_ids:
            first = next(t for t in range(5) if (video.targets[t] == object_id).any())
            given = [i for i, label_map in video.annotations.items() if (label_map == object_id).any()]
            assert given == [first]
    assert min(videos[1].annotations) > 0  # its first frame is empty
    assert len(YouTubeVOSDataModule(str(root)).val_videos()) == 0


def test_lists_and_subsets(youtube: Path) -> None:
    left_out = sorted(LEFT_OUT_BY_STCN)[0]
    for kind in ("JPEGImages", "Annotations"):
        (youtube / "train" / kind / "t000000002").rename(youtube / "train" / kind / left_out)
    assert len(LEFT_OUT_BY_STCN) == 7
    assert len(YouTubeVOSDataModule(str(youtube)).clip_source()) == 3
    assert len(YouTubeVOSDataModule(str(youtube), train_subset="stcn").clip_source()) == 2
    (youtube / "train.txt").write_text("t000000000\n" + left_out)
    (youtube / "val.txt").write_text("t000000000\n")
    module = YouTubeVOSDataModule(str(youtube), train_list=str(youtube / "train.txt"), val_list=str(youtube / "val.txt"))
    assert [record.name for record in module.clip_source().records] == [left_out]
    assert [video.name for video in module.val_videos()] == ["t000000000"]


def test_a_smaller_copy_needs_no_meta(youtube: Path) -> None:
    (youtube / "train").rename(youtube / "train_480p")
    (youtube / "train").mkdir()
    (youtube / "train_480p" / "meta.json").rename(youtube / "train" / "meta.json")
    module = YouTubeVOSDataModule(str(youtube), train_split="train_480p", num_held_out=1)
    assert len(module.clip_source()) == 2
    assert len(module.val_videos()[0].targets) == 5


def test_unseen_objects_are_known_where_categories_are_published(youtube: Path) -> None:
    videos = meta_of(youtube)
    for entry in videos["v000000000"]["objects"].values():
        entry["category"] = "person"
    videos["v000000000"]["objects"]["1"]["category"] = "crocodile"
    write_meta(youtube, videos)
    module = YouTubeVOSDataModule(str(youtube))
    assert module.test_videos()[0].unseen_ids == (1,)


def test_dense_frames_may_lie_in_all_frames(youtube: Path) -> None:
    (youtube / "all_frames").mkdir()
    (youtube / "valid_all_frames").rename(youtube / "all_frames" / "valid_all_frames")
    assert len(YouTubeVOSDataModule(str(youtube)).test_videos()[0].frames) == 21


# Broken input ---------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(youtube: Path, tmp_path: Path) -> None:
    def module(**options: Any) -> YouTubeVOSDataModule:
        return YouTubeVOSDataModule(str(youtube), **options)

    with pytest.raises(FileNotFoundError, match=r"has no train/JPEGImages: pass --data\.init_args\.root"):
        YouTubeVOSDataModule(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match=r"num_held_out must be at least 0 and below the 3"):
        module(num_held_out=3).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"test/JPEGImages"):
        module(test_split="test").setup("test")
    (youtube / "valid_all_frames" / "JPEGImages" / "v000000000" / "00010.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"v000000000 has no frame 00010, which .*meta\.json lists"):
        module().setup("test")
    shutil.rmtree(youtube / "valid_all_frames")
    with pytest.raises(FileNotFoundError, match=r"valid_all_frames.*does not exist.*frames=6fps"):
        module().setup("test")
    module(frames="6fps").setup("test")
    (youtube / "valid" / "Annotations" / "v000000000" / "00000.png").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"v000000000"):
        module(frames="6fps").setup("test")
    (youtube / "valid" / "meta.json").write_text('{"videos": []}')
    with pytest.raises(
        ValueError, match=r"valid/meta\.json: videos must be a mapping, not \[\]; this is not a meta\.json of YouTube-VOS"
    ):
        module(frames="6fps").setup("test")
    (youtube / "valid" / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid/meta\.json does not exist"):
        module(frames="6fps").setup("test")


def test_lists_of_another_release_are_named(youtube: Path) -> None:
    videos = meta_of(youtube, "train")
    del videos["t000000000"]
    videos["t000000001"]["objects"] = {}
    write_meta(youtube, videos, "train")
    with pytest.raises(ValueError, match=r"train/meta\.json has no video t000000000"):
        YouTubeVOSDataModule(str(youtube), num_held_out=1).setup("validate")
    (youtube / "val.txt").write_text("t000000001")
    with pytest.raises(ValueError, match=r"train/meta\.json: video t000000001 lists no object"):
        YouTubeVOSDataModule(str(youtube), val_list=str(youtube / "val.txt")).setup("validate")
