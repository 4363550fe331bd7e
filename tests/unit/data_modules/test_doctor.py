"""The doctor passes sound copies and names every defect of broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.doctor.checks import check_split
from data_modules.doctor.files import Report
from data_modules.doctor.known import DAVIS_2016_VAL_FRAMES, KNOWN, release_of
from data_modules.doctor.layouts import recognise
from tests.layouts import write_davis_layout, write_static_images
from vos_lightning.app.doctor import main
from vos_lightning.io.label_maps import PALETTE, read_label_map, write_label_map

NUM_VIDEOS, NUM_FRAMES = 4, 6


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "DAVIS"
    write_davis_layout(root, NUM_VIDEOS)
    (root / "ImageSets" / "2016" / "train.txt").unlink()
    (root / "ImageSets" / "2016" / "val.txt").unlink()
    for path in (root / "Annotations").rglob("00000.png"):  # both objects from the start, as in DAVIS
        label_map = read_label_map(path)
        label_map[:2, :4], label_map[2:4, :4] = 1, 2
        write_label_map(path, label_map)
    return root


@pytest.fixture
def davis(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "DAVIS"))


def examine(root: Path, *options: str) -> tuple[int, dict[str, list[str]], dict[str, object]]:
    """Exit code, paths of the problems by kind, and everything."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main([str(root), "--json", "--workers", "1", *options])
    content = json.loads(output.getvalue())
    problems: dict[str, list[str]] = {}
    for finding in content["findings"]:
        if finding["level"] == "problem":
            problems.setdefault(finding["kind"], []).append(finding["path"] + ": " + finding["message"])
    return code, problems, content


def frame(root: Path, number: int = 2, video: str = "video-01") -> Path:
    return root / "JPEGImages" / "480p" / video / f"{number:05d}.jpg"


def mask(root: Path, number: int = 2, video: str = "video-01") -> Path:
    return root / "Annotations" / "480p" / video / f"{number:05d}.png"


