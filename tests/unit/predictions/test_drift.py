"""The drift flags: one constructed video for each, with the answer known."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import DummyNetwork
from vos_lightning.app.segment import main
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.predictions.drift import (
    DriftIndex,
    colour_bins,
    colour_histogram,
    contour_step,
    largest_share,
    likeness,
    surroundings,
    unusable_from,
)
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FramePrediction

HEIGHT, WIDTH = 160, 240
RED, GREEN, BLUE, GREY = (190, 60, 50), (60, 170, 60), (50, 70, 190), (120, 120, 120)


def textured(colour: tuple[int, int, int], seed: int) -> Tensor:
    """A plane of a colour with the smooth texture that motion can be seen by."""
    coarse = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(seed))
    texture = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0]
    return (torch.tensor(colour).view(3, 1, 1) + 50 * (texture - 0.5)).clamp(0, 255).to(torch.uint8)


def square(top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scene(*objects: tuple[Tensor, tuple[int, int, int], tuple[int, int]]) -> Tensor:
    """Objects (where, colour, how far they have moved), textured, on a textured grey background."""
    frame = textured(GREY, 0)
    for seed, (mask, colour, shift) in enumerate(objects, start=1):
        frame = torch.where(mask, textured(colour, seed).roll(shift, dims=(1, 2)), frame)
    return frame


def prediction(
    index: int, frame: Tensor, *masks: Tensor, given: tuple[int, ...] = (), probability: float = 0.9
) -> FramePrediction:
    label_map = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    for object_id, mask in enumerate(masks, start=1):
        label_map[mask] = object_id
    planes = torch.stack([(label_map == i) * probability for i in range(1, len(masks) + 1)])
    return FramePrediction(index, frame, label_map, planes, tuple(range(1, len(masks) + 1)), given)


def flags_of(frames: Iterable[Tensor], masks: Iterable[Tensor], given: Iterable[int] = (0,)) -> list[list[str]]:
    """Flags of one object, frame by frame."""
    index = DriftIndex()
    rows = [
        index.rows(str(t), prediction(t, frame, mask, given=(1,) if t in given else ()))
        for t, (frame, mask) in enumerate(zip(frames, masks, strict=True))
    ]
    return [row.flags.split() for (row,) in rows]


class TestGoodTracks:
    def test_a_moving_textured_object_raises_nothing(self) -> None:
        masks = [square(20 + t, 20 + 4 * t, 50) for t in range(30)]
        frames = [scene((mask, RED, (t, 4 * t))) for t, mask in enumerate(masks)]
        assert flags_of(frames, masks) == [["given"]] + [[]] * 29

    def test_nor_does_one_that_leaves_the_frame(self) -> None:
        """Most of its area is lost, and motion explains it."""
        masks = [square(50, WIDTH - 60 + 2 * t, 50) for t in range(25)]
        frames = [scene((mask, RED, (0, 2 * t))) for t, mask in enumerate(masks)]
        assert masks[-1].sum() < 0.3 * masks[0].sum()
        assert flags_of(frames, masks) == [["given"]] + [[]] * 24

    def test_nor_does_a_change_of_light(self) -> None:
        mask = square(50, 80, 50)
        frame = scene((mask, RED, (0, 0)))
        frames = [(frame.float() * (1 - 0.01 * t)).to(torch.uint8) for t in range(15)]
        assert flags_of(frames, [mask] * 15) == [["given"]] + [[]] * 14

    def test_nor_do_neighbours_of_one_colour(self) -> None:
        """Where two objects touch, the contour parts equal colours, rightly."""
        index = DriftIndex()
        for t in range(10):
            left, right = square(50, 40 + 3 * t, 40), square(50, 80 + t, 40) & ~square(50, 40 + 3 * t, 40)
            frame = scene((left, RED, (0, 3 * t)), (right, RED, (0, t)))
            rows = index.rows(str(t), prediction(t, frame, left, right, given=(1, 2) if t == 0 else ()))
            assert [row.flags for row in rows] == (["given"] * 2 if t == 0 else [""] * 2)


class TestFlags:
    def test_slow_shrinking_from_100_to_7_pixels(self) -> None:
        whole = square(70, 100, 10)
        order = whole.nonzero()[(whole.nonzero() - torch.tensor([75, 105])).abs().sum(dim=1).argsort(stable=True)]
        masks = []
        for area in range(100, 6, -1):
            mask = torch.zeros_like(whole)
            mask[order[:area, 0], order[:area, 1]] = True
            masks.append(mask)
        found = flags_of([scene((whole, RED, (0, 0)))] * len(masks), masks)
        assert int(masks[-1].sum()) == 7
        first = next(t for t, flags in enumerate(found) if "shrunk" in flags)
        assert 60 <= first <= 70  # 40 to 30 pixels are left
        assert all("shrunk" in flags for flags in found[first:])
        assert not any("area_jump" in flags for flags in found)

    def test_absent_and_returned(self) -> None:
        there, nothing = square(50, 80, 40), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        masks = [there, there, nothing, nothing, there, there]
        assert flags_of([scene((there, RED, (0, 0)))] * 6, masks) == [["given"], [], ["absent"], ["absent"], ["returned"], []]

    def test_area_jump(self) -> None:
        """Half of a textured square is lost at once; what is left ends inside the object."""
        whole = square(40, 80, 60)
        found = flags_of([scene((whole, RED, (0, 0)))] * 3, [whole, whole, whole & square(40, 80, 40)])
        assert found[1] == []
        assert "area_jump" in found[2]

    def test_low_confidence(self) -> None:
        mask = square(50, 80, 40)
        index, frame = DriftIndex(), scene((mask, RED, (0, 0)))
        index.rows("0", prediction(0, frame, mask, given=(1,)))
        sure, unsure = (index.rows("n", prediction(1, frame, mask, probability=p))[0] for p in (0.75, 0.65))
        assert (sure.flags, sure.confidence) == ("", 0.75)
        assert (unsure.flags, unsure.confidence) == ("low_confidence", 0.65)

    def test_switch_to_an_object_of_another_colour(self) -> None:
        """The other object is as large and has as sharp a contour."""
        own, other = square(50, 40, 40), square(50, 160, 40)
        found = flags_of([scene((own, RED, (0, 0)), (other, GREEN, (0, 0)))] * 3, [own, own, other])
        assert found[:2] == [["given"], []]
        assert "unlike" in found[2]

    def test_scattered(self) -> None:
        whole = square(30, 60, 100)
        pieces = whole.clone()
        pieces[60:80] = False
        pieces[:, 110:120] = False
        found = flags_of([scene((whole, RED, (0, 0)))] * 2, [whole, pieces])
        assert "scattered" in found[1]
        assert "scattered" not in flags_of([scene((whole, RED, (0, 0)))] * 2, [pieces, pieces])[1], "given so"

    @pytest.mark.parametrize("mask", [square(65, 95, 30), square(30, 60, 100), square(75, 105, 60)], ids=["part", "wide", "slid"])
    def test_off_edge(self, mask: Tensor) -> None:
        whole = square(50, 80, 60)
        found = flags_of([scene((whole, RED, (0, 0)))] * 3, [whole, whole, mask])
        assert found[1] == []
        assert "off_edge" in found[2] or "unlike" in found[2]

    def test_a_mask_given_again_starts_anew(self) -> None:
        """The other object is what the user means from then on."""
        own, other = square(50, 40, 40), square(50, 160, 20)
        frames = [scene((own, RED, (0, 0)), (other, GREEN, (0, 0)))] * 5
        masks = [own, other, other, other, own]
        found = flags_of(frames, masks, given=(0, 2))
        assert "unlike" in found[1]
        assert "area_jump" in found[1]
        assert found[2:4] == [["given"], []]
        assert "unlike" in found[4]

    def test_an_object_that_nobody_has_given_is_not_called_given(self) -> None:
        """One that comes from a mask of a later frame, followed backwards."""
        mask = square(20, 20, 50)
        frame = scene((mask, RED, (0, 0)))
        assert flags_of([frame] * 3, [mask] * 3, given=(2,)) == [[], [], ["given"]]
        assert flags_of([frame], [mask & ~mask], given=()) == [["absent"]]

    def test_objects_do_not_share_references(self) -> None:
        """The second one comes later; the first one keeps its own reference."""
        one, two = square(50, 40, 40), square(50, 160, 40)
        frame, index = scene((one, RED, (0, 0)), (two, BLUE, (0, 0))), DriftIndex()
        index.rows("0", prediction(0, frame, one, given=(1,)))
        rows = index.rows("1", prediction(1, frame, one, two, given=(2,)))
        assert [row.flags for row in rows] == ["", "given"]
        rows = index.rows("2", prediction(2, frame, two, one))
        assert all("unlike" in row.flags for row in rows)

    def test_no_object_no_row(self) -> None:
        frame = torch.zeros(3, 4, 4, dtype=torch.uint8)
        assert DriftIndex().rows("n", FramePrediction(0, frame, frame[0], torch.zeros(0, 4, 4), ())) == []

    def test_large_frames_are_measured_on_small_ones(self) -> None:
        """A video of four times the size gets the same flags."""
        own, other = square(50, 40, 40), square(50, 160, 40)
        frame, masks = scene((own, RED, (0, 0)), (other, GREEN, (0, 0))), [own, own, other, own & other]
        large = [m.repeat_interleave(4, 0).repeat_interleave(4, 1) for m in masks]
        found = []
        for scale, some in ((1, masks), (4, large)):
            index, rows = DriftIndex(), []
            picture = frame.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            for t, mask in enumerate(some):
                one = FramePrediction(t, picture, mask.to(torch.uint8), mask[None] * 0.9, (1,), (1,) if t == 0 else ())
                rows += index.rows(str(t), one)
            found.append([row.flags for row in rows])
        assert found[0] == found[1]


class TestMeasures:
    def test_likeness_of_disjoint_equal_and_half_equal_colours(self) -> None:
        image = np.zeros((4, 6, 3), np.uint8)
        image[:, 2:4], image[:, 4:] = (255, 0, 0), (0, 0, 255)
        bins = colour_bins(image)
        parts = [colour_histogram(bins, np.arange(24).reshape(4, 6) % 6 // 2 == i) for i in range(3)]
        assert likeness(parts[0], parts[0]) == pytest.approx(1, abs=1e-5)
        assert likeness(parts[0], parts[1]) == pytest.approx(0, abs=1e-5)
        both = colour_histogram(bins, np.arange(24).reshape(4, 6) % 6 < 4)
        assert likeness(parts[0], both) == pytest.approx(0.5**0.5, abs=1e-5)
        assert both.sum() == pytest.approx(1, abs=1e-5)

    def test_largest_share(self) -> None:
        mask = np.zeros((8, 8), bool)
        assert largest_share(mask) == 1
        mask[:3, 0] = True
        mask[3, 1] = True  # touches at a corner
        mask[6, 6:] = True
        assert largest_share(mask) == pytest.approx(4 / 6)

    def test_contour_step(self) -> None:
        mask = np.zeros((40, 40), bool)
        mask[10:30, 10:30] = True
        everywhere = np.ones_like(mask)
        assert contour_step(mask.astype(np.float32) * 3 - 1, mask, everywhere) == pytest.approx(3)
        assert contour_step(np.ones(mask.shape, np.float32), mask, everywhere) == pytest.approx(0)
        assert contour_step(np.ones(mask.shape, np.float32), mask, mask) is None, "other objects all around"

    def test_surroundings(self) -> None:
        mask = np.zeros((100, 100), bool)
        mask[40:60, 40:60] = True
        around = surroundings(mask)
        assert around.sum() == 48**2 - 20**2  # 0.7 * 20 = 14 pixels on every side
        assert not (around & mask).any()


class TestAdvice:
    @pytest.mark.parametrize(
        ("flagged", "start"),
        [("0000", None), ("0111", 1), ("1000", None), ("1100001111", 6), ("0101101111", 1), ("1111000000", None), ("0001", 3)],
    )
    def test_unusable_from(self, flagged: str, start: int | None) -> None:
        assert unusable_from([c == "1" for c in flagged]) == start

    def test_of_a_video_that_is_lost(self) -> None:
        there, nothing = square(50, 80, 40), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        frame = scene((there, RED, (0, 0)))
        for lost, expected in ((6, "probably unusable from frame f4 on"), (3, None)):
            index = DriftIndex()
            for t in range(10):
                mask = nothing if t >= 10 - lost else there
                index.rows(f"f{t}", prediction(t, frame, mask, given=(1,) if t == 0 else ()))
            assert (index.advice() is None) if expected is None else (expected in index.advice())


class Scripted(InferenceEngine):
    """Answers with masks that are known beforehand."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
        self.masks = masks

    def step(self, frame: Tensor, masks: Any = None, **_: Any) -> FramePrediction:
        self._frame_index += 1
        given = () if masks is None else (1,)
        return prediction(self._frame_index, frame, self.masks[self._frame_index], given=given)


