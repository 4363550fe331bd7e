"""Scene cuts are found, and objects are let go there instead of being followed into another scene."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.dummies import DummyNetwork, make_video
from vos_lightning.predictions.drift import DriftIndex
from vos_lightning.propagation.cuts import SceneCuts, block_histograms, colour_bins, colour_histogram, reduced, similarity
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation

SIZE = (60, 90)


def scene(seed: int, length: int) -> list[Tensor]:
    """Clouds that move by a pixel a frame, with noise; seeds differ in their places, not in their palette."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([40.0, 120.0, 200.0], dtype=np.float32), (8, 12, 3))
    clouds = cv2.resize(coarse, (SIZE[1] + length, SIZE[0]), interpolation=cv2.INTER_LINEAR)
    frames = [clouds[:, t : t + SIZE[1]] + rng.normal(0, 3, (*SIZE, 3)) for t in range(length)]
    return [torch.from_numpy(f.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous() for f in frames]


def label_map(*ids: int) -> Tensor:
    found = torch.zeros(SIZE, dtype=torch.uint8)
    for i in ids:
        found[10 * i : 10 * i + 8, 20:50] = i
    return found


FRAMES = [*scene(1, 4), *scene(2, 3), *scene(3, 3)]
"""Cuts at frames 4 and 7."""


def engine() -> InferenceEngine:
    return InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))


def test_cuts_are_found() -> None:
    for frames in (FRAMES, [f.float() / 255 for f in FRAMES]):
        cuts = SceneCuts()
        assert [t for t, frame in enumerate(frames) if cuts.is_next(frame)] == [4, 7]


def test_nobody_looks_for_cuts_while_no_object_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    found = SceneCuts.is_next

    def is_next(self: SceneCuts, frame: Tensor) -> bool:
        looked.append(next(t for t, other in enumerate(FRAMES) if other is frame))
        return found(self, frame)

    monkeypatch.setattr(SceneCuts, "is_next", is_next)
    video = dataclasses.replace(
        make_video("v"), frames=FRAMES, annotations={2: label_map(1)}, gone={4: (1,)}, targets={}, original_size=SIZE,
        frame_names=None,
    )  # fmt: skip
    list(engine().run(video, at_cut="ask"))
    assert looked == [2, 3]
    looked.clear()
    list(engine().run(video, at_cut="follow"))
    assert not looked


def test_a_block_is_compared_with_the_block_in_its_place() -> None:
    bins = colour_bins(reduced(FRAMES[0]))
    blocks = block_histograms(bins)
    assert blocks.shape == (16, 2048)
    inside = np.zeros(bins.shape, dtype=bool)
    inside[15:30, 69:90] = True  # the second row of blocks, the last column: columns 67.5 to 90 of 90
    expected = colour_histogram(bins, inside)
    assert blocks.sum(axis=1) == pytest.approx(1, abs=1e-5)
    inside[15:30, 68] = True
    assert colour_histogram(bins, inside) == pytest.approx(blocks[7], abs=1e-6) or expected == pytest.approx(blocks[7], abs=1e-6)
    assert similarity(blocks, blocks) == pytest.approx(1, abs=1e-5)
    assert similarity(blocks, blocks[::-1]) < similarity(blocks, blocks)


def test_objects_are_followed_by_default() -> None:
    found = list(engine().segment(FRAMES, {0: label_map(1)}))
    assert all(p.object_ids == (1,) and not p.scene_cut for p in found)


def test_objects_are_let_go_and_asked_for() -> None:
    masks = {0: label_map(1, 2), 5: label_map(1), 7: label_map(3)}
    found = list(engine().segment(FRAMES, masks, at_cut="ask"))
    assert [p.object_ids for p in found] == [(1, 2)] * 4 + [()] + [(1,)] * 2 + [(3,)] * 3
    assert [p.frame_index for p in found if p.scene_cut] == [4, 7]
    assert torch.equal(found[6].label_map, label_map(1))
    assert found[4].label_map.eq(0).all()


def test_a_cut_without_objects_asks_for_nothing() -> None:
    found = list(engine().segment(FRAMES, {8: label_map(1)}, at_cut="ask"))
    assert not any(p.scene_cut for p in found)
    assert [bool(p.object_ids) for p in found] == [False] * 8 + [True] * 2


def test_both_directions_stay_in_their_scene() -> None:
    masks = {2: label_map(1), 8: label_map(2)}
    found = {p.frame_index: p for p in engine().segment(FRAMES, masks, direction="both", at_cut="ask")}
    assert [found[t].object_ids for t in range(10)] == [(1,)] * 4 + [()] * 3 + [(2,)] * 3
    assert torch.equal(found[0].label_map, label_map(1))
    assert torch.equal(found[7].label_map, label_map(2))
    assert found[4].scene_cut


def test_the_index_says_where_a_scene_begins() -> None:
    video = dataclasses.replace(
        make_video("v"), frames=FRAMES, annotations={0: label_map(1, 2), 7: label_map(2)}, targets={}, original_size=SIZE,
        frame_names=None,
    )  # fmt: skip
    flags = {}
    for at_cut in ("follow", "ask"):
        index = DriftIndex()
        rows = [row for p in engine().run(video, at_cut=at_cut) for row in index.rows(str(p.frame_index), p)]  # type: ignore[arg-type]
        flags[at_cut] = {(row.frame, row.object_id): row.flags.split() for row in rows if "scene_cut" in row.flags}
        if at_cut == "ask":
            assert [row.area for row in rows if row.flags == "scene_cut"] == [0, 0]
    assert flags["follow"].keys() == {(4, 1), (4, 2), (7, 1)}
    assert flags["ask"].keys() == {(4, 1), (4, 2)}
