from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.clips import given_at, random_clip
from tests.tolerances import assert_close
from tests.unit.dummies import DummyNetwork
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.frame_step import resize_proposals
from vos_lightning.propagation.memory import Bank, MemoryFrame
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth, MemoryPolicy
from vos_lightning.propagation.step import Propagation, advance, introductions, show_given, unroll
from vos_lightning.structures import FrameInput, Given, Proposals, VideoSample

PROPAGATION = Propagation(AnnotatedOnly(), "minimum", "join")


@pytest.fixture
def emvos() -> EMVOS:
    return EMVOS.small().eval()


def frames_kept(policy: MemoryPolicy, length: int, annotated: dict[int, list[bool]]) -> list[int]:
    bank: Bank[torch.Tensor] = Bank(())
    for t in range(length):
        frame = MemoryFrame(torch.zeros(1, 1, 2, 2), t, torch.ones(1, 2, dtype=torch.bool), permanent=False)
        which = torch.tensor([annotated[t]]) if t in annotated else None
        if which is not None or policy.keeps(t):
            bank = policy.update(bank, frame, which)
    return [frame.t for frame in bank.frames]


def test_policies_keep_what_they_say() -> None:
    first, late = {0: [True, False]}, {0: [True, False], 4: [False, True]}
    assert frames_kept(AnnotatedOnly(), 8, first) == [0]
    assert frames_kept(AnnotatedOnly(), 8, late) == [0, 4]
    assert frames_kept(EveryKth(5), 13, first) == [0, 5, 10]
    assert frames_kept(EveryKth(5), 8, late) == [0, 4, 5]
    assert frames_kept(EveryKth(5, include_previous=True), 13, first) == [0, 5, 10, 12]
    assert frames_kept(EveryKth(5, include_previous=True), 11, first) == [0, 5, 10]
    assert frames_kept(EveryKth(2, max_frames=2), 11, first) == [0, 8, 10]
    assert frames_kept(All(), 4, first) == [0, 1, 2, 3]
    assert frames_kept(All().bounded(2), 6, first) == [0, 4, 5]
    assert frames_kept(EveryKth(2).bounded(2), 11, first) == [0, 8, 10]
    assert EveryKth(2, max_frames=3).bounded(2) == EveryKth(2, max_frames=3)
    assert AnnotatedOnly().bounded(2) == AnnotatedOnly()


def test_an_object_that_is_annotated_again() -> None:
    def readable(policy: AnnotatedOnly) -> list[list[bool]]:
        bank: Bank[torch.Tensor] = Bank(())
        for t in (0, 3):
            frame = MemoryFrame(torch.zeros(1, 1, 1, 1), t, torch.tensor([[True, True]]), permanent=False)
            bank = policy.update(bank, frame, torch.tensor([[True, t == 0]]))
        return [frame.readable[0].tolist() for frame in bank.frames]

    assert readable(AnnotatedOnly("replace")) == [[False, True], [True, False]]
    assert readable(AnnotatedOnly("add")) == [[True, True], [True, False]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: AnnotatedOnly("both"),
        lambda: EveryKth(0),
        lambda: Propagation(All(), "mean"),
        lambda: Propagation(All(), "none", "mix"),
    ],
)
def test_wrong_options_are_named(make: object) -> None:
    with pytest.raises(Exception, match=r"reannotation|stride|aggregation|introduction|type hint"):
        make()  # type: ignore[operator]


def test_an_unchanged_bank_is_not_stacked_again(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 4, 1, (32, 32))
    with torch.no_grad():
        _, state = advance(emvos, PROPAGATION, None, FrameInput(frames[:, 0]), given_at(labels, 0, [1], 1))
        _, following = advance(emvos, PROPAGATION, state, FrameInput(frames[:, 1]))
    assert following.memory.bank is state.memory.bank
    assert following.memory.reference.entry is state.memory.reference.entry


def test_introductions_find_the_first_visible_frame() -> None:
    labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0, 0] = 1
    labels[0, 1:, 1, 1] = 2
    labels[1, 2, 0, 0] = 1
    valid = torch.tensor([[True, True], [True, False]])
    given = introductions(labels, valid, late_objects=True)
    assert {t: g.which.tolist() for t, g in given.items()} == {
        0: [[True, False], [False, False]],
        1: [[False, True], [False, False]],
        2: [[False, False], [True, False]],
    }
    assert list(introductions(labels, valid, late_objects=False)) == [0]
    late = introductions(labels[1:], valid[1:], late_objects=True)
    assert {t: g.which.tolist() for t, g in late.items()} == {0: [[False, False]], 2: [[True, False]]}


