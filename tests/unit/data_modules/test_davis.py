"""DAVIS layouts, whole videos from disk, and what is said about broken ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.base import Loading
from data_modules.clips.dataset import ClipDataset, ClipKey, Draw
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.videos import RecordClips
from data_modules.datasets.davis import DAVISDataModule
from data_modules.records import find_record
from data_modules.videos import RecordVideos, open_video
from tests.layouts import write_davis_layout
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.structures import VideoSample

RECIPE = ClipRecipe(num_frames=3, short_side=None, crop="balanced", crop_size=32, min_object_pixels=16, max_objects=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[VideoSample]]:
    root = tmp_path_factory.mktemp("davis")
    return root, write_davis_layout(root, 3)


@pytest.fixture
def davis(written: tuple[Path, list[VideoSample]], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(written[0], tmp_path / "davis"))


def video_folder(root: Path, kind: str = "JPEGImages", name: str = "video-00") -> Path:
    return root / kind / "480p" / name


def folders(root: Path) -> tuple[Path, Path, Path]:
    return video_folder(root).parent, video_folder(root, "Annotations").parent, root


def test_videos_are_read_as_written(written: tuple[Path, list[VideoSample]]) -> None:
    root, videos = written
    (video,) = DAVISDataModule(str(root)).val_videos()
    source = videos[2]
    assert (video.name, video.frame_names, video.original_size) == ("video-02", source.frame_names, (48, 80))
    assert video.object_ids == source.object_ids == (1, 2)
    assert list(video.annotations) == [0]
    assert torch.equal(video.annotations[0], source.annotations[0])
    assert list(video.targets) == list(range(6))
    for t in range(6):
        assert torch.equal(video.targets[t], source.targets[t])
        assert (video.frames[t].int() - source.frames[t].int()).abs().float().mean() < 6  # JPEG
    assert (video.required_frames, video.length) == (None, 6)
    assert len(list(video.frames)) == 6


def test_splits_come_from_the_lists(written: tuple[Path, list[VideoSample]]) -> None:
    module = DAVISDataModule(str(written[0]), test_split="train")
    assert [video.name for video in module.test_videos()] == ["video-00", "video-01"]
    assert len(module.clip_source()) == 2


def test_training_clips_show_the_frames_of_a_video(written: tuple[Path, list[VideoSample]]) -> None:
    module = DAVISDataModule(str(written[0]), recipe=RECIPE)
    dataset = ClipDataset(module.clip_parts(), seed=0)
    for index in range(2):
        sample = dataset[ClipKey(Draw(0, index))]
        assert sample.video_name == f"video-{index:02d}"
        assert sample.frames.shape == (3, 3, 32, 32)
        assert (sample.label_maps[0] > 0).sum() >= 16


def test_2016_merges_objects(written: tuple[Path, list[VideoSample]]) -> None:
    root, videos = written
    module = DAVISDataModule(str(root), year=2016, recipe=RECIPE)
    (video,) = module.val_videos()
    assert video.object_ids == (1,)
    assert torch.equal(video.targets[3] > 0, videos[2].targets[3] > 0)
    assert ClipDataset(module.clip_parts(), seed=0)[ClipKey(Draw(0, 0))].object_ids == (1,)


def test_2016_masks_with_255_and_lists_with_paths(davis: Path) -> None:
    for path in (davis / "Annotations").rglob("*.png"):
        Image.fromarray((read_label_map(path).numpy() > 0).astype(np.uint8) * 255).save(path)
    shutil.rmtree(davis / "ImageSets")
    (davis / "ImageSets" / "480p").mkdir(parents=True)
    lines = [f"/JPEGImages/480p/video-01/{t:05d}.jpg /Annotations/480p/video-01/{t:05d}.png" for t in range(6)]
    (davis / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines))
    (video,) = DAVISDataModule(str(davis), year=2016).val_videos()
    assert (video.name, video.object_ids) == ("video-01", (1,))
    assert set(torch.unique(video.targets[0]).tolist()) == {0, 1}


def test_2017_ignores_255_in_training_and_not_in_scoring(davis: Path) -> None:
    for t in range(6):
        path = video_folder(davis, "Annotations") / f"{t:05d}.png"
        label_map = read_label_map(path)
        label_map[:4] = 255
        write_label_map(path, label_map)
    record = DAVISDataModule(str(davis)).records("train")[0]
    video = open_video(record, with_targets=True)
    assert (video.targets[0][:4] == 0).all()
    assert (video.annotations[0][:4] == 0).all()
    clip = RecordClips([record]).draw(0, np.random.default_rng(0), RECIPE)
    assert (clip.label_maps[:, :4] == 255).all()


def test_later_objects_are_not_objects_of_the_video(davis: Path) -> None:
    path = video_folder(davis, "Annotations") / "00003.png"
    label_map = read_label_map(path)
    label_map[:5, :5] = 9
    write_label_map(path, label_map)
    record = find_record("video-00", *folders(davis))
    assert open_video(record, with_targets=True).object_ids == (1, 2)


def test_test_dev_has_no_targets(davis: Path) -> None:
    for t in range(1, 6):
        (video_folder(davis, "Annotations") / f"{t:05d}.png").unlink()
    record = find_record("video-00", *folders(davis))
    video = open_video(record, with_targets=True)
    assert len(video.targets) == 0
    assert list(video.annotations) == [0]
    assert len(video.frames) == 6


def test_known_first_frames_introduce_objects(written: tuple[Path, list[VideoSample]]) -> None:
    root, videos = written
    record = find_record("video-02", *folders(root))
    video = open_video(dataclasses.replace(record, first_frame={1: 0, 2: 3}), with_targets=True)
    assert list(video.annotations) == [0, 3]
    assert torch.unique(video.annotations[0]).tolist() == [0, 1]
    assert torch.equal(video.annotations[3] == 2, videos[2].targets[3] == 2)
    assert video.annotations[3].max() == 2
    assert not (video.annotations[3] == 1).any()


def test_predict_root_gives_every_mask_it_has(davis: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    shutil.copytree(video_folder(davis), root / "JPEGImages" / "cat")
    for stem in ("00000", "00004"):
        path = root / "Annotations" / "cat" / f"{stem}.png"
        write_label_map(path, read_label_map(video_folder(davis, "Annotations") / f"{stem}.png"))
    module = DAVISDataModule(str(davis), loading=Loading(predict_root=str(root)))
    (video,) = module.predict_videos()
    assert (video.name, list(video.annotations), len(video.targets)) == ("cat", [0, 4], 0)
    assert [v.name for v in DAVISDataModule(str(davis)).predict_videos()] == ["video-02"]


def test_frames_are_in_numerical_order_without_stray_files(davis: Path) -> None:
    folder = video_folder(davis)
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for t in range(6):
            path = video_folder(davis, kind) / f"{t:05d}.{suffix}"
            path.rename(path.with_name(f"{8 + t}.{suffix}"))
    (folder / "._8.jpg").write_bytes(b"junk")
    (folder / "Thumbs.db").write_bytes(b"junk")
    record = find_record("video-00", *folders(davis))
    assert record.frame_names == ("8", "9", "10", "11", "12", "13")
    assert sorted(record.label_paths) == list(range(6))


# Broken input ---------------------------------------------------------------------------------------------------------


def opened(root: Path) -> VideoSample:
    return open_video(find_record("video-00", *folders(root)), with_targets=True)


def test_missing_root_and_list(tmp_path: Path, davis: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"DAVIS root .*has no JPEGImages/480p: pass --data\.init_args\.root"):
        DAVISDataModule(str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"split file .*2017/test-dev\.txt does not exist"):
        DAVISDataModule(str(davis), test_split="test-dev").setup("test")
    (davis / "ImageSets" / "2017" / "val.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"val\.txt lists no video"):
        DAVISDataModule(str(davis)).setup("validate")
    (davis / "ImageSets" / "2017" / "train.txt").write_text("no-such-video\n")
    with pytest.raises(FileNotFoundError, match=r"no-such-video is not a folder"):
        DAVISDataModule(str(davis)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no folder JPEGImages: pass --data\.init_args\.loading\.predict_root"):
        DAVISDataModule(str(davis), loading=Loading(predict_root=str(davis / "ImageSets"))).setup("predict")


def test_missing_frame(davis: Path) -> None:
    (video_folder(davis) / "00002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"video-00 has no frame 00002 for the label map .*00002\.png"):
        opened(davis)


def test_missing_first_mask(davis: Path) -> None:
    (video_folder(davis, "Annotations") / "00000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"video-00: the first frame .*00000\.jpg has no label map"):
        opened(davis)


def test_same_frame_twice(davis: Path) -> None:
    shutil.copy(video_folder(davis) / "00002.jpg", video_folder(davis) / "00002.png")
    with pytest.raises(ValueError, match=r"are the same frame"):
        opened(davis)


def test_empty_first_mask(davis: Path) -> None:
    write_label_map(video_folder(davis, "Annotations") / "00000.png", torch.zeros(48, 80, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"00000\.png: the first mask of video-00 has no object"):
        opened(davis)


def test_mismatched_sizes(davis: Path) -> None:
    path = video_folder(davis, "Annotations") / "00002.png"
    write_label_map(path, torch.ones(50, 80, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"00002\.png is 50x80 but .*00000\.png is 48x80"):
        opened(davis).targets[2]
    record = find_record("video-00", *folders(davis))
    whole = dataclasses.replace(RECIPE, num_frames=60)
    with pytest.raises(ValueError, match=r"00002\.png is 50x80 but .*00002\.jpg is 48x80"):
        RecordClips([record]).draw(0, np.random.default_rng(2), whole)  # a seed that takes all six frames
    Image.new("RGB", (80, 60)).save(video_folder(davis) / "00000.jpg")
    with pytest.raises(ValueError, match=r"00000\.jpg is 60x80 but .*00000\.png is 48x80"):
        opened(davis)


def test_truncated_frame_and_colour_mask(davis: Path) -> None:
    path = video_folder(davis) / "00000.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"00000\.jpg"):
        opened(davis)
    noise = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(video_folder(davis, "Annotations") / "00000.png")
    with pytest.raises(ValueError, match=r"00000\.png.*stray colours"):
        opened(davis)


def test_clips_look_for_a_first_frame_with_an_object(davis: Path) -> None:
    empty = torch.zeros(48, 80, dtype=torch.uint8)
    for t in range(5):
        write_label_map(video_folder(davis, "Annotations") / f"{t:05d}.png", empty)
    record = find_record("video-00", *folders(davis))
    source = RecordClips([record])
    found = [source.draw(0, np.random.default_rng(s), RECIPE).label_maps[0].any() for s in range(60)]
    # One attempt alone would find frame 5 in a sixth of the draws (or as the reversed start); five find it in over half.
    assert sum(found) > 25


def test_videos_can_be_indexed_from_the_end(written: tuple[Path, list[VideoSample]]) -> None:
    records = DAVISDataModule(str(written[0])).records("train")
    assert RecordVideos(records, with_targets=False)[-1].name == "video-01"
