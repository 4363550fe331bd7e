"""Segmentation losses on aggregated logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vos_lightning.structures import IGNORE_LABEL

_EPSILON = 1e-7


def trainable_labels(label_map: UInt8[Tensor, "B H W"], introduced: Bool[Tensor, "B N"]) -> UInt8[Tensor, "B H W"]:
    """Label map in which objects that were never given to the network are ignored.

    Args:
        label_map: label map in object slots.
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
        logits: logits after aggregation, channel 0 background.
        labels: label map in object slots.

    Returns:
        One value a clip; 0 where every pixel is ignored.
    """
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_LABEL, reduction="none")
    counted = (labels != IGNORE_LABEL).flatten(1).sum(dim=1).clamp_min(1)
    return loss.flatten(1).sum(dim=1) / counted


def foreground_iou(
    probabilities: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"]
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Mean IoU of the objects that are visible in the labels; it monitors training and is not a benchmark figure.

    Args:
        probabilities: probabilities after aggregation, channel 0 background.
        labels: label map in object slots.

    Returns:
        The mean, 0 without a visible object; and the number of visible objects.
    """
    num_objects = probabilities.shape[1] - 1
    slots = torch.arange(1, num_objects + 1, device=labels.device).view(1, -1, 1, 1)
    predicted = (probabilities.argmax(dim=1, keepdim=True) == slots) & (labels != IGNORE_LABEL).unsqueeze(1)
    truth = labels.unsqueeze(1) == slots
    intersection = (predicted & truth).flatten(2).sum(dim=2)
    union = (predicted | truth).flatten(2).sum(dim=2)
    visible = truth.flatten(2).any(dim=2)
    count = visible.sum()
    return (intersection / union.clamp_min(1) * visible).sum() / count.clamp_min(1), count


def bootstrapped_cross_entropy(
    logits: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"], fraction: float
) -> Float[Tensor, " B"]:
    """Mean cross-entropy of the hardest pixels of each clip, which are those with the largest loss; 255 is ignored.

    Args:
        logits: logits after aggregation, channel 0 background.
        labels: label map in object slots.
        fraction: share of the pixels that count, in (0, 1].

    Returns:
        One value a clip; 0 where every pixel is ignored.

    Reference: Wu et al., "Bridging Category-level and Instance-level Semantic Image Segmentation", arXiv 1605.06885.
    """
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_LABEL, reduction="none")
    return _hardest_mean(loss.flatten(1), (labels != IGNORE_LABEL).flatten(1), fraction)


def bootstrapped_binary_cross_entropy(
    probabilities: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"], objects: Bool[Tensor, "B N"], fraction: float
) -> Float[Tensor, " B"]:
    r"""Mean binary cross-entropy of every object over its hardest pixels, averaged over the objects of each clip.

    .. math:: \frac{1}{|\phi|} \sum_{p \in \phi} -M_p \log \hat M_p - (1 - M_p) \log (1 - \hat M_p)

    with :math:`\phi` the given fraction of the pixels, those with the largest loss; 255 is ignored.

    Args:
        probabilities: probabilities after aggregation, channel 0 background (not used).
        labels: label map in object slots.
        objects: which objects count.
        fraction: share of the pixels that count, in (0, 1].

    Returns:
        One value a clip; 0 without an object.

    Reference: MUNet (Sun et al.) equation 4, with the sign that it leaves out.
    """
    foreground, truth, counted = _object_masks(probabilities, labels)
    right = torch.where(truth, foreground, 1 - foreground)
    loss = -right.clamp_min(_EPSILON).log().flatten(2)
    hardest = _hardest_mean(loss.flatten(0, 1), counted.expand_as(loss).flatten(0, 1), fraction).unflatten(0, loss.shape[:2])
    return _mean_of(hardest, objects)


def mask_iou_loss(
    probabilities: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"], objects: Bool[Tensor, "B N"]
) -> Float[Tensor, " B"]:
    r"""One minus the soft intersection over union of every object, averaged over the objects of each clip.

    .. math:: 1 - \frac{\sum_p \min(M_p, \hat M_p)}{\sum_p \max(M_p, \hat M_p)}

    Pixels with 255 are left out. An object that is not visible in the labels counts with the constant 1.

    Args:
        probabilities: probabilities after aggregation, channel 0 background (not used).
        labels: label map in object slots.
        objects: which objects count.

    Returns:
        One value a clip in [0, 1]; 0 without an object.

    Reference: MUNet (Sun et al.) equation 4; STM-cycle (Li et al., NeurIPS 2020), released code, for the average over objects.
    """
    foreground, truth, counted = _object_masks(probabilities, labels)
    foreground, mask = (foreground.flatten(2) * counted), truth.flatten(2).float()
    # The masks are binary: min(M, p) = M p and max(M, p) = M + p - M p.
    intersection = (mask * foreground).sum(dim=2)
    union = mask.sum(dim=2) + foreground.sum(dim=2) - intersection
    return _mean_of(1 - intersection / union.clamp_min(_EPSILON), objects)


def _object_masks(
    probabilities: Float[Tensor, "B N1 H W"], labels: UInt8[Tensor, "B H W"]
) -> tuple[Float[Tensor, "B N H W"], Bool[Tensor, "B N H W"], Bool[Tensor, "B 1 P"]]:
    """Predicted and true masks of the objects, and the pixels that are not ignored."""
    slots = torch.arange(1, probabilities.shape[1], device=labels.device).view(1, -1, 1, 1)
    return probabilities[:, 1:].float(), labels.unsqueeze(1) == slots, (labels != IGNORE_LABEL).flatten(1).unsqueeze(1)


def _mean_of(values: Float[Tensor, "B N"], objects: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    return (values * objects).sum(dim=1) / objects.sum(dim=1).clamp_min(1)


def _hardest_mean(loss: Float[Tensor, "R P"], counted: Bool[Tensor, "R P"], fraction: float) -> Float[Tensor, " R"]:
    """Mean of the largest losses of every row: of the given fraction of the counted ones, but of at least one."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of hardest pixels must be in (0, 1], not {fraction}")
    most = max(1, int(fraction * loss.shape[1]))
    hardest = loss.masked_fill(~counted, -1.0).topk(most, dim=1).values.clamp_min(0)
    kept = (fraction * counted.sum(dim=1, keepdim=True)).long().clamp_min(1)
    ranks = torch.arange(most, device=loss.device)
    return (hardest * (ranks < kept)).sum(dim=1) / kept.squeeze(1)
