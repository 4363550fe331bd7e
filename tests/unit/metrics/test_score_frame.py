"""Scores of a single frame: those of the measures over a video, and who is seen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.metrics.test_metrics import blobs
from vos_lightning.metrics.functional import NOWHERE, boundary_accuracy, region_similarity, score_frame


@pytest.mark.parametrize("bound_th", [None, 0.008, 0.05, 3.0])
@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40)])
def test_a_frame_has_the_scores_of_a_video_of_one_frame(height: int, width: int, bound_th: float | None) -> None:
    """The tolerance grows with both sides of the frame."""
    pred, true = blobs(1, 1, height, width, 3), blobs(2, 1, height, width, 3)
    ids = (3, 1, 2, 9)
    options = {} if bound_th is None else {"bound_th": bound_th}
    found = score_frame(pred[0].numpy(), true[0].numpy(), ids, **options)
    region, boundary = region_similarity(pred, true, ids), boundary_accuracy(pred, true, ids, **options)
    assert [score.J for score in found] == region[:, 0].tolist()
    assert [score.F for score in found] == boundary[:, 0].tolist()
    assert ((boundary > 0) & (boundary < 1)).sum() > 1
    assert found[3] == NOWHERE


def test_one_pixel_is_enough_to_be_seen() -> None:
    pred, true = np.zeros((2, 9, 9), np.uint8)
    pred[2, 2], true[4, 4], pred[6, 6], true[6, 6] = 1, 2, 3, 3
    found = score_frame(pred, true, (1, 2, 3, 4))
    assert [(score.predicted, score.true) for score in found] == [(True, False), (False, True), (True, True), (False, False)]
    assert [score.J for score in found] == [0.0, 0.0, 1.0, 1.0]
