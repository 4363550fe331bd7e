"""Data sets from strangers: no name and no link in them leads out of their folder, and doctor survives their files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.base import Loading
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.coco import CocoClips
from data_modules.datasets.davis import DAVISDataModule
from data_modules.datasets.own_videos import OwnVideosDataModule
from data_modules.datasets.static_images import find_pairs
from data_modules.datasets.video_folders import LVOSDataModule, VideoFoldersDataModule
from data_modules.datasets.vost import VOSTDataModule
from data_modules.datasets.youtube_vos import YouTubeVOSDataModule
from data_modules.proposals import StoredProposals
from tests.layouts import (
    write_coco,
    write_davis_layout,
    write_lvos_layout,
    write_static_images,
    write_video_folders,
    write_vost_layout,
    write_youtube_vos_layout,
)
from vos_lightning.app.cli import main

# pycocotools on newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

NAMES = ["..", "../..", "../outside/v", "/etc", "", ".", "v\\w", "v\0w", "C:", "C:/v", "x" * 300]
HOSTILE = "is empty|leads to another folder|is longer than 255 bytes"


@pytest.fixture(scope="module")
def davis_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    write_davis_layout(root, 2)
    return root


@pytest.fixture
def davis(davis_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(davis_once, tmp_path / "DAVIS"))


@pytest.fixture(scope="module")
def youtube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("youtube")
    write_youtube_vos_layout(root, 1, 1)
    return root


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["..", ".", "/a/../00000.jpg", "v\\w", "v\0w", "C:", "x" * 300])
def test_names_of_lists(davis: Path, line: str) -> None:
    """Of a line with slashes, the folder of the file counts."""
    (davis / "ImageSets" / "2017" / "val.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=HOSTILE):
        DAVISDataModule(str(davis)).val_videos()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_descriptions(youtube: Path, tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(youtube, tmp_path / "set"))
    path = root / "valid" / "meta.json"
    (entry,) = json.loads(path.read_text())["videos"].values()
    path.write_text(json.dumps({"videos": {name: entry}}))
    with pytest.raises(ValueError, match=HOSTILE) as caught:
        YouTubeVOSDataModule(str(root)).test_videos()
    assert "meta.json" in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "../../private.jpg", "a//b.jpg"])
def test_names_of_coco(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path / "coco", 2)
    path = tmp_path / "coco" / "instances.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"instances\.json: .*({HOSTILE})"):
        CocoClips(str(path), str(tmp_path / "coco" / "images"), min_area=1.0)


def test_links_and_instances_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", 2)
    images, path = tmp_path / "coco" / "images", tmp_path / "coco" / "instances.json"
    clips = CocoClips(str(path), str(images), min_area=1.0)
    first = sorted(images.iterdir())[0]
    shutil.move(first, tmp_path / "elsewhere.jpg")
    first.symlink_to(tmp_path / "elsewhere.jpg")
    draw = lambda clips: clips.draw(0, np.random.default_rng(0), ClipRecipe(num_frames=1))  # noqa: E731
    with pytest.raises(ValueError, match="a link leads out of"):
        draw(clips)
    shutil.move(tmp_path / "elsewhere.jpg", first)
    content = json.loads(path.read_text())
    for segmentation in (
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [48, 64], "counts": "x" * 9},
        {"counts": 3},
        {"size": [1, 1], "counts": "x"},
        ["x"],
        [[]],
    ):
        content["annotations"][0]["segmentation"] = segmentation
        path.write_text(json.dumps(content))
        with pytest.raises(
            ValueError, match=r"instances\.json: (annotations\[0\]\.segmentation|an instance of .* cannot be drawn)"
        ):
            draw(CocoClips(str(path), str(images), min_area=1.0))


def test_names_of_proposals(tmp_path: Path) -> None:
    (tmp_path / "secret.npz").write_bytes(b"")
    (tmp_path / "p").mkdir()
    for name in ("../secret", "/etc/x"):
        with pytest.raises(ValueError, match=HOSTILE):
            StoredProposals([str(tmp_path / "p")]).file(name)


# Links ----------------------------------------------------------------------------------------------------------------

SETS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any], str]] = {
    "davis": (lambda root: write_davis_layout(root, 2), lambda root: DAVISDataModule(str(root)).val_videos(), "480p/video-01"),
    "youtube": (
        lambda root: write_youtube_vos_layout(root, 1, 1),
        lambda root: YouTubeVOSDataModule(str(root), frames="6fps").test_videos(),
        "v000000000",
    ),
    "vost": (lambda root: write_vost_layout(root, 2), lambda root: VOSTDataModule(str(root)).val_videos(), "video-01"),
    "mose": (
        lambda root: write_video_folders(root, "valid", 1),
        lambda root: VideoFoldersDataModule(str(root)).test_videos(),
        "video-00",
    ),
    "lvos": (lambda root: write_lvos_layout(root, "val", 1), lambda root: LVOSDataModule(str(root)).test_videos(), "video-00"),
    "own": (
        lambda root: write_video_folders(root, ".", 2),
        lambda root: OwnVideosDataModule(str(root)).test_videos(),
        "video-01",
    ),
    "predict_root": (
        lambda root: write_video_folders(root, ".", 1),
        lambda root: DAVISDataModule(str(root), loading=Loading(predict_root=str(root))).predict_videos(),
        "video-00",
    ),
}


def folders_of(root: Path, kind: str) -> list[Path]:
    """Folders of frames or label maps of all videos."""
    return sorted({path.parent for path in root.rglob("*.*") if kind in path.parts and path.suffix in (".jpg", ".png")})


@pytest.mark.parametrize("name", SETS)
def test_links(name: str, tmp_path: Path) -> None:
    write, videos, _ = SETS[name]
    root = tmp_path / "set"
    write(root)
    assert len(videos(root)) > 0
    # The user's links: the root, and folders of the layout on another disc.
    (tmp_path / "link").symlink_to(root)
    assert len(videos(tmp_path / "link")) > 0
    for folder in sorted(root.rglob("JPEGImages*")):
        disc = tmp_path / "disc" / folder.relative_to(root)
        disc.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, disc)
        folder.symlink_to(disc)
    assert len(videos(root)) > 0
    # Links of the data: within the data set they are followed, and out of it they are not.
    outside = tmp_path / "outside"
    outside.mkdir()
    for kind in ("JPEGImages", "Annotations"):
        places = [place for base in (root, tmp_path / "disc") for place in folders_of(base, kind)]
        files = [sorted(place.iterdir())[0] for place in places]
        for file in files:
            shutil.move(file, file.parent / f"{file.name}.kept")
            file.symlink_to(f"{file.name}.kept")
        assert len(videos(root)) > 0
        for number, file in enumerate(files):
            file.unlink()
            shutil.move(file.parent / f"{file.name}.kept", outside / f"{kind}{number}")
            file.symlink_to(outside / f"{kind}{number}")
        with pytest.raises(ValueError, match=r"a link leads out of .*set, which is not followed") as caught:
            videos(root)
        assert "\n" not in str(caught.value)
        for number, file in enumerate(files):
            file.unlink()
            shutil.move(outside / f"{kind}{number}", file)
        # A folder of a video is part of the data, too.
        for number, place in enumerate(places):
            shutil.move(place, outside / f"{kind}-{number}")
            place.symlink_to(outside / f"{kind}-{number}")
        with pytest.raises(ValueError, match=r"a link leads out of .*set, which is not followed"):
            videos(root)
        for number, place in enumerate(places):
            place.unlink()
            shutil.move(outside / f"{kind}-{number}", place)


def test_links_of_still_images(tmp_path: Path) -> None:
    write_static_images(tmp_path / "set", 3)
    images, masks = tmp_path / "set" / "images", tmp_path / "set" / "masks"
    (images / "9.jpg").symlink_to("00000.jpg")
    (masks / "9.png").symlink_to("00000.png")
    assert len(find_pairs(str(images), str(masks))) == 4
    (masks / "9.png").unlink()
    shutil.copy(masks / "00000.png", tmp_path / "private.png")
    (masks / "9.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(ValueError, match=r"9\.png: a link leads out of"):
        find_pairs(str(images), str(masks))


# doctor ---------------------------------------------------------------------------------------------------------------


def findings(root: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Problems by the name of their file."""
    capfd.readouterr()
    assert main(["doctor", str(root), "--json", "--workers", "1"]) == 1
    found = json.loads(capfd.readouterr().out)["findings"]
    problems: dict[str, str] = {}
    for one in found:
        if one["level"] == "problem":
            problems.setdefault(Path(one["path"]).name, f"{one['kind']}: {one['message']}")
    return problems


