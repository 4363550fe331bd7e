"""Segmentation losses on aggregated logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vos_lightning.structures import IGNORE_LABEL


def trainable_labels(label_map: UInt8[Tensor, "B H W"], introduced: Bool[Tensor, "B N"]) -> UInt8[Tensor, "B H W"]:
    """Label map in which objects that the network was never given are ignored.

    Args:
        label_map: slots.
        introduced: objects known so far.

    Returns:
        The label map with 255 for pixels of unknown objects.
    """
    batch, num_objects = introduced.shape
    table = torch.arange(256, device=label_map.device, dtype=torch.uint8).repeat(batch, 1)
    table[:, 1 : num_objects + 1].masked_fill_(~introduced, IGNORE_LABEL)
    return table.gather(1, label_map.flatten(1).long()).view_as(label_map)


def cross_entropy(logits: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """Mean pixel cross-entropy of each clip; 255 is ignored.

    Args:
        logits: channel 0 background.
        labels: slots.

    Returns:
        One value a clip; 0 where every pixel is ignored.
    """
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_LABEL, reduction="none")
    counted = (labels != IGNORE_LABEL).flatten(1).sum(dim=1).clamp_min(1)
    return loss.flatten(1).sum(dim=1) / counted


def foreground_iou(probabilities: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean IoU of the objects that are visible in the labels; a training diagnostic, not a benchmark figure."""
    num_objects = probabilities.shape[1] - 1
    slots = torch.arange(1, num_objects + 1, device=labels.device).view(1, -1, 1, 1)
    predicted = (probabilities.argmax(dim=1, keepdim=True) == slots) & (labels != IGNORE_LABEL).unsqueeze(1)
    truth = labels.unsqueeze(1) == slots
    intersection = (predicted & truth).flatten(2).sum(dim=2)
    union = (predicted | truth).flatten(2).sum(dim=2)
    visible = truth.flatten(2).any(dim=2)
    return (intersection / union.clamp_min(1) * visible).sum() / visible.sum().clamp_min(1)
