"""The YouTube-VOS protocol: objects that appear late, and categories that training has not seen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.metrics import functional
from vos_lightning.metrics.scores import ObjectScores, object_scores
from vos_lightning.structures import IGNORE_LABEL


def evaluate_video(
    preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], video: str = "", unseen_ids: Iterable[int] = ()
) -> list[ObjectScores]:
    """Score every object over the annotated frames after the one that shows it first.

    Predictions before an object's first frame do not count for it. An object that only the last frame shows has nothing to score
    and no row.

    Args:
        preds: predicted label maps of all annotated frames; the first is not looked at.
        target: true label maps of the same frames; 255 is background.
        video: its name, for the rows and for messages.
        unseen_ids: objects whose category is not in the training set.

    Returns:
        One row an object, by ascending id.

    Raises:
        ValueError: the video has fewer than two frames, or no object to score.

    Reference: Xu et al., "YouTube-VOS: A Large-Scale Video Object Segmentation Benchmark", 2018. Its server does not publish
    which frames it scores; leaving out the given one is the rule of LVOS and of the vos-benchmark toolkit.
    """
    if len(target) < 2:
        raise ValueError(f"{video}: {len(target)} annotated frames; an object's first one is skipped, so at least 2 are needed")
    target = target.masked_fill(target == IGNORE_LABEL, 0)
    # (256, T): whether a frame shows an id.
    shown = torch.stack([torch.bincount(frame.flatten().long(), minlength=256) > 0 for frame in target], dim=1)
    shown[0] = False
    first = {int(i): int(shown[i].int().argmax()) for i in shown[:, :-1].any(dim=1).nonzero()}
    if not first:
        raise ValueError(f"{video}: the truth shows no object before its last annotated frame")
    unseen = set(unseen_ids)
    start = min(first.values()) + 1
    region, boundary = functional.region_and_boundary(preds[start:], target[start:], tuple(first))
    rows = []
    for n, (object_id, frame) in enumerate(first.items()):
        scored = slice(frame + 1 - start, None)
        rows.append(object_scores(video, object_id, region[n, scored], boundary[n, scored], object_id in unseen))
    return rows


def unseen_objects(meta: Path, train_meta: Path) -> dict[str, frozenset[int]]:
    """Ids of every video whose category does not occur in training.

    Args:
        meta: ``meta.json`` of the scored videos, with categories.
        train_meta: ``meta.json`` of the training videos.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has another structure, or no categories (they are not published for the validation videos).
    """
    categories = {path: _categories(path) for path in (meta, train_meta)}
    for path, videos in categories.items():
        if not any(category for objects in videos.values() for category in objects.values()):
            raise ValueError(f"{path} has no categories, so seen and unseen objects cannot be told apart")
    seen = {category for objects in categories[train_meta].values() for category in objects.values()}
    return {
        video: frozenset(object_id for object_id, category in objects.items() if category not in seen)
        for video, objects in categories[meta].items()
    }


def _categories(path: Path) -> dict[str, dict[int, str | None]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; give a meta.json of YouTube-VOS")
    try:
        return {
            video: {int(object_id): entry.get("category") for object_id, entry in content["objects"].items()}
            for video, content in json.loads(path.read_text())["videos"].items()
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a meta.json of YouTube-VOS ({error!r})") from error
