"""The memory by itself: which frames a policy keeps, and what becomes of the objects in them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vos_lightning.propagation.memory import Bank, Memory, MemoryFrame, State, bytes_of_latest, drop_unread, grow, select
from vos_lightning.propagation.policies import CountFrom, EveryKth, PreviousOnly
from vos_lightning.structures import per_object


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
    nobody = select(state, [])
    assert (nobody.introduced.shape, len(nobody.memory.bank)) == ((1, 0), 0)
    with pytest.raises(ValueError, match="a state with 3 object slots cannot shrink to 2"):
        grow(state, 2)


@dataclass(frozen=True)
class Inner:
    shared: Tensor
    masks: Tensor = per_object()  # noqa: RUF009


@dataclass(frozen=True)
class Entry:
    """With all that may be in one: a tensor of all objects, one of each, a nested value, and values that are no tensors."""

    name: str
    absent: Tensor | None
    inner: Inner
    kind: type
    masks: Tensor = per_object()  # noqa: RUF009
    missing: Tensor | None = per_object()  # noqa: RUF009


def entry(objects: int) -> Entry:
    shared = torch.rand(1, 3, 2, 2)
    numbered = torch.arange(objects, dtype=torch.float32).view(1, -1, 1, 1).expand(1, objects, 2, 2)
    return Entry("e", None, Inner(shared, numbered + 10), Inner, numbered, None)


def test_what_belongs_to_objects_is_chosen_wherever_it_is() -> None:
    """In the bank, the previous frame and the carry; what all objects share stays the same tensor."""
    frame = MemoryFrame(entry(3), 4, torch.tensor([[True, True, True]]), permanent=False)
    state = State(Memory(Bank((frame,)), Bank((frame,)), (entry(3), None)), torch.tensor([[True, True, True]]), 4)
    for changed, expected in ((select(state, [2, 0]), [2.0, 0.0]), (grow(state, 4), [0.0, 1.0, 2.0, 0.0])):
        assert changed.memory.previous is not None
        assert changed.memory.carry[1] is None
        pairs = (
            (changed.memory.bank.latest.entry, frame.entry),
            (changed.memory.previous.latest.entry, frame.entry),
            (changed.memory.carry[0], state.memory.carry[0]),
        )
        for found, before in pairs:
            assert found.masks[0, :, 0, 0].tolist() == expected
            assert found.inner.masks[0, :, 1, 1].tolist()[:2] == [x + 10 for x in expected[:2]]
            assert found.inner.shared is before.inner.shared
            assert (found.name, found.absent, found.kind, found.missing) == ("e", None, Inner, None)


def test_the_bytes_of_the_latest_frame() -> None:
    frames = [MemoryFrame(entry(n), n, torch.ones(1, n, dtype=torch.bool), permanent=False) for n in (1, 2)]
    assert bytes_of_latest(Bank(())) == 0
    assert bytes_of_latest(Bank(tuple(frames))) == 4 * (3 + 2 + 2) * 4
    assert bytes_of_latest(Bank(tuple(frames[:1]))) == 4 * (3 + 1 + 1) * 4


@pytest.mark.parametrize("channels_last", [False, True])
def test_frames_are_stacked_behind_one_another(channels_last: bool) -> None:
    tensors = [torch.rand(1, 2, 3, 2, 2) for _ in range(3)]
    if channels_last:
        tensors = [x.movedim(2, -1).contiguous().movedim(-1, 2) for x in tensors]
    for count in (1, 3):
        frames = (MemoryFrame(x, t, torch.ones(1, 2, dtype=torch.bool), permanent=False) for t, x in enumerate(tensors[:count]))
        found = Bank(tuple(frames)).entry
        assert torch.equal(found, torch.cat([x.reshape(1, 2, 3, 4) for x in tensors[:count]], dim=3))
        assert (found.stride(-2) == 1) == channels_last, "channels that lie side by side stay so"


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
