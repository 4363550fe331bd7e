"""What the app works on, what the page shows of it in words and pictures, and how it starts."""

from __future__ import annotations

import argparse
import importlib.util
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.app.browser.clips import HEIGHT, WIDTH, frame, write_clip
from tests.unit.dummies import DummyModule
from vos_lightning.app.browser import desk as desk_module
from vos_lightning.app.browser import pictures
from vos_lightning.app.browser.command import _parser, find_port
from vos_lightning.app.browser.desk import Desk, choices_in
from vos_lightning.app.browser.drawing import Stroke
from vos_lightning.app.cli import main
from vos_lightning.predictions import drift
from vos_lightning.predictions.drift import ObjectRow
from vos_lightning.visualization.overlays import BRIGHT

LENGTH = 6
RED = Stroke("box", [(4 / WIDTH, 6 / HEIGHT), (24 / WIDTH, 26 / HEIGHT)])


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    return _parser().parse_args(["--output", str(tmp_path / "out"), "--device", "cpu"])


@pytest.fixture
def desk(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(desk_module, "open_engine", lambda arguments: DummyModule().eval().engine(None))
    return Desk(arguments)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clips" / "discs", LENGTH)


def wait(desk: Desk) -> str:
    assert desk.task is not None
    desk.task.join(60.0)
    assert desk.progress is not None
    assert desk.progress.result is not None
    assert not desk.progress.failed, desk.progress.result
    return desk.progress.result


class TestDesk:
    def test_a_video_from_the_beginning_to_the_end(self, desk: Desk, clip: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="open a video first"):
            desk.follow()
        session = desk.open(f" {clip} ")
        assert session.folder == tmp_path / "out" / "discs" / "session"
        assert pictures.next_step(session) == "Go to a frame that shows the object, and draw a box around it."
        one = session.add_object()
        assert pictures.next_step(session) == "Draw a box around Object 1, or mark it with strokes."
        session.draw(1, one, RED)
        assert pictures.next_step(session).startswith("Press “Follow the objects”.")
        desk.follow()
        assert wait(desk).startswith("Done.")
        assert not desk.is_busy
        rows = pictures.timeline(session)
        assert rows["fresh"] == [(0, LENGTH - 1)]
        assert rows["marks"] == [[1, "#00c8ff"]]
        assert pictures.run_title(session) == "All frames are up to date"
        session.draw(4, one, Stroke("brush", [(0.5, 0.5)], 0.2))
        rows = pictures.timeline(session)
        assert (rows["fresh"], rows["old"]) == ([(0, 3)], [(4, LENGTH - 1)])
        assert pictures.run_title(session) == "Run on from frame 00004"
        desk.follow()
        wait(desk)
        desk.export(tmp_path / "export", ["green"], 0.5, True)
        assert wait(desk) == f"Exported to {tmp_path / 'export'}"
        assert (tmp_path / "export" / "green" / "discs.mp4").is_file()

    def test_videos_that_cannot_be_opened_leave_the_other_one(self, desk: Desk, clip: Path) -> None:
        session = desk.open(str(clip))
        write_clip(clip.parent / "second", 2)
        for text, message in (
            (str(clip.parent), "there are 2 videos; open one of them"),
            (str(clip / "no.mp4"), "no such video file"),
            ("camera:0", "come only once"),
        ):
            with pytest.raises((ValueError, OSError), match=message):
                desk.open(text)
        assert desk.session is session

    def test_closing_waits_until_everything_is_on_disk(self, desk: Desk, clip: Path) -> None:
        session = desk.open(str(clip))
        session.draw(0, session.add_object(), RED)
        desk.follow()
        desk.close()
        assert not desk.is_busy
        assert session.busy is None
        again = desk.open(str(clip))
        assert again.valid() == session.valid()

    def test_another_checkpoint_makes_results_old(
        self, desk: Desk, clip: Path, arguments: argparse.Namespace, tmp_path: Path
    ) -> None:
        session = desk.open(str(clip))
        session.draw(0, session.add_object(), RED)
        desk.follow()
        wait(desk)
        assert desk.open(str(clip)).valid() == LENGTH
        (tmp_path / "other.ckpt").write_bytes(b"other")
        arguments.checkpoint = tmp_path / "other.ckpt"
        assert Desk(arguments).open(str(clip)).valid() == 0

    def test_choices(self, clip: Path) -> None:
        folder = clip.parent
        (folder / "b10.MP4").touch()
        (folder / "b9.mkv").touch()
        (folder / "notes.txt").touch()
        (folder / "empty").mkdir()
        (folder / ".hidden.mp4").touch()
        assert [(choice.name, choice.is_video) for choice in choices_in(folder)] == [
            ("b9.mkv", True),
            ("b10.MP4", True),
            ("discs", True),
            ("empty", False),
        ]


class TestPictures:
    def test_a_picture_is_the_frame_with_its_objects(self, desk: Desk, clip: Path) -> None:
        session = desk.open(str(clip))
        plain = np.asarray(Image.open(io.BytesIO(pictures.picture(session, 2)))).astype(int)
        assert np.abs(plain - frame(2)).mean() < 12  # JPEG
        session.draw(0, session.add_object(), RED)
        drawn = np.asarray(Image.open(io.BytesIO(pictures.picture(session, 0, dim=1.0)))).astype(int)
        inside = drawn[10:22, 8:20].reshape(-1, 3).mean(axis=0)
        expected = 0.6 * np.array((220, 40, 40)) + 0.4 * BRIGHT[1]
        assert np.abs(inside - expected).max() < 25
        assert drawn[35:, :30].mean() < 10
        with pytest.raises(IndexError):
            pictures.picture(session, LENGTH)

    def test_large_pictures_are_reduced(self, desk: Desk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pictures, "LONGEST_SIDE", 32)
        session = desk.open(str(clip))
        assert Image.open(io.BytesIO(pictures.picture(session, 0))).size == (32, 24)

    def test_flags_in_words(self, desk: Desk, clip: Path) -> None:
        session = desk.open(str(clip))
        one = session.add_object()
        session.rename(one, "Ball")
        session.findings.forward.rows = {
            2: [ObjectRow(2, "00002", one, 0, 0.0, "absent"), ObjectRow(2, "00002", 9, 0, 0.0, "absent")],
            3: [ObjectRow(3, "00003", one, 5, 0.5, "low_confidence new_kind")],
            4: [ObjectRow(4, "00004", one, 5, 0.5, "given")],
            5: [ObjectRow(5, "00005", 9, 0, 0.0, "absent")],
        }
        assert pictures.warnings_of(session, 2) == ["Ball has no pixel here."]
        assert pictures.warnings_of(session, 3) == ["Ball is uncertain.", "Ball new kind."]
        assert pictures.warnings_of(session, 4) == []
        assert pictures.timeline(session)["flagged"] == [(2, 3)]

    def test_every_flag_has_words(self) -> None:
        source = Path(drift.__file__).read_text(encoding="utf-8")
        flags = {line.split("``")[1] for line in source.splitlines() if line.strip().startswith("- ``")}
        assert flags - {"given"} <= pictures.FLAGS.keys()


class TestCommand:
    def test_without_nicegui(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert main(["app"]) == 2
        assert capsys.readouterr().err == (
            "error: the browser app needs NiceGUI, which is not installed: pip install 'vos_lightning[app]'\n"
        )

    def test_ports(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ValueError, match=f"port {port} is taken by another program"):
                find_port(port)
        assert find_port(None) >= 8080

    @pytest.mark.skipif(importlib.util.find_spec("nicegui") is None, reason="needs NiceGUI (the extra app)")
    def test_a_wrong_video_is_said_at_once(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["app", str(tmp_path / "no.mp4"), "--output", str(tmp_path / "out")]) == 2
        assert "no.mp4: there is no such video file" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
