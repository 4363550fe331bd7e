"""Dynamic memory: every object has a memory of its own, from which its template for the current frame is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vos_lightning.matching.readout import read_memory
from vos_lightning.structures import per_object

TemplateSource = Literal["memory", "first_frame"]
"""``memory``: read with the features of the current frame; ``first_frame``: the value of the frame that introduced the object."""


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``g g`` (a grid in the object's box) or ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B N CK *cells"] = per_object()  # noqa: RUF009
    value: Float[Tensor, "B N C *cells"] = per_object()  # noqa: RUF009
    masks: Float[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    visible: Bool[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    """Whether the object was in the frame; frames without it are not read."""


class DynamicMemory(nn.Module):
    """Keys and values of objects, and the template that is read from them.

    As in STM, keys and values are plain convolutions: a normalisation would remove the scale from the inner products.

    Args:
        channels: number of channels of object features, values and templates; keys have a quarter of them.
        template: where templates come from, see :data:`TemplateSource`; with ``first_frame`` there are values but no keys.

    Raises:
        ValueError: ``template`` is unknown.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.2.
    """

    def __init__(self, channels: int = 512, template: TemplateSource = "memory") -> None:
        super().__init__()
        if template not in get_args(TemplateSource):
            raise ValueError(f"template must be one of {get_args(TemplateSource)}, not {template!r}")
        reads = template == "memory"
        self.key = nn.Conv2d(channels + 1, channels // 4, 3, padding=1) if reads else None
        self.value = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.query = nn.Conv2d(channels, channels // 4, 3, padding=1) if reads else None

    def write(self, seen: Float[Tensor, "B N C h w"], masks: Float[Tensor, "B N h w"], visible: Bool[Tensor, "B N"]) -> Entry:
        """Encode objects together with their masks.

        Args:
            seen: features of every object in its box, or of the whole frame.
            masks: mask of every object on the same cells.
            visible: whether the object is in the frame.
        """
        joint = torch.cat([seen, masks.unsqueeze(2).to(seen.dtype)], dim=2).flatten(0, 1)
        value = self.value(joint).unflatten(0, masks.shape[:2])
        # Without reading there are no keys; a single channel keeps the entry a dataclass of tensors.
        key = value[:, :, :1] if self.key is None else self.key(joint).unflatten(0, masks.shape[:2])
        return Entry(key, value, masks, visible[:, :, None, None].expand_as(masks))

    def read(
        self, seen: Float[Tensor, "B N C g g"], entry: Entry, readable: Bool[Tensor, "B N S"]
    ) -> tuple[Float[Tensor, "B N C g g"], Float[Tensor, "B N g g"]]:
        """The expected appearance of every object in the current frame, and how much of each cell belongs to it.

        Args:
            seen: features of the current frame, in the box where each object is expected.
            entry: entries of all remembered frames, stacked.
            readable: the memory cells that each object may read.
        """
        assert self.query is not None, "templates of the first frame are not read"
        query = self.query(seen.flatten(0, 1)).flatten(2)
        allowed = (readable & entry.visible).flatten(0, 1).unsqueeze(1)
        # Objects are rows of the batch. The mask is read together with the value, as one more channel.
        values = torch.cat([entry.value, entry.masks.unsqueeze(2).to(entry.value.dtype)], dim=2)
        read = read_memory(entry.key.flatten(0, 1), query, values.flatten(0, 1).unsqueeze(1), allowed)
        read = read.squeeze(1).unflatten(0, seen.shape[:2]).unflatten(3, seen.shape[-2:])
        return read[:, :, :-1], read[:, :, -1]
