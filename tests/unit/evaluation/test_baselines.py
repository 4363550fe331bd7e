"""Baselines without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from tests.tolerances import assert_close
from vos_lightning.evaluation.baselines import copy_first_mask, warp_by_flow
from vos_lightning.metrics.functional import region_similarity
from vos_lightning.structures import VideoSample

HEIGHT, WIDTH, STEP, NUM_FRAMES = 72, 96, 3, 5


class CountingFrames(Sequence):
    """Frames that count how often each is decoded."""

    def __init__(self, frames: list[torch.Tensor]) -> None:
        self.frames, self.reads = frames, [0] * len(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        frame = self.frames[index]
        self.reads[index] += 1
        return frame

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))


def texture() -> torch.Tensor:
    """Smooth noise, wider than the frame."""
    noise = torch.rand(1, 3, HEIGHT // 6, 32, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(noise, size=(HEIGHT, WIDTH + 60), mode="bicubic")[0].clamp(0, 1) * 255).to(
        torch.uint8
    )


def blank(size: tuple[int, int] = (HEIGHT, WIDTH)) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def block(t: int, object_id: int = 7, top: int = 20) -> torch.Tensor:
    label_map = blank()
    label_map[top : top + 24, 20 + STEP * t : 50 + STEP * t] = object_id
    return label_map


def sample(
    annotations: dict[int, torch.Tensor], object_ids: tuple[int, ...], size: tuple[int, int] = (HEIGHT, WIDTH)
) -> VideoSample:
    """Everything moves to the right by ``STEP`` pixels a frame."""
    wide = texture()
    start = STEP * NUM_FRAMES
    frames = [wide[:, :, start - STEP * t : start - STEP * t + WIDTH].contiguous() for t in range(NUM_FRAMES)]
    counting = CountingFrames(frames)
    video = VideoSample(
        name="v",
        frames=counting,
        annotations=annotations,
        targets={},
        object_ids=object_ids,
        required_frames=tuple(range(NUM_FRAMES)),
        original_size=size,
        frame_names=tuple(f"{t:05d}" for t in range(NUM_FRAMES)),
    )
    counting.reads = [0] * NUM_FRAMES  # the check of the dataclass looks into some
    return video


def test_copy_repeats_the_mask_and_reads_no_frame() -> None:
    video = sample({0: block(0)}, (7,))
    predictions = list(copy_first_mask(video))
    assert [index for index, _ in predictions] == list(range(NUM_FRAMES))
    for _, label_map in predictions:
        assert_close(label_map, block(0))
    assert video.frames.reads == [0] * NUM_FRAMES


def test_warp_follows_the_motion_and_reads_each_frame_once() -> None:
    video = sample({0: block(0)}, (7,))
    predictions = torch.stack([label_map for _, label_map in warp_by_flow(video)])
    target = torch.stack([block(t) for t in range(NUM_FRAMES)])
    copied = torch.stack([label_map for _, label_map in copy_first_mask(video)])
    warped_j, copied_j = (region_similarity(maps, target, (7,))[0, -1].item() for maps in (predictions, copied))
    assert warped_j > 0.9
    assert copied_j < 0.6
    assert video.frames.reads == [1] * NUM_FRAMES


@pytest.mark.parametrize("method", [copy_first_mask, warp_by_flow])
def test_late_and_repeated_annotations(method: object) -> None:
    late = blank()
    late[50:60, 60:70] = 3
    again = blank()
    again[2:8, 2:8] = 7
    again[0, 0] = 255  # no object
    video = sample({1: block(1), 2: late, 3: again}, (3, 7))
    maps = dict(method(video))
    assert_close(maps[0], blank())
    assert_close(maps[1], block(1))
    assert set(maps[2].unique().tolist()) == {0, 3, 7}
    assert_close(maps[2] == 3, late == 3)
    # Object 7 is replaced, object 3 stays (where it is, or where it went to).
    assert_close(maps[3] == 7, again == 7)
    assert (maps[3] == 3).sum() > 50


@pytest.mark.parametrize("method", [copy_first_mask, warp_by_flow])
def test_predictions_have_the_original_size(method: object) -> None:
    video = sample({1: block(1)}, (7,), size=(2 * HEIGHT, 2 * WIDTH))
    maps = dict(method(video))
    assert_close(maps[0], blank((2 * HEIGHT, 2 * WIDTH)))
    doubled = np.kron(block(1).numpy(), np.ones((2, 2), dtype=np.uint8))
    assert_close(maps[1], torch.from_numpy(doubled))
