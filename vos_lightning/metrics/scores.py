"""Scores of an object in a video, and the names of the protocols that produce them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, runtime_checkable
from typing import Protocol as Interface

import numpy as np

from vos_lightning.metrics import functional
from vos_lightning.metrics.functional import FrameScore

Protocol = Literal["davis16", "davis17", "youtube_vos18", "youtube_vos19"]
"""How videos are scored.

``davis16``: every non-zero pixel, in truth and prediction, belongs to a single object; first and last frame skipped.
``davis17``: the objects are 1 to the largest id of the first true frame, whether they reappear or not. 255 in the truth is
background (void is not used), so an object that is predicted there is a false positive. The first and the last frame are skipped.
``youtube_vos18``, ``youtube_vos19``: every id of the truth is scored, from the annotated frame after its first one to the last.
255 is background. Seen and unseen categories are averaged separately. The two years differ only in their data.
"""


class NothingToScoreError(ValueError):
    """The truth shows no object in the frames that decide what is scored."""


@runtime_checkable
class Frames(Interface):
    """Label maps of a video: a ``(T, H, W)`` uint8 array or tensor, or a sequence that reads a frame when it is accessed.

    Protocols access only the frames that they score, in order, and the true frame before the predicted one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class ObjectScores:
    """Scores of one object over the evaluated frames of its video."""

    video: str
    object_id: int
    J: float
    J_recall: float
    J_decay: float
    F: float
    F_recall: float
    F_decay: float
    unseen: bool = False
    """Whether its category is known to be absent from the training set (YouTube-VOS)."""
    missing: bool = False
    """Whether the predictions never show it in the evaluated frames although the truth does."""


def object_scores(video: str, object_id: int, scores: Sequence[FrameScore], unseen: bool = False) -> ObjectScores:
    """Row of an object from its scores in the evaluated frames."""
    region, boundary = np.array([[score.J for score in scores]]), np.array([[score.F for score in scores]])
    return ObjectScores(
        video=video,
        object_id=object_id,
        J=functional.mean(region).item(),
        J_recall=functional.recall(region).item(),
        J_decay=functional.decay(region).item(),
        F=functional.mean(boundary).item(),
        F_recall=functional.recall(boundary).item(),
        F_decay=functional.decay(boundary).item(),
        unseen=unseen,
        missing=any(score.true for score in scores) and not any(score.predicted for score in scores),
    )