def test_gradients_flow_through_time() -> None:
    network = EMVOS.small().train()
    frames, labels = random_clip(1, 3, 1, (32, 32))
    frames.requires_grad_()
    outputs = unroll(network, Propagation(AnnotatedOnly(), "none", "join"), frames, {0: given_at(labels, 0, [1], 1)})
    outputs[2].logits.sum().backward()
    assert frames.grad is not None
    assert all(frames.grad[0, t].abs().sum() > 0 for t in range(3))


def test_proposals_shrink_with_the_frame() -> None:
    """Boxes are in pixels (x, y, x, y), and masks lie in their boxes."""
    proposals = Proposals(torch.tensor([[[10.0, 20.0, 30.0, 60.0]]]), torch.rand(1, 1, 28, 28), torch.tensor([[0.5]]))
    found = resize_proposals(proposals, (100, 200), (50, 40))
    assert found.boxes.tolist() == [[[2.0, 10.0, 6.0, 30.0]]]
    assert torch.equal(found.masks, proposals.masks)
    assert torch.equal(found.scores, proposals.scores)
    assert resize_proposals(proposals, (100, 200), (100, 200)) is proposals


@pytest.mark.parametrize(
    ("length", "annotated", "message"), [(2, (0, 2, 5), "after 2 frames, before frame 2"), (6, (0, 2, 5), None)]
)
def test_a_video_that_ends_before_its_masks_is_named(
    emvos: EMVOS, length: int, annotated: tuple[int, ...], message: str | None
) -> None:
    frames, labels = random_clip(1, length, 1, (32, 32))
    given = dict.fromkeys(annotated, labels[0, 0])
    video = VideoSample("v", list((frames[0] * 255).to(torch.uint8)), given, {}, (1,), (32, 32), None)
    engine = InferenceEngine(emvos, PROPAGATION)
    if message is None:
        assert len(list(engine.run(video))) == length
    else:
        with pytest.raises(ValueError, match=f"v: the video ended {message}"):
            list(engine.run(video))


def test_the_first_frame_needs_masks(emvos: EMVOS) -> None:
    with pytest.raises(ValueError, match="needs given masks"):
        advance(emvos, PROPAGATION, None, FrameInput(torch.rand(1, 3, 32, 32)))


def test_engine_returns_original_ids_and_size(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 3, 2, (37, 50))
    annotation = labels[0, 0].clone()
    annotation[labels[0, 0] == 1], annotation[labels[0, 0] == 2] = 9, 4
    engine = InferenceEngine(emvos, PROPAGATION)
    first = engine.step(frames[0, 0], annotation)
    assert torch.equal(first.label_map, annotation)
    assert first.object_ids == (4, 9)
    second = engine.step((frames[0, 1] * 255).to(torch.uint8))
    assert second.label_map.shape == (37, 50)
    assert second.probabilities.shape == (2, 37, 50)
    assert set(second.label_map.unique().tolist()) <= {0, 4, 9}


def test_engine_before_the_first_annotation_and_late_objects(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 4, 2, (32, 48))
    engine = InferenceEngine(emvos, PROPAGATION)
    assert engine.step(frames[0, 0]).label_map.eq(0).all()
    first = labels[0, 1] * (labels[0, 1] == 1)
    assert engine.step(frames[0, 1], first).object_ids == (1,)
    second = labels[0, 2] * (labels[0, 2] == 2)
    prediction = engine.step(frames[0, 2], second)
    assert prediction.object_ids == (1, 2)
    assert prediction.label_map[second == 2].eq(2).all()