def test_a_sound_copy(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, problems, content = examine(davis)
    assert (code, problems) == (0, {})
    assert [split["split"] for split in content["splits"]] == ["train", "val"]
    assert content["splits"][0] | {"root": ""} == {
        "root": "", "layout": "davis17", "split": "train", "release": None, "videos": 2, "frames": 12, "masks": 12, "objects": 4,
        "published": None,
    }  # fmt: skip
    assert main([str(davis)]) == 0
    assert "own-selection" in capsys.readouterr().out


# Every defect ---------------------------------------------------------------------------------------------------------


def missing_frame(root: Path) -> Path:
    frame(root).unlink()
    mask(root).unlink()
    return frame(root).with_suffix("")


def mask_without_frame(root: Path) -> Path:
    frame(root, NUM_FRAMES - 1).unlink()
    return frame(root, NUM_FRAMES - 1).with_suffix("")


def missing_video(root: Path) -> Path:
    shutil.rmtree(frame(root).parent)
    return frame(root).parent


def missing_mask(root: Path) -> Path:
    mask(root).unlink()
    return mask(root)


def no_masks(root: Path) -> Path:
    shutil.rmtree(mask(root).parent)
    return mask(root).parent


def truncated_frame(root: Path) -> Path:
    frame(root).write_bytes(frame(root).read_bytes()[:-200])
    return frame(root)


def empty_file(root: Path) -> Path:
    frame(root).write_bytes(b"")
    return frame(root)


def truncated_mask(root: Path) -> Path:
    mask(root).write_bytes(mask(root).read_bytes()[:-30])
    return mask(root)


def hidden_file(root: Path) -> Path:
    path = frame(root).with_name("._00002.jpg")
    path.write_bytes(b"left by a file manager")
    return path


def png_frames(root: Path) -> Path:
    for path in sorted(frame(root).parent.iterdir()):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    return frame(root).parent


def png_in_jpg(root: Path) -> Path:
    Image.open(frame(root)).save(frame(root), format="PNG")
    return frame(root)


def two_files_of_a_frame(root: Path) -> Path:
    Image.open(frame(root)).save(frame(root).with_suffix(".png"))
    return frame(root).with_suffix(".png")


def jpeg_mask(root: Path) -> Path:
    Image.open(mask(root)).convert("RGB").save(mask(root).with_suffix(".jpg"))
    mask(root).unlink()
    return mask(root).with_suffix(".jpg")


def colour_mask(root: Path) -> Path:
    Image.fromarray(PALETTE[read_label_map(mask(root)).numpy()]).save(mask(root))
    return mask(root)


def smooth_mask(root: Path) -> Path:
    image = Image.fromarray(PALETTE[read_label_map(mask(root)).numpy()])
    image.resize((40, 24), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR).save(mask(root))
    return mask(root)


def grey_levels(root: Path) -> Path:
    Image.fromarray(np.arange(48 * 80, dtype=np.uint8).reshape(48, 80)).save(mask(root))
    return mask(root)


def binary_masks(root: Path) -> Path:
    for path in mask(root).parent.iterdir():
        write_label_map(path, (read_label_map(path) > 0).to(torch.uint8) * 255)
    return mask(root, 0)


def gap_in_the_ids(root: Path) -> Path:
    for path in mask(root).parent.iterdir():
        label_map = read_label_map(path)
        label_map[label_map == 2] = 3
        write_label_map(path, label_map)
    return mask(root, 0)


def other_size(root: Path) -> Path:
    Image.open(mask(root)).resize((20, 20), Image.Resampling.NEAREST).save(mask(root))
    return mask(root)


def frame_of_another_size(root: Path) -> Path:
    Image.open(frame(root)).resize((20, 20)).save(frame(root))
    return frame(root)


def empty_first_mask(root: Path) -> Path:
    write_label_map(mask(root, 0), torch.zeros(48, 80, dtype=torch.uint8))
    return mask(root, 0)


def other_annotations(root: Path) -> Path:
    (root / "Annotations").rename(root / "Annotations_unsupervised")
    return root


DEFECTS: list[tuple[Callable[[Path], Path], str]] = [
    (missing_frame, "missing-frame"),
    (mask_without_frame, "missing-frame"),
    (missing_video, "missing-video"),
    (missing_mask, "missing-mask"),
    (no_masks, "missing-mask"),
    (truncated_frame, "damaged-file"),
    (empty_file, "damaged-file"),
    (truncated_mask, "damaged-file"),
    (hidden_file, "hidden-file"),
    (png_frames, "frame-format"),
    (png_in_jpg, "wrong-suffix"),
    (two_files_of_a_frame, "duplicate-frame"),
    (jpeg_mask, "mask-format"),
    (colour_mask, "colour-mask"),
    (smooth_mask, "stray-colours"),
    (grey_levels, "stray-colours"),
    (binary_masks, "binary-mask"),
    (gap_in_the_ids, "id-gap"),
    (other_size, "size-mismatch"),
    (frame_of_another_size, "size-mismatch"),
    (empty_first_mask, "empty-first-mask"),
    (other_annotations, "remark"),
]


@pytest.mark.parametrize(("damage", "kind"), DEFECTS, ids=[damage.__name__ for damage, _ in DEFECTS])
def test_a_defect_is_named(davis: Path, damage: Callable[[Path], Path], kind: str) -> None:
    named = damage(davis)
    code, problems, _ = examine(davis)
    assert code == 1
    assert any(str(named) in line for line in problems[kind]), problems


def test_stray_colours_are_counted(davis: Path) -> None:
    smooth_mask(davis)
    image = np.asarray(Image.open(mask(davis))).reshape(-1, 3)
    palette = {tuple(colour) for colour in PALETTE.tolist()}
    expected = len({tuple(colour) for colour in image.tolist()} - palette)
    _, problems, _ = examine(davis)
    assert f"{expected} stray colours" in problems["stray-colours"][0]


def test_a_second_repair_keeps_the_first_original(davis: Path) -> None:
    originals = []
    for shift in (0, 1):
        label_map = read_label_map(mask(davis)).roll(shift, 0)
        write_label_map(mask(davis), label_map)
        originals.append(colour_mask(davis).read_bytes())
        assert examine(davis, "--fix")[1] == {}
    kept = davis.with_name(f"{davis.name}.before-doctor") / mask(davis).relative_to(davis)
    assert kept.read_bytes() == originals[0]
    assert kept.with_name(f"{kept.name}.1").read_bytes() == originals[1]


def test_fix_repairs_what_is_safe_and_keeps_the_originals(davis: Path) -> None:
    ids = read_label_map(mask(davis))
    original = colour_mask(davis).read_bytes()
    hidden = hidden_file(davis)
    broken = truncated_frame(davis)
    before = broken.read_bytes()
    code, problems, _ = examine(davis, "--fix")
    assert code == 1
    assert list(problems) == ["damaged-file"]
    backup = davis.with_name("DAVIS.before-doctor")
    assert not hidden.exists()
    assert (backup / hidden.relative_to(davis)).read_bytes() == b"left by a file manager"
    assert (backup / mask(davis).relative_to(davis)).read_bytes() == original
    assert torch.equal(read_label_map(mask(davis)), ids)
    with Image.open(mask(davis)) as image:
        assert image.mode == "P"
    assert broken.read_bytes() == before
    shutil.copy(frame(davis, 3), broken)
    assert examine(davis, "--fix")[:2] == (0, {})


# Releases -------------------------------------------------------------------------------------------------------------


def test_a_lost_end_of_a_known_video_shows(davis: Path) -> None:
    for folder in ("JPEGImages", "Annotations"):
        (davis / folder / "480p" / "video-01").rename(davis / folder / "480p" / "blackswan")
    train = davis / "ImageSets" / "2017" / "train.txt"
    train.write_text(train.read_text().replace("video-01", "blackswan"))
    _, problems, _ = examine(davis)
    assert problems["missing-frame"][0].endswith("6 frames, the published video has 50")


def test_figures_agree_with_each_other() -> None:
    assert sum(DAVIS_2016_VAL_FRAMES.values()) == 1376
    assert len(DAVIS_2016_VAL_FRAMES) == 20
    assert len({(known.kind, known.release, known.split) for known in KNOWN}) == len(KNOWN)
    assert sum(known.videos for known in KNOWN if known.release == "MOSE v1") == 2149
    assert sum(known.videos for known in KNOWN if known.release == "LVOS v2") == 720


@pytest.mark.parametrize(
    ("arguments", "release"),
    [
        (("davis17", "val", "DAVIS", 30, 1999, 61), "DAVIS 2017"),
        (("davis16", "val", "DAVIS", 20, 1376, 20), "DAVIS 2016"),
        (("youtube_vos", "train", "train", 3471, 94404, 5945), "YouTube-VOS 2018"),
        (("youtube_vos", "train", "train", 3471, 94404, 6459), "YouTube-VOS 2019"),
        (("youtube_vos", "valid", "valid", 507, 1, 1063), "YouTube-VOS 2019"),
        (("lvos", "valid", "val", 140, 1, 1), "LVOS v2"),
        (("images", "images", "ECSSD", 1000, 1000, 0), "ECSSD"),
        (("images", "images", "own pictures", 1000, 1000, 0), None),
        (("davis17", "val", "DAVIS", 3, 200, 3), None),
    ],
)
def test_releases_are_recognised(arguments: tuple[str, str, str, int, int, int], release: str | None) -> None:
    known = release_of(*arguments)  # type: ignore[arg-type]
    assert (known.release if known else None) == release


def test_incomplete_copies_differ_from_their_figures(davis: Path) -> None:
    from data_modules.doctor import checks

    split = recognise(davis)[1]
    total = Report(frames=1998, objects=61)
    checks._compare(split, total, release_of("davis17", "val", "DAVIS", 30, 1998, 61))
    assert [finding.kind for finding in total.findings] == ["frame-count"]
    assert "1999 frames, here are 1998" in total.findings[0].message


# Other layouts --------------------------------------------------------------------------------------------------------


def write_split(folder: Path, videos: dict[str, dict[str, int]], size: tuple[int, int] = (16, 24)) -> None:
    """Video -> stem of a frame -> id of its object, 0 for no mask."""
    for video, frames in videos.items():
        for stem, object_id in frames.items():
            path = folder / "JPEGImages" / video / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size[::-1]).save(path)
            if object_id:
                label_map = torch.zeros(size, dtype=torch.uint8)
                label_map[4:9, 4:9] = object_id
                write_label_map(folder / "Annotations" / video / f"{stem}.png", label_map)