class TestCommand:
    def run(self, folder: Path, frames: list[Tensor], masks: list[Tensor], patch: pytest.MonkeyPatch) -> list[str]:
        (folder / "frames").mkdir()
        for t, frame in enumerate(frames):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / "frames" / f"{t:02d}.png")
        write_label_map(folder / "first.png", masks[0].to(torch.uint8))
        patch.setattr("vos_lightning.checkpoints.loading.load_engine", lambda *_, **__: Scripted(masks))
        places = {"checkpoint": "unread.ckpt", "mask": "first.png", "output": "out"}
        options = [text for key, name in places.items() for text in (f"--{key}", str(folder / name))]
        assert main([str(folder / "frames"), *options, "--device", "cpu", "--formats", "masks"]) == 0
        with (folder / "out" / "index" / "frames.csv").open(newline="") as file:
            return [row["flags"] for row in csv.DictReader(file)]

    def test_drift_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """The mask disappears, comes back, and then follows the other object to the end."""
        own, other, nothing = square(50, 40, 40), square(50, 160, 40), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        frame = scene((own, RED, (0, 0)), (other, GREEN, (0, 0)))
        flags = self.run(tmp_path, [frame] * 9, [own, own, nothing, own, *[other] * 5], monkeypatch)
        assert flags[:4] == ["given", "", "absent", "returned"]
        assert all("unlike" in text for text in flags[4:])
        _, _, *lines = capsys.readouterr().out.splitlines()  # the first ones are about the given mask and the cost
        assert "7 frames to look at" in lines[0]
        assert lines[1] == "most frames are flagged: the result is probably unusable from frame 02 on"

    def test_a_good_result_is_left_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        masks = [square(20 + t, 20 + 4 * t, 50) for t in range(8)]
        frames = [scene((mask, RED, (t, 4 * t))) for t, mask in enumerate(masks)]
        assert self.run(tmp_path, frames, masks, monkeypatch) == ["given", *[""] * 7]
        _, _, line = capsys.readouterr().out.splitlines()  # the first ones are about the given mask and the cost
        assert "0 frames to look at" in line