def test_engine_accepts_masks_by_id_and_forgets_objects(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 3, 2, (32, 48))
    by_map, by_id = InferenceEngine(emvos, PROPAGATION), InferenceEngine(emvos, PROPAGATION)
    one = by_map.step(frames[0, 0], labels[0, 0])
    other = by_id.step(frames[0, 0], {1: labels[0, 0] == 1, 2: labels[0, 0] == 2})
    assert torch.equal(one.label_map, other.label_map)
    by_id.remove_object(1)
    after = by_id.step(frames[0, 1])
    assert after.object_ids == (2,)
    assert after.label_map.ne(1).all()
    with pytest.raises(ValueError, match="object 1 is not tracked"):
        by_id.remove_object(1)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(4, 4, dtype=torch.uint8), "label map is"),
        (torch.zeros(32, 48), "uint8"),
        (torch.full((32, 48), 300), "id 300 of the label map is not in 0..254"),
        (np.full((32, 48), -1), "id -1 of the label map is not in 0..254"),
        (np.zeros((32, 48), "datetime64[s]"), "NumPy type datetime64"),
        (np.full((32, 48), 255, np.uint8) * (np.arange(48) > 9) + np.uint8(3) * (np.arange(48) < 5), "id 255 beside the ids 3"),
        ({1: torch.zeros(32, 48, dtype=torch.bool)}, "mask of object 1 is empty"),
        ({1: np.zeros((32, 48))}, "mask of object 1 is empty"),
        ({300: torch.ones(32, 48, dtype=torch.bool)}, "object id 300"),
        ({255: torch.ones(32, 48, dtype=torch.bool)}, "object id 255 is not in 1..254"),
        ({0: torch.ones(32, 48, dtype=torch.bool)}, "object id 0 is not in 1..254"),
        ({1: torch.ones(3, 3, dtype=torch.bool)}, "mask of object 1 is"),
        ({1: 255 * torch.ones(32, 48)}, r"mask of object 1 must lie in \[0, 1\] .* from 255 to 255"),
        ({1: torch.full((32, 48), torch.nan)}, r"mask of object 1 must lie in \[0, 1\] .* nan"),
        ({1: torch.arange(48, dtype=torch.uint8).expand(32, 48)}, "0 and one other value, not 0 and 1, 2, 3, 4, 5, ...;"),
    ],
)
def test_engine_names_wrong_masks(emvos: EMVOS, masks: object, message: str) -> None:
    engine = InferenceEngine(emvos, PROPAGATION)
    with pytest.raises(ValueError, match=message):
        engine.step(torch.rand(3, 32, 48), masks)  # type: ignore[arg-type]
    assert engine.object_ids == ()
    assert engine.step(torch.rand(3, 20, 20)).frame_index == 0, "a refused frame has no part in the video"


def blocks(*corners: tuple[int, int, int, int], size: tuple[int, int] = (32, 48)) -> list[Tensor]:
    masks = [torch.zeros(size, dtype=torch.bool) for _ in corners]
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def test_masks_that_lie_over_one_another(emvos: EMVOS) -> None:
    small, large, left = blocks((8, 8, 16, 16), (4, 4, 28, 40), (4, 4, 28, 12))
    frame = torch.rand(3, 32, 48)

    def label_map(masks: dict[int, Tensor]) -> Tensor:
        return InferenceEngine(emvos, PROPAGATION).step(frame, masks).label_map

    # In part: the later one has the pixels that both claim.
    assert torch.equal(label_map({7: large, 3: small}), 7 * (large & ~small).byte() + 3 * small.byte())
    assert torch.equal(label_map({3: small, 9: left}), 3 * (small & ~left).byte() + 9 * left.byte())
    for masks, message in (
        ({3: small, 7: large}, "mask of object 3 lies wholly under that of 7"),
        ({3: small, 7: small.clone()}, "mask of object 3 lies wholly under that of 7"),
        ({3: small, 7: left, 5: large & ~left}, "mask of object 3 lies wholly under that of 5 and 7"),
    ):
        with pytest.raises(ValueError, match=message):
            label_map(masks)


