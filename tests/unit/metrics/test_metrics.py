"""J, F, their statistics and the DAVIS protocols."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.oracles import davis_metrics as oracle
from tests.tolerances import assert_close
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.metrics import davis, youtube_vos
from vos_lightning.metrics.functional import (
    _scores,
    boundary_accuracy,
    boundary_radius,
    decay,
    mean,
    recall,
    region_and_boundary,
    region_similarity,
)
from vos_lightning.metrics.protocols import check_protocol, describe, evaluate_video, summarize, unique_rows
from vos_lightning.metrics.video_metric import VideoMetric


def blobs(seed: int, num_frames: int, height: int, width: int, num_objects: int) -> torch.Tensor:
    """Label maps with ellipses and boxes of all sizes, many over the border, some absent."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((num_frames, height, width), dtype=np.uint8)
    for label_map in maps:
        for object_id in rng.permutation(np.arange(1, num_objects + 1)):
            centre = (int(rng.integers(-5, width + 5)), int(rng.integers(-5, height + 5)))
            axes = (int(rng.integers(0, width // 2 + 1)), int(rng.integers(0, height // 2 + 1)))
            if rng.random() < 0.7:
                cv2.ellipse(label_map, centre, axes, float(rng.integers(180)), 0, 360, int(object_id), -1)
            elif rng.random() < 0.5:
                cv2.rectangle(label_map, centre, (centre[0] + axes[0], centre[1] + axes[1]), int(object_id), -1)
    return torch.from_numpy(maps)


def both(preds: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """J and F of object 1 in one frame."""
    return (
        region_similarity(preds[None], target[None], (1,)).item(),
        boundary_accuracy(preds[None], target[None], (1,)).item(),
    )


def assert_values(actual: np.ndarray, expected: np.ndarray) -> None:
    assert_close(torch.from_numpy(actual), torch.from_numpy(expected))


def empty(height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.zeros(height, width, dtype=torch.uint8)


# Against the oracle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "bound_th"),
    [
        (48, 85, 0.008),
        (60, 64, 3.0),
        (1, 40, 2.0),
        (40, 1, 2.0),
        (33, 129, 0.05),
        (97, 120, 9.0),
        (9, 50, 70.0),
        (240, 427, 0.008),
    ],
)
def test_values_equal_the_oracle(height: int, width: int, bound_th: float) -> None:
    preds, target = blobs(height, 12, height, width, 4), blobs(width + 1000, 12, height, width, 4)
    preds[2] = target[2]
    preds[3], target[3] = 1, 1
    preds[4], target[4] = 1, 0
    preds[5], target[5] = 2, 1
    ids = (1, 2, 4, 9)
    expected_j = oracle.over_video(oracle.region_similarity, preds.numpy(), target.numpy(), ids)
    expected_f = oracle.over_video(oracle.boundary_accuracy, preds.numpy(), target.numpy(), ids, bound_th=bound_th)
    assert_values(region_similarity(preds, target, ids), expected_j)
    assert_values(boundary_accuracy(preds, target, ids, bound_th=bound_th), expected_f)
    j, f = region_and_boundary(preds, target, ids, bound_th=bound_th)
    assert_values(j, expected_j)
    assert_values(f, expected_f)


def test_shifted_copies_at_full_size_equal_the_oracle() -> None:
    target = blobs(5, 3, 480, 854, 3)
    preds = target.roll((4, -7), dims=(1, 2))
    expected = oracle.over_video(oracle.boundary_accuracy, preds.numpy(), target.numpy(), (1, 2, 3))
    assert 0 < expected.min() < 0.9
    assert_values(boundary_accuracy(preds, target, (1, 2, 3)), expected)


def test_void_pixels_count_for_nothing() -> None:
    preds, target = blobs(1, 6, 40, 60, 2), blobs(2, 6, 40, 60, 2)
    void = blobs(3, 6, 40, 60, 1) > 0
    for ours, plain in ((region_similarity, oracle.region_similarity), (boundary_accuracy, oracle.boundary_accuracy)):
        expected = [
            [plain((p == i).numpy(), (t == i).numpy(), v.numpy()) for p, t, v in zip(preds, target, void, strict=True)]
            for i in (1, 2)
        ]
        assert_values(ours(preds, target, (1, 2), void), np.array(expected))
    for together, alone in zip(
        region_and_boundary(preds, target, (1, 2), void), (region_similarity, boundary_accuracy), strict=True
    ):
        assert_values(together, alone(preds, target, (1, 2), void))


def test_the_tolerance_is_0_8_percent_of_the_diagonal() -> None:
    preds, target = blobs(4, 3, 240, 427, 2), blobs(5, 3, 240, 427, 2)
    expected = boundary_accuracy(preds, target, (1, 2), bound_th=4.0)  # 0.008 times 490 pixels, rounded up
    assert_values(boundary_accuracy(preds, target, (1, 2)), expected)
    assert_values(region_and_boundary(preds, target, (1, 2))[1], expected)
    assert not np.array_equal(expected, boundary_accuracy(preds, target, (1, 2), bound_th=3.0))


@pytest.mark.realdata
def test_values_equal_the_official_toolkit() -> None:
    root = Path(os.environ["VOS_REAL_DATA"]) / "metrics"
    for video, objects in json.loads((root / "expected.json").read_text()).items():
        target, preds = (
            torch.stack([read_label_map(path) for path in sorted((root / side / video).glob("*.png"))])
            for side in ("truth", "prediction")
        )
        ids = tuple(int(object_id) for object_id in objects)
        assert ids == tuple(range(1, int(target[0].max()) + 1))
        j, f = region_and_boundary(preds, target, ids)
        for ours, name in ((j, "J"), (f, "F")):
            expected = np.array([objects[str(object_id)][name] for object_id in ids])
            assert np.abs(ours - expected).max() < 1e-6


def test_a_single_id_among_others_equals_the_oracle() -> None:
    preds, target = blobs(8, 12, 40, 60, 3), blobs(9, 12, 40, 60, 3)
    preds[5], target[5] = 1, 3
    for ours, plain in ((region_similarity, oracle.region_similarity), (boundary_accuracy, oracle.boundary_accuracy)):
        expected = oracle.over_video(plain, preds.numpy(), target.numpy(), (2,))
        assert_values(ours(preds, target, (2,)), expected)


# Special cases --------------------------------------------------------------------------------------------------------


def test_empty_masks() -> None:
    mask = empty()
    mask[5:9, 5:9] = 1
    assert both(empty(), empty()) == (1.0, 1.0)
    assert both(mask, empty()) == (0.0, 0.0)
    assert both(empty(), mask) == (0.0, 0.0)


def test_a_full_mask_has_no_boundary() -> None:
    full = torch.ones_like(empty())
    assert both(full, full) == (1.0, 1.0)
    assert both(full, empty()) == (0.0, 1.0)


def test_the_image_border_is_no_boundary() -> None:
    # The block touches the bottom; without its last row its boundary is the same but for what lies on that row.
    touching, raised = empty(), empty()
    touching[12:, 8:20] = 1
    raised[12:19, 8:20] = 1
    ring = oracle.boundary_map(touching.numpy() > 0)
    assert ring[19].sum() == 2  # its two sides only
    assert boundary_accuracy(raised[None], touching[None], (1,), bound_th=1.0).item() < 1
    assert boundary_accuracy(touching[None], touching[None], (1,), bound_th=1.0).item() == 1


@pytest.mark.parametrize(("height", "width", "radius"), [(480, 854, 8), (480, 910, 9), (720, 1280, 12), (1080, 1920, 18)])
def test_radius(height: int, width: int, radius: int) -> None:
    assert boundary_radius(height, width) == radius
    assert boundary_radius(height, width, 5.0) == 5


def test_the_disk_is_closed() -> None:
    # Vertical half-plane edges of full height: every boundary pixel is exactly `distance` away.
    target, near, far = empty(), empty(), empty()
    target[:, 10:], near[:, 13:], far[:, 14:] = 1, 1, 1
    assert boundary_accuracy(near[None], target[None], (1,), bound_th=3.0).item() == 1.0
    assert boundary_accuracy(far[None], target[None], (1,), bound_th=3.0).item() == 0.0


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 20, 30\) and truth \(1, 20, 31\)"):
        _scores(empty()[None].numpy(), empty(20, 31)[None].numpy(), (1,), None, 1, [])
    # One row would be stretched over many, were it not for the check.
    with pytest.raises(ValueError, match="3 predicted and 4 true frames"):
        evaluate_video(torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(4, 20, 30, dtype=torch.uint8), "davis16")
    with pytest.raises(ValueError, match=r"\(1, 30\) and truth \(20, 30\)"):
        evaluate_video(torch.zeros(3, 1, 30, dtype=torch.uint8), torch.zeros(3, 20, 30, dtype=torch.uint8), "davis16")


# Statistics -----------------------------------------------------------------------------------------------------------


def test_statistics() -> None:
    values = np.array([[0.2, 0.5, 0.5001, 0.9, 1.0]])
    assert_values(mean(values), np.array([0.62002]))
    assert_values(recall(values), np.array([0.6]))
    # Quarters [0, 1], [1, 2], [2, 3], [3, 4].
    assert_values(decay(values), np.array([0.35 - 0.95]))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7, 78, 104, 255, 256, 257, 600, 1300])
def test_decay_equals_the_oracle_without_wrapping(num_frames: int) -> None:
    values = np.random.default_rng(num_frames).random((3, num_frames))
    expected = np.array([oracle.decay(row) for row in values])
    assert np.isfinite(expected).all()
    assert_values(decay(values), expected)


# Protocols ------------------------------------------------------------------------------------------------------------


def test_davis17_skips_ends_and_takes_ids_of_the_first_frame() -> None:
    target, preds = blobs(1, 8, 40, 60, 3), blobs(2, 8, 40, 60, 3)
    target[0] = 0
    target[0, 0, 0] = 2  # ids 1 and 2 are scored, although 1 is not there; 3 comes later and is not
    rows = evaluate_video(preds, target, "davis17", "v")
    assert [(row.video, row.object_id) for row in rows] == [("v", 1), ("v", 2)]
    inner = region_similarity(preds[1:-1], target[1:-1], (1, 2))
    assert [row.J for row in rows] == mean(inner).tolist()
    assert [row.J_recall for row in rows] == recall(inner).tolist()
    assert [row.J_decay for row in rows] == decay(inner).tolist()
    inner = boundary_accuracy(preds[1:-1], target[1:-1], (1, 2))
    assert [row.F for row in rows] == mean(inner).tolist()
    changed = preds.clone()
    changed[0], changed[-1] = 1, 2
    assert evaluate_video(changed, target, "davis17", "v") == rows


def test_davis17_void_is_background() -> None:
    target = torch.zeros(4, 10, 10, dtype=torch.uint8)
    target[:, :5] = 1
    preds = target.clone()
    target[:, 5:] = 255
    assert evaluate_video(preds, target, "davis17")[0].J == 1.0
    preds[:] = 1
    assert evaluate_video(preds, target, "davis17")[0].J == 0.5


def test_davis16_merges_every_value() -> None:
    target = blobs(1, 6, 40, 60, 3)
    preds = blobs(2, 6, 40, 60, 1)
    rows = evaluate_video(preds * 255, (target > 0).to(torch.uint8) * 255, "davis16")
    assert rows == evaluate_video(preds, target, "davis16")
    assert len(rows) == 1
    expected = region_similarity(preds[1:-1], (target[1:-1] > 0).to(torch.uint8), (1,))
    assert_values(np.array([rows[0].J]), mean(expected))


def test_what_cannot_be_scored_is_said() -> None:
    target = torch.full((4, 8, 8), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"cow: no object id in the first true frame"):
        evaluate_video(target, target, "davis17", "cow")
    with pytest.raises(ValueError, match="cow: 2 frames"):
        evaluate_video(target[:2], target[:2], "davis16", "cow")
    with pytest.raises(ValueError, match="protocol must be one of davis16, davis17, youtube_vos18, youtube_vos19, not 'davis18'"):
        check_protocol("davis18")


# The metric -----------------------------------------------------------------------------------------------------------

VIDEOS = {"one": (1, 1), "zwei/ü": (2, 3), "three": (3, 2)}


def feed(metric: VideoMetric, names: list[str]) -> None:
    for name in names:
        seed, num_objects = VIDEOS[name]
        target = blobs(seed, 5, 30, 40, num_objects)
        target[0, 0, 0] = num_objects
        metric.update(target.roll(2, dims=2), target, name)


def test_metric_averages_objects_and_counts_each_once() -> None:
    metric = VideoMetric("davis17")
    feed(metric, ["one", "three", "zwei/ü", "three"])
    rows = metric.rows()
    assert [(row.video, row.object_id) for row in rows] == sorted((v, i) for v, (_, n) in VIDEOS.items() for i in range(1, n + 1))
    scores = metric.compute()
    assert list(scores) == ["J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay"]
    assert scores["J"].item() == pytest.approx(sum(row.J for row in rows) / 6)
    assert scores["J&F"].item() == pytest.approx((scores["J"].item() + scores["F"].item()) / 2)
    assert {key: value.item() for key, value in scores.items()} == pytest.approx(summarize(rows))
    assert describe("davis17", rows) == "DAVIS 2017 semi-supervised: first and last frame skipped, 6 objects in 3 videos"
    metric.reset()
    assert metric.rows() == []


def test_rows_are_in_the_order_in_which_people_count() -> None:
    target = blobs(1, 5, 30, 40, 2)
    row = davis.evaluate_video(target, target, "davis16")[0]
    assert (row.video, row.unseen, row.missing) == ("", False, False)
    assert youtube_vos.evaluate_video(target, target)[0].video == ""
    shuffled = [replace(row, video=video, object_id=i) for video, i in (("v10", 1), ("v2", 10), ("v2", 9), ("v10", 1), ("V1", 1))]
    assert [(found.video, found.object_id) for found in unique_rows(shuffled)] == [("V1", 1), ("v2", 9), ("v2", 10), ("v10", 1)]
    first = replace(shuffled[0], J=0.25)
    assert unique_rows([first, shuffled[0]]) == [first]


def test_a_metric_keeps_its_rows_where_it_is() -> None:
    metric = VideoMetric("davis17")
    with torch.device("meta"):
        metric.reset()
    feed(metric, ["one"])
    assert {str(line.device) for line in metric.lines} == {"cpu"}
    assert len(metric.rows()) == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_without_videos_is_nan() -> None:
    assert all(torch.isnan(value) for value in VideoMetric("davis16").compute().values())


SHARES = [[["one", "zwei/ü"], ["three", "one"]], [["one", "three", "zwei/ü"], []]]
"""What each of two processes sees: a repeated video; nothing."""


def gather(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric, results = VideoMetric("davis17"), []
    for shares in SHARES:
        metric.reset()
        feed(metric, shares[rank])
        scores = {key: value.item() for key, value in metric.compute().items()}
        results.append({"scores": scores, "rows": [asdict(row) for row in metric.rows()]})
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_metric_in_two_processes_equals_one(tmp_path: Path) -> None:
    single = VideoMetric("davis17")
    feed(single, list(VIDEOS))
    expected = {"scores": {k: v.item() for k, v in single.compute().items()}, "rows": [asdict(row) for row in single.rows()]}
    mp.start_processes(gather, (str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [expected, expected]