def test_doctor_reports_hostile_files_and_goes_on(davis: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frames, masks = davis / "JPEGImages" / "480p" / "video-00", davis / "Annotations" / "480p" / "video-00"
    Image.new("L", (8, 8)).save(tmp_path / "private.png")
    for number, folder, suffix in (
        (1, frames, "jpg"),
        (2, masks, "png"),
        (3, masks, "png"),
        (4, frames, "jpg"),
        (5, masks, "png"),
    ):
        (folder / f"{number:05d}.{suffix}").unlink()
    os.mkfifo(frames / "00001.jpg")
    os.mkfifo(masks / "00002.png")
    (masks / "00003.png").symlink_to(tmp_path / "private.png")
    (frames / "00004.jpg").write_bytes(b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0\xff\xd9")
    (masks / "00005.png").write_bytes(b"II*\0" + b"\xff" * 60)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("..\nvideo-01\n")
    found = findings(davis, capfd)
    assert "this is a pipe, not a file" in found["00001.jpg"]
    assert "this is a pipe, not a file" in found["00002.png"]
    assert found["00003.png"].startswith("leads-outside: a link leads out of")
    assert "65535 x 65535 pixels" in found["00004.jpg"]
    assert "damaged-file" in found["00005.png"]
    assert "the name '..' leads to another folder" in found["DAVIS"]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"videos": []}',
        '{"videos": {"v": 3}}',
        '{"videos": {"../v": {"objects": {"1": {"frames": ["../../x"], "frame_range": {"start": "1", "end": "6"}}}}}}',
        '{"videos": {"v": {"objects": {"1": {"frames": [3], "frame_range": {"start": 1, "end": 1e15}}}}}}',
        '{"videos": {"v": {"objects": {"1": {"frames": [], "frame_range": {"start": 1, "end": Infinity}}}}}}',
    ],
)
@pytest.mark.parametrize("name", ["meta.json", "valid_meta.json"])
def test_doctor_reports_hostile_descriptions(tmp_path: Path, content: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_video_folders(tmp_path / "set", "valid", 1)
    (tmp_path / "set" / "valid" / name).write_text(content)
    assert findings(tmp_path / "set", capfd)
