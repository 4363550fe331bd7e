"""The YouTube-VOS protocol: objects that appear late, and categories that training has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vos_lightning.labels import IGNORE_LABEL
from vos_lightning.metrics import functional
from vos_lightning.metrics.functional import FrameScore
from vos_lightning.metrics.scores import Frames, NothingToScoreError, ObjectScores, object_scores


def evaluate_video(preds: Frames, target: Frames, video: str = "", unseen_ids: Iterable[int] = ()) -> list[ObjectScores]:
    """Score every object over the annotated frames after the one that shows it first.

    Predictions before an object's first frame do not count for it. An object that only the last frame shows cannot be scored and
    has no row.

    Args:
        preds: predicted label maps of all annotated frames; those up to the first frame with an object are not read.
        target: true label maps of the same frames; 255 is background.
        video: name of the video, for the rows and for messages.
        unseen_ids: objects whose category is not in the training set.

    Returns:
        One row an object, by ascending id.

    Raises:
        ValueError: the video has fewer than two frames, or no object to score.

    Reference: Xu et al., "YouTube-VOS: A Large-Scale Video Object Segmentation Benchmark", 2018. Its server does not publish
    which frames it scores; the given frame is left out as in LVOS and in the vos-benchmark toolkit.
    """
    if len(target) < 2:
        raise ValueError(f"{video}: {len(target)} annotated frames; an object's first one is skipped, so at least 2 are needed")
    scores: dict[int, list[FrameScore]] = {}
    for t in range(len(target)):
        true = functional.as_array(target[t])
        if scores:
            found = functional.score_frame(functional.as_array(preds[t]), true, tuple(scores))
            for of_object, score in zip(scores.values(), found, strict=True):
                of_object.append(score)
        for object_id in functional.ids_in(true):
            if object_id != IGNORE_LABEL:
                scores.setdefault(object_id, [])
    rows = [object_scores(video, i, scores[i], i in frozenset(unseen_ids)) for i in sorted(scores) if scores[i]]
    if not rows:
        raise NothingToScoreError(f"{video}: the truth shows no object before its last annotated frame")
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
    from vos_lightning.io.meta import read_youtube_meta  # imported here, as most scores need no such file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; give a meta.json of YouTube-VOS")
    return {
        video: {int(object_id): entry.get("category") for object_id, entry in content["objects"].items()}
        for video, content in read_youtube_meta(path).items()
    }