def test_the_same_masks_in_every_form(emvos: EMVOS) -> None:
    one, two = blocks((4, 4, 20, 20), (10, 24, 28, 40))
    ids = one.byte() + 2 * two.byte()
    frame = (torch.rand(3, 32, 48) * 255).to(torch.uint8)
    channels_last = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
    read_only = channels_last.copy()
    read_only.flags.writeable = False

    def planes(frame: object, masks: object) -> Tensor:
        engine = InferenceEngine(emvos, PROPAGATION)
        assert torch.equal(engine.step(frame, masks).label_map, ids)  # type: ignore[arg-type]
        return engine.step(frame).probabilities  # type: ignore[arg-type]

    expected = planes(frame, ids)
    for masks in (
        ids.long(), ids.to(torch.int16), ids.numpy(), ids.numpy().astype(np.int64), ids.numpy()[::-1].copy()[::-1],
        {1: one, 2: two}, {1: one.float(), 2: two.byte()}, {1: one.byte() * 255, 2: two.long() * 2},
        {1: one.numpy(), 2: two.numpy().astype(np.float64)}, {np.int64(1): one, np.int64(2): two},
    ):  # fmt: skip
        assert torch.equal(planes(frame, masks), expected)
    for other in (channels_last, read_only, channels_last[:, :, ::-1].copy()[:, :, ::-1]):
        assert torch.equal(planes(other, ids), expected)
    for floating in (frame.float() / 255, channels_last.astype(np.float32) / np.float32(255), frame.double() / 255):
        assert_close(planes(floating, ids), expected)


def test_a_black_and_white_mask_is_object_1_and_an_empty_one_says_nothing(emvos: EMVOS) -> None:
    (mask,) = blocks((4, 4, 20, 20))
    frame = torch.rand(3, 32, 48)
    for white in (mask.byte() * 255, mask.numpy().astype(np.uint8) * 255, mask):
        engine = InferenceEngine(emvos, PROPAGATION)
        for nothing in (torch.zeros(32, 48, dtype=torch.uint8), {}):
            assert engine.step(frame, nothing).object_ids == ()
        prediction = engine.step(frame, white)
        assert (prediction.frame_index, prediction.object_ids) == (2, (1,))
        assert torch.equal(prediction.label_map, mask.byte())
        assert engine.step(frame, torch.zeros(32, 48, dtype=torch.uint8)).object_ids == (1,)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (torch.rand(3, 32, 48) * 255, r"must lie in \[0, 1\]; this one goes from .* to 2.*divide values of 0..255 by 255"),
        (torch.randn(3, 32, 48), r"must lie in \[0, 1\].*undo a normalisation"),
        (torch.full((3, 32, 48), torch.nan), "NaN or infinity"),
        (torch.full((3, 32, 48), torch.inf), "NaN or infinity"),
        (torch.zeros(3, 32, 48, dtype=torch.int64), "uint8 in 0..255 or floating point .* not int64"),
        (np.zeros((32, 48, 3), np.uint16), "not uint16"),
        (torch.rand(1, 32, 48), r"\(3, H, W\) as a tensor, not \(1, 32, 48\): repeat grey three times"),
        (torch.rand(32, 48), "repeat grey three times"),
        (torch.rand(4, 32, 48), "leave the fourth channel out"),
        (np.zeros((32, 48, 4), np.uint8), "leave the fourth channel out"),
        (torch.rand(32, 48, 3), r"frame.permute\(2, 0, 1\)"),
        (np.zeros((3, 32, 48), np.uint8), r"\(H, W, 3\) as a NumPy array, not \(3, 32, 48\): frame.transpose\(1, 2, 0\)"),
        (torch.rand(1, 3, 32, 48), r"not \(1, 3, 32, 48\)"),
        (torch.rand(3, 0, 48), r"not \(3, 0, 48\)"),
    ],
)
def test_engine_names_wrong_frames(emvos: EMVOS, frame: object, message: str) -> None:
    engine = InferenceEngine(emvos, PROPAGATION)
    with pytest.raises(ValueError, match=message):
        engine.step(frame, {1: torch.ones(32, 48)})  # type: ignore[arg-type]
    assert engine.step(torch.rand(3, 20, 20)).frame_index == 0


def test_rounding_leaves_the_range_of_a_frame(emvos: EMVOS) -> None:
    frame = torch.rand(3, 32, 48)
    frame[0, 0, :2] = torch.tensor([-1e-6, 1 + 1e-6])
    assert InferenceEngine(emvos, PROPAGATION).step(frame).frame_index == 0


