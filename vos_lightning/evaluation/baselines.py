"""Segmentation without a network: baselines that any system should beat.

Both functions yield a label map for every frame, in original ids and at the original size. An annotation in a later frame adds
its objects there and replaces those that it annotates again. Before the first annotation there is only background.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vos_lightning.structures import VideoSample


def copy_first_mask(sample: VideoSample) -> Iterator[tuple[int, UInt8[Tensor, "H0 W0"]]]:
    """Leave every object where it was annotated.

    Args:
        sample: the video; its frames are not read.

    Yields:
        Frame index and label map.
    """
    current: Tensor | None = None
    assert sample.frame_names is not None
    for index in range(len(sample.frame_names)):
        current = _with_annotation(sample, index, current)
        yield index, _at_original_size(sample, current)


def warp_by_flow(sample: VideoSample) -> Iterator[tuple[int, UInt8[Tensor, "H0 W0"]]]:
    """Carry the objects from frame to frame along optical flow.

    DIS flow (preset "medium", on grey frames) gives the place of every pixel of frame t in frame t-1. The masks of the background
    and of every object are read there bilinearly; outside the image the border value is used. The largest value wins.

    Args:
        sample: the video; every frame is read once.

    Yields:
        Frame index and label map.

    Reference: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016 (OpenCV's ``DISOpticalFlow``).
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    current: Tensor | None = None
    previous_grey: np.ndarray | None = None
    for index, frame in enumerate(sample.frames):
        grey = cv2.cvtColor(frame.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        if current is not None and previous_grey is not None:
            flow = torch.from_numpy(estimator.calc(grey, previous_grey, None)).permute(2, 0, 1)  # type: ignore[call-overload]
            current = _warp(current, flow, sample.object_ids)
        current = _with_annotation(sample, index, current)
        previous_grey = grey
        yield index, _at_original_size(sample, current)


def _with_annotation(sample: VideoSample, index: int, current: Tensor | None) -> Tensor | None:
    """The label map after the annotation of a frame, if it has one; None before the first annotation."""
    annotation = sample.annotations.get(index)
    if annotation is None:
        return current
    ids = annotation.new_tensor(sample.object_ids)
    given = torch.isin(annotation, ids)
    if current is None:
        current = torch.zeros_like(annotation)
    elsewhere = current.masked_fill(torch.isin(current, annotation[given].unique()), 0)
    return torch.where(given, annotation, elsewhere)


def _warp(label_map: UInt8[Tensor, "H W"], flow: Float[Tensor, "2 H W"], object_ids: tuple[int, ...]) -> UInt8[Tensor, "H W"]:
    """Read masks at ``(x, y) + flow`` bilinearly and keep the largest."""
    height, width = label_map.shape
    ids = label_map.new_tensor((0, *object_ids))
    masks = (label_map == ids[:, None, None]).float()
    x = torch.arange(width) + flow[0]
    y = torch.arange(height)[:, None] + flow[1]
    # Pixel centres at (i + 0.5) / size, in [-1, 1].
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(masks[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return ids[warped.argmax(dim=0)]


def _at_original_size(sample: VideoSample, label_map: Tensor | None) -> UInt8[Tensor, "H0 W0"]:
    if label_map is None:
        return torch.zeros(sample.original_size, dtype=torch.uint8)
    if tuple(label_map.shape) == sample.original_size:
        return label_map
    return F.interpolate(label_map[None, None], size=sample.original_size, mode="nearest-exact")[0, 0]
