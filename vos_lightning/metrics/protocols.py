"""Protocols that average J and F over objects and videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import get_args

from vos_lightning.io.files import natural_key
from vos_lightning.metrics import davis, youtube_vos
from vos_lightning.metrics.scores import Frames, ObjectScores, Protocol

TITLES: dict[Protocol, str] = {
    "davis16": "DAVIS 2016",
    "davis17": "DAVIS 2017 semi-supervised",
    "youtube_vos18": "YouTube-VOS 2018",
    "youtube_vos19": "YouTube-VOS 2019",
}
GROUPED: tuple[Protocol, ...] = ("youtube_vos18", "youtube_vos19")
"""Protocols that tell seen from unseen categories and are summed up by G."""
SUMMARY_KEYS = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")
GROUPED_KEYS = ("G", "J_seen", "F_seen", "J_unseen", "F_unseen", "J&F", "J", "F")


def check_protocol(protocol: str) -> None:
    """Raise a ``ValueError`` if ``protocol`` is unknown."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {', '.join(get_args(Protocol))}, not {protocol!r}")


def summary_keys(protocol: Protocol) -> tuple[str, ...]:
    """Keys of the result of :func:`summarize`, in order."""
    return GROUPED_KEYS if protocol in GROUPED else SUMMARY_KEYS


def evaluate_video(
    preds: Frames,
    target: Frames,
    protocol: Protocol,
    video: str = "",
    unseen_ids: Iterable[int] = (),
) -> list[ObjectScores]:
    """Score a video by a protocol.

    Args:
        preds: predicted label maps of all annotated frames.
        target: true label maps of the same frames.
        protocol: how videos are scored, see :data:`vos_lightning.metrics.scores.Protocol`.
        video: name of the video, for the rows and for messages.
        unseen_ids: objects whose category is not in the training set (YouTube-VOS).

    Returns:
        One row an object.

    Raises:
        ValueError: the protocol is unknown, frames differ in number or size, there are too few frames, or there is no object to
            score.
    """
    check_protocol(protocol)
    if len(preds) != len(target):
        raise ValueError(f"{video}: {len(preds)} predicted and {len(target)} true frames")
    if protocol in GROUPED:
        return youtube_vos.evaluate_video(preds, target, video, unseen_ids)
    return davis.evaluate_video(preds, target, protocol, video)


def unique_rows(rows: Iterable[ObjectScores]) -> list[ObjectScores]:
    """One row for each (video, object), sorted; of repeated rows the first one."""
    first: dict[tuple[str, int], ObjectScores] = {}
    for row in rows:
        first.setdefault((row.video, row.object_id), row)
    return [first[key] for key in sorted(first, key=lambda key: (natural_key(key[0]), key[1]))]


def summarize(rows: Sequence[ObjectScores], protocol: Protocol = "davis17") -> dict[str, float]:
    """Means over all objects of all videos (not over videos), and J&F, the mean of J and F; NaN without rows.

    For YouTube-VOS, means over objects of seen and of unseen categories are added, and G, the mean of these four; it is NaN
    unless there are objects of both kinds.

    Returns:
        The keys of :func:`summary_keys`, in their order.
    """
    means = {key: _mean(rows, key) for key in SUMMARY_KEYS if key != "J&F"}
    means["J&F"] = (means["J"] + means["F"]) / 2
    for group, unseen in (("seen", False), ("unseen", True)):
        members = [row for row in rows if row.unseen == unseen]
        means |= {f"{key}_{group}": _mean(members, key) for key in ("J", "F")}
    means["G"] = (means["J_seen"] + means["F_seen"] + means["J_unseen"] + means["F_unseen"]) / 4
    return {key: means[key] for key in summary_keys(protocol)}


def _mean(rows: Sequence[ObjectScores], key: str) -> float:
    return fmean(getattr(row, key) for row in rows) if rows else float("nan")


def describe(protocol: Protocol, rows: Sequence[ObjectScores]) -> str:
    """One line that says how scores were computed, to be shown with them."""
    counted = f"{len(rows)} objects in {len({row.video for row in rows})} videos"
    if protocol not in GROUPED:
        return f"{TITLES[protocol]}: first and last frame skipped, {counted}"
    unseen = sum(row.unseen for row in rows)
    groups = f"{unseen} of unseen categories" if unseen else "none known to be of an unseen category, so there is no G"
    return f"{TITLES[protocol]}: annotated frames after the first of each object, {counted}, {groups}"
