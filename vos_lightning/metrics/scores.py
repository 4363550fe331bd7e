"""Scores of an object in a video, and the names of the protocols that produce them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from vos_lightning.metrics import functional

Protocol = Literal["davis16", "davis17", "youtube_vos18", "youtube_vos19"]
"""How videos are scored.

``davis16``: every non-zero pixel, of truth and prediction alike, is the one object; first and last frame skipped.
``davis17``: the objects are 1 to the largest id of the first true frame, whether they reappear or not; 255 in the truth is
background (void is not used), so an object predicted there is a false positive; first and last frame skipped.
``youtube_vos18``, ``youtube_vos19``: every id of the truth, from the annotated frame after the one that shows it first to
the last; 255 is background. Seen and unseen categories are averaged apart. The two years differ in their data alone.
"""


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
    """Whether its category is known not to be in the training set (YouTube-VOS)."""


def object_scores(
    video: str, object_id: int, region: Float64[Tensor, " T"], boundary: Float64[Tensor, " T"], unseen: bool = False
) -> ObjectScores:
    """Row of an object from its J and F in the evaluated frames."""
    j, f = region[None], boundary[None]
    return ObjectScores(
        video=video,
        object_id=object_id,
        J=float(functional.mean(j)),
        J_recall=float(functional.recall(j)),
        J_decay=float(functional.decay(j)),
        F=float(functional.mean(f)),
        F_recall=float(functional.recall(f)),
        F_decay=float(functional.decay(f)),
        unseen=unseen,
    )
