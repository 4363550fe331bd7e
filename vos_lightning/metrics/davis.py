"""The DAVIS 2016 and 2017 (semi-supervised) protocols."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.metrics import functional
from vos_lightning.metrics.scores import ObjectScores, Protocol, object_scores
from vos_lightning.structures import IGNORE_LABEL


def scored_maps(
    preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], protocol: Protocol
) -> tuple[UInt8[Tensor, "T H W"], UInt8[Tensor, "T H W"], tuple[int, ...]]:
    """What the protocol makes of label maps before it scores them.

    Args:
        preds: predicted label maps of all frames.
        target: true label maps of all frames.
        protocol: ``davis16`` or ``davis17``.

    Returns:
        Predictions, truth and the ids that are scored (for ``davis17`` there may be none).
    """
    if protocol == "davis16":
        return (preds > 0).to(torch.uint8), (target > 0).to(torch.uint8), (1,)
    target = target.masked_fill(target == IGNORE_LABEL, 0)
    return preds, target, tuple(range(1, int(target[0].max()) + 1))


def evaluate_video(
    preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], protocol: Protocol, video: str = ""
) -> list[ObjectScores]:
    """Score a video by a DAVIS protocol.

    Args:
        preds: predicted label maps of all frames; the first and the last are not looked at.
        target: true label maps of all frames.
        protocol: ``davis16`` or ``davis17``.
        video: its name, for the rows and for messages.

    Returns:
        One row an object.

    Raises:
        ValueError: the video has fewer than three frames, or no object to score.

    Reference: Perazzi et al., CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation".
    """
    if len(target) < 3:
        raise ValueError(f"{video}: {len(target)} frames; the first and the last are skipped, so at least 3 are needed")
    preds, target, object_ids = scored_maps(preds, target, protocol)
    if not object_ids:
        raise ValueError(f"{video}: no object id in the first true frame")
    region, boundary = functional.region_and_boundary(preds[1:-1], target[1:-1], object_ids)
    return [object_scores(video, i, *values) for i, *values in zip(object_ids, region, boundary, strict=True)]
