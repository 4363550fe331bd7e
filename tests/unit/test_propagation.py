from __future__ import annotations

import pytest
import torch

from tests.clips import given_at, random_clip
from tests.tolerances import assert_close
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.memory import Bank, Slot
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth, MemoryPolicy
from vos_lightning.propagation.step import Propagation, advance, introductions, unroll
from vos_lightning.structures import FrameInput, VideoSample

PROPAGATION = Propagation(AnnotatedOnly(), "minimum", "join")


@pytest.fixture
def emvos() -> EMVOS:
    return EMVOS.small().eval()


def frames_kept(policy: MemoryPolicy, length: int, annotated: dict[int, list[bool]]) -> list[int]:
    bank: Bank[torch.Tensor] = Bank(())
    for t in range(length):
        slot = Slot(torch.zeros(1, 1, 2, 2), t, torch.ones(1, 2, dtype=torch.bool), permanent=False)
        which = torch.tensor([annotated[t]]) if t in annotated else None
        if which is not None or policy.keeps(t):
            bank = policy.update(bank, slot, which)
    return [slot.t for slot in bank.slots]


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
            slot = Slot(torch.zeros(1, 1, 1, 1), t, torch.tensor([[True, True]]), permanent=False)
            bank = policy.update(bank, slot, torch.tensor([[True, t == 0]]))
        return [slot.readable[0].tolist() for slot in bank.slots]

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


def test_gradients_flow_through_time() -> None:
    network = EMVOS.small().train()
    frames, labels = random_clip(1, 3, 1, (32, 32))
    frames.requires_grad_()
    outputs = unroll(network, Propagation(AnnotatedOnly(), "none", "join"), frames, {0: given_at(labels, 0, [1], 1)})
    outputs[2].logits.sum().backward()
    assert frames.grad is not None
    assert all(frames.grad[0, t].abs().sum() > 0 for t in range(3))


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
        ({1: torch.zeros(32, 48, dtype=torch.bool)}, "mask of object 1 is empty"),
        ({300: torch.ones(32, 48, dtype=torch.bool)}, "object id 300"),
        ({1: torch.ones(3, 3, dtype=torch.bool)}, "mask of object 1 is"),
    ],
)
def test_engine_names_wrong_masks(emvos: EMVOS, masks: object, message: str) -> None:
    engine = InferenceEngine(emvos, PROPAGATION)
    with pytest.raises(ValueError, match=message):
        engine.step(torch.rand(3, 32, 48), masks)  # type: ignore[arg-type]


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
