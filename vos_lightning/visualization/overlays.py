"""Label maps as colours, alone and over their frames."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.label_maps import PALETTE


def colorize(label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "3 H W"]:
    """Colours of a label map by :data:`PALETTE`.

    Args:
        label_map: ``(H, W)`` ids.

    Returns:
        ``(3, H, W)`` uint8 RGB.
    """
    palette = torch.from_numpy(PALETTE.copy()).to(label_map.device)
    return palette[label_map.long()].permute(2, 0, 1).contiguous()


def overlay(frame: UInt8[Tensor, "3 H W"], label_map: UInt8[Tensor, "H W"], alpha: float = 0.5) -> UInt8[Tensor, "3 H W"]:
    """Blend the objects' colours over a frame and draw their outlines opaquely.

    Args:
        frame: ``(3, H, W)`` uint8 RGB.
        label_map: ``(H, W)`` ids; background shows the frame.
        alpha: weight of the colour inside an object, in [0, 1].

    Returns:
        ``(3, H, W)`` uint8 RGB.
    """
    edge = torch.zeros_like(label_map, dtype=torch.bool)
    below, right = label_map[1:] != label_map[:-1], label_map[:, 1:] != label_map[:, :-1]
    edge[1:] |= below
    edge[:-1] |= below
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    weight = torch.where(edge, 1.0, alpha) * (label_map > 0)
    blended = torch.lerp(frame.float(), colorize(label_map).float(), weight.expand(3, -1, -1))
    return blended.round_().to(torch.uint8)
