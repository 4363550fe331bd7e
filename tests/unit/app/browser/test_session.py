"""The session behind the browser app, without a browser: what it finds is what the engine and ``vos segment`` find."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.networks import NETWORKS
from tests.unit.app.browser.clips import HEIGHT, WIDTH, frame, overlap, red, write_clip
from vos_lightning.app.browser import results as results_module
from vos_lightning.app.browser.drawing import Stroke, paint
from vos_lightning.app.browser.marks import Marks, Mask
from vos_lightning.app.browser.planning import Plan
from vos_lightning.app.browser.session import Session, spans
from vos_lightning.app.browser.tasks import Export, Follow, Task, free_folder, outdated
from vos_lightning.app.cli import main
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.sources import find_sources
from vos_lightning.predictions.drift import ObjectRow
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FramePrediction

LENGTH = 12
RED = Stroke("box", [(4 / WIDTH, 6 / HEIGHT), (24 / WIDTH, 26 / HEIGHT)])
BLUE = Stroke("box", [(40 / WIDTH, 24 / HEIGHT), (60 / WIDTH, 44 / HEIGHT)])
DOT = Stroke("brush", [(0.5, 0.5)], 0.2)


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    """A network whose masks depend on everything that it remembers."""
    torch.manual_seed(3)
    return InferenceEngine(NETWORKS["stcn"].small().eval(), Propagation(EveryKth(2), "minimum"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip", LENGTH)


@pytest.fixture
def session(clip: Path, tmp_path: Path) -> Session:
    return open_session(clip, tmp_path)


@pytest.fixture(autouse=True)
def _states_come_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "FIRST_INTERVAL", 3)


def open_session(clip: Path, tmp_path: Path, network: str = "small") -> Session:
    return Session(find_sources([str(clip)])[0], tmp_path / "session", network)


def do(task: Task) -> str:
    task.start()
    task.join(60.0)
    assert task.is_over
    assert not task.progress.failed, task.progress.result
    assert task.progress.result is not None
    return task.progress.result


def follow(session: Session, engine: InferenceEngine) -> str:
    return do(Follow(session, lambda: (engine, None)))


class Counted:
    """An engine that counts the frames that its network segments."""

    def __init__(self, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames: list[int] = []
        take = engine._take

        def count(step: Any) -> Any:
            self.frames.append(step.index)
            return take(step)

        monkeypatch.setattr(engine, "_take", count)


def expected(engine: InferenceEngine, masks: dict[int, Any], gone: dict[int, tuple[int, ...]] | None = None) -> list[np.ndarray]:
    """What the engine says of the whole clip at once."""
    frames = [frame(t) for t in range(LENGTH)]
    return [p.label_map.numpy().copy() for p in engine.another().segment(frames, masks, gone=gone)]


def stop_after(task: Follow, index: int, monkeypatch: pytest.MonkeyPatch, backwards: bool = False) -> None:
    """Stop a run after one of its frames, in one direction of time."""
    keep = task.session.keep

    def keep_and_stop(plan: Plan, prediction: FramePrediction, rows: list[ObjectRow]) -> None:
        keep(plan, prediction, rows)
        if (plan.last is not None) == backwards and prediction.frame_index == index:
            task.stop()

    monkeypatch.setattr(task.session, "keep", keep_and_stop)


def shown(session: Session) -> list[np.ndarray]:
    return [session.shown(t).numpy().copy() for t in range(LENGTH)]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all((one == other).all() for one, other in zip(found, wanted, strict=True))


def files(session: Session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (session.folder / "masks").iterdir()}


class TestFollowing:
    def test_it_finds_what_the_engine_finds(self, session: Session, engine: InferenceEngine) -> None:
        one, two = session.add_object(), session.add_object()
        assert (one, two) == (1, 2)
        session.draw(0, one, RED)
        session.draw(2, two, BLUE)
        assert overlap(session.shown(0).numpy() == 1, red(0)) > 0.9
        masks = {0: session.shown(0).numpy(), 2: session.shown(2).numpy()}
        assert session.valid() == 0
        assert follow(session, engine).startswith("Done.")
        assert session.valid() == LENGTH
        assert same(shown(session), expected(engine, masks))

    def test_a_correction_changes_later_frames_alone(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = session.add_object()
        session.draw(0, one, RED)
        first = session.shown(0).numpy()
        follow(session, engine)
        before, were = shown(session), files(session)
        session.draw(7, one, DOT)
        corrected = session.shown(7).numpy().copy()
        assert session.valid() == 7
        assert outdated(session) == "The frames from 00007 on were found before your last change; run again to update them."
        counted = Counted(engine, monkeypatch)
        follow(session, engine)
        assert counted.frames == [6, 7, 8, 9, 10, 11]  # the state after frame 5 was kept
        now = shown(session)
        assert same(now, expected(engine, {0: first, 7: corrected}))
        assert same(now[:7], before[:7])
        assert not same(now[8:], before[8:])
        assert all(files(session)[f"{t:06d}.png"] == were[f"{t:06d}.png"] for t in range(7))
        assert [row.flags for row in session.rows_of(7)] == ["given"]
        assert outdated(session) is None

    def test_a_stopped_run_goes_on_where_it_was(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session.draw(0, session.add_object(), RED)
        first = session.shown(0).numpy()
        task = Follow(session, lambda: (engine, None))
        stop_after(task, 4, monkeypatch)
        assert do(task) == "Stopped after 5 of 12 frames; the button goes on from there."
        assert (session.valid(), task.progress.done, task.progress.stopping) == (5, 5, True)
        assert outdated(session) == "Only 5 of 12 frames are found so far."
        counted = Counted(engine, monkeypatch)
        follow(session, engine)
        assert counted.frames == list(range(5, LENGTH))
        assert same(shown(session), expected(engine, {0: first}))

    def test_gone_from_a_frame_on(self, session: Session, engine: InferenceEngine) -> None:
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        first = session.shown(0).numpy()
        with pytest.raises(ValueError, match="Object 1 has no mask before this frame"):
            session.gone(0, one)
        session.gone(6, one)
        follow(session, engine)
        now = shown(session)
        assert same(now, expected(engine, {0: first}, gone={6: (one,)}))
        assert any((label_map == one).any() for label_map in now[1:6])
        assert not any((label_map == one).any() for label_map in now[6:])

    def test_a_removed_object_leaves_the_others_as_they_are(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        follow(session, engine)
        before = shown(session)
        session.remove(one)
        assert session.valid() == LENGTH
        assert same(shown(session), [np.where(label_map == one, 0, label_map) for label_map in before])
        assert all(row.object_id != one for t in range(LENGTH) for row in session.rows_of(t))
        # A run that goes on from a correction does not follow it any more.
        session.draw(7, two, DOT)
        counted = Counted(engine, monkeypatch)
        follow(session, engine)
        assert counted.frames[0] == 6
        assert session.valid() == LENGTH
        assert not any((read_label_map(session.folder / "masks" / f"{t:06d}.png") == one).any() for t in range(7, LENGTH))
        # Taking both back asks for the frames that have lost it, and for no other.
        session.undo()
        session.undo()
        assert session.marks.names.keys() == {one, two}
        assert session.valid() == 7
        follow(session, engine)
        assert same(shown(session), before)
        assert session.add_object() == 3

    def test_a_removed_object_is_not_followed_for_one_frame_more(self, session: Session, engine: InferenceEngine) -> None:
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        follow(session, engine)
        assert 5 in session.findings.forward.states
        session.remove(one)
        session.draw(6, two, DOT)  # the run goes on with this frame
        follow(session, engine)
        assert [[row.object_id for row in session.findings.forward.rows[t]] for t in (5, 6)] == [[one, two], [two]]

    def test_frames_without_an_object_that_comes_back_are_found_again(
        self, session: Session, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is said in the frame from which on they lack it: it was removed between two runs."""
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        first = session.shown(0).numpy()
        task = Follow(session, lambda: (engine, None))
        stop_after(task, 4, monkeypatch)
        do(task)
        session.remove(one)
        follow(session, engine)
        assert session.is_done()
        session.undo()
        assert session.valid() == 5
        follow(session, engine)
        assert same(shown(session), expected(engine, {0: first}))

    def test_a_run_that_fails_at_once_leaves_old_frames_old(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        session.draw(0, one, RED)
        follow(session, engine)
        session.draw(7, one, DOT)
        follow(session, engine)
        session.undo()
        assert session.valid() == 7
        session.plan()
        assert session.valid() == 7

    def test_an_added_object_asks_for_the_frames_from_there_on(self, session: Session, engine: InferenceEngine) -> None:
        session.draw(0, session.add_object(), RED)
        first = session.shown(0).numpy()
        follow(session, engine)
        two = session.add_object()
        assert session.valid() == LENGTH
        session.draw(5, two, Stroke("brush", [(0.9, 0.9)], 0.15))
        added = session.shown(5).numpy() * (session.shown(5).numpy() == two)
        follow(session, engine)
        assert same(shown(session)[5:6], [np.where(added == two, two, expected(engine, {0: first, 5: added})[5])])
        assert same(shown(session), expected(engine, {0: first, 5: added}))

    def test_a_video_with_fewer_frames_than_its_file_claims(self, session: Session, engine: InferenceEngine) -> None:
        session.length = LENGTH + 3
        session.draw(0, session.add_object(), RED)
        assert follow(session, engine).startswith("Done.")
        assert session.length == LENGTH
        assert session.is_done()

    def test_few_states_are_kept(self, tmp_path: Path, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results_module, "FIRST_INTERVAL", 1)
        monkeypatch.setattr(results_module, "MOST_STATES", 4)
        session = open_session(write_clip(tmp_path / "clip", 24), tmp_path)
        session.draw(0, session.add_object(), RED)
        follow(session, engine)
        states = session.findings.forward.states
        assert len(states) <= 4
        assert states[-1] == 23
        assert [path.name for path in sorted((session.folder / "states").iterdir())] == [f"{t:06d}.pt" for t in states]
        assert max(np.diff([-1, *states])) <= 12

    def test_nothing_to_do(self, session: Session, engine: InferenceEngine) -> None:
        task = Follow(session, lambda: (engine, None))
        task.start()
        task.join(60.0)
        assert (task.progress.failed, task.progress.result) == (True, "mark an object first: draw a box around it")
        session.draw(0, session.add_object(), RED)
        follow(session, engine)
        with pytest.raises(ValueError, match="up to date"):
            session.plan()

    def test_errors_are_shown_and_free_the_session(self, session: Session) -> None:
        def fail() -> Any:
            raise ZeroDivisionError("oops")

        session.draw(0, session.add_object(), RED)
        task = Follow(session, fail)
        task.start()
        task.join(60.0)
        assert task.progress.failed
        assert "fault of vos_lightning (ZeroDivisionError: oops)" in str(task.progress.result)
        session.add_object()

    def test_nothing_changes_while_it_runs(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        session.draw(0, one, RED)
        go = threading.Event()

        def wait() -> Any:
            go.wait(60)
            return engine, None

        task = Follow(session, wait)
        task.start()
        changes: list[Callable[[], object]] = [
            session.add_object,
            session.undo,
            lambda: session.draw(1, one, RED),
            lambda: session.remove(one),
            Follow(session, wait).start,
        ]
        for change in changes:
            with pytest.raises(ValueError, match="Following the objects: stop it first"):
                change()
        go.set()
        task.join(60.0)
        assert session.valid() == LENGTH


class TestMarks:
    def test_masks_of_a_frame_do_not_overlap(self, session: Session) -> None:
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, Stroke("brush", [(0.2, 0.5), (0.6, 0.5)], 0.1))
        session.draw(0, two, Stroke("brush", [(0.5, 0.5), (0.8, 0.5)], 0.1))
        said = session.marks.given[0]
        masks = [mask.pixels() for mask in said.values() if mask is not None]
        assert len(masks) == 2
        assert not (masks[0] & masks[1]).any()
        session.draw(0, two, Stroke("brush", [(0.1, 0.5), (0.8, 0.5)], 0.4))
        assert session.marks.given[0].keys() == {two}

    def test_grabcut_leaves_out_what_is_given_of_other_objects(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither the object itself, nor one that is gone, nor one that was only found."""
        one, two, three = (session.add_object() for _ in range(3))
        for object_id, x in ((one, 0.2), (two, 0.8)):
            session.draw(0, object_id, Stroke("brush", [(x, 0.5)], 0.2))
        session.draw(4, one, Stroke("brush", [(0.2, 0.5)], 0.2))
        session.draw(4, three, DOT)
        session.gone(4, two)
        kept_out: list[np.ndarray] = []

        def watch(frame: Any, mask: np.ndarray, stroke: Stroke, others: np.ndarray) -> np.ndarray:
            kept_out.append(others)
            return mask

        monkeypatch.setattr("vos_lightning.app.browser.session.draw", watch)
        expected = session.shown(4).numpy() == one
        session.draw(4, three, RED)
        assert expected.any()
        assert (kept_out[0] == expected).all()
        session.draw(0, three, RED)
        assert (kept_out[1] == (session.shown(0).numpy() > 0)).all()

    def test_brush_and_eraser_begin_with_what_is_seen(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        session.draw(0, one, RED)
        follow(session, engine)
        found = session.shown(5).numpy() == one
        session.draw(5, one, DOT)
        painted = paint(DOT, (HEIGHT, WIDTH))
        assert ((session.shown(5).numpy() == one) == (found | painted)).all()
        session.draw(5, one, dataclasses.replace(DOT, tool="eraser"))
        assert found.any()
        assert ((session.shown(5).numpy() == one) == (found & ~painted)).all()

    def test_undo_goes_back_step_by_step(self, session: Session, engine: InferenceEngine) -> None:
        one = session.add_object()
        session.rename(one, "  a   dog ")
        session.draw(0, one, RED)
        before = session.shown(0).numpy().copy()
        follow(session, engine)
        session.draw(0, one, DOT)
        assert session.valid() == 0
        assert session.undo()
        assert (session.shown(0).numpy() == before).all()
        assert session.valid() == LENGTH
        session.undo()
        assert not session.marks.given
        assert session.marks.names == {one: "a dog"}
        assert session.can_undo
        session.undo()
        session.undo()
        assert not session.marks.names
        assert not session.can_undo
        assert not session.undo()

    def test_ids_are_never_given_twice(self, session: Session, engine: InferenceEngine) -> None:
        """Masks of an object whose addition was taken back may still be there."""
        session.draw(0, session.add_object(), RED)
        session.draw(0, session.add_object(), BLUE)
        follow(session, engine)
        session.undo()
        session.undo()
        assert session.marks.names.keys() == {1}
        assert session.add_object() == 3
        assert not any((label_map == 3).any() for label_map in shown(session))

    def test_everything_that_changes_a_picture_is_counted(self, session: Session, engine: InferenceEngine) -> None:
        counts = [session.changes]
        one = session.add_object()
        for change in (
            lambda: session.draw(0, one, RED),
            lambda: session.rename(one, "ball"),
            session.undo,
            lambda: session.follow_both_ways(True),
        ):
            change()
            counts.append(session.changes)
        assert len(set(counts)) == len(counts)
        follow(session, engine)
        assert session.changes >= counts[-1] + LENGTH

    def test_what_changes_nothing_is_not_undone(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vos_lightning.app.browser.session.MOST_UNDONE", 3)
        one = session.add_object()
        session.rename(one, "Object 1")
        session.clear(3, one)
        session.undo()
        assert not session.marks.names
        for number in range(6):
            session.add_object()
            session.rename(session.marks.last_id, f"name {number}")
        undone = 0
        while session.undo():
            undone += 1
        assert undone == 3

    def test_what_says_nothing_is_left_out(self) -> None:
        pixels = np.ones((2, 3), bool)
        marks = Marks().added().marked(4, 1, pixels).gone(6, 1)
        assert marks.gone(5, 1).given.keys() == {4, 5}  # gone already in frame 6
        assert marks.cleared(4, 1).given == {}
        assert marks.marked(4, 1, ~pixels).given == {}
        assert marks.first_frames() == {1: 4}
        with pytest.raises(ValueError, match="not there any more"):
            marks.marked(0, 2, pixels)
        assert marks.renamed(1, " ").names == {1: "Object 1"}
        with pytest.raises(ValueError, match="254 objects"):
            dataclasses.replace(marks, last_id=254).added()

    def test_masks_are_values(self) -> None:
        pixels = np.zeros((5, 7), bool)
        pixels[1:3, 2:6] = True
        assert (Mask.of(pixels).pixels() == pixels).all()
        assert Mask.of(pixels) == Mask.of(pixels.copy())
        assert Mask.of(pixels).digest == Mask.of(pixels.copy()).digest != Mask.of(~pixels).digest


class TestOnDisk:
    def test_a_session_is_gone_on_with(
        self, session: Session, engine: InferenceEngine, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = session.add_object(), session.add_object()
        session.rename(one, "ball")
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        session.gone(9, two)
        first = session.shown(0).numpy().copy()
        follow(session, engine)
        before = shown(session)
        session.draw(7, one, DOT)
        corrected = session.shown(7).numpy() * (session.shown(7).numpy() == one)
        again = open_session(clip, tmp_path)
        assert again.marks == session.marks
        assert (again.valid(), again.flagged()) == (7, session.flagged())
        assert same(shown(again)[:7], before[:7])
        counted = Counted(engine, monkeypatch)
        follow(again, engine)
        assert counted.frames[0] == 6
        assert same(shown(again), expected(engine, {0: first, 7: corrected}, gone={9: (two,)}))

    def test_another_network_begins_anew(self, session: Session, engine: InferenceEngine, clip: Path, tmp_path: Path) -> None:
        session.draw(0, session.add_object(), RED)
        follow(session, engine)
        again = open_session(clip, tmp_path, "another")
        assert again.valid() == 0
        assert again.findings.forward.states == []
        assert again.found() == list(range(LENGTH))
        assert again.marks == session.marks

    def test_a_frame_that_is_missing_is_found_again(
        self, session: Session, engine: InferenceEngine, clip: Path, tmp_path: Path
    ) -> None:
        session.draw(0, session.add_object(), RED)
        follow(session, engine)
        (session.folder / "masks" / "000004.png").unlink()
        assert open_session(clip, tmp_path).valid() == 4

    def test_sessions_of_other_videos_are_refused(self, session: Session, clip: Path, tmp_path: Path) -> None:
        session.add_object()
        (clip / "00012.png").write_bytes((clip / "00000.png").read_bytes())
        with pytest.raises(ValueError, match="session of another video, or the video has changed since"):
            open_session(clip, tmp_path)

    @pytest.mark.parametrize("fault", ["no json", "keys", "no mark", "values"])
    def test_damaged_sessions_are_named(self, fault: str, session: Session, clip: Path, tmp_path: Path) -> None:
        session.draw(0, session.add_object(), RED)
        path = session.folder / "session.json"
        content = json.loads(path.read_text())
        if fault == "keys":
            del content["said"]
        elif fault == "values":
            content["results"]["rows"] = [["x", []]]
        elif fault == "no mark":
            (session.folder / "marks" / "000000.png").unlink()
        path.write_text("{" if fault == "no json" else json.dumps(content))
        with pytest.raises(ValueError, match=r"session\.json.*choose another --output"):
            open_session(clip, tmp_path)

    def test_a_kill_inside_a_change_leaves_a_session(
        self, session: Session, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Masks are written before the file that names them, and removed after it has stopped to."""
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        session.draw(4, one, DOT)

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("vos_lightning.app.browser.session.write_session", killed)
        for change, expected in (
            (lambda: session.clear(4, one), {0: {one, two}, 4: {one}}),
            (lambda: session.draw(8, one, DOT), {0: {one, two}, 4: {one}}),
            (lambda: session.clear(0, two), {0: {one}, 4: {one}}),
        ):
            with pytest.raises(KeyboardInterrupt):
                change()
            assert {t: set(said) for t, said in open_session(clip, tmp_path).marks.given.items()} == expected

    def test_masks_that_nobody_names_are_removed(self, session: Session) -> None:
        one = session.add_object()
        session.draw(0, one, RED)
        session.draw(4, one, DOT)
        session.gone(4, one)
        assert [path.name for path in (session.folder / "marks").iterdir()] == ["000000.png"]
        session.undo()
        assert len(list((session.folder / "marks").iterdir())) == 2
        session.remove(one)
        assert list((session.folder / "marks").iterdir()) == []

    def test_the_video_is_never_written_into(self, clip: Path) -> None:
        with pytest.raises(ValueError, match="lies in the input"):
            Session(find_sources([str(clip)])[0], clip / "session", "small")

    def test_streams_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="come only once; record a file"):
            Session(find_sources(["camera:0"])[0], tmp_path / "session", "small")


class TestExport:
    def test_it_is_what_segment_writes(
        self, session: Session, engine: InferenceEngine, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        write_label_map(tmp_path / "given" / "00000.png", session.shown(0))
        follow(session, engine)
        session.draw(7, one, DOT)
        corrected = session.shown(7)
        write_label_map(tmp_path / "given" / "00007.png", corrected * (corrected == one))
        follow(session, engine)
        formats = ["coco", "objects", "cutouts", "green"]
        assert do(Export(session, tmp_path / "app", Renderings(formats))) == f"Exported to {tmp_path / 'app'}"
        monkeypatch.setattr("vos_lightning.app.torch_backend.open_engine", lambda arguments: engine.another())
        masks = ["--mask", str(tmp_path / "given"), "--output", str(tmp_path / "segment")]
        assert main(["segment", str(clip), *masks, "--formats", *formats]) == 0
        found, wanted = (
            {path.relative_to(tmp_path / name).as_posix(): path for path in (tmp_path / name).rglob("*.*")}
            for name in ("app", "segment")
        )
        assert found.keys() - wanted.keys() == {"names/clip.json"}
        assert wanted.keys() <= found.keys()
        assert len(wanted) == 4 * LENGTH + 4
        for name in wanted.keys() - {"written.jsonl", "green/clip.mp4"}:
            assert found[name].read_bytes() == wanted[name].read_bytes(), name

    def test_removed_objects_and_frames_without_result_are_left_out(
        self, session: Session, engine: InferenceEngine, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="nothing to export yet"):
            Export(session, tmp_path / "none", Renderings([]))
        one, two = session.add_object(), session.add_object()
        session.draw(0, one, RED)
        session.draw(0, two, BLUE)
        follow(session, engine)
        session.remove(one)
        session.rename(two, "Bär")
        del session.findings.forward.rows[9]
        result = do(Export(session, tmp_path / "out", Renderings(["objects"])))
        assert result == f"Exported the first 9 of 12 frames to {tmp_path / 'out'}"
        masks = sorted((tmp_path / "out" / "masks" / "clip").iterdir())
        assert [path.stem for path in masks] == [f"{t:05d}" for t in range(9)]
        assert {int(i) for path in masks for i in read_label_map(path).unique()} == {0, two}
        assert [path.name for path in (tmp_path / "out" / "objects" / "clip").iterdir()] == [str(two)]
        assert {line.split(",")[2] for line in (tmp_path / "out" / "index" / "clip.csv").read_text().splitlines()[1:]} == {"2"}
        assert json.loads((tmp_path / "out" / "names" / "clip.json").read_text()) == {"2": "Bär"}

    def test_nothing_is_overwritten(self, session: Session, engine: InferenceEngine, tmp_path: Path) -> None:
        session.draw(0, session.add_object(), RED)
        follow(session, engine)
        assert free_folder(tmp_path, "export") == tmp_path / "export"
        do(Export(session, tmp_path / "export", Renderings([])))
        assert free_folder(tmp_path, "export") == tmp_path / "export-2"
        with pytest.raises(ValueError, match="earlier run"):
            Export(session, tmp_path / "export", Renderings([]))
        for place in (session.folder, tmp_path):
            with pytest.raises(ValueError, match=r"the input|has not written"):
                Export(session, place, Renderings([]))


class TestReading:
    def test_frames_in_any_order(self, session: Session) -> None:
        for index in (0, 5, 6, 2, 11, 10, 0):
            assert (session.frame(index).permute(1, 2, 0).numpy() == frame(index)).all()
        with pytest.raises(IndexError, match="no frame 12"):
            session.frame(12)
        assert (session.frame(3).permute(1, 2, 0).numpy() == frame(3)).all()

    def test_near_frames_are_decoded_on_the_way(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        searched: list[int] = []
        source = session._reader._frames
        since = source.since

        def watch(index: int) -> Iterator[Any]:
            searched.append(index)
            return since(index)

        monkeypatch.setattr(source, "since", watch)
        for index in (0, 1, 2, 5, 3):
            session.frame(index)
        assert searched == [0]

    def test_spans(self) -> None:
        assert list(spans([0, 1, 2, 5, 7, 8])) == [(0, 2), (5, 5), (7, 8)]
        assert list(spans([])) == []
