"""The YouTube-VOS protocol: late objects, gaps in the ids, seen and unseen categories, live and from files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from data_modules.datasets.youtube_vos import YouTubeVOSDataModule
from tests.layouts import write_youtube_vos_layout
from tests.oracles import youtube_vos as oracle
from tests.unit.data_modules.helpers import trainer
from tests.unit.dummies import DummyNetwork
from tests.unit.metrics.test_metrics import blobs
from vos_lightning.evaluation.command import main
from vos_lightning.evaluation.folders import evaluate_folder
from vos_lightning.evaluation.tasks import EvaluationError
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.metrics.protocols import describe, evaluate_video, summarize
from vos_lightning.metrics.video_metric import VideoMetric
from vos_lightning.metrics.youtube_vos import unseen_objects
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation

UNSEEN = {"one": (3,), "two": ()}


def video(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and truth: ids 1, 3 and 7; id 3 appears in frame 2, id 7 in the last frame alone."""
    target = blobs(seed, 7, 40, 60, 2)
    target[target == 2] = 3
    target[:2][target[:2] == 3] = 0
    target[2, :6, :6] = 3
    target[0, 30:, 50:] = 1
    target[-1, 20:25, 20:25] = 7
    preds = target.roll(2, dims=2)
    preds[1, 10:20] = 3  # a false positive before the object is there
    return preds, target


@pytest.mark.parametrize("seed", range(4))
def test_objects_are_scored_after_their_first_frame(seed: int) -> None:
    preds, target = video(seed)
    rows = evaluate_video(preds, target, "youtube_vos18", "v", unseen_ids=(3,))
    assert [(row.object_id, row.unseen) for row in rows] == [(1, False), (3, True)]
    for row in rows:
        expected = oracle.object_scores(preds.numpy(), target.numpy(), row.object_id)
        assert pytest.approx(list(expected or ())) == [row.J, row.F]
    assert oracle.object_scores(preds.numpy(), target.numpy(), 7) is None
    # What is predicted up to its first frame does not count for an object.
    other = preds.clone()
    other[:3][other[:3] == 3] = 0
    assert [r.J for r in evaluate_video(other, target, "youtube_vos18") if r.object_id == 3] == [rows[1].J]


def test_void_is_background() -> None:
    preds, target = video(0)
    marked = target.clone()
    marked[3:, :3] = 255
    target[3:, :3] = 0
    assert evaluate_video(preds, marked, "youtube_vos19") == evaluate_video(preds, target, "youtube_vos19")


def test_g_is_the_mean_of_four(tmp_path: Path) -> None:
    metric, scores = VideoMetric("youtube_vos18"), {}
    for seed, name in enumerate(UNSEEN):
        preds, target = video(seed)
        metric.update(preds, target, name, UNSEEN[name])
        for object_id in (1, 3):
            scores[name, object_id] = oracle.object_scores(preds.numpy(), target.numpy(), object_id)
    result = {key: value.item() for key, value in metric.compute().items()}
    assert list(result) == ["G", "J_seen", "F_seen", "J_unseen", "F_unseen", "J&F", "J", "F"]
    assert result["G"] == pytest.approx(oracle.overall(scores, {("one", 3)}))
    assert result["J_unseen"] == pytest.approx(scores["one", 3][0])
    rows = metric.rows()
    assert describe("youtube_vos18", rows) == (
        "YouTube-VOS 2018: annotated frames after the first of each object, 4 objects in 2 videos, 1 of unseen categories"
    )
    assert describe("youtube_vos18", [row for row in rows if not row.unseen]) == (
        "YouTube-VOS 2018: annotated frames after the first of each object, 3 objects in 2 videos, "
        "none known to be of an unseen category, so there is no G"
    )
    # Without unseen objects there is no G, and J&F is there all the same.
    alone = summarize([row for row in rows if not row.unseen], "youtube_vos18")
    assert math.isnan(alone["G"])
    assert alone["J&F"] == pytest.approx((alone["J_seen"] + alone["F_seen"]) / 2)


