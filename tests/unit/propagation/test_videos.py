"""Videos as users hand them over: what becomes of each form, and every message to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import make_frames, make_label_map, make_video
from vos_lightning.propagation.videos import as_video
from vos_lightning.structures import FOLDER_FPS

LABELS = make_label_map((7, 3))


def arrays(length: int = 4) -> list[np.ndarray]:
    return [frame.permute(1, 2, 0).numpy() for frame in make_frames(length)]


class Again:
    """Frames that can be looked at as often as wanted, but neither counted nor chosen."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(arrays())


class Counted(Again):
    """Frames that can be counted, but not chosen."""

    def __len__(self) -> int:
        return 4


FORMS: dict[str, Any] = {
    "list of tensors": make_frames(4),
    "tuple of arrays": tuple(arrays()),
    "one array": np.stack(arrays()),
    "one tensor": torch.stack(make_frames(4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_in_memory_are_numbered(form: str) -> None:
    video = as_video(FORMS[form], {1: LABELS})
    assert (video.name, video.original_size, video.fps) == ("video", (30, 45), FOLDER_FPS)
    assert video.object_ids == (3, 7)
    assert (video.targets, video.required_frames, video.proposals, video.gone) == ({}, None, None, {})
    assert all(torch.equal(one, other) for one, other in zip(video.frames, make_frames(4), strict=True))
    assert len(video.frames) == 4  # type: ignore[arg-type]
    assert torch.equal(video.frames[2], make_frames(4)[2])  # type: ignore[index]
    assert video.frame_names == ("00000", "00001", "00002", "00003")


def test_frames_that_cannot_be_chosen_have_no_names() -> None:
    again, counted, once = (as_video(frames, {1: LABELS}) for frames in (Again(), Counted(), iter(arrays())))
    for video, times in ((again, 2), (counted, 2), (once, 1)):
        assert (video.name, video.original_size, video.frame_names, video.length) == ("video", (30, 45), None, None)
        for _ in range(times):
            assert all(torch.equal(one, other) for one, other in zip(video.frames, make_frames(4), strict=True))
    assert list(once.frames) == []


def test_a_folder_has_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "walk"
    folder.mkdir()
    for index, frame in enumerate(arrays()):
        Image.fromarray(frame).save(folder / f"f{index}.png")
    for path in (folder, str(folder)):
        video = as_video(path, {0: LABELS})
        assert (video.name, video.original_size, video.fps) == ("walk", (30, 45), FOLDER_FPS)
        assert video.frame_names == ("f0", "f1", "f2", "f3")
        assert torch.equal(next(iter(video.frames)), make_frames(4)[0])


@pytest.mark.usefixtures("_types_are_not_checked")
def test_a_sample_keeps_what_is_not_given() -> None:
    sample, other = make_video("v"), make_label_map((5, 9))
    source: Any = object()
    kept = as_video(sample)
    assert (kept.name, kept.targets, kept.frame_names) == (sample.name, sample.targets, sample.frame_names)
    assert torch.equal(kept.annotations[0], sample.annotations[0])
    changed = as_video(sample, {np.int64(1): other}, gone={np.int64(3): [np.int64(9), 5]}, proposals=source)
    assert list(changed.annotations) == [1]
    assert torch.equal(changed.annotations[1], other)
    assert (changed.object_ids, changed.gone, changed.proposals) == ((5, 9), {3: (9, 5)}, source)
    assert as_video(changed).gone == {3: (9, 5)}
    assert as_video(changed).proposals is source
    assert as_video(changed, gone={}).gone == {}


def test_the_speed_of_a_sample_stays() -> None:
    assert as_video(make_video("v")).fps == FOLDER_FPS == Fraction(24)


@pytest.mark.parametrize(
    ("video", "masks", "gone", "expected"),
    [
        ([], {0: LABELS}, None, "the video has no frame"),
        (7, {0: LABELS}, None, "a video is a file, a folder, or a sequence of frames, not int"),
        (None, None, None, "no mask is given: pass the masks by the index of their frame, as masks={0: label_map}"),
        (None, {}, None, "no mask is given: pass the masks by the index of their frame, as masks={0: label_map}"),
        (None, {4: LABELS}, None, "a mask is given for frame 4, and the frames are 0 to 3"),
        (None, {0: LABELS, -1: LABELS}, None, "a mask is given for frame -1, and the frames are 0 to 3"),
        (None, {"a": LABELS}, None, "masks are given by the index of their frame, not by 'a': masks={0: label_map}"),
        (
            None,
            {2: LABELS * 0},
            None,
            "masks of frame 2: there is no object; leave the frame out, or pass gone={2: ids} to say that objects are gone from "
            "there on",
        ),
        (None, {2: LABELS[:9]}, None, "masks of frame 2: the label map is (9, 45), the frame (30, 45) (height, width)"),
        (
            None,
            {2: LABELS},
            {2: [3]},
            "object 3 is given in frame 2, and gone from that frame on: leave one of the two out",
        ),
        (None, {2: LABELS}, {3: [5]}, "object 5 is gone from frame 3 on, and no mask of it is given in an earlier frame"),
        (None, {2: LABELS}, {1: [7]}, "object 7 is gone from frame 1 on, and no mask of it is given in an earlier frame"),
    ],
)
@pytest.mark.usefixtures("_types_are_not_checked")
def test_what_cannot_be_used_is_named(video: Any, masks: Any, gone: Any, expected: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        as_video(make_frames(4) if video is None else video, masks, gone=gone)
    assert str(caught.value) == expected


def test_an_object_may_be_gone_and_come_back() -> None:
    video = as_video(make_frames(4), {0: LABELS, 2: LABELS}, gone={1: [3, 7], 3: [3]})
    assert video.gone == {1: (3, 7), 3: (3,)}


def test_only_looked_at_frames_are_converted() -> None:
    """Frames are checked when it is their turn, but for the first."""
    frames: list[Tensor] = [*make_frames(2), torch.zeros(1, 1, 1)]
    video = as_video(frames, {0: LABELS})
    assert torch.equal(video.frames[1], frames[1])  # type: ignore[index]
    with pytest.raises(ValueError, match="a frame must have shape"):
        list(video.frames)
