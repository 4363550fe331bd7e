"""A step of the engine, kept so that it can be done again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.clips import given_at, random_clip
from tests.unit.dummies import DummyNetwork
from vos_lightning.propagation.frame_step import FrameStep, resize_proposals, without_object
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation, advance
from vos_lightning.structures import FrameInput, Proposals

SIZE = (16, 24)
IDS = (5, 2, 9)


def a_step(annotated: tuple[int, ...]) -> FrameStep:
    """The second frame of a clip of three objects, in which some are annotated by their ids."""
    frames, labels = random_clip(1, 2, 3, SIZE)
    with torch.no_grad():
        _, state = advance(
            DummyNetwork(),
            Propagation(AnnotatedOnly(), "minimum"),
            None,
            FrameInput(frames[:, 0]),
            given_at(labels, 0, [1, 2, 3], 3),
        )
    annotation = torch.zeros(SIZE, dtype=torch.uint8)
    for row, i in enumerate(annotated):
        annotation[row, :5] = i
    return FrameStep(4, frames[0, 1], annotation if annotated else None, None, state, IDS)


def test_a_step_has_the_size_of_its_frame() -> None:
    assert a_step(()).size == SIZE


@pytest.mark.parametrize("annotated", [(), (2,), (9, 2), (9, 7)])
@pytest.mark.parametrize("removed", IDS)
def test_a_step_without_an_object_of_the_state(removed: int, annotated: tuple[int, ...]) -> None:
    step = a_step(annotated)
    assert step.state is not None
    found, left = step.without(removed), tuple(i for i in annotated if i != removed)
    assert found.ids == tuple(i for i in IDS if i != removed)
    assert (found.index, found.frame, found.proposals) == (step.index, step.frame, step.proposals)
    assert found.state is not None
    kept = [IDS.index(i) for i in found.ids]
    for one, other in zip(found.state.memory.bank.frames, step.state.memory.bank.frames, strict=True):
        assert torch.equal(one.entry.masks, other.entry.masks[:, kept])
    if not left:
        assert found.annotation is None
    else:
        assert found.annotation is not None
        assert step.annotation is not None
        assert torch.equal(found.annotation, step.annotation * (step.annotation != removed))


def test_a_step_without_an_object_that_it_introduces() -> None:
    step = a_step((7, 9))
    found = step.without(7)
    assert found.state is step.state
    assert found.ids == IDS
    assert found.annotation is not None
    assert found.annotation.unique().tolist() == [0, 9]


def test_nothing_is_left_without_the_last_object() -> None:
    step = a_step(())
    state, ids = step.state, step.ids
    for i in IDS:
        assert state is not None
        state, ids = without_object(state, ids, i)
    assert (state, ids) == (None, ())


def test_a_stacked_view_is_kept_while_the_next_frame_reads_it() -> None:
    frames, labels = random_clip(1, 3, 1, SIZE)
    network, propagation = DummyNetwork(), Propagation(EveryKth(2), "minimum")
    with torch.no_grad():
        _, first = advance(network, propagation, None, FrameInput(frames[:, 0]), given_at(labels, 0, [1], 1))
        _, second = advance(network, propagation, first, FrameInput(frames[:, 1]))
        _, third = advance(network, propagation, second, FrameInput(frames[:, 2]))
    step = FrameStep(0, frames[0, 0], None, None, None, ())
    assert step.slim(first) is step
    step = dataclasses.replace(step, state=first)
    assert step.slim(second) is step, "the second frame is not remembered, so the third reads the same bank"
    for state, after in ((second, third), (second, None)):
        view = state.memory.bank.entry
        slim = dataclasses.replace(step, state=state).slim(after)
        assert slim.state is not None
        assert slim.state.memory.bank is not state.memory.bank
        assert slim.state.memory.bank.frames == state.memory.bank.frames
        assert slim.state.memory.previous is state.memory.previous
        assert torch.equal(slim.state.memory.bank.entry.masks, view.masks)


def test_boxes_are_resized_along_either_side() -> None:
    proposals = Proposals(torch.tensor([[[6.0, 10, 12, 30]]]), torch.rand(1, 1, 28, 28), torch.tensor([[0.5]]))
    found = resize_proposals(proposals, (40, 60), (20, 10))
    assert found.boxes.tolist() == [[[1.0, 5.0, 2.0, 15.0]]]
    assert (found.masks is proposals.masks, found.scores is proposals.scores) == (True, True)
    assert resize_proposals(proposals, (40, 60), (40, 60)) is proposals
