"""The engine as people use it: objects that are added, corrected and removed, videos in every form, both directions, threads."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.clips import proposals_of, random_clip
from tests.tolerances import assert_close
from tests.unit.dummies import DummyNetwork, make_frames, make_label_map, make_video
from vos_lightning.io.videos import VideoWriter, open_frames
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.propagation.directions import blend, reversed_video
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FramePrediction, Proposals

PROPAGATION = Propagation(EveryKth(2, include_previous=True), "minimum", "join")
SIZE = (32, 48)


def engine_on(network: VOSNetwork, **options: Any) -> InferenceEngine:
    return InferenceEngine(network, PROPAGATION, **options)


@pytest.fixture
def emvos() -> EMVOS:
    torch.manual_seed(1)
    return EMVOS.small().eval()


def clip(length: int = 6, objects: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    frames, labels = random_clip(1, length, objects, SIZE)
    return list((frames[0] * 255).to(torch.uint8)), list(labels[0])


def same(one: FramePrediction, other: FramePrediction) -> None:
    assert one.object_ids == other.object_ids
    assert one.given_ids == other.given_ids
    assert torch.equal(one.label_map, other.label_map)
    assert torch.equal(one.probabilities, other.probabilities)


# Corrections in the frame that was processed last ----------------------------------------------------------------------


def test_a_correction_is_as_if_it_had_come_with_the_frame(network: VOSNetwork) -> None:
    frames, labels = clip()
    proposals = [proposals_of(network, f[None].float() / 255) for f in frames]
    late, early = engine_on(network), engine_on(network)
    for e in (late, early):
        e.step(frames[0], {4: labels[0] == 1}, proposals=proposals[0])
        e.step(frames[1], proposals=proposals[1])
    late.step(frames[2], proposals=proposals[2])
    late.correct(4, labels[2] == 2)  # a first try, which the next one replaces
    late.correct(4, labels[2] == 1)
    mended = late.add_object(labels[2] == 2)
    expected = early.step(frames[2], {4: labels[2] == 1, 1: labels[2] == 2}, proposals=proposals[2])
    assert mended.object_ids == (4, 1)
    assert mended.frame_index == 2
    same(mended, expected)
    for t in (3, 4, 5):
        same(late.step(frames[t], proposals=proposals[t]), early.step(frames[t], proposals=proposals[t]))


def test_the_first_object_may_be_added_after_a_look_at_the_frame(emvos: EMVOS) -> None:
    frames, labels = clip()
    engine, other = engine_on(emvos), engine_on(emvos)
    assert engine.step(frames[0]).object_ids == ()
    same(engine.add_object(labels[0] == 1, 7), other.step(frames[0], {7: labels[0] == 1}))
    same(engine.step(frames[1]), other.step(frames[1]))


def test_a_removed_object_is_not_in_a_correction(emvos: EMVOS) -> None:
    frames, labels = clip()
    engine, other = engine_on(emvos), engine_on(emvos)
    for e in (engine, other):
        e.step(frames[0], {1: labels[0] == 1})
    engine.step(frames[1], {2: labels[1] == 2})
    engine.remove_object(1)
    corrected = engine.correct(2, labels[1] == 2)
    other.remove_object(1)
    same(corrected, other.step(frames[1], {2: labels[1] == 2}))
    engine.remove_object(2)
    assert engine.object_ids == ()
    same(engine.add_object(labels[1] == 2, 3), engine_on(emvos).step(frames[1], {3: labels[1] == 2}))


def test_what_is_given_with_a_removed_object_stays_given(emvos: EMVOS) -> None:
    frames, _ = clip()
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    for i in range(1, 4):
        masks[i, 4:20, 12 * i : 12 * i + 8] = True
    engine, other = engine_on(emvos), engine_on(emvos)
    engine.step(frames[0], {1: masks[1], 2: masks[2], 3: masks[3]})
    engine.remove_object(1)
    same(engine.correct(3, masks[1]), other.step(frames[0], {2: masks[2], 3: masks[1]}))


def test_frames_may_be_written_into_one_array(emvos: EMVOS) -> None:
    frames, labels = clip()
    engine, other = engine_on(emvos), engine_on(emvos)
    camera = np.empty((*SIZE, 3), np.uint8)
    for t in (0, 1):
        camera[:] = frames[t].permute(1, 2, 0).numpy()
        engine.step(camera, labels[0] if t == 0 else None)
        other.step(frames[t], labels[0] if t == 0 else None)
    camera[:] = 0
    same(engine.correct(1, labels[1] == 1), other.correct(1, labels[1] == 1))


def test_what_cannot_be_corrected_is_said(emvos: EMVOS) -> None:
    frames, labels = clip()
    engine = engine_on(emvos)
    with pytest.raises(ValueError, match="there is no frame yet"):
        engine.add_object(labels[0] == 1)
    engine.step(frames[0], labels[0])
    before = engine.step(frames[1])
    for call, message in (
        (lambda: engine.add_object(labels[1] == 1, 2), "object 2 is tracked already"),
        (lambda: engine.correct(9, labels[1] == 1), r"object 9 is not tracked; tracked are \[1, 2\]"),
        (lambda: engine.correct(1, labels[1] == 9), "mask of object 1 is empty"),
        (lambda: engine.correct(1, torch.ones(3, 3)), "mask of object 1 is"),
        (lambda: engine.add_object(labels[1] == 1, 300), "object id 300"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    undisturbed = engine_on(emvos)
    undisturbed.step(frames[0], labels[0])
    same(undisturbed.step(frames[1]), before)
    same(engine.step(frames[2]), undisturbed.step(frames[2]))
    engine.reset()
    with pytest.raises(ValueError, match="there is no frame yet"):
        engine.add_object(labels[0] == 1)


# Videos in every form --------------------------------------------------------------------------------------------------


def test_forward_is_the_run_of_the_engine_in_every_form(emvos: EMVOS, tmp_path: Path) -> None:
    frames, labels = clip()
    arrays = [f.permute(1, 2, 0).numpy() for f in frames]
    sample = dataclasses.replace(
        make_video("v"), frames=frames, annotations={1: labels[1]}, original_size=SIZE, frame_names=None, targets={}
    )
    expected = list(engine_on(emvos).run(sample))
    ids = {int(i): labels[1].numpy() == i for i in (1, 2)}
    for video, masks in (
        (sample, None), (frames, {1: labels[1]}), (tuple(arrays), {1: labels[1].numpy()}), (np.stack(arrays), {np.int64(1): ids}),
        (torch.stack(frames), {1: labels[1].long()}), ((f for f in arrays), {1: ids}), (sample, {1: ids}),
    ):  # fmt: skip
        found = list(engine_on(emvos).segment(video, masks))
        assert [p.frame_index for p in found] == list(range(6))
        for one, other in zip(found, expected, strict=True):
            same(one, other)


def write(path: Path, frames: list[Tensor]) -> Path:
    with VideoWriter(path, quality=0) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def test_a_file_is_a_video(emvos: EMVOS, tmp_path: Path) -> None:
    frames, labels = clip()
    path = write(tmp_path / "clip.mp4", frames)
    decoded = list(open_frames(path))
    for direction in ("forward", "backward", "both"):
        found = list(engine_on(emvos).segment(str(path), {0: labels[0], 4: labels[4]}, direction=direction))
        expected = list(engine_on(emvos).segment(decoded, {0: labels[0], 4: labels[4]}, direction=direction))
        assert sorted(p.frame_index for p in found) == list(range(6))
        for one, other in zip(found, expected, strict=True):
            same(one, other)
            assert one.frame_index == other.frame_index


@pytest.mark.parametrize(
    ("video", "masks", "options", "message"),
    [
        ([], {0: 1}, {}, "the video has no frame"),
        (None, {}, {}, "no mask is given: pass"),
        (None, None, {}, "no mask is given: pass"),
        (None, {6: 1}, {}, "a mask is given for frame 6, and the frames are 0 to 5"),
        (None, {-1: 1}, {}, "a mask is given for frame -1, and the frames are 0 to 5"),
        (None, {2: 0}, {}, r"masks of frame 2: there is no object; leave the frame out, or pass gone=\{2: ids\}"),
        (None, {2: torch.ones(3, 3, dtype=torch.uint8)}, {}, "masks of frame 2: the label map is"),
        (None, {2: 1}, {"gone": {2: [1]}}, "object 1 is given in frame 2, and gone from that frame on"),
        (None, {2: 1}, {"gone": {4: [3]}}, "object 3 is gone from frame 4 on, and no mask of it is given in an earlier"),
        (None, {2: 1}, {"gone": {1: [1]}}, "object 1 is gone from frame 1 on, and no mask of it is given in an earlier"),
    ],
)
def test_what_cannot_be_segmented_is_said_before_the_start(
    emvos: EMVOS, video: Any, masks: Any, options: dict[str, Any], message: str
) -> None:
    frames, labels = clip()
    if isinstance(masks, dict):
        masks = {t: labels[2] * mask if isinstance(mask, int) else mask for t, mask in masks.items()}
    with pytest.raises(ValueError, match=message):
        engine_on(emvos).segment(frames if video is None else video, masks, **options)


def test_a_generator_goes_forwards_only(emvos: EMVOS) -> None:
    frames, labels = clip()
    with pytest.raises(ValueError, match="come only once"):
        list(engine_on(emvos).segment((f for f in frames), {2: labels[2]}, direction="both"))


def test_objects_may_be_corrected_between_two_frames_of_a_video(emvos: EMVOS) -> None:
    frames, labels = clip()
    engine = engine_on(emvos)
    found = [
        engine.correct(2, labels[3] == 2) if prediction.frame_index == 3 else prediction
        for prediction in engine.segment(frames, {0: labels[0]})
    ]
    expected = list(engine_on(emvos).segment(frames, {0: labels[0], 3: labels[3] * (labels[3] == 2)}))
    for one, other in zip(found, expected, strict=True):
        same(one, other)


# Directions ------------------------------------------------------------------------------------------------------------


def test_backward_is_forward_on_the_reversed_video(emvos: EMVOS) -> None:
    frames, labels = clip()
    masks = {1: {1: labels[1] == 1}, 3: {2: labels[3] == 2}}
    found = list(engine_on(emvos).segment(frames, masks, direction="backward"))
    assert [p.frame_index for p in found] == [3, 2, 1, 0, 4, 5]
    expected = list(engine_on(emvos).segment(frames[3::-1], {0: masks[3], 2: masks[1]}))
    for one, other in zip(found[:4], expected, strict=True):
        same(one, other)
        assert torch.equal(one.frame, frames[one.frame_index])
    assert all(p.object_ids == () for p in found[4:])


def test_both_directions_see_every_frame_once(emvos: EMVOS) -> None:
    frames, labels = clip(9)
    masks = {2: labels[2], 6: labels[6]}
    found = {p.frame_index: p for p in engine_on(emvos).segment(frames, masks, direction="both")}
    forward = {p.frame_index: p for p in engine_on(emvos).segment(frames, masks)}
    backward = {p.frame_index: p for p in engine_on(emvos).segment(frames, masks, direction="backward")}
    assert sorted(found) == list(range(9))
    for t in (0, 1):
        same(found[t], backward[t])
    for t in (6, 7, 8):
        same(found[t], forward[t])
    assert torch.equal(found[2].label_map, labels[2])
    for t in (3, 4, 5):
        for slot in (0, 1):
            one, other = forward[t].probabilities[slot], backward[t].probabilities[slot]
            weight, their_weight = confidence(one) * (6 - t), confidence(other) * (t - 2)
            mixed = (weight * one + their_weight * other) / (weight + their_weight)
            assert (found[t].probabilities[slot] - mixed).abs().max() <= 1 / 255, "rounded to 8 bits while it waits"
        background = 1 - found[t].probabilities.sum(dim=0, keepdim=True)
        best = torch.cat([background, found[t].probabilities]).topk(2, dim=0)
        decided = best.values[0] - best.values[1] > 1e-5
        assert torch.equal(found[t].label_map[decided].long(), best.indices[0][decided])


def confidence(plane: Tensor) -> float:
    inside = plane[plane > 0.5]
    return float(inside.mean()) if len(inside) else 0.0


def predicted(planes: dict[int, list[float]]) -> FramePrediction:
    stacked = torch.tensor(list(planes.values()))[:, None]
    return FramePrediction(
        5, torch.zeros(3, *stacked.shape[1:]), torch.zeros(stacked.shape[1:], dtype=torch.uint8), stacked, tuple(planes)
    )


def test_the_blend_by_hand() -> None:
    one, other = predicted({7: [0.9, 0.3, 0.0]}), predicted({7: [0.6, 0.6, 0.0]})
    mixed = blend(one, {7: 1}, other, {7: 3}, "product")
    w, v = 0.9 * 3, 0.6 * 1
    expected = torch.tensor([[[(w * 0.9 + v * 0.6) / (w + v), (w * 0.3 + v * 0.6) / (w + v), 0.0]]])
    assert_close(mixed.probabilities, expected)
    assert mixed.label_map.tolist() == [[7, 0, 0]]
    # Who has lost the object has no say.
    assert_close(blend(predicted({7: [0.4, 0.4]}), {7: 1}, predicted({7: [0.8, 0.1]}), {7: 9}, "product").probabilities,
                 torch.tensor([[[0.8, 0.1]]]))  # fmt: skip
    # Neither has it.
    assert_close(
        blend(predicted({7: [0.4]}), {7: 1}, predicted({7: [0.2]}), {7: 9}, "product").probabilities, torch.tensor([[[0.3]]])
    )


@pytest.mark.parametrize("aggregation", ["product", "none"])
def test_an_object_that_one_direction_knows_is_taken_from_it(aggregation: Any) -> None:
    mixed = blend(predicted({1: [0.9, 0.2, 0.1]}), {1: 2}, predicted({2: [0.9, 0.2, 0.8]}), {2: 2}, aggregation)
    assert mixed.object_ids == (1, 2)
    shares = torch.tensor([[[0.9, 0.2, 0.1]], [[0.9, 0.2, 0.8]]])
    assert_close(mixed.probabilities, shares if aggregation == "none" else shares / torch.tensor([1.8, 1.0, 1.0]))
    assert mixed.label_map[0, 1:].tolist() == [0, 2]


def test_both_directions_of_a_network_that_copies() -> None:
    """An object of which only one annotation is on one side, and masks that do not move."""
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
    label_map = make_label_map()
    first, last = label_map * (label_map == 1), label_map * (label_map == 2)
    found = {p.frame_index: p for p in engine.segment(make_frames(6), {1: first, 4: last}, direction="both")}
    assert {t: set(p.object_ids) for t, p in found.items()} == {t: {1, 2} for t in range(6)}
    for t in (1, 2, 3, 4):
        assert torch.equal(found[t].label_map, label_map)


def test_what_is_gone_is_gone_in_every_direction() -> None:
    label_map = make_label_map()
    masks, gone = {0: label_map, 6: label_map * (label_map == 1)}, {3: [1, 2]}
    expected: dict[str, list[set[int]]] = {
        "forward": [{1, 2}, {1, 2}, {1, 2}, set(), set(), set(), {1}, {1}],
        "backward": [{1, 2}, set(), set(), set(), set(), set(), {1}, set()],
        "both": [{1, 2}, {1, 2}, {1, 2}, set(), set(), set(), {1}, {1}],
    }
    for direction, ids in expected.items():
        engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
        found = engine.segment(make_frames(8), masks, direction=direction, gone=gone)  # type: ignore[arg-type]
        assert {p.frame_index: set(p.object_ids) for p in found} == dict(enumerate(ids))


def test_a_reversed_video_has_everything_in_its_place(emvos: EMVOS) -> None:
    video = make_video("v", length=6, required=(2, 3))
    label_map = make_label_map()
    video = dataclasses.replace(
        video, annotations={0: label_map, 2: label_map, 4: label_map * (label_map == 2)}, gone={1: (1, 2), 3: (2,)}
    )
    turned = reversed_video(video, 4)
    assert list(turned.annotations) == [0, 2, 4]
    assert torch.equal(turned.annotations[0], video.annotations[4])
    assert {t: sorted(ids) for t, ids in turned.gone.items()} == {1: [2], 3: [1, 2]}
    assert [int(f[0, 0, 0]) for f in turned.frames] == [20, 15, 10, 5, 0]
    # What belongs to the frames of the other order by their index or name is left out.
    assert (turned.targets, turned.frame_names, turned.required_frames, turned.proposals) == ({}, None, None, None)


def test_proposals_follow_their_frame() -> None:
    asked: list[int] = []

    class Source:
        def of_frame(self, index: int, frame: Tensor) -> Any:
            assert int(frame[0, 0, 0]) == 5 * index
            asked.append(index)
            return proposals_of_nothing

    proposals_of_nothing = Proposals(torch.zeros(1, 0, 4), torch.zeros(1, 0, 28, 28), torch.zeros(1, 0))
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
    list(engine.segment(make_frames(5), {1: make_label_map(), 3: make_label_map()}, direction="both", proposals=Source()))
    assert asked == [3, 2, 1, 0, 1, 2, 3, 4]


def test_soft_masks_wait_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long gaps take no memory, and nothing is left behind, also if the iteration is given up."""
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def remember(*args: Any, **kwargs: Any) -> Any:
        files.append(make(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr("vos_lightning.propagation.directions.tempfile.TemporaryFile", remember)
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
    masks = {1: make_label_map(), 60: make_label_map()}
    held: list[int] = []
    found: Iterator[FramePrediction] = engine.segment(make_frames(64), masks, direction="both")
    next(found)
    held.append(files[0].seek(0, 2))
    assert 0 < held[0] < 59 * 2 * 30 * 45 / 8, "a plane takes less than a bit a pixel"
    found.close()  # type: ignore[attr-defined]
    assert files[0].closed
    assert len(list(engine.segment(make_frames(64), masks, direction="both"))) == 64
    assert files[1].closed


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            return

    monkeypatch.setattr("vos_lightning.propagation.directions.tempfile.TemporaryFile", lambda **_: Full())
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
    with pytest.raises(OSError, match=r"cannot wait for the other direction \(No space left on device\).*TMPDIR"):
        list(engine.segment(make_frames(6), {1: make_label_map(), 4: make_label_map()}, direction="both"))


def test_a_video_that_is_shorter_than_its_masks(emvos: EMVOS, tmp_path: Path) -> None:
    frames, labels = clip()
    path = write(tmp_path / "clip.mp4", frames)
    for direction in ("backward", "both"):
        with pytest.raises(ValueError, match="ended before frame 7 "):
            next(iter(engine_on(emvos).segment(path, {0: labels[0], 7: labels[1]}, direction=direction)))  # type: ignore[arg-type]


# Threads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_engines_in_threads_give_what_they_give_alone(network: VOSNetwork, precision: torch.dtype | None) -> None:
    clips = [random_clip(1, 4, 1 + seed % 2, SIZE, seed=seed) for seed in range(3)]
    alone = [segment_all(engine_on(network, precision=precision), *c) for c in clips]
    first = engine_on(network, precision=precision)
    engines = [first, first.another(), first.another()]
    found: list[list[FramePrediction] | None] = [None] * 3
    start = threading.Barrier(3)

    def work(k: int) -> None:
        start.wait()
        found[k] = segment_all(engines[k], *clips[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, alone, strict=True):
        assert one is not None
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs)


def segment_all(engine: InferenceEngine, frames: Tensor, labels: Tensor) -> list[FramePrediction]:
    return [
        engine.step(frames[0, t], labels[0, 0] if t == 0 else None, proposals=proposals_of(engine.network, frames[:, t]))
        for t in range(frames.shape[1])
    ]


def test_another_engine_has_all_options(emvos: EMVOS) -> None:
    options: dict[str, Any] = {"short_side": 20, "enlarge": False, "min_object_pixels": 5, "precision": torch.bfloat16}
    other = engine_on(emvos, **options).another()
    assert other.network is emvos
    assert other.propagation is PROPAGATION
    assert {name: getattr(other, name) for name in options} == options
