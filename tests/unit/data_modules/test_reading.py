"""What data modules make of names, of black and white masks, and of turned pictures."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.base import Loading, VOSDataModule, _one_thread
from data_modules.clips.dataset import ClipDataset, ClipKey, Draw
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.davis import DAVISDataModule
from data_modules.datasets.mixed import MixedDataModule
from data_modules.datasets.own_videos import OwnVideosDataModule
from data_modules.datasets.static_images import StaticImagesDataModule
from data_modules.datasets.static_sets import StaticSetDataModule
from data_modules.datasets.video_folders import VideoFoldersDataModule
from data_modules.datasets.vost import VOSTDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth
from data_modules.records import find_record
from data_modules.videos import RecordVideos, folder_videos, open_video
from tests.layouts import write_davis_layout, write_static_images
from vos_lightning.app.doctor import main
from vos_lightning.io.images import read_pixels
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import open_frames

RECIPE = ClipRecipe(num_frames=3)
NUM_FRAMES = 11


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Four videos of one's own, six frames each with objects 1 and 2."""
    root = tmp_path / "own"
    write_davis_layout(root, 4)
    for folder in ("JPEGImages", "Annotations"):
        shutil.move(root / folder / "480p", root / "inner")
        (root / folder).rmdir()
        shutil.move(root / "inner", root / folder)
    (root / "ImageSets" / "2017").rename(tmp_path / "lists")
    shutil.rmtree(root / "ImageSets")
    return root


