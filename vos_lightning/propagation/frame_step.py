"""What one step of the engine is made of, so that it can be done again, and how its parts are resized."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from vos_lightning.propagation.memory import Bank, State, select
from vos_lightning.structures import Proposals


@dataclass(frozen=True)
class FrameStep:
    """A frame, what is given with it, and what is known before it: enough to process it again."""

    index: int
    frame: Num[Tensor, "3 H W"]
    annotation: UInt8[Tensor, "H W"] | None
    proposals: Proposals | None
    state: State[Any, Any] | None
    ids: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return int(self.frame.shape[1]), int(self.frame.shape[2])

    def slim(self, after: State[Any, Any] | None) -> FrameStep:
        """The same without the stacked view of a bank that the next frame does not read."""
        if self.state is None or (after is not None and after.memory.bank is self.state.memory.bank):
            return self
        memory = dataclasses.replace(self.state.memory, bank=Bank(self.state.memory.bank.frames))
        return dataclasses.replace(self, state=dataclasses.replace(self.state, memory=memory))

    def without(self, object_id: int) -> FrameStep:
        """The same as if there had never been that object."""
        state, ids = (self.state, self.ids) if object_id not in self.ids else without_object(self.state, self.ids, object_id)
        annotation = None if self.annotation is None else self.annotation * (self.annotation != object_id)
        if annotation is not None and not bool(annotation.any()):
            annotation = None
        return dataclasses.replace(self, annotation=annotation, state=state, ids=ids)


def without_object(
    state: State[Any, Any] | None, ids: tuple[int, ...], object_id: int
) -> tuple[State[Any, Any] | None, tuple[int, ...]]:
    """The state and ids that remain when an object is removed."""
    kept = [slot for slot, i in enumerate(ids) if i != object_id]
    assert state is not None
    return select(state, kept) if kept else None, tuple(ids[slot] for slot in kept)


def resize_masks(masks: Float[Tensor, "B N H W"], size: tuple[int, int]) -> Float[Tensor, "B N h w"]:
    """Resize to the nearest pixel, like label maps; a mask that would lose all its pixels keeps every one that it touches."""
    resized = F.interpolate(masks, size=size, mode="nearest")
    lost = masks.flatten(2).any(dim=2) & ~resized.flatten(2).any(dim=2)
    return torch.where(lost[:, :, None, None], F.adaptive_max_pool2d(masks, size), resized)


def resize_proposals(proposals: Proposals, size: tuple[int, int], inner: tuple[int, int]) -> Proposals:
    """Proposals in pixels of a resized frame."""
    if inner == size:
        return proposals
    scale = proposals.boxes.new_tensor([inner[1] / size[1], inner[0] / size[0]] * 2)
    return Proposals(proposals.boxes * scale, proposals.masks, proposals.scores)
