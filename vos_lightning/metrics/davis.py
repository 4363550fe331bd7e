"""The DAVIS 2016 and 2017 (semi-supervised) protocols, and a metric that follows them while a network is validated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from vos_lightning.metrics import functional
from vos_lightning.structures import IGNORE_LABEL

Protocol = Literal["davis16", "davis17"]
"""Both skip the first and the last frame.

``davis16``: every non-zero pixel, of truth and prediction alike, is the one object.
``davis17``: the objects are 1 to the largest id of the first true frame, whether they reappear or not; 255 in the truth is
background (void is not used), so an object predicted there is a false positive.
"""

TITLES: dict[Protocol, str] = {"davis16": "DAVIS 2016", "davis17": "DAVIS 2017 semi-supervised"}
SUMMARY_KEYS = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")


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


def check_protocol(protocol: str) -> None:
    """Raise a ``ValueError`` unless ``protocol`` is a known one."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {', '.join(get_args(Protocol))}, not {protocol!r}")


def scored_maps(
    preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], protocol: Protocol
) -> tuple[UInt8[Tensor, "T H W"], UInt8[Tensor, "T H W"], tuple[int, ...]]:
    """What the protocol makes of label maps before it scores them.

    Args:
        preds: predicted label maps of all frames.
        target: true label maps of all frames.
        protocol: see :data:`Protocol`.

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
        protocol: see :data:`Protocol`.
        video: its name, for the rows and for messages.

    Returns:
        One row an object.

    Raises:
        ValueError: the video has fewer than three frames, or no object to score.

    Reference: Perazzi et al., CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation".
    """
    check_protocol(protocol)
    if len(target) < 3:
        raise ValueError(f"{video}: {len(target)} frames; the first and the last are skipped, so at least 3 are needed")
    preds, target, object_ids = scored_maps(preds, target, protocol)
    if not object_ids:
        raise ValueError(f"{video}: no object id in the first true frame; masks of 0 and 255 are scored with davis16")
    values = [
        statistic(measured)
        for measured in functional.region_and_boundary(preds[1:-1], target[1:-1], object_ids)
        for statistic in (functional.mean, functional.recall, functional.decay)
    ]
    scores = torch.stack(values, dim=1).tolist()
    return [ObjectScores(video, object_id, *row) for object_id, row in zip(object_ids, scores, strict=True)]


def unique_rows(rows: Iterable[ObjectScores]) -> list[ObjectScores]:
    """One row for each (video, object), sorted by them; of repeated ones the first."""
    first: dict[tuple[str, int], ObjectScores] = {}
    for row in rows:
        first.setdefault((row.video, row.object_id), row)
    return [first[key] for key in sorted(first)]


def summarize(rows: Sequence[ObjectScores]) -> dict[str, float]:
    """Means over all objects of all videos (not over videos), and J&F, the mean of J and F; NaN without rows.

    Returns:
        The keys of :data:`SUMMARY_KEYS`, in their order.
    """
    means = {key: fmean(getattr(row, key) for row in rows) if rows else float("nan") for key in SUMMARY_KEYS if key != "J&F"}
    means["J&F"] = (means["J"] + means["F"]) / 2
    return {key: means[key] for key in SUMMARY_KEYS}


def describe(protocol: Protocol, rows: Sequence[ObjectScores]) -> str:
    """One line that says how scores came about, to be shown with them."""
    num_videos = len({row.video for row in rows})
    return f"{TITLES[protocol]}: first and last frame skipped, {len(rows)} objects in {num_videos} videos"


class DAVISMetric(Metric):
    """J and F of whole videos by a DAVIS protocol, averaged over objects.

    Processes may see different numbers of videos, none at all, or the same video (a distributed sampler repeats some): every
    object counts once.

    Args:
        protocol: see :data:`Protocol`.
        kwargs: for ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True
    lines: list[Tensor] | Tensor

    def __init__(self, protocol: Protocol, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_protocol(protocol)
        self.protocol: Protocol = protocol
        # Rows travel between processes as bytes, one line of JSON each: names of any length and full precision on any device.
        self.add_state("lines", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        super().reset()
        # Where a process has no video, torchmetrics would gather an empty *float* tensor, which other processes cannot match.
        self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]

    def update(self, preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], video: str) -> None:
        """Score one whole video.

        Args:
            preds: predicted label maps of all frames in original ids.
            target: true label maps of all frames.
            video: its name, unique in the data set.
        """
        rows = evaluate_video(preds, target, self.protocol, video)
        encoded = "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()
        assert isinstance(self.lines, list)
        self.lines.append(torch.frombuffer(bytearray(encoded), dtype=torch.uint8).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Means over the objects of all processes; NaN before any video.

        Returns:
            Scalars named as in :data:`SUMMARY_KEYS`.
        """
        return {key: torch.tensor(value, device=self.device) for key, value in summarize(self._decoded()).items()}

    def rows(self) -> list[ObjectScores]:
        """Scores of every object of all processes; in a distributed run, every process must call this."""
        with self.sync_context():
            return self._decoded()

    def _decoded(self) -> list[ObjectScores]:
        content = bytes(dim_zero_cat(self.lines).cpu().numpy()).decode()
        return unique_rows(ObjectScores(**json.loads(line)) for line in content.splitlines())
