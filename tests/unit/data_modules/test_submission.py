"""A zip for each server; predictions that a server would reject are refused with the file that is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.submission import archive
from data_modules.submission.archive import SubmissionError, check_archive, write_submission
from data_modules.submission.command import main
from data_modules.submission.servers import SERVERS
from vos_lightning.io.label_maps import PALETTE, read_label_map, write_label_map

SIZE = (16, 24)
VIDEOS = {"aerobatics": (1, 2), "car-race": (1, 3)}


def label_map(ids: tuple[int, ...], shift: int = 0) -> torch.Tensor:
    result = torch.zeros(SIZE, dtype=torch.uint8)
    for place, object_id in enumerate(ids):
        result[2:8, 2 + 8 * place + shift : 8 + 8 * place + shift] = object_id
    return result


def stems(server: str) -> list[str]:
    return [f"{n:08d}" for n in (1, 6, 11, 16)] if server == "lvos" else [f"{n:05d}" for n in range(4)]


def write_data(root: Path, server: str) -> None:
    """The data set of a server, with two videos."""
    folders = {"davis17-testdev": "", "mose": "valid", "lvos": "test"}
    base = root / folders.get(server, "valid")
    resolution = "480p" if server == "davis17-testdev" else ""
    for video, ids in VIDEOS.items():
        for stem in stems(server):
            path = base / "JPEGImages" / resolution / video / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1]).save(path)
        write_label_map(base / "Annotations" / resolution / video / f"{stems(server)[0]}.png", label_map(ids))
    if server == "davis17-testdev":
        (root / "ImageSets" / "2017").mkdir(parents=True)
        (root / "ImageSets" / "2017" / "test-dev.txt").write_text("".join(f"{video}\n" for video in VIDEOS))
    if server.startswith("youtube"):
        frames = {video: {str(i): {"frames": stems(server)[:3]} for i in ids} for video, ids in VIDEOS.items()}
        meta = {"videos": {video: {"objects": objects} for video, objects in frames.items()}}
        (base / "meta.json").write_text(json.dumps(meta))
    if server == "lvos":
        span = {"start": "00000001", "end": "00000016", "frame_nums": "4"}
        objects = {video: {str(i): {"frame_range": span} for i in ids} for video, ids in VIDEOS.items()}
        meta = {"videos": {video: {"objects": entries} for video, entries in objects.items()}}
        (root / "test_meta.json").write_text(json.dumps(meta))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Path, Path]]:
    """Data set and predictions of a server whose split has two videos."""
    monkeypatch.setattr(
        archive, "SERVERS", {n: dataclasses.replace(r, num_videos=r.num_videos and 2) for n, r in SERVERS.items()}
    )

    def make(server: str) -> tuple[Path, Path]:
        write_data(tmp_path / "data", server)
        for video, ids in VIDEOS.items():
            for t, stem in enumerate(stems(server)):
                write_label_map(tmp_path / "predictions" / video / f"{stem}.png", label_map(ids, t))
        (tmp_path / "predictions" / "car-race" / "._00000.png").write_bytes(b"left by a file manager")
        return tmp_path / "data", tmp_path / "predictions"

    return make


@pytest.mark.parametrize("server", list(SERVERS))
@pytest.mark.parametrize("with_data", [True, False], ids=["with data", "alone"])
def test_a_zip_for_each_server(
    folders: Callable[[str], tuple[Path, Path]], tmp_path: Path, server: str, with_data: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data, predictions = folders(server)
    output = tmp_path / "out" / "submission.zip"
    options = ["--data", str(data)] if with_data else []
    assert main(["--server", server, "--predictions", str(predictions), "--output", str(output), *options]) == 0
    assert "2 videos" in capsys.readouterr().err
    check_archive(output, server)  # type: ignore[arg-type]
    top = {"davis17-testdev": "", "mose": ""}.get(server, "Annotations/")
    required = stems(server)[: 3 if server.startswith("youtube") and with_data else 4]
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == [f"{top}{video}/{stem}.png" for video in VIDEOS for stem in required]
        with archive.open(archive.namelist()[1]) as file:
            image = Image.open(file)
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), label_map((1, 2), 1).numpy())
    assert [path.name for path in output.parent.iterdir()] == ["submission.zip"]
    first = output.read_bytes()
    write_submission(server, predictions, output, data if with_data else None)  # type: ignore[arg-type]
    assert output.read_bytes() == first


def test_grey_and_coloured_predictions_become_indexed(folders: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    data, predictions = folders("mose")
    grey, coloured = predictions / "car-race" / "00001.png", predictions / "car-race" / "00002.png"
    expected = [read_label_map(path).numpy() for path in (grey, coloured)]
    Image.fromarray(expected[0]).save(grey)
    Image.fromarray(PALETTE[expected[1]]).save(coloured)
    write_submission("mose", predictions, tmp_path / "x.zip", data)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        for path, ids in zip((grey, coloured), expected, strict=True):
            with archive.open(f"car-race/{path.name}") as file:
                image = Image.open(file)
                assert image.mode == "P"
                assert np.array_equal(np.asarray(image), ids)


def test_black_and_white_predictions_are_object_1(folders: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    data, predictions = folders("mose")
    path = predictions / "car-race" / "00002.png"
    write_label_map(path, label_map((255,)))
    write_submission("mose", predictions, tmp_path / "x.zip", data)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive, archive.open("car-race/00002.png") as file:
        assert np.array_equal(np.asarray(Image.open(file)), label_map((1,)).numpy())


def last(predictions: Path) -> Path:
    return predictions / "car-race" / "00003.png"


def missing_frame(predictions: Path) -> Path:
    (predictions / "car-race" / "00002.png").unlink()
    return predictions / "car-race" / "00002.png"


def missing_video(predictions: Path) -> Path:
    shutil.rmtree(predictions / "car-race")
    return predictions / "car-race"


def unknown_video(predictions: Path) -> Path:
    shutil.copytree(predictions / "car-race", predictions / "dog")
    return predictions / "dog"


def unknown_id(predictions: Path) -> Path:
    write_label_map(last(predictions), label_map((1, 2)))
    return last(predictions)


def white_beside_ids(predictions: Path) -> Path:
    write_label_map(last(predictions), label_map((1, 255)))
    return last(predictions)


def other_size(predictions: Path) -> Path:
    write_label_map(last(predictions), label_map((1,))[:8])
    return last(predictions)


def smooth_mask(predictions: Path) -> Path:
    image = Image.fromarray(PALETTE[label_map((1, 3)).numpy()])
    image.resize((12, 8)).resize(image.size, Image.Resampling.BILINEAR).save(last(predictions))
    return last(predictions)


def truncated(predictions: Path) -> Path:
    last(predictions).write_bytes(last(predictions).read_bytes()[:-20])
    return last(predictions)


def other_name(predictions: Path) -> Path:
    last(predictions).rename(last(predictions).with_stem("frame3"))
    return last(predictions).with_stem("frame3")


def overlay_in_the_folder(predictions: Path) -> Path:
    last(predictions).with_suffix(".mp4").touch()
    return last(predictions).with_suffix(".mp4")


def one_folder_too_high(predictions: Path) -> Path:
    predictions.rename(predictions.with_name("inner"))
    predictions.mkdir()
    predictions.with_name("inner").rename(predictions / "results")
    return predictions / "results"


def one_folder_too_deep(predictions: Path) -> Path:
    for path in list((predictions / "car-race").glob("*.png")):
        path.rename(predictions / path.name)
    for video in VIDEOS:
        shutil.rmtree(predictions / video)
    return predictions


DAMAGES = [
    missing_frame, missing_video, unknown_video, unknown_id, white_beside_ids, other_size, smooth_mask, truncated, other_name,
    overlay_in_the_folder, one_folder_too_high, one_folder_too_deep,
]  # fmt: skip
NEEDS_DATA = (missing_video, unknown_video, unknown_id)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("with_data", [True, False], ids=["with data", "alone"])
def test_broken_predictions_are_refused(
    folders: Callable[[str], tuple[Path, Path]], tmp_path: Path, damage: Callable[[Path], Path], with_data: bool
) -> None:
    if not with_data and damage in NEEDS_DATA:
        damage = missing_frame
    data, predictions = folders("mose")
    named = damage(predictions)
    output = tmp_path / "submission.zip"
    output.write_bytes(b"what was there before")
    with pytest.raises(ValueError, match=r".") as caught:
        write_submission("mose", predictions, output, data if with_data else None)
    assert str(caught.value).startswith(str(named))
    assert "\n" not in str(caught.value)
    assert output.read_bytes() == b"what was there before"
    assert not list(tmp_path.glob(".*.tmp"))


def test_data_of_another_server(folders: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    data, predictions = folders("mose")
    with pytest.raises(SubmissionError, match="no split test-dev in the layout of davis17-testdev"):
        write_submission("davis17-testdev", predictions, tmp_path / "x.zip", data)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_submission("mose", predictions, tmp_path / "x.zip", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_submission("mose", tmp_path / "nowhere", tmp_path / "x.zip", data)
    with pytest.raises(SubmissionError, match="servers take zip files"):
        write_submission("mose", predictions, tmp_path / "x.tar", data)


def test_numbers_of_videos_without_the_data(tmp_path: Path) -> None:
    write_label_map(tmp_path / "predictions" / "a" / "00000.png", label_map((1,)))
    with pytest.raises(SubmissionError, match="1 videos, the server scores 30"):
        write_submission("davis17-testdev", tmp_path / "predictions", tmp_path / "x.zip")


def test_no_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "predictions" / "a").mkdir(parents=True)
    (tmp_path / "data.zip").write_bytes(b"the data set")
    arguments = ["--server", "mose", "--predictions", str(tmp_path / "predictions"), "--output"]
    for output, message in (("data.zip", "exists already; pass --overwrite"), ("predictions/x.zip", "lies in the input")):
        with pytest.raises(ValueError, match=message):
            main([*arguments, str(tmp_path / output)])
    assert (tmp_path / "data.zip").read_bytes() == b"the data set"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["results/a/00000.png", "results/b/00000.png"], "results/a/00000.png where mose wants <video>/<frame>.png"),
        (["a/00000.png"], "a single folder at the top"),
        (["a/00000.png", "b/00000.png", "__MACOSX/._a"], "__MACOSX/._a where"),
        ([], "nothing where"),
    ],
)
def test_zips_that_others_wrote(tmp_path: Path, names: list[str], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(SubmissionError) as caught:
        check_archive(tmp_path / "x.zip", "mose")
    assert message in str(caught.value)
