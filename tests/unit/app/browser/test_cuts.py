"""Scene cuts in a session: the run stops there, asks for the objects, and goes on with the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.app.browser.clips import CUT, blue, red, write_scenes
from tests.unit.app.browser.test_session import BLUE, LENGTH, RED, do, follow, open_session, shown
from tests.unit.dummies import DummyModule
from vos_lightning.app.browser import pictures
from vos_lightning.app.browser.drawing import Stroke
from vos_lightning.app.browser.session import Session
from vos_lightning.app.browser.tasks import Export, Follow
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.propagation.engine import InferenceEngine

DOT = Stroke("brush", [(0.5, 0.5)], 0.2)


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    """A network that repeats masks, so that only a cut can lose an object."""
    return DummyModule().eval().engine(None)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Two objects that are marked in the first frame."""
    session = open_session(write_scenes(tmp_path / "clip", LENGTH), tmp_path)
    for stroke in (RED, BLUE):
        session.draw(0, session.add_object(), stroke)
    return session


def ids(session: Session) -> list[set[int]]:
    return [set(np.unique(label_map).tolist()) - {0} for label_map in shown(session)]


def test_a_run_stops_at_a_cut_and_asks(session: Session, engine: InferenceEngine) -> None:
    assert session.asked() is None
    assert follow(session, engine) == (
        "Another scene begins in frame 00005: Object 1 and Object 2 were let go, so that nothing else is followed instead."
    )
    assert session.asked() == (CUT, ["Object 1", "Object 2"])
    assert (session.valid(), session.found()) == (CUT + 1, list(range(CUT + 1)))
    assert ids(session) == [{1, 2}] * CUT + [set()] * (LENGTH - CUT)
    assert session.flagged() == [CUT]
    assert pictures.timeline(session)["cuts"] == [CUT]
    assert pictures.next_step(session) == (
        "Another scene begins in frame 00005. Mark Object 1 and Object 2 there, or say that they are gone, and run on."
    )
    assert pictures.warnings_of(session, CUT) == [f"Object {i} was let go: another scene begins here." for i in (1, 2)]
    assert pictures.run_title(session) == "Run on from frame 00006"


def test_the_answer_is_followed_from_there(session: Session, engine: InferenceEngine) -> None:
    follow(session, engine)
    session.draw(CUT, 1, DOT)
    assert session.asked() is None
    assert session.valid() == CUT
    # One of the two is answered: the run asks for the other one, once more.
    assert "Object 2 was let go" in follow(session, engine)
    session.gone(CUT, 2)
    assert follow(session, engine).startswith("Done. No frame is flagged")
    assert ids(session) == [{1, 2}] * CUT + [{1}] * (LENGTH - CUT)
    assert session.flagged() == []


def test_who_goes_on_without_an_answer_is_not_asked_again(session: Session, engine: InferenceEngine) -> None:
    follow(session, engine)
    assert follow(session, engine).startswith("Done.")
    assert ids(session) == [{1, 2}] * CUT + [set()] * (LENGTH - CUT)
    assert session.asked() is None
    assert session.flagged() == [CUT]
    session.draw(2, 1, DOT)
    assert follow(session, engine).startswith("Done. 1 frame looks doubtful")
    assert session.flagged() == [CUT]


def test_a_later_mark_takes_over(session: Session, engine: InferenceEngine) -> None:
    session.draw(CUT + 2, 2, DOT)
    follow(session, engine)
    follow(session, engine)
    assert ids(session) == [{1, 2}] * CUT + [set()] * 2 + [{2}] * (LENGTH - CUT - 2)


def test_a_session_that_is_opened_again_still_asks(session: Session, engine: InferenceEngine, tmp_path: Path) -> None:
    follow(session, engine)
    again = open_session(tmp_path / "clip", tmp_path)
    assert again.asked() == (CUT, ["Object 1", "Object 2"])
    again.remove(2)
    assert again.asked() == (CUT, ["Object 1"])
    assert "was let go" in pictures.warnings_of(again, CUT)[0]
    again.remove(1)
    assert again.asked() is None


def test_cuts_may_be_followed_through(session: Session, engine: InferenceEngine) -> None:
    assert do(Follow(session, lambda: (engine, None), "follow")).startswith("Done.")
    assert ids(session) == [{1, 2}] * LENGTH
    assert pictures.timeline(session)["cuts"] == [CUT]
    assert "is in another scene" in pictures.warnings_of(session, CUT)[0]


def test_the_export_says_it_too(session: Session, engine: InferenceEngine, tmp_path: Path) -> None:
    follow(session, engine)
    follow(session, engine)
    do(Export(session, tmp_path / "out", Renderings([])))
    lines = (tmp_path / "out" / "index" / "clip.csv").read_text().splitlines()
    assert [line.split(",")[:6] for line in lines if "scene_cut" in line] == [
        [str(CUT), f"{CUT:05d}", str(i), "0", "0.0", "scene_cut"] for i in (1, 2)
    ]
    assert len(lines) == 1 + 2 * CUT + 2


def test_the_clip_shows_the_discs_in_both_scenes() -> None:
    assert red(CUT).any()
    assert blue(CUT).any()
