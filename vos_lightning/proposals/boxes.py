"""Boxes and masks in boxes: tight boxes, pasting and resampling. All functions process whole batches on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import roi_align


def tight_boxes(masks: Float[Tensor, "B N H W"], threshold: float = 0.5) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Smallest boxes around the pixels above a threshold.

    Args:
        masks: masks in [0, 1].
        threshold: pixels above this value count.

    Returns:
        Corners ``x0 y0 x1 y1`` in pixels (a single pixel at ``(x, y)`` gives ``x y x+1 y+1``), and which masks have such pixels;
        boxes of the others are 0.
    """
    inside = masks > threshold
    edges = []
    for dim in (2, 3):
        line = inside.any(dim=dim).int()
        length = line.shape[-1]
        # argmax returns the first of equal values.
        first = line.argmax(dim=2)
        last = length - line.flip(2).argmax(dim=2)
        edges.append((first, last))
    (x0, x1), (y0, y1) = edges
    filled = inside.flatten(2).any(dim=2)
    boxes = torch.stack([x0, y0, x1, y1], dim=2).float()
    return boxes * filled.unsqueeze(2), filled


def paste_masks(
    masks: Float[Tensor, "B K m m"], boxes: Float[Tensor, "B K 4"], height: int, width: int, stride: int = 1
) -> Float[Tensor, "B K H W"]:
    r"""Draw masks that are given inside their boxes into frames.

    The rule is torchvision's: the mask gets a border of one zero, the box grows with it about its centre, its corners are
    truncated to whole pixels, the mask is enlarged bilinearly, and everything outside the frame is cut off. Bilinear enlargement
    is separable, so all masks are drawn by two products, :math:`W_y M W_x^\top`. Averaging over cells is separable too, so
    drawing at a coarser stride costs less and equals the average of the full drawing.

    Args:
        masks: masks in [0, 1]; differentiable.
        boxes: corners ``x0 y0 x1 y1`` in pixels of the frame.
        height: height of the frame, a multiple of ``stride``.
        width: width of the frame, a multiple of ``stride``.
        stride: side in pixels of the cells over which the drawing is averaged.

    Returns:
        ``(B, K, height / stride, width / stride)``, float32.

    Reference: Mask R-CNN (He et al., ICCV 2017) as in torchvision's ``paste_masks_in_image``.
    """
    masks, boxes = masks.float(), boxes.float()
    size = masks.shape[-1]
    with torch.autocast(masks.device.type, enabled=False):
        rows = _axis_weights(boxes[..., 1], boxes[..., 3], size, height, stride)
        columns = _axis_weights(boxes[..., 0], boxes[..., 2], size, width, stride)
        return rows @ masks @ columns.transpose(2, 3)