@pytest.mark.parametrize("short_side", [0, -5])
def test_a_short_side_of_nothing(emvos: EMVOS, short_side: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 pixel, not {short_side}"):
        InferenceEngine(emvos, PROPAGATION, short_side=short_side)


@pytest.mark.parametrize("error", ["allocator", "cuda", "python", "other"])
def test_a_frame_that_does_not_fit_into_memory(emvos: EMVOS, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, labels = random_clip(1, 3, 1, (32, 48))
    engine, undisturbed = InferenceEngine(emvos, PROPAGATION), InferenceEngine(emvos, PROPAGATION)
    for e in (engine, undisturbed):
        e.step(frames[0, 0], labels[0, 0])

    def fail(*_: object) -> object:
        if error == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if error == "python":
            raise MemoryError
        if error == "other":
            raise RuntimeError("shapes do not match")
        return torch.empty(2**50)

    with monkeypatch.context() as patch:
        patch.setattr(type(emvos), "segment", fail)
        if error == "other":
            with pytest.raises(RuntimeError, match="shapes do not match"):
                engine.step(frames[0, 1], {1: labels[0, 1] == 1, 2: labels[0, 1] == 0})
        else:
            message = r"frame 1 of 48x32 pixels with 2 object\(s\) does not fit into memory: .*short_side=16 \(--short-side 16\)"
            with pytest.raises(ValueError, match=message):
                engine.step(frames[0, 1], {1: labels[0, 1] == 1, 2: labels[0, 1] == 0})
    assert engine.object_ids == (1,)
    assert torch.equal(engine.step(frames[0, 1]).probabilities, undisturbed.step(frames[0, 1]).probabilities)


def test_removing_and_adding_objects(emvos: EMVOS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vos_lightning.propagation.engine.MAX_OBJECTS", 3)
    frame = torch.rand(3, 32, 48)
    one, two = blocks((4, 4, 20, 20), (10, 24, 28, 40))
    engine = InferenceEngine(emvos, PROPAGATION)
    with pytest.raises(ValueError, match="object 1 is not tracked"):
        engine.remove_object(1)
    engine.step(frame, {1: one})
    engine.step(frame, {2: two})
    fresh = InferenceEngine(emvos, PROPAGATION)
    fresh.step(frame, {2: two})
    for _ in range(5):  # the number of objects at a time is limited, not the number over time
        engine.remove_object(1)
        engine.step(frame, {1: one})
    assert engine.object_ids == (2, 1)
    assert len(engine._state.memory.bank) == 2, "references that nobody reads are forgotten"  # type: ignore[union-attr]
    engine.remove_object(2)
    engine.remove_object(1)
    assert engine.step(frame).object_ids == ()
    engine.step(frame, {2: two})
    assert torch.equal(engine.step(frame).probabilities, fresh.step(frame).probabilities)


# Given masks come back as they were drawn -----------------------------------------------------------------------------


def test_what_is_shown_of_a_given_mask() -> None:
    probabilities = torch.tensor([[0.1, 0.7, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0], [0.2, 0.4, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]])
    masks = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 0]])
    given = Given(masks.t()[None, :, None], torch.tensor([[True, True, False]]))
    shown = show_given(probabilities.t()[None, :, None], given)[0, :, 0].t()
    assert_close(shown[0], torch.tensor([1.0, 0, 0, 0]))  # the background is all that may be there
    assert_close(shown[1], torch.tensor([1.0, 0, 0, 0]))  # nothing that may be there has a share
    assert_close(shown[2], torch.tensor([0, 0, 1.0, 0]))
    assert_close(shown[3], torch.tensor([0, 0.5, 0.5, 0]))  # two claim it


ODD_SIZES = [((37, 50), 16), ((50, 37), 24), ((33, 65), 48), ((29, 31), 29), ((61, 47), None), ((34, 90), 12)]


