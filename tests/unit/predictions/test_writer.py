"""What is written of predictions is what the commands for predictions read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import DummyModule, make_frames, make_label_map, make_video
from vos_lightning.app.cli import main
from vos_lightning.evaluation.folders import evaluate_folder, read_videos
from vos_lightning.io.given_masks import GivenMasks, own_video
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.outputs import OutputFolder, mask_folder
from vos_lightning.io.videos import VideoWriter, open_frames
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.structures import VideoSample


def write_predictions(folder: Path, *videos: VideoSample) -> Path:
    with PredictionFiles(OutputFolder(folder, "predict", overwrite=True)) as files:
        for video in videos:
            for prediction in DummyModule().engine().run(video):
                files.take(video, prediction)
    return folder


def write_frames(folder: Path, length: int) -> Path:
    folder.mkdir(parents=True)
    for index, frame in enumerate(make_frames(length)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Label maps of two videos whose objects do not move."""
    for name in ("first", "second"):
        for index in range(4):
            write_label_map(tmp_path / "truth" / name / f"f{index:05d}.png", make_label_map())
    return tmp_path / "truth"


def test_evaluate_and_curves_read_it(tmp_path: Path, truth: Path) -> None:
    output = write_predictions(tmp_path / "out", make_video("first"), make_video("second"))
    assert mask_folder(output) == output / "masks"
    for place in (output, output / "masks"):
        rows = evaluate_folder(truth, place, "davis17").rows
        assert [(row.video, row.object_id, row.J, row.F) for row in rows] == [
            (video, i, 1.0, 1.0) for video in ("first", "second") for i in (1, 2)
        ]
        assert [name for name, *_ in read_videos(truth, place, "davis17")] == ["first", "second"]
    assert main(["evaluate", "--truth", str(truth), "--predictions", str(output), "--protocol", "davis17"]) == 0


def test_other_folders_are_read_as_they_are(tmp_path: Path, truth: Path) -> None:
    """A video may be called masks."""
    assert mask_folder(truth) == truth
    (truth / "first").rename(truth / "masks")
    assert mask_folder(truth) == truth


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_own_videos_and_data_sets_are_one(tmp_path: Path, kind: str) -> None:
    """The same frames and mask give the same files, in the same places."""
    write_label_map(tmp_path / "mask.png", make_label_map())
    if kind == "folder":
        place = write_frames(tmp_path / "clip", 4)
    else:
        place = tmp_path / "clip.mp4"
        with VideoWriter(place, 12) as writer:
            for frame in make_frames(4, height=30, width=46):
                writer.write(frame[:, :, :46])
        write_label_map(tmp_path / "mask.png", torch.nn.functional.pad(make_label_map(), (0, 1)))
    frames = open_frames(place)
    video = own_video(frames, GivenMasks(tmp_path / "mask.png", frames))
    assert (video.name, video.object_ids, video.length) == ("clip", (1, 2), 4 if kind == "folder" else None)
    assert [video.name_of(t) for t in range(2)] == ["00000", "00001"]
    output = write_predictions(tmp_path / "out", video)
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    assert written == [
        *(["contact_sheet.png"] if kind == "folder" else []),
        "index/clip.csv",
        *(f"masks/clip/{t:05d}.png" for t in range(4)),
        "overlays/clip.mp4",
        "written.jsonl",
    ]
    assert open_frames(output / "overlays" / "clip.mp4").fps == (24 if kind == "folder" else 12)


def test_a_mask_beyond_the_end_is_named(tmp_path: Path) -> None:
    video = make_video("v", length=3)
    video = VideoSample(**{**vars(video), "annotations": {**video.annotations, 7: make_label_map()}})
    with pytest.raises(ValueError, match=r"v: the video ended after 3 frames, before frame 7 \(counted from 0\)"):
        list(DummyModule().engine().run(video))


def test_a_frame_is_decoded_once(tmp_path: Path) -> None:
    """Pictures, index and network share what was decoded."""
    decoded = []

    class Frames:
        def __iter__(self) -> Iterator[Tensor]:
            for index, frame in enumerate(make_frames(4)):
                decoded.append(index)
                yield frame

    write_predictions(tmp_path / "out", VideoSample(**{**vars(make_video("v")), "frames": Frames()}))
    assert decoded == [0, 1, 2, 3]


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vos_lightning.predictions.writer.write_atomically", full)
    monkeypatch.setattr("vos_lightning.predictions.writer.write_label_map", full)
    with pytest.raises(OSError, match=r"f00000\.png"):
        write_predictions(tmp_path / "out", make_video("v"))


# Names that lead elsewhere, and runs that fail ------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("name", name) for name in ("..", "../../x", "/tmp/x", "", "a/../../b", "a\\b", "x" * 240)),
        *(("frame_names", name) for name in ("../../x", "/tmp/x", "a/../../../b", "a\\b", "x" * 240)),
    ],
)
def test_names_of_data_lead_nowhere_else(tmp_path: Path, part: str, name: str) -> None:
    write_predictions(tmp_path / "out", make_video("v"))
    before = files_of(tmp_path)
    video = make_video("v", length=2)
    video = VideoSample(**{**vars(video), part: name if part == "name" else ("0", name)})
    with pytest.raises(ValueError, match=r"the name .* (is|leads)"):
        write_predictions(tmp_path / "out", video)
    assert files_of(tmp_path) == before


def test_an_earlier_run_stays_until_there_is_a_frame(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", make_video("v"))
    before = files_of(tmp_path)
    files = PredictionFiles(OutputFolder(tmp_path / "out", "predict", overwrite=True))
    with contextlib.suppress(ZeroDivisionError), files:
        raise ZeroDivisionError
    assert files_of(tmp_path) == before
    video = make_video("w")
    with contextlib.suppress(ZeroDivisionError), files:
        files.take(video, next(iter(DummyModule().engine().run(video))))
        raise ZeroDivisionError
    assert {name for name in files_of(tmp_path / "out") if "/" in name} == {
        "masks/w/f00000.png",
        "overlays/w.mp4",
        "index/w.csv",
    }