def youtube(root: Path) -> Path:
    write_split(root / "valid", {"a1": {"00010": 1, "00015": 0, "00020": 3, "00025": 0}})
    objects = {"1": {"frames": ["00010", "00015", "00020"]}, "3": {"frames": ["00020", "00025"]}}
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": {"a1": {"objects": objects}}}))
    return root


def test_youtube_vos(tmp_path: Path) -> None:
    code, problems, content = examine(youtube(tmp_path))
    assert (code, problems) == (0, {})
    assert content["splits"][0]["layout"] == "youtube_vos"
    assert content["splits"][0]["objects"] == 2
    assert any("valid_all_frames is not there" in finding["message"] for finding in content["findings"])
    (tmp_path / "valid" / "JPEGImages" / "a1" / "00025.jpg").unlink()
    (tmp_path / "valid" / "Annotations" / "a1" / "00020.png").unlink()
    _, problems, _ = examine(tmp_path)
    assert "00025" in problems["missing-frame"][0]
    assert "00020.png" in problems["missing-mask"][0]


def test_data_sets_below_a_folder(tmp_path: Path) -> None:
    youtube(tmp_path / "YouTube-VOS" / "2018")
    write_split(tmp_path / "mine", {"v": {"1": 1, "2": 0, "3": 1}})
    assert [split.kind for split in recognise(tmp_path)] == ["youtube_vos", "videos"]
    assert recognise(tmp_path, depth=0) == []