@pytest.mark.parametrize(("size", "short_side"), ODD_SIZES)
@pytest.mark.parametrize("introduction", ["join", "overwrite"])
@pytest.mark.parametrize("aggregation", ["minimum", "product"])
def test_given_masks_come_back_bit_for_bit(
    size: tuple[int, int], short_side: int | None, introduction: str, aggregation: str
) -> None:
    height, width = size
    generator = torch.Generator().manual_seed(height)
    network = DummyNetwork(scale=3.0)
    engine = InferenceEngine(network, Propagation(AnnotatedOnly(), aggregation, introduction), short_side=short_side)  # type: ignore[arg-type]
    ragged = torch.rand(size, generator=generator) < 0.5
    (block,) = blocks((height // 4, width // 4, height // 2, width // 2), size=size)
    first = 200 * (ragged & block).byte()
    first[height - 2, width - 2], first[1, 0] = 3, 4  # objects of a pixel
    late = torch.zeros_like(first)
    late[: height // 2 : 2, : width // 2] = 9  # over the first one, with gaps
    for t, given in enumerate((first, None, late, None, first * (first == 200), None)):
        prediction = engine.step(torch.rand(3, *size, generator=generator), given)
        label_map, planes = prediction.label_map, prediction.probabilities
        assert label_map.shape == size
        assert planes.isfinite().all()
        background = 1 - planes.sum(dim=0, keepdim=True)
        assert background.min() > -1e-5
        # The label map is the largest of the probabilities, but for ties.
        shares = torch.cat([background, planes])
        slots = torch.zeros(256, dtype=torch.int64)
        slots[list(prediction.object_ids)] = torch.arange(1, len(prediction.object_ids) + 1)
        own = shares.gather(0, slots[label_map.long()][None])[0]
        assert (own >= shares.amax(dim=0) - 1e-5).all()
        if given is None:
            continue
        assert torch.equal(label_map[given > 0], given[given > 0])
        ids = [i for i in given.unique().tolist() if i]
        assert not torch.isin(label_map[given == 0], torch.tensor(ids)).any()
        for i in ids:
            assert torch.equal(planes[prediction.object_ids.index(i)], (given == i).float())
        if t == 2:
            assert (label_map == 200).any(), "the others are still predicted"


@pytest.mark.parametrize(("size", "short_side"), [((96, 130), 16), ((130, 96), 33), ((75, 41), 13)])
def test_no_object_vanishes_inside(size: tuple[int, int], short_side: int) -> None:
    height, width = size
    for top in range(0, height, 7):
        annotation = torch.zeros(size, dtype=torch.uint8)
        annotation[top, : width // 2] = 2  # a line
        annotation[height - 1 - top, width - 1 - top // 3] = 1  # a pixel, and two beside each other
        annotation[min(top + 1, height - 1), width - 20], annotation[min(top + 1, height - 1), width - 19] = 8, 9
        engine = InferenceEngine(DummyNetwork(), PROPAGATION, short_side=short_side)
        frame = torch.rand(3, *size)
        assert torch.equal(engine.step(frame, annotation).label_map, annotation)
        inside = engine._state.memory.bank.latest.entry.masks  # type: ignore[union-attr]
        assert inside.flatten(2).any(dim=2).all()
        following = engine.step(frame)
        assert (following.probabilities.flatten(1).amax(dim=1) > 0.1).all()


def test_engine_refuses_another_size_and_goes_on(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 3, 1, (32, 48))
    engine, undisturbed = InferenceEngine(emvos, PROPAGATION), InferenceEngine(emvos, PROPAGATION)
    for e in (engine, undisturbed):
        e.step(frames[0, 0], labels[0, 0])
    with pytest.raises(ValueError, match="frame 1 is 20x20"):
        engine.step(torch.rand(3, 20, 20))
    assert torch.equal(engine.step(frames[0, 1]).probabilities, undisturbed.step(frames[0, 1]).probabilities)


def test_engine_resizes_and_keeps_small_objects(emvos: EMVOS) -> None:
    frames, labels = random_clip(1, 2, 1, (64, 96))
    video = VideoSample(
        name="v",
        frames=[(frame * 255).to(torch.uint8) for frame in frames[0]],
        annotations={0: labels[0, 0]},
        targets={},
        object_ids=(1,),
        required_frames=(0, 1),
        original_size=(64, 96),
        frame_names=("0", "1"),
    )
    native = list(InferenceEngine(emvos, PROPAGATION).run(video))
    resized = list(InferenceEngine(emvos, PROPAGATION, short_side=32).run(video))
    kept = list(InferenceEngine(emvos, PROPAGATION, short_side=32, min_object_pixels=10_000).run(video))
    assert resized[1].label_map.shape == (64, 96)
    assert not torch.allclose(resized[1].probabilities, native[1].probabilities)
    assert_close(kept[1].probabilities, native[1].probabilities)
