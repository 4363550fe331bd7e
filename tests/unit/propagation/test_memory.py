"""The memory by itself: which frames a policy keeps, and what becomes of the objects in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.clips import given_at, random_clip
from tests.tolerances import assert_close
from vos_lightning.networks.munet import MUNet
from vos_lightning.propagation.memory import Bank, Memory, MemoryFrame, State, drop_unread, grow, select
from vos_lightning.propagation.policies import AnnotatedOnly, CountFrom, EveryKth, PreviousOnly
from vos_lightning.propagation.step import Propagation, advance, unroll
from vos_lightning.structures import FrameInput


def kept(policy: EveryKth, length: int, annotated: set[int]) -> list[list[int]]:
    """The frames in the bank after every frame."""
    bank: Bank[Tensor] = Bank(())
    found = []
    for t in range(length):
        frame = MemoryFrame(torch.zeros(1, 1, 2, 2), t, torch.ones(1, 2, dtype=torch.bool), permanent=False)
        if t in annotated or policy.wants(bank, t):
            bank = policy.update(bank, frame, torch.ones(1, 2, dtype=torch.bool) if t in annotated else None)
        found.append([frame.t for frame in bank.frames])
    return found


def expected(k: int, count_from: CountFrom, include_previous: bool, length: int, annotated: set[int]) -> list[list[int]]:
    """The same from the description: lasting frames, and the latest one until the next one comes."""
    found, lasting = [], list[int]()
    for t in range(length):
        since = t if count_from == "start" else t - lasting[-1] if lasting else k
        if t in annotated or (since % k == 0 if count_from == "start" else since >= k):
            lasting.append(t)
        found.append(lasting + ([t] if include_previous and t not in lasting else []))
    return found


@pytest.mark.parametrize("include_previous", [False, True])
@pytest.mark.parametrize("count_from", ["start", "latest"])
@pytest.mark.parametrize("annotated", [{0}, {0, 4}, {0, 1, 7}])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_every_kth_frame_lasts(k: int, annotated: set[int], count_from: CountFrom, include_previous: bool) -> None:
    policy = EveryKth(k, include_previous, count_from=count_from)
    assert kept(policy, 14, annotated) == expected(k, count_from, include_previous, 14, annotated)


def test_the_oldest_of_too_many_frames_goes() -> None:
    """Annotated frames are not counted, and stay."""
    assert kept(EveryKth(1, max_frames=2), 6, {0, 2})[-1] == [0, 2, 4, 5]
    assert kept(EveryKth(1, max_frames=3, count_from="latest"), 6, {1})[-1] == [1, 3, 4, 5]


def state_of(readable: list[list[bool]]) -> State[Tensor, None]:
    frames = tuple(
        MemoryFrame(torch.full((1, 1, 1, 1), float(t)), t, torch.tensor([row]), permanent=t == 0)
        for t, row in enumerate(readable)
    )
    return State(Memory(Bank(frames), Bank(frames[-1:]), None), torch.tensor([[True] * len(readable[0])]), len(readable) - 1)


def test_objects_are_chosen_where_the_state_is() -> None:
    """The default device is one on which nothing can be computed: what is made there shows."""
    state = state_of([[True, False, False], [False, True, True], [False, False, True]])
    with torch.device("meta"):
        chosen = select(state, [2, 0])
        grown = grow(chosen, 4)
    assert [frame.t for frame in chosen.memory.bank.frames] == [0, 1, 2]
    assert [frame.readable.tolist() for frame in chosen.memory.bank.frames] == [[[False, True]], [[True, False]], [[True, False]]]
    assert grown.memory.bank.frames[0].readable.tolist() == [[False, True, False, False]]
    assert grown.introduced.tolist() == [[True, True, False, False]]
    assert (grown.t, select(state, [1]).t) == (2, 2)
    assert [frame.t for frame in select(state, [1]).memory.bank.frames] == [1]
    with pytest.raises(ValueError, match="a state with 3 object slots cannot shrink to 2"):
        grow(state, 2)


def test_frames_that_nobody_may_read_are_dropped() -> None:
    read, unread = state_of([[True, False], [False, True]]), state_of([[False, False], [False, True]])
    assert drop_unread(read) is read
    assert [frame.t for frame in drop_unread(unread).memory.bank.frames] == [1]
    assert drop_unread(unread).t == 1


def test_the_smallest_form_of_who_may_read() -> None:
    """Three cases of the readers, over two cells a frame."""

    def readers(*readable: list[bool]) -> list[list[bool]] | None:
        bank = Bank(
            tuple(MemoryFrame(torch.zeros(1, 1, 1, 2), t, torch.tensor([r]), permanent=False) for t, r in enumerate(readable))
        )
        found = bank.readers
        assert bank.readable[0].tolist() == [[r[n] for r in readable for _ in range(2)] for n in range(len(readable[0]))]
        return None if found is None else found[0].tolist()

    assert readers([True, True], [True, True]) is None
    assert readers([True, False], [True, False]) is None, "an object without a frame is skipped"
    assert readers([True, True], [False, False]) == [[True, True, False, False]]
    assert readers([True, True], [False, True]) == [[True, True, False, False], [True, True, True, True]]


def test_the_previous_frame_alone() -> None:
    bank: Bank[Tensor] = Bank(())
    for t in range(3):
        frame = MemoryFrame(torch.zeros(1, 1, 1, 1), t, torch.ones(1, 1, dtype=torch.bool), permanent=False)
        assert PreviousOnly().wants(bank, t)
        bank = PreviousOnly().update(bank, frame, None)
        assert bank.frames == (frame,)


@pytest.mark.parametrize("length", [1, 2])
def test_a_short_clip_is_frame_after_frame(length: int) -> None:
    """Also of a network whose frames do not depend on each other: there is no rest to compute at once in a clip of one frame."""
    network, propagation = MUNet.small().eval(), Propagation(AnnotatedOnly(), "minimum")
    frames, labels = random_clip(2, length, 2, (32, 48))
    given = {0: given_at(labels, 0, [1, 2], 2)}
    with torch.no_grad():
        found, state = unroll(network, propagation, frames, given), None
    assert len(found) == length
    for t, output in enumerate(found):
        with torch.no_grad():
            alone, state = advance(network, propagation, state, FrameInput(frames[:, t]), given.get(t))
        assert_close(output.probabilities, alone.probabilities)