def test_hopeless_videos_are_named() -> None:
    preds, target = video(0)
    with pytest.raises(ValueError, match="v: 1 annotated frames"):
        evaluate_video(preds[:1], target[:1], "youtube_vos18", "v")
    with pytest.raises(ValueError, match="v: the truth shows no object before its last"):
        evaluate_video(preds[:2], torch.zeros_like(target[:2]), "youtube_vos18", "v")


# While a network is validated -----------------------------------------------------------------------------------------


class Copier(VOSModule):
    """Scores a network that repeats what it was given."""

    def __init__(self) -> None:
        copying = Propagation(AnnotatedOnly(), "minimum")
        super().__init__(
            DummyNetwork(),
            copying,
            copying,
            optimisation=Optimisation(),
            evaluation=Evaluation(protocol="youtube_vos18"),
            late_objects=False,
            channels_last=False,
        )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_modules_score_by_it(tmp_path: Path) -> None:
    write_youtube_vos_layout(tmp_path, num_train=3, num_valid=1)
    module, data = Copier(), YouTubeVOSDataModule(str(tmp_path), num_held_out=2)
    (scores,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    rows = module.scored_rows
    assert {row.video for row in rows} == {"t000000000", "t000000001"}
    assert scores["val/J&F"] == pytest.approx(summarize(rows)["J&F"])
    assert scores["val_jf"] == pytest.approx(scores["val/J&F"])
    assert math.isnan(scores["val/G"])


# From files -----------------------------------------------------------------------------------------------------------


def write_meta(path: Path, categories: dict[str, dict[int, str | None]]) -> None:
    videos = {v: {"objects": {str(i): {"category": c, "frames": ["00000"]} for i, c in o.items()}} for v, o in categories.items()}
    path.write_text(json.dumps({"videos": videos}))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth, and predictions without the first frame."""
    for seed, name in enumerate(UNSEEN):
        for t, (pred, true) in enumerate(zip(*video(seed), strict=True)):
            write_label_map(tmp_path / "truth" / name / f"{5 * t:05d}.png", true)
            if t:
                write_label_map(tmp_path / "predictions" / name / f"{5 * t:05d}.png", pred)
    write_meta(tmp_path / "meta.json", {"one": {1: "dog", 3: "yak"}, "two": {1: "dog", 3: "cat"}})
    write_meta(tmp_path / "train.json", {"x": {1: "dog", 2: "cat"}})
    return tmp_path / "truth", tmp_path / "predictions"


def test_folders_equal_tensors(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unseen = unseen_objects(tmp_path / "meta.json", tmp_path / "train.json")
    assert unseen == {"one": {3}, "two": frozenset()}
    rows = [r for s, n in enumerate(UNSEEN) for r in evaluate_video(*video(s), "youtube_vos19", n, UNSEEN[n])]
    assert list(evaluate_folder(*folders, "youtube_vos19", unseen=unseen).rows) == rows
    arguments = ["--truth", str(folders[0]), "--predictions", str(folders[1]), "--protocol", "youtube_vos19", "--workers", "1"]
    metas = ["--meta", str(tmp_path / "meta.json"), "--train-meta", str(tmp_path / "train.json")]
    assert main([*arguments, *metas, "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["global"]["G"] == pytest.approx(summarize(rows, "youtube_vos19")["G"])
    printed = capsys.readouterr().out
    assert "J_unseen" in printed
    assert "1 of unseen categories" in printed
    assert main([*arguments, "--meta", str(tmp_path / "meta.json")]) == 2
    assert "--meta and --train-meta go together" in capsys.readouterr().err


def test_missing_predictions_and_categories_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[1] / "one" / "00030.png").unlink()
    with pytest.raises(EvaluationError, match=r"one: 1 of 6 frames are missing \(00030\)"):
        evaluate_folder(*folders, "youtube_vos18")
    write_meta(tmp_path / "meta.json", {"one": {1: None}})
    with pytest.raises(ValueError, match=r"meta\.json has no categories"):
        unseen_objects(tmp_path / "meta.json", tmp_path / "train.json")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"train\.json: the content must be a mapping, not \[\]; this is not a meta\.json of YouTube-VOS"
    ):
        unseen_objects(tmp_path / "meta.json", tmp_path / "train.json")
