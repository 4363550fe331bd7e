"""Memory policies: which frames stay in the bank."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Bool

from vos_lightning.arrays import Tensor
from vos_lightning.propagation.memory import Bank, EntryT, MemoryFrame

CountFrom = Literal["start", "latest"]


class MemoryPolicy(ABC):
    """Decides which frames the bank keeps. Policies are values: they hold options, never frames."""

    @abstractmethod
    def keeps(self, t: int) -> bool:
        """Whether the bank keeps frame ``t`` although nothing is annotated in it."""

    def wants(self, bank: Bank[EntryT], t: int) -> bool:  # noqa: ARG002
        """:meth:`keeps`, given the content of the bank before frame ``t``."""
        return self.keeps(t)

    def update(self, bank: Bank[EntryT], frame: MemoryFrame[EntryT], annotated: Bool[Tensor, "B N"] | None) -> Bank[EntryT]:
        """The bank after a frame.

        Args:
            bank: bank before the frame; returned as the same object if nothing changes, so that its stacked view stays valid.
            frame: the new frame, readable by all introduced objects.
            annotated: objects that were given in this frame; None if there are none.
        """
        if annotated is not None:
            return Bank((*bank.frames, dataclasses.replace(frame, permanent=True)))
        if self.wants(bank, frame.t):
            return Bank((*bank.frames, frame))
        return bank

    def bounded(self, frames: int) -> MemoryPolicy:  # noqa: ARG002
        """The same policy with at most ``frames`` frames without annotation, if it would otherwise keep more and more of them."""
        return self


@dataclass(frozen=True)
class AnnotatedOnly(MemoryPolicy):
    """The frame that introduces an object remains its reference; nothing else is kept (PMVOS, EMVOS).

    Args:
        reannotation: frames that an object reads when it is annotated again: the new one only (``replace``, as in EMVOS's
            released code) or both (``add``).
    """

    reannotation: str = "replace"

    def __post_init__(self) -> None:
        if self.reannotation not in ("replace", "add"):
            raise ValueError(f"reannotation must be 'replace' or 'add', not {self.reannotation!r}")

    def keeps(self, t: int) -> bool:  # noqa: ARG002
        """Never: only annotated frames are kept."""
        return False

    def update(self, bank: Bank[EntryT], frame: MemoryFrame[EntryT], annotated: Bool[Tensor, "B N"] | None) -> Bank[EntryT]:
        """Keep an annotated frame, readable by the objects that are annotated in it."""
        if annotated is None:
            return bank
        earlier = bank.frames
        if self.reannotation == "replace":
            earlier = tuple(dataclasses.replace(old, readable=old.readable & ~annotated) for old in earlier)
        return Bank((*earlier, dataclasses.replace(frame, readable=annotated, permanent=True)))


@dataclass(frozen=True)
class EveryKth(MemoryPolicy):
    """Annotated frames, every ``k``-th frame and, optionally, the previous one as a temporary entry (STM, STCN).

    Args:
        k: stride in frames.
        count_from: ``start`` keeps frames 0, k, 2k, ... of a propagation (STM; STCN on DAVIS); ``latest`` keeps a frame that
            comes ``k`` or more frames after the latest kept one, which may be an annotated one (STCN on YouTube-VOS).
        include_previous: keep the latest frame until the next one arrives (STM yes, STCN no).
        max_frames: largest number of kept frames without annotation; the oldest go first. None keeps all of them.
    """

    k: int = 5
    include_previous: bool = False
    max_frames: int | None = None
    count_from: CountFrom = "start"

    def __post_init__(self) -> None:
        if self.count_from not in get_args(CountFrom):
            raise ValueError(f"count_from must be one of {get_args(CountFrom)}, not {self.count_from!r}")
        if self.k < 1:
            raise ValueError(f"memory stride k must be at least 1, not {self.k}")

    def keeps(self, t: int) -> bool:
        """Every ``k``-th frame, or every frame while it is the previous one."""
        return self.include_previous or t % self.k == 0

    def wants(self, bank: Bank[EntryT], t: int) -> bool:
        """As :meth:`keeps`, or every frame that comes ``k`` or more frames after the latest lasting one."""
        if self.count_from == "start":
            return self.keeps(t)
        lasting = self._lasting(bank)
        return self.include_previous or not lasting or t - lasting[-1].t >= self.k

    def update(self, bank: Bank[EntryT], frame: MemoryFrame[EntryT], annotated: Bool[Tensor, "B N"] | None) -> Bank[EntryT]:
        """Drop the temporary entry, then append."""
        lasting = self._lasting(bank)
        before = bank if len(lasting) == len(bank.frames) else Bank(lasting)
        after = super().update(before, frame, annotated)
        if self.max_frames is not None:
            loose = [old for old in after.frames if not old.permanent]
            if len(loose) > self.max_frames:
                dropped = {old.t for old in loose[: len(loose) - self.max_frames]}
                after = Bank(tuple(old for old in after.frames if old.permanent or old.t not in dropped))
        return after

    def bounded(self, frames: int) -> MemoryPolicy:
        """Set ``max_frames``, unless there is a bound already."""
        return dataclasses.replace(self, max_frames=frames) if self.max_frames is None else self

    def _lasting(self, bank: Bank[EntryT]) -> tuple[MemoryFrame[EntryT], ...]:
        """The frames of a bank without the temporary one, which can only be the last one."""
        frames = bank.frames
        if not frames or frames[-1].permanent:
            return frames
        before, t = frames[:-1], frames[-1].t
        kept = t % self.k == 0 if self.count_from == "start" else not before or t - before[-1].t >= self.k
        return frames if kept else before


@dataclass(frozen=True)
class All(MemoryPolicy):
    """Every frame is kept: for training on short clips (STM, STCN, DMN-AOA)."""

    def keeps(self, t: int) -> bool:  # noqa: ARG002
        """Always: every frame is kept."""
        return True

    def bounded(self, frames: int) -> MemoryPolicy:
        """The latest frames."""
        return EveryKth(1, max_frames=frames)


@dataclass(frozen=True)
class PreviousOnly(MemoryPolicy):
    """Only the previous frame, annotated or not (an ablation of DMN-AOA)."""

    def keeps(self, t: int) -> bool:  # noqa: ARG002
        """Always, until the next frame replaces it."""
        return True

    def update(self, bank: Bank[EntryT], frame: MemoryFrame[EntryT], annotated: Bool[Tensor, "B N"] | None) -> Bank[EntryT]:  # noqa: ARG002
        """A bank of this frame alone."""
        return Bank((frame,))
