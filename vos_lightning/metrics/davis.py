"""The DAVIS 2016 and 2017 (semi-supervised) protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from vos_lightning.labels import IGNORE_LABEL
from vos_lightning.metrics import functional
from vos_lightning.metrics.scores import Frames, NothingToScoreError, ObjectScores, Protocol, object_scores


def scored_map(label_map: UInt8[Any, "*frames H W"], protocol: Protocol) -> UInt8[np.ndarray, "*frames H W"]:
    """The label map in the form in which the protocol scores it.

    Args:
        label_map: a predicted or true label map, or several.
        protocol: ``davis16`` merges all objects into one; ``davis17`` changes nothing, as 255 is not among the ids that it
            scores.
    """
    array = functional.as_array(label_map)
    return (array != 0).view(np.uint8) if protocol == "davis16" else array


def scored_ids(target: Frames, protocol: Protocol) -> tuple[int, ...]:
    """Ids that the protocol scores; for ``davis17`` there may be none.

    Args:
        target: true label maps; ``davis17`` reads the first one, ``davis16`` reads none.
        protocol: ``davis16`` or ``davis17``.
    """
    if protocol == "davis16":
        return (1,)
    ids = functional.as_array(target[0])
    return tuple(range(1, int(ids.max(where=ids != IGNORE_LABEL, initial=0)) + 1))


def evaluate_video(preds: Frames, target: Frames, protocol: Protocol, video: str = "") -> list[ObjectScores]:
    """Score a video by a DAVIS protocol.

    Args:
        preds: predicted label maps of all frames; the first and the last are not read.
        target: true label maps of all frames.
        protocol: ``davis16`` or ``davis17``.
        video: name of the video, for the rows and for messages.

    Returns:
        One row an object.

    Raises:
        ValueError: the video has fewer than three frames, or no object to score.

    Reference: Perazzi et al., CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation".
    """
    if len(target) < 3:
        raise ValueError(f"{video}: {len(target)} frames; the first and the last are skipped, so at least 3 are needed")
    object_ids = scored_ids(target, protocol)
    if not object_ids:
        raise NothingToScoreError(f"{video}: no object id in the first true frame")
    frames = []
    for t in range(1, len(target) - 1):
        true = scored_map(target[t], protocol)
        frames.append(functional.score_frame(scored_map(preds[t], protocol), true, object_ids))
    return [object_scores(video, i, scores) for i, scores in zip(object_ids, zip(*frames, strict=True), strict=True)]
