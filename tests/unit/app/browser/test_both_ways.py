"""Objects followed in both directions of time: every frame from its nearest mask, and only what has changed is done again."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.networks import NETWORKS
from tests.unit.app.browser.clips import CUT, frame, write_clip, write_scenes
from tests.unit.app.browser.test_session import BLUE, DOT, LENGTH, RED, Counted, do, follow, open_session, same, shown, stop_after
from tests.unit.dummies import DummyModule
from vos_lightning.app.browser import pictures
from vos_lightning.app.browser import results as results_module
from vos_lightning.app.browser.drawing import Stroke
from vos_lightning.app.browser.marks import Marks
from vos_lightning.app.browser.saving import label_map_of
from vos_lightning.app.browser.session import Session
from vos_lightning.app.browser.tasks import Export, Follow, outdated
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.propagation.directions import reversed_video
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import Proposals, VideoSample


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    torch.manual_seed(3)
    return InferenceEngine(NETWORKS["stcn"].small().eval(), Propagation(EveryKth(2), "minimum"))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    session = open_session(write_clip(tmp_path / "clip", LENGTH), tmp_path)
    session.follow_both_ways(True)
    return session


@pytest.fixture(autouse=True)
def _states_come_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "FIRST_INTERVAL", 3)


def expected(engine: InferenceEngine, masks: dict[int, Any], direction: Any, gone: Any = None) -> list[np.ndarray]:
    found = engine.another().segment([frame(t) for t in range(LENGTH)], masks, direction=direction, gone=gone)
    return [p.label_map.numpy().copy() for p in sorted(found, key=lambda p: p.frame_index)]


def mark(session: Session, index: int, object_id: int, stroke: Stroke) -> np.ndarray:
    """Draw, and return the given mask."""
    session.draw(index, object_id, stroke)
    label_map = session.shown(index).numpy()
    return np.where(label_map == object_id, label_map, 0)


def red_box(index: int) -> Stroke:
    return dataclasses.replace(RED, points=[(x + index / 64, y) for x, y in RED.points])


def fresh(session: Session) -> list[int]:
    return np.flatnonzero(session.fresh()).tolist()


class TestFollowing:
    def test_frames_before_a_mask_are_followed_backwards(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = {5: mark(session, 5, session.add_object(), red_box(5))}
        counted = Counted(engine, monkeypatch)
        assert follow(session, engine).startswith("Done.")
        assert counted.frames == [*range(LENGTH), *range(6)]  # the way back begins in frame 5
        assert session.is_done()
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(session), [*backward[:5], *forward[5:]])
        assert all((label_map == 1).any() for label_map in shown(session)[:5])
        assert [row.frame for row in session.rows_of(3)] == [3]
        assert outdated(session) is None
        assert pictures.run_title(session) == "All frames are up to date"
        session.follow_both_ways(False)
        assert session.is_done()
        assert same(shown(session), forward)
        assert session.rows_of(3) == []

    def test_the_nearer_mask_counts(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        given = {t: mark(session, t, one, red_box(t)) for t in (2, 9)}
        follow(session, engine)
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert not same(forward[3:9], backward[3:9])
        assert same(shown(session), [*backward[:2], *forward[2:6], *backward[6:9], *forward[9:]])
        assert [t for t in range(LENGTH) if any("given" in row.flags for row in session.rows_of(t))] == [2, 9]

    def test_a_correction_asks_for_what_it_changes_alone(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = session.add_object()
        given = {t: mark(session, t, one, red_box(t)) for t in (2, 9)}
        follow(session, engine)
        given[7] = mark(session, 7, one, DOT)
        # Forwards, it changes the frames from 7 on; backwards, those up to 6 that are nearer to a later mask.
        assert fresh(session) == [2, 3, 4]
        rows = pictures.timeline(session)
        assert (rows["fresh"], rows["old"]) == ([(2, 4)], [(0, 1), (5, LENGTH - 1)])
        assert outdated(session) == "9 frames were found before your last change; run again to update them."
        assert pictures.run_title(session) == "Run on"
        counted = Counted(engine, monkeypatch)
        follow(session, engine)
        assert len(counted.frames) < LENGTH + 10
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(session), [*backward[:2], *forward[2:5], *backward[5:7], *forward[7:9], *forward[9:]])
        session.undo()
        assert fresh(session) == [2, 3, 4, 5]
        follow(session, engine)
        del given[7]
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(session), [*backward[:2], *forward[2:6], *backward[6:9], *forward[9:]])

    def test_a_later_mask_moves_the_beginning_of_the_way_back(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        given = {5: mark(session, 5, one, red_box(5))}
        follow(session, engine)
        before = shown(session)
        given[10] = mark(session, 10, one, red_box(10))
        assert fresh(session) == [5, 6, 7]
        session.undo()
        assert session.is_done()
        assert same(shown(session), before)
        given[10] = mark(session, 10, one, red_box(10))
        follow(session, engine)
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(session), [*backward[:5], *forward[5:8], *backward[8:10], *forward[10:]])
        session.undo()
        follow(session, engine)
        assert same(shown(session), before)

    def test_the_same_mask_in_another_frame_is_another_beginning(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        pixels = mark(session, 5, one, DOT) == one
        follow(session, engine)
        session._change(lambda marks: marks.cleared(5, one).marked(10, one, pixels).marked(0, one, pixels))
        assert fresh(session) == []
        follow(session, engine)
        given = {t: pixels * np.uint8(one) for t in (0, 10)}
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(session), [*forward[:6], *backward[6:10], *forward[10:]])

    def test_proposals_are_those_of_their_frames(self, session: Session, engine: InferenceEngine) -> None:
        asked: list[int] = []

        class Proposed:
            def of_frame(self, index: int, frame: Any) -> Proposals:
                asked.append(index)
                return Proposals(torch.zeros(1, 0, 4), torch.zeros(1, 0, 28, 28), torch.zeros(1, 0))

        mark(session, 5, session.add_object(), red_box(5))
        plans = [session.plan(Proposed())]
        session.follow_both_ways(False)
        follow(session, engine)
        session.follow_both_ways(True)
        plans.append(session.plan(Proposed()))
        for plan in plans:
            assert plan.video.proposals is not None
            plan.video.proposals.of_frame(2, session.frame(0))
        assert asked == [2, 3]
        assert [plan.frame_of(2) for plan in plans] == [2, 3]

    def test_every_object_from_its_own_masks(self, session: Session, engine: InferenceEngine) -> None:
        one, two = session.add_object(), session.add_object()
        red_mask, blue_mask = mark(session, 8, one, red_box(8)), mark(session, 0, two, BLUE)
        follow(session, engine)
        given = {0: blue_mask, 8: red_mask}
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        for t, label_map in enumerate(shown(session)):
            theirs = backward[t] == one if t < 8 else forward[t] == one
            assert ((label_map == two) == (forward[t] == two)).all()
            assert ((label_map == one) == (theirs & (forward[t] != two))).all()
        session.remove(two)
        assert session.is_done()
        assert all(not (label_map == two).any() for label_map in shown(session))
        session.undo()
        assert session.is_done()
        # The object with the last mask leaves: the rest is as it was.
        session.remove(one)
        assert session.is_done()

    def test_gone_is_gone_from_both_sides(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        given = {1: mark(session, 1, one, red_box(1)), 9: mark(session, 9, one, red_box(9))}
        session.gone(4, one)
        follow(session, engine)
        seen = [bool((label_map == one).any()) for label_map in shown(session)]
        assert seen[:4] == [True] * 4
        assert seen[4:9] == [False] * 5
        assert seen[9]
        forward, backward = (expected(engine, given, way, gone={4: [one]}) for way in ("forward", "backward"))
        assert same(shown(session), [*backward[:1], *forward[1:]])

    def test_a_mark_in_the_first_frame_needs_no_way_back(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark(session, 0, session.add_object(), RED)
        counted = Counted(engine, monkeypatch)
        follow(session, engine)
        assert counted.frames == list(range(LENGTH))
        with pytest.raises(ValueError, match="up to date"):
            session.plan()

    def test_a_stopped_way_back_goes_on(
        self, session: Session, engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = {10: mark(session, 10, session.add_object(), red_box(10))}
        task = Follow(session, lambda: (engine, None))
        stop_after(task, 4, monkeypatch, backwards=True)
        assert do(task) == "Stopped after 5 of 11 frames on the way back; the button goes on from there."
        assert (task.progress.title, task.progress.done, task.progress.frame) == ("Following them backwards", 5, 6)
        assert fresh(session) == list(range(6, LENGTH))
        rows = pictures.timeline(session)
        assert (rows["fresh"], rows["old"]) == ([(6, LENGTH - 1)], [])
        assert outdated(session) == "In 6 frames, objects have still to be followed backwards; run on first."
        again = open_session(tmp_path / "clip", tmp_path)
        assert again.findings.both
        assert fresh(again) == fresh(session)
        counted = Counted(engine, monkeypatch)
        follow(again, engine)
        assert counted.frames == list(range(5, 11))
        forward, backward = (expected(engine, given, direction) for direction in ("forward", "backward"))
        assert same(shown(again), [*backward[:10], *forward[10:]])

    def test_another_network_makes_both_ways_old(self, session: Session, engine: InferenceEngine, tmp_path: Path) -> None:
        mark(session, 5, session.add_object(), red_box(5))
        follow(session, engine)
        again = open_session(tmp_path / "clip", tmp_path, "another")
        assert fresh(again) == []
        assert again.found() == list(range(LENGTH))

    def test_the_choice_is_kept(self, session: Session, tmp_path: Path) -> None:
        assert open_session(tmp_path / "clip", tmp_path).findings.both
        session.follow_both_ways(False)
        assert not open_session(tmp_path / "clip", tmp_path).findings.both

    def test_the_choice_waits_while_something_runs(self, session: Session) -> None:
        session.claim("Exporting")
        with pytest.raises(ValueError, match="Exporting: stop it first"):
            session.follow_both_ways(False)
        assert session.findings.both


class TestCuts:
    @pytest.fixture
    def session(self, tmp_path: Path) -> Session:
        session = open_session(write_scenes(tmp_path / "clip", LENGTH), tmp_path)
        session.follow_both_ways(True)
        return session

    @pytest.fixture
    def repeat(self) -> InferenceEngine:
        return DummyModule().eval().engine(None)

    def test_a_mask_in_every_scene_is_enough(self, session: Session, repeat: InferenceEngine) -> None:
        """The frames after the cut are nearer to the mask before it, which says nothing of this scene."""
        one = session.add_object()
        first, second = mark(session, 3, one, RED), mark(session, LENGTH - 1, one, BLUE)
        assert follow(session, repeat).startswith("Done.")
        assert same(shown(session), [*[first] * CUT, *[second] * (LENGTH - CUT)])
        assert session.cuts() == [CUT]

    def test_the_last_frame_of_a_scene_asks(self, session: Session, repeat: InferenceEngine) -> None:
        one = session.add_object()
        mask = mark(session, 8, one, BLUE)
        assert follow(session, repeat).startswith("Done. 1 frame looks doubtful")
        assert same(shown(session), [*[mask * 0] * CUT, *[mask] * (LENGTH - CUT)])
        assert session.flagged() == [CUT - 1]
        assert "was let go" in pictures.warnings_of(session, CUT - 1)[0]
        assert session.cuts() == [CUT]
        other = mark(session, CUT - 1, one, RED)
        follow(session, repeat)
        assert same(shown(session), [*[other] * CUT, *[mask] * (LENGTH - CUT)])
        assert session.flagged() == []


class TestExport:
    def test_it_is_what_is_shown(self, session: Session, engine: InferenceEngine, tmp_path: Path) -> None:
        one, two = session.add_object(), session.add_object()
        mark(session, 8, one, red_box(8))
        mark(session, 3, two, BLUE)
        follow(session, engine)
        do(Export(session, tmp_path / "out", Renderings([])))
        masks = [read_label_map(path).numpy() for path in sorted((tmp_path / "out" / "masks" / "clip").iterdir())]
        assert same(masks, shown(session))
        with (tmp_path / "out" / "index" / "clip.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(int(row["frame"]), int(row["object_id"])) for row in rows] == [(t, i) for t in range(LENGTH) for i in (1, 2)]
        assert all(int(row["area"]) == int((masks[int(row["frame"])] == int(row["object_id"])).sum()) for row in rows)
        assert [(row["frame"], row["object_id"]) for row in rows if row["flags"] == "given"] == [("3", "2"), ("8", "1")]
        assert [row["flags"] for row in rows] == [row.flags for t in range(LENGTH) for row in session.rows_of(t)]


class TestMarks:
    def test_mirrored_as_the_reversed_video_is(self) -> None:
        pixels = np.zeros((4, 6), bool)
        pixels[1, 2] = True
        marks = Marks().added().added().marked(1, 1, pixels).gone(3, 1).marked(5, 1, pixels).marked(4, 2, ~pixels).gone(6, 2)
        masks = {t: label_map_of(said, (4, 6)) for t, said in marks.given.items() if any(said.values())}
        frames = [torch.zeros(3, 4, 6, dtype=torch.uint8)] * 9
        video = VideoSample("v", frames, masks, {}, (1, 2), (4, 6), None, gone={3: (1,), 6: (2,)})
        last = marks.last_frame()
        assert last == 5
        other, mirrored = reversed_video(video, last), marks.mirrored(last)
        gone = {t: tuple(i for i, mask in said.items() if mask is None) for t, said in mirrored.given.items()}
        assert {t: ids for t, ids in gone.items() if ids} == {t: ids for t, ids in other.gone.items() if ids} == {1: (1,)}
        assert {t for t, said in mirrored.given.items() if any(said.values())} == other.annotations.keys()
        assert mirrored.given[4] == {1: marks.given[1][1]}

    def test_what_is_followed_backwards(self) -> None:
        pixels = np.ones((2, 2), bool)
        marks = Marks().added().marked(2, 1, pixels).marked(6, 1, pixels).marked(9, 1, pixels)
        before, nearer = marks.followed_backwards(1, 12)
        assert np.flatnonzero(before).tolist() == [0, 1, 3, 4, 5, 7, 8]
        assert np.flatnonzero(nearer).tolist() == [0, 1, 5, 8]
        before, nearer = marks.gone(4, 1).followed_backwards(1, 12)
        assert np.flatnonzero(before).tolist() == [0, 1, 7, 8]
        assert np.flatnonzero(nearer).tolist() == [0, 1, 8]
        assert not Marks().added().followed_backwards(1, 3)[0].any()
