"""What is remembered of past frames. Everything here is an immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from jaxtyping import Bool

from vos_lightning.arrays import Tensor, torch

FeaturesT = TypeVar("FeaturesT")
EntryT = TypeVar("EntryT")
CarryT = TypeVar("CarryT")


@dataclass(frozen=True)
class MemoryFrame(Generic[EntryT]):
    """One remembered frame."""

    entry: EntryT
    """Dataclass of the paper. Every tensor ends in two spatial dimensions: ``(B, C, h, w)`` or ``(B, N, ..., h, w)``."""
    t: int
    """Index of the frame."""
    readable: Bool[Tensor, "B N"]
    """Which objects may read this frame."""
    permanent: bool
    """Whether an annotation was given here; such frames are never dropped."""


@dataclass(frozen=True)
class Bank(Generic[EntryT]):
    """An ordered set of remembered frames and its stacked view.

    The view is computed on first use and kept as long as the bank exists. A bank that a frame leaves unchanged is passed on as
    the same object, so nothing is stacked again.
    """

    frames: tuple[MemoryFrame[EntryT], ...]

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def entry(self) -> EntryT:
        """All entries concatenated: spatial dimensions are flattened and joined to ``S``, e.g. ``(B, C, S)``."""
        return _stack([frame.entry for frame in self.frames])

    @cached_property
    def readable(self) -> Bool[Tensor, "B N S"]:
        """Which object may read which memory pixel."""
        return torch.cat([self._expand(frame, frame.readable) for frame in self.frames], dim=-1)

    @cached_property
    def readers(self) -> Bool[Tensor, "B R S"] | None:
        """:attr:`readable` in its smallest form, so that objects that read the same frames can share their affinities.

        None if all objects may read everything, ``(B, 1, S)`` if all objects may read the same pixels. Objects with no readable
        frame are skipped; their output is masked anyway.
        """
        readable = torch.stack([frame.readable for frame in self.frames], dim=2)
        anyone = readable.any(dim=1, keepdim=True)
        unanimous = (readable == anyone) | ~readable.any(dim=2, keepdim=True)
        # One transfer to the host; the view is kept as long as the bank exists.
        shared, everything = torch.stack([unanimous.all(), anyone.all()]).tolist()
        if not shared:
            return self.readable
        return (
            None if everything else torch.cat([self._expand(frame, frame.readable.any(1, True)) for frame in self.frames], dim=-1)
        )

    @cached_property
    def permanent(self) -> Bank[EntryT]:
        """The annotated frames only (this same bank if all frames are annotated)."""
        kept = tuple(frame for frame in self.frames if frame.permanent)
        return self if len(kept) == len(self.frames) else Bank(kept)

    @property
    def latest(self) -> MemoryFrame[EntryT]:
        """The last remembered frame, unflattened."""
        return self.frames[-1]

    @staticmethod
    def _expand(frame: MemoryFrame[EntryT], readable: Bool[Tensor, "B n"]) -> Bool[Tensor, "B n q"]:
        tensor = next(iter(_tensors(frame.entry)))
        cells = tensor.shape[-2] * tensor.shape[-1]
        return readable[:, :, None].expand(-1, -1, cells)


@dataclass(frozen=True)
class Memory(Generic[EntryT, CarryT]):
    """Everything that ``VOSNetwork.segment`` may read."""

    bank: Bank[EntryT]
    """Frames that the memory policy keeps."""
    previous: Bank[EntryT] | None
    """The previous frame, as a bank of one frame; None for networks that do not read it.

    Its masks are always those after the aggregation of that frame. The bank may hold the same frame with its given masks, see
    :class:`vos_lightning.propagation.step.Propagation`.
    """
    carry: CarryT
    """State that is folded over time (a template, tracked positions); replaced at every frame."""

    @property
    def reference(self) -> Bank[EntryT]:
        """The annotated frames."""
        return self.bank.permanent


@dataclass(frozen=True)
class State(Generic[EntryT, CarryT]):
    """The whole state of a propagation: a value that can be kept, copied and resumed from."""

    memory: Memory[EntryT, CarryT]
    introduced: Bool[Tensor, "B N"]
    t: int
    """Index of the last processed frame."""


def grow(state: State[EntryT, CarryT], num_objects: int) -> State[EntryT, CarryT]:
    """Add object slots up to ``num_objects``; the new ones have empty masks and may read nothing."""
    extra = num_objects - state.introduced.shape[1]
    if extra < 0:
        raise ValueError(f"a state with {state.introduced.shape[1]} object slots cannot shrink to {num_objects}")
    if extra == 0:
        return state

    return _with_objects(state, lambda tensor: _pad_objects(tensor, extra))


def select(state: State[EntryT, CarryT], slots: Sequence[int]) -> State[EntryT, CarryT]:
    """Keep some object slots only, in the given order; frames that none of the kept objects may read are dropped.

    It reads from the device which frames those are, so it must not be used in a training step.
    """
    index = torch.tensor(slots, dtype=torch.long, device=state.introduced.device)
    chosen = _with_objects(state, lambda tensor: tensor.index_select(1, index))
    return drop_unread(chosen)


def drop_unread(state: State[EntryT, CarryT]) -> State[EntryT, CarryT]:
    """Drop the frames of the bank that no object may read any more: references that were replaced or whose object was removed.

    It reads from the device which frames those are, so it must not be used in a training step.
    """
    bank = state.memory.bank
    kept = tuple(frame for frame in bank.frames if bool(frame.readable.any()))
    if len(kept) == len(bank):
        return state
    return State(dataclasses.replace(state.memory, bank=Bank(kept)), state.introduced, state.t)


def bytes_of_latest(bank: Bank[EntryT]) -> int:
    """Bytes of the last remembered frame; 0 if there is none."""
    return sum(tensor.nbytes for tensor in _tensors(bank.latest.entry)) if len(bank) else 0


def _with_objects(state: State[EntryT, CarryT], change: Callable[[Tensor], Tensor]) -> State[EntryT, CarryT]:
    """The state with another set of object slots; ``change`` is applied to every tensor that has them in dimension 1."""

    def change_bank(bank: Bank[EntryT]) -> Bank[EntryT]:
        return Bank(
            tuple(
                dataclasses.replace(frame, entry=map_objects(frame.entry, change), readable=change(frame.readable))
                for frame in bank.frames
            )
        )

    memory = state.memory
    changed = Memory(
        bank=change_bank(memory.bank),
        previous=None if memory.previous is None else change_bank(memory.previous),
        carry=map_objects(memory.carry, change),
    )
    return State(changed, change(state.introduced), state.t)


def _pad_objects(tensor: Tensor, extra: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, extra))


def map_objects(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with the fields changed that are declared with ``per_object``, also in nested dataclasses and tuples of them."""
    if isinstance(value, tuple):
        return tuple(map_objects(entry, change) for entry in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        current = getattr(value, f.name)
        if f.metadata.get("per_object") and current is not None:
            changed[f.name] = change(current)
        else:
            changed[f.name] = map_objects(current, change)
    return dataclasses.replace(value, **changed)


def _tensors(value: Any) -> Any:
    """Every tensor in nested dataclasses, in field order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _tensors(getattr(value, f.name))


def _stack(entries: list[Any]) -> Any:
    first = entries[0]
    if isinstance(first, Tensor):
        flat: list[Tensor] = [entry.flatten(-2) for entry in entries]
        if len(flat) == 1:
            return flat[0]
        if flat[0].ndim > 2 and flat[0].shape[-2] > 1 and flat[0].stride(-2) == 1:
            # Channels of a cell are contiguous (channels-last) and stay so: each frame is copied in one piece.
            return torch.cat([x.transpose(-1, -2) for x in flat], dim=-2).transpose(-1, -2)
        return torch.cat(flat, dim=-1)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = dataclasses.fields(first)
        return dataclasses.replace(first, **{f.name: _stack([getattr(entry, f.name) for entry in entries]) for f in fields})
    return first
