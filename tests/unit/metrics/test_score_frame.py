"""Scores of a single frame: those of the measures over a video, and who is seen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracles import davis_metrics as oracle
from tests.unit.metrics.test_metrics import blobs
from vos_lightning.metrics.functional import NOWHERE, boundary_accuracy, region_similarity, score_frame
from vos_lightning.metrics.protocols import evaluate_video


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


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_object_of_two_pieces_is_cut_at_its_ends(transposed: bool, flipped: bool) -> None:
    """A thin piece one row from the border, and another one further inside, with any number of rows between them."""
    for rows in range(1, 9):
        pred, true = np.zeros((2, 14, 11), np.uint8)
        pred[[12, 12 - rows], 3:8] = 1
        true[12, 5:10], true[3, 2] = 1, 2
        pair = [np.ascontiguousarray(m[::-1] if flipped else m) for m in (pred, true)]
        pred, true = (np.ascontiguousarray(m.T) for m in pair) if transposed else pair
        for score, i in zip(score_frame(pred, true, (1, 2)), (1, 2), strict=True):
            assert oracle.region_similarity(pred == i, true == i) == score.J
            assert pytest.approx(oracle.boundary_accuracy(pred == i, true == i)) == score.F


@pytest.mark.parametrize("radius", [31, 32, 33, 63, 64, 65, 97, 130, 200, 5000])
def test_a_boundary_is_near_as_far_as_the_radius(radius: int) -> None:
    """Also where that is wider than the words of 64 pixels in which rows are kept.

    The boundary of a pixel is two pixels wide: itself and the one before it. Of those, both are near the other boundary, one or
    none.
    """
    for distance, expected in ((radius - 1, 1.0), (radius, 1.0), (radius + 1, 0.5), (radius + 2, 0.0)):
        pred, true = np.zeros((2, 3, 2 * radius + 50), np.uint8)
        pred[1, 20], true[1, 20 + distance] = 1, 1
        (score,) = score_frame(pred, true, (1,), bound_th=float(radius))
        assert expected == score.F
        if radius < 1000:  # the oracle draws the disk
            assert oracle.boundary_accuracy(pred == 1, true == 1, bound_th=radius) == expected


def test_a_video_without_a_name_has_none() -> None:
    target = blobs(1, 5, 30, 40, 2).numpy()
    for protocol in ("davis16", "davis17", "youtube_vos18"):
        assert {row.video for row in evaluate_video(target, target, protocol)} == {""}