def test_mose_lvos_vost_and_own_videos(tmp_path: Path) -> None:
    write_split(tmp_path / "mose" / "valid", {"v": {"00000": 2, "00001": 0}})
    write_split(tmp_path / "lvos" / "val", {"v": {"00000001": 1, "00000006": 1, "00000011": 1}})
    frame_range = {"start": "00000001", "end": "00000011", "frame_nums": "3"}
    (tmp_path / "lvos" / "val_meta.json").write_text(
        json.dumps({"videos": {"v": {"objects": {"1": {"frame_range": frame_range}}}}})
    )
    write_split(tmp_path / "vost", {"v": {"frame00000": 1, "frame00006": 1}})
    (tmp_path / "vost" / "ImageSets").mkdir()
    (tmp_path / "vost" / "ImageSets" / "train.txt").write_text("v\n")
    write_split(tmp_path / "mine", {"v": {"1": 1, "2": 0, "3": 1}})
    write_static_images(tmp_path / "photographs", 2)
    code, problems, content = examine(tmp_path)
    assert (code, problems) == (0, {})
    kinds = {Path(split["root"]).relative_to(tmp_path).parts[0]: split["layout"] for split in content["splits"]}
    assert kinds == {"mose": "mose", "lvos": "lvos", "vost": "vost", "mine": "videos", "photographs": "images"}
    (tmp_path / "lvos" / "val" / "JPEGImages" / "v" / "00000006.jpg").unlink()
    (tmp_path / "photographs" / "images" / "00001.jpg").unlink()
    assert len(examine(tmp_path)[1]["missing-frame"]) == 3  # LVOS: the frame, and the mask that has none


def test_still_images(tmp_path: Path) -> None:
    write_static_images(tmp_path / "source", 2)
    image, mask = tmp_path / "source" / "images" / "00000.jpg", tmp_path / "source" / "masks" / "00000.png"
    placed = {
        "ECSSD": ("images/1.jpg", "ground_truth_mask/1.png"),
        "HKU-IS": ("imgs/1.png", "gt/1.png"),
        "MSRA10K": ("Imgs/1.jpg", "Imgs/1.png"),
        "DUTS": ("DUTS-TR/DUTS-TR-Image/1.jpg", "DUTS-TR/DUTS-TR-Mask/1.png"),
        "VOC2012": ("JPEGImages/1.jpg", "SegmentationObject/1.png"),
        "ecssd": ("1.jpg", "1.png"),
        "fss": ("abacus/1.jpg", "abacus/1.png"),
        "BIG/val": ("1_im.png", "1_gt.png"),
    }
    for folder, (to_image, to_mask) in placed.items():
        for source, target in ((image, to_image), (mask, to_mask)):
            path = tmp_path / "sets" / folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source) as opened:
                opened.save(path)
    roots = [tmp_path / "sets" / folder for folder in placed]
    assert main([str(root) for root in roots]) == 0
    for root, (to_image, _) in zip(roots, placed.values(), strict=True):
        splits = recognise(root)
        assert [(split.kind, len(split.videos)) for split in splits] == [("images", 1)], root
        shutil.copy(root / placed[root.relative_to(tmp_path / "sets").as_posix()][1], splits[0].labels / "other.png")
        (root / to_image).write_bytes((root / to_image).read_bytes()[:-200])
        code, problems, _ = examine(root)
        assert code == 1
        assert str(root / to_image) in problems["damaged-file"][0]


def test_binary_masks_of_davis_2016(tmp_path: Path) -> None:
    root = tmp_path / "DAVIS"
    write_davis_layout(root, 2)
    shutil.rmtree(root / "ImageSets" / "2017")
    for path in (root / "Annotations").rglob("*.png"):
        Image.fromarray(np.where(read_label_map(path).numpy() > 0, 255, 0).astype(np.uint8)).save(path)
    first = sorted((root / "Annotations").rglob("00000.png"))[0]
    Image.fromarray(np.full((48, 80), 255, dtype=np.uint8)).save(first)
    assert examine(root)[:2] == (0, {})
    levels = np.full((48, 80), 255, dtype=np.uint8)
    levels[0, :3] = (0, 100, 200)
    Image.fromarray(levels).save(first)
    _, problems, _ = examine(root)
    assert "2 stray grey levels in 2 pixels" in problems["stray-colours"][0]


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data set in a known layout"):
        main([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        main([str(tmp_path / "nowhere")])


@pytest.mark.realdata
def test_real_videos(tmp_path: Path) -> None:
    import os

    root = Path(os.environ["VOS_REAL_DATA"]) / "davis16-dev"
    assert [len(split.videos) for split in recognise(root)] == [7, 3]
    assert all(not [f for f in check_split(split).total.findings if f.level == "problem"] for split in recognise(root))