def _axis_weights(
    low: Float[Tensor, "B K"], high: Float[Tensor, "B K"], size: int, length: int, stride: int
) -> Float[Tensor, "B K cells m"]:
    """How much of each of the ``m`` mask cells along an axis every frame cell takes."""
    padded = size + 2
    centre, half = (low + high) / 2, (high - low) / 2 * padded / size
    first, last = (centre - half).trunc(), (centre + half).trunc()
    extent = (last - first + 1).clamp_min(1)
    pixel = torch.arange(length, device=low.device, dtype=low.dtype)
    first, last, extent = first.unsqueeze(2), last.unsqueeze(2), extent.unsqueeze(2)
    source = ((pixel - first + 0.5) * padded / extent - 0.5).clamp(0, padded - 1)
    inside = (pixel >= first) & (pixel <= last)
    # The first and the last cell are the border of zeros.
    cell = torch.arange(1, size + 1, device=low.device, dtype=low.dtype)
    weights = (1 - (source.unsqueeze(3) - cell).abs()).clamp_min(0) * inside.unsqueeze(3)
    return weights.unflatten(2, (length // stride, stride)).mean(dim=3) if stride > 1 else weights


def masks_in_boxes(
    planes: Float[Tensor, "B K H W"], boxes: Float[Tensor, "B K 4"], size: int, scale: float = 1.0
) -> Float[Tensor, "B K m m"]:
    """Resample one plane for each box to a fixed number of cells: the inverse of :func:`paste_masks`.

    Args:
        planes: masks of whole frames, each read in its own box.
        boxes: corners ``x0 y0 x1 y1`` in pixels of the frame.
        size: number of cells along a side.
        scale: number of cells of a plane per pixel of the frame.

    Returns:
        ``(B, K, size, size)``; 0 outside the frame.
    """
    count = planes.shape[0] * planes.shape[1]
    index = torch.arange(count, device=planes.device, dtype=planes.dtype).unsqueeze(1)
    rois = torch.cat([index, boxes.flatten(0, 1).to(planes.dtype)], dim=1)
    read = roi_align(planes.flatten(0, 1).unsqueeze(1), rois, size, scale, sampling_ratio=2, aligned=True)
    return read.squeeze(1).unflatten(0, planes.shape[:2])


def box_features(
    features: Float[Tensor, "B C h w"], boxes: Float[Tensor, "B K 4"], size: int, scale: float
) -> Float[Tensor, "B K C m m"]:
    """Features of a frame inside each of its boxes, on a fixed grid (RoIAlign with two samples per cell and axis).

    Args:
        features: features of the frame, shared by all its boxes.
        boxes: corners ``x0 y0 x1 y1`` in pixels of the frame.
        size: number of cells along a side.
        scale: number of feature cells per pixel.

    Reference: Mask R-CNN (He et al., ICCV 2017), section 3, with half-pixel alignment.
    """
    batch, count = boxes.shape[:2]
    index = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(-1, count, 1)
    rois = torch.cat([index, boxes], dim=2).flatten(0, 1).to(features.dtype)
    return roi_align(features, rois, size, scale, sampling_ratio=2, aligned=True).unflatten(0, (batch, count))


def transform_proposals(
    boxes: Float[Tensor, "B K 4"],
    masks: Float[Tensor, "B K m m"],
    forward: Float[Tensor, "B 2 3"],
    height: int,
    width: int,
    threshold: float = 0.4,
) -> tuple[Float[Tensor, "B K 4"], Float[Tensor, "B K m m"], Bool[Tensor, "B K"]]:
    r"""Move proposals by the affine map that moves their frame; boxes become tight around the moved masks.

    The mask is sampled in the bounding box of the moved box, on a grid twice as fine as the mask. Parts outside the new frame are
    cut off. The cells above the threshold give the new box, in which the mask is sampled again.

    Args:
        boxes: corners ``x0 y0 x1 y1`` in pixels.
        masks: masks in [0, 1], inside the boxes.
        forward: affine map from ``(x, y, 1)`` in pixels of the old frame to pixels of the new one.
        height: height of the new frame.
        width: width of the new frame.
        threshold: mask value above which a cell belongs to the tight box (DMM-Net: 0.4).

    Returns:
        Boxes, masks, and which proposals remain; the others are 0.

    Reference: DMM-Net (Zeng et al., ICCV 2019), released code, which warps whole pasted masks.
    """
    linear, shift = forward[:, None, :, :2], forward[:, None, :, 2]
    inverse = torch.linalg.inv(linear)
    x0, y0, x1, y1 = boxes.unbind(dim=2)
    corners = torch.stack([torch.stack([x, y], dim=2) for x in (x0, x1) for y in (y0, y1)], dim=2)  # (B, K, 4, 2)
    moved = corners @ linear.transpose(2, 3) + shift.unsqueeze(2)
    limit = boxes.new_tensor([width, height])
    hull_low, hull_high = (moved.amin(dim=2).clamp_min(0)).minimum(limit), (moved.amax(dim=2)).minimum(limit).clamp_min(0)

    def sample(low: Tensor, high: Tensor, size: int) -> Tensor:
        step = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
        x = low[..., 0, None] + step * (high - low)[..., 0, None]
        y = low[..., 1, None] + step * (high - low)[..., 1, None]
        grid = torch.stack([x.unsqueeze(2).expand(-1, -1, size, -1), y.unsqueeze(3).expand(-1, -1, -1, size)], dim=4)
        source = (grid - shift[:, :, None, None]) @ inverse.unsqueeze(2).transpose(3, 4)
        extent = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-6)
        inside = (source - boxes[..., None, None, :2]) / extent[..., None, None, :]
        read = F.grid_sample(masks.flatten(0, 1).unsqueeze(1), 2 * inside.flatten(0, 1) - 1, mode="bilinear", align_corners=False)
        return read.squeeze(1).unflatten(0, boxes.shape[:2])

    size = masks.shape[-1]
    fine = 2 * size
    cells, left = tight_boxes(sample(hull_low, hull_high, fine), threshold)
    scale = ((hull_high - hull_low) / fine).repeat(1, 1, 2)
    new = (hull_low.repeat(1, 1, 2) + cells * scale) * left.unsqueeze(2)
    left = left & (new[..., 2] > new[..., 0]) & (new[..., 3] > new[..., 1])
    resampled = sample(new[..., :2], new[..., 2:], size)
    return new * left.unsqueeze(2), resampled * left[..., None, None], left
