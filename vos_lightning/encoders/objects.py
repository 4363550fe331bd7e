"""Features of objects inside their boxes, and an embedding of the time since they were introduced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.backbones.normalization import normed_conv
from vos_lightning.proposals.boxes import box_features, masks_in_boxes
from vos_lightning.structures import FeaturePyramid

STRIDES = (4, 8, 16)
"""Strides of a pyramid, fine to coarse."""


@dataclass(frozen=True)
class ObjectOptions:
    """Options of the encoding of objects and proposals inside their boxes.

    Attributes:
        channels: number of channels ``C`` of object features, of templates and of values.
        grid: number of cells along each side of a box.
        box_scale: factor by which boxes are enlarged about their centres before features are read in them.
        offset_unit: number of frames that count as 1 in the embedding of time.

    Raises:
        ValueError: a value is out of range.

    Reference: DMN-AOA (Liang et al., ICCV 2021), sections 3.2 and 3.3, which do not state the last three.
    """

    channels: int = 512
    grid: int = 14
    box_scale: float = 1.0
    offset_unit: float = 1.0

    def __post_init__(self) -> None:
        for name in ("channels", "grid", "box_scale", "offset_unit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objects.{name} must be positive, not {getattr(self, name)}")


DEFAULT_OBJECTS = ObjectOptions()


class ObjectEncoder(nn.Module):
    """Encodes the inside of a box with features of all scales on a fixed grid.

    Args:
        in_channels: numbers of channels of the pyramid at strides 4, 8 and 16.
        options: options of the encoding.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), sections 3.2 and 3.3.
    """

    def __init__(self, in_channels: tuple[int, int, int], options: ObjectOptions = DEFAULT_OBJECTS, *, groups: int = 32) -> None:
        super().__init__()
        self.options = options
        self.fuse = normed_conv(sum(in_channels), options.channels, 1, groups=groups)

    def forward(self, pyramid: FeaturePyramid, boxes: Float[Tensor, "B K 4"]) -> Float[Tensor, "B K C g g"]:
        """Features inside boxes.

        Args:
            pyramid: features of the frame, which all its boxes share.
            boxes: corners ``x0 y0 x1 y1`` in pixels of the frame; they are enlarged here.
        """
        boxes = self.enlarge(boxes).to(pyramid.s4.dtype)
        levels = zip((pyramid.s4, pyramid.s8, pyramid.s16), STRIDES, strict=True)
        with torch.autocast(boxes.device.type, enabled=False):
            read = [box_features(level.float(), boxes.float(), self.options.grid, 1 / stride) for level, stride in levels]
        return self.fuse(torch.cat(read, dim=2).flatten(0, 1)).unflatten(0, boxes.shape[:2])

    def whole_frame(self, pyramid: FeaturePyramid) -> Float[Tensor, "B C h w"]:
        """Features of the whole frame at stride 16, by the same layer as those inside boxes."""
        levels = [F.avg_pool2d(pyramid.s4, 4), F.avg_pool2d(pyramid.s8, 2), pyramid.s16]
        return self.fuse(torch.cat(levels, dim=1))

    def masks(self, masks: Float[Tensor, "B N h4 w4"], boxes: Float[Tensor, "B N 4"]) -> Float[Tensor, "B N g g"]:
        """Masks of objects at stride 4, each on the grid in its own box."""
        with torch.autocast(masks.device.type, enabled=False):
            return masks_in_boxes(masks.float(), self.enlarge(boxes).float(), self.options.grid, 1 / 4)

    def time(self, offset: Float[Tensor, "B N"]) -> Float[Tensor, "B N C 1 1"]:
        """Embedding of the number of frames since the object was introduced."""
        return sinusoid(offset / self.options.offset_unit, self.options.channels)[..., None, None]

    def enlarge(self, boxes: Float[Tensor, "B K 4"]) -> Float[Tensor, "B K 4"]:
        """The enlarged boxes in which features are read."""
        scale = self.options.box_scale
        if scale == 1.0:
            return boxes
        low, high = boxes.split(2, dim=-1)
        centre, half = (low + high) / 2, (high - low) / 2 * scale
        return torch.cat([centre - half, centre + half], dim=-1)


def sinusoid(position: Float[Tensor, "*batch"], channels: int) -> Float[Tensor, "*batch C"]:
    r"""Sines and cosines of a position, :math:`\sin(p / 10000^{2i/C})` in channel ``2i`` and the cosine in channel ``2i + 1``.

    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    rate = 10000.0 ** (-torch.arange(0, channels, 2, device=position.device, dtype=torch.float32) / channels)
    angle = position.float().unsqueeze(-1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