def rewrite(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change all label maps below a folder."""
    for path in folder.rglob("*.png"):
        write_label_map(path, change(read_label_map(path)))


def black_and_white(label_map: torch.Tensor) -> torch.Tensor:
    return (label_map > 0).to(torch.uint8) * 255


def white_beside(label_map: torch.Tensor) -> torch.Tensor:
    return label_map.clone().index_fill_(0, torch.tensor([0]), 255)


def examined(root: Path) -> list[dict[str, str]]:
    """What the doctor finds."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main([str(root), "--json", "--workers", "1"])
    findings: list[dict[str, str]] = json.loads(output.getvalue())["findings"]
    return findings


def kinds(root: Path) -> list[str]:
    return [finding["kind"] for finding in examined(root)]


# Order ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["{}", "frame_{}", "{:05d}", "{}.left", "take2_{}_b"])
def numbered(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A video whose frames are as bright as their numbers, and its names in order."""
    names = [request.param.format(i) for i in range(1, NUM_FRAMES + 1)]
    for brightness, name in enumerate(names):
        for folder in ("JPEGImages", "Annotations"):
            (tmp_path / "set" / folder / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (10 * brightness,) * 3).save(tmp_path / "set" / "JPEGImages" / "cat" / f"{name}.png")
        label_map = torch.zeros(24, 32, dtype=torch.uint8)
        label_map[4:20, 4:28] = 1
        write_label_map(tmp_path / "set" / "Annotations" / "cat" / f"{name}.png", label_map)
    return tmp_path / "set", names


def test_frames_have_one_order_everywhere(numbered: tuple[Path, list[str]]) -> None:
    root, names = numbered
    shutil.copytree(root / "JPEGImages" / "cat", root / "JPEGImages" / "dog")
    shutil.copytree(root / "Annotations" / "cat", root / "Annotations" / "dog")
    source = open_frames(root / "JPEGImages" / "cat")
    assert source.names == tuple(names)
    record = find_record("cat", root / "JPEGImages", root / "Annotations", root)
    videos = [
        RecordVideos([record], with_targets=True)[0],
        folder_videos(root)[0],
        OwnVideosDataModule(str(root), held_out=0.5).val_videos()[0],
        VideoFoldersDataModule(str(root), test_split=".").test_videos()[0],
    ]
    for video in videos:
        assert video.frame_names == tuple(names)
        assert [round(int(video.frames[t][0, 0, 0]) / 10) for t in range(NUM_FRAMES)] == list(range(NUM_FRAMES))
    assert [round(int(frame[0, 0, 0]) / 10) for frame in source] == list(range(NUM_FRAMES))
    clip = ClipDataset([(OwnVideosDataModule(str(root), 0.5).clip_source(), RECIPE)], seed=0)[ClipKey(Draw(0, 0))]
    levels = [round(int(frame[0, 0, 0]) / 10) for frame in clip.frames]
    assert levels == list(clip.frame_indices)


def test_doctor_says_the_order_where_it_is_not_plain(numbered: tuple[Path, list[str]]) -> None:
    root, names = numbered
    shutil.copytree(root / "JPEGImages" / "cat", root / "JPEGImages" / "dog")
    shutil.copytree(root / "Annotations" / "cat", root / "Annotations" / "dog")
    notes = [finding for finding in examined(root) if finding["kind"] == "frame-order"]
    if names[0] == "00001":
        assert notes == []
        return
    (note,) = notes
    assert note["level"] == "note"
    order = f"cat: {names[0]}, {names[1]}, {names[2]}, ..., {names[-1]}, and 1 more videos"
    assert note["message"].endswith(order)


def test_doctor_names_two_files_for_one_number(numbered: tuple[Path, list[str]]) -> None:
    root, names = numbered
    first = root / "JPEGImages" / "cat" / f"{names[0]}.png"
    other = first.with_name(first.name.replace("1", "001", 1))
    shutil.copy(first, other)
    assert "duplicate-frame" in kinds(root)
    with pytest.raises(ValueError, match="are the same frame"):
        folder_videos(root)


# Masks of 0 and 255 ---------------------------------------------------------------------------------------------------


def test_black_and_white_masks_train_and_score_object_1(own: Path) -> None:
    expected = read_label_map(own / "Annotations" / "video-02" / "00003.png") > 0
    rewrite(own / "Annotations", black_and_white)
    module = OwnVideosDataModule(str(own), recipe=RECIPE)
    module.setup("fit")
    sample = ClipDataset(module.clip_parts(), seed=0)[ClipKey(Draw(0, 0))]
    assert sample.object_ids == (1,)
    assert set(sample.label_maps.unique().tolist()) == {0, 1}
    (video,) = module.val_videos()
    assert video.object_ids == (1,)
    assert torch.equal(video.targets[3], expected.to(torch.uint8))
    assert set(video.annotations[0].unique().tolist()) == {0, 1}


def test_white_beside_ids_is_refused_by_name(own: Path) -> None:
    rewrite(own / "Annotations", white_beside)
    module = OwnVideosDataModule(str(own), recipe=RECIPE)
    with pytest.raises(ValueError, match=r"video-00/00000\.png: id 255 beside the ids 1, 2: number the objects"):
        module.setup("fit")
    with pytest.raises(ValueError, match=r"video-02/00000\.png: id 255 beside the ids"):
        open_video(module.records(held_out=True)[0], with_targets=True)
    given = find_record("video-00", own / "JPEGImages", own / "Annotations", own, exhaustive=False)
    with pytest.raises(ValueError, match=r"video-00/00000\.png: id 255 beside the ids"):
        open_video(given, with_targets=False)


@pytest.mark.parametrize("kind", ["davis", "vost"])
def test_sets_with_void_keep_it(own: Path, kind: str) -> None:
    rewrite(own / "Annotations", white_beside)
    lists = own.with_name("lists")
    module: VOSDataModule
    if kind == "davis":
        for folder in ("JPEGImages", "Annotations"):
            (own / folder).rename(own / "480p")
            (own / folder).mkdir()
            (own / "480p").rename(own / folder / "480p")
        (own / "ImageSets").mkdir()
        lists.rename(own / "ImageSets" / "2017")
        module = DAVISDataModule(str(own), recipe=RECIPE)
    else:
        lists.rename(own / "ImageSets")
        module = VOSTDataModule(str(own), test_split="val", recipe=RECIPE)
    module.setup("fit")
    clip = module.clip_source().draw(0, np.random.default_rng(0), RECIPE)
    assert (clip.label_maps[:, 0] == 255).all()
    video = module.val_videos()[0]
    assert set(video.annotations[0].unique().tolist()) <= {0, 1, 2}
    rewrite(own / "Annotations", black_and_white)
    with pytest.raises(ValueError, match=r"video-00: the masks show no object \(255 is void in this data set\), and none"):
        module.setup("fit")


def test_training_videos_without_an_object_are_refused(own: Path) -> None:
    rewrite(own / "Annotations" / "video-01", torch.zeros_like)
    module = OwnVideosDataModule(str(own), recipe=RECIPE)
    with pytest.raises(ValueError, match=r"Annotations/video-01: the masks show no object; number the pixels"):
        module.setup("fit")
    plain = ClipRecipe(num_frames=3, swap_probability=0.0)
    folders = VideoFoldersDataModule(str(own), train_split=".", recipe=plain)
    folders.setup("fit")  # many videos: one with an object is enough
    rewrite(own / "Annotations", torch.zeros_like)
    message = r"Annotations/video-00: the masks show no object, and none those of 3 other videos; number the pixels"
    for wrapped in (
        folders,
        MixedDataModule([folders], [2], folders, loading=Loading(batch_size=2)),
        ProposalsDataModule(folders, ProposalsFromTruth()),
    ):
        with pytest.raises(ValueError, match=message):
            wrapped.setup("fit")


def test_masks_of_still_images(tmp_path: Path) -> None:
    write_static_images(tmp_path, 3)
    images, masks = tmp_path / "images", tmp_path / "masks"
    module = StaticImagesDataModule(str(images), str(masks), recipe=RECIPE)
    rewrite(masks, black_and_white)
    module.setup("fit")
    clip = module.clip_source().draw(0, np.random.default_rng(0), RECIPE)
    assert set(np.unique(clip.label_maps).tolist()) == {0, 1}
    rewrite(masks, lambda label_map: white_beside(label_map // 255))
    with pytest.raises(ValueError, match=r"masks/00000\.png: id 255 beside the ids 1"):
        module.setup("fit")
    rewrite(masks, torch.zeros_like)
    with pytest.raises(ValueError, match=r"masks: of 3 masks 3 were looked at, and none shows an object"):
        module.setup("fit")


# Workers --------------------------------------------------------------------------------------------------------------


def _decode_in_a_worker(path: Path) -> None:
    _one_thread(0)
    assert read_pixels(path).shape == (720, 1280, 3)


def test_workers_decode_after_the_parent_has_with_threads(tmp_path: Path) -> None:
    """A validation before the training decodes frames in the process that is then forked."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1280, 720)).save(path)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        for _ in range(3):
            cv2.cvtColor(read_pixels(path), cv2.COLOR_RGB2BGR)
        time.sleep(0.2)  # until the threads wait for work
        worker = multiprocessing.get_context("fork").Process(target=_decode_in_a_worker, args=(path,))
        worker.start()
        worker.join(15)
        exit_code = worker.exitcode
        worker.kill()
    finally:
        cv2.setNumThreads(threads)
    assert exit_code == 0


# Turned pictures ------------------------------------------------------------------------------------------------------


def turn_on_disk(path: Path) -> None:
    """Store a picture as a camera held upside down does: turned, with a note."""
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        upright = image.convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_180).save(path, quality=95, exif=exif)


def test_turned_frames_are_upright_under_their_masks(own: Path) -> None:
    record = OwnVideosDataModule(str(own)).records(held_out=True)[0]
    before = RecordVideos([record], with_targets=True)[0].frames[0]
    turn_on_disk(Path(record.frame_paths[0]))
    after = RecordVideos([record], with_targets=True)[0].frames[0]
    assert (after.int() - before.int()).abs().float().mean() < 4


def test_masks_of_published_stills_lie_on_the_stored_pixels(tmp_path: Path) -> None:
    write_static_images(tmp_path, 1)
    (tmp_path / "masks").rename(tmp_path / "ground_truth_mask")
    path = tmp_path / "images" / "00000.jpg"
    turn_on_disk(path)
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    published = StaticSetDataModule("ecssd", str(tmp_path)).clip_source()
    assert np.array_equal(published.draw(0, np.random.default_rng(0), RECIPE).frames[0], stored)
    mine = StaticImagesDataModule(str(tmp_path / "images"), str(tmp_path / "ground_truth_mask")).clip_source()
    assert np.array_equal(mine.draw(0, np.random.default_rng(0), RECIPE).frames[0], stored[::-1, ::-1])


def test_doctor_knows_the_upright_size(own: Path) -> None:
    path = own / "JPEGImages" / "video-00" / "00000.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(path, exif=exif)
    assert "size-mismatch" not in kinds(own)
    turned.save(path)  # without the note
    assert "size-mismatch" in kinds(own)
