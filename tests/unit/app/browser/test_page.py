"""The browser app in a real browser: load, mark, run, correct, export, as a newcomer does it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.app.browser.clips import HEIGHT, WIDTH, blue, frame, overlap, red, scenes
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.videos import VideoWriter, open_frames

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LENGTH = 10
LONG, MARKED, CUT = 20, 3, 14
"""Frames of the second clip, the one in which objects are marked, and the one in which another scene begins."""
SCALE = 4
ROOT = Path(__file__).resolve().parents[4]
PICTURES = os.environ.get("VOS_PICTURES")
"""Folder for pictures of the page, where they are wanted."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("nicegui") is None, reason="needs NiceGUI (the extra app)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs Playwright (the extra dev)"),
]


def large(array: np.ndarray) -> np.ndarray:
    """Every pixel as a square."""
    return array.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two clips in ``videos``, and the output of the app in ``out``."""
    import torch

    folder = tmp_path_factory.mktemp("app")
    (folder / "videos").mkdir()
    for name, length, picture_of in (("discs", LENGTH, frame), ("scenes", LONG, lambda t: scenes(t, CUT))):
        with VideoWriter(folder / "videos" / f"{name}.mp4", 12) as writer:
            for index in range(length):
                writer.write(torch.from_numpy(large(picture_of(index)).transpose(2, 0, 1).copy()))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The app with the network that ships, in a process of its own, on a folder of videos."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--output", str(folder / "out"), "--port", str(port), "--no-browser", "--device", "cpu", "--short-side", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_CURRENT_TEST")  # NiceGUI takes the process for a test of its own where it sees this
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "vos_lightning", "app", str(folder / "videos"), *options]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                with socket.socket() as attempt:
                    if attempt.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def pages(address: str, browser: Any, folder: Path) -> Iterator[Callable[[], Any]]:
    """Opens tabs, and looks at the end whether one has failed or has asked another machine for something."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(120_000)
    requests: list[str] = []
    faults: list[str] = []

    def open_page() -> Any:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    context.close()
    assert not faults
    assert not [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:"))]
    assert "Traceback" not in (folder / "log").read_text()
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["discs.mp4", "scenes.mp4"]


def drag(page: Any, *pixels: tuple[float, float]) -> None:
    """Draw on the picture through points in pixels of the clip."""
    box = page.locator(".vos-board").bounding_box()
    points = [(box["x"] + x / WIDTH * box["width"], box["y"] + y / HEIGHT * box["height"]) for x, y in pixels]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def by(page: Any, name: str) -> Any:
    return page.get_by_test_id(name)


def says(page: Any, name: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(by(page, name)).to_contain_text(re.compile(text), timeout=120_000)


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(700)
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def mask_of(folder: Path, index: int, object_id: int) -> np.ndarray:
    return (read_label_map(folder / f"{index:05d}.png") == object_id).numpy()


def go(page: Any, index: int, length: int) -> None:
    """Click on the timeline."""
    box = page.locator(".vos-timeline").bounding_box()
    page.mouse.click(box["x"] + (index + 0.5) / length * box["width"], box["y"] + 20)
    says(page, "where", f"Frame {index:05d}")


def test_load_mark_run_correct_export(pages: Callable[[], Any], folder: Path) -> None:
    from playwright.sync_api import expect

    page = pages()

    # An error is said in words, and changes nothing.
    by(page, "path").fill(str(folder / "nothing.mp4"))
    by(page, "open").click()
    expect(page.get_by_text("nothing.mp4: there is no such video file or folder of images")).to_be_visible()
    picture(page, "start")

    # Load, from the list of the folder.
    page.get_by_text("discs.mp4", exact=True).click()
    says(page, "hint", "draw a box around it")
    expect(page.get_by_text(f"{LENGTH} frames · {WIDTH * SCALE}×{HEIGHT * SCALE}")).to_be_visible()
    picture(page, "empty")

    # Mark two objects.
    drag(page, (3, 5), (25, 27))
    says(page, "hint", "Press “Follow the objects”")
    by(page, "add").click()
    expect(by(page, "object-2")).to_be_visible()
    drag(page, (39, 23), (61, 45))
    expect(page.locator(".vos-timeline")).to_be_visible()
    picture(page, "marked")

    # Run.
    by(page, "run").click()
    says(page, "rate", "frames a second")
    page.get_by_text(re.compile("^Done")).first.wait_for()
    says(page, "flagged", "doubtful frame")
    picture(page, "found")
    session = folder / "out" / "discs" / "session"
    before = {path.name: path.read_bytes() for path in sorted((session / "masks").iterdir())}
    assert len(before) == LENGTH
    first = (read_label_map(session / "masks" / "000000.png")).numpy()
    assert overlap(first == 1, large(red(0))) > 0.85
    assert overlap(first == 2, large(blue(0))) > 0.85

    # Correct frame 6 with the eraser and the brush, and run on from there.
    go(page, 6, LENGTH)
    by(page, "object-1").locator(".vos-chip").click()
    by(page, "tool-brush").click()
    drag(page, (32, 40), (36, 40))
    says(page, "run", "Run on from frame 00006")
    picture(page, "corrected")
    by(page, "run").click()
    says(page, "hint", "Jump to|Look through")
    after = {path.name: path.read_bytes() for path in sorted((session / "masks").iterdir())}
    assert [name for name in before if before[name] != after[name]][:1] == ["000006.png"]

    # Undo brings the mask back, and asks for another run.
    by(page, "undo").click()
    says(page, "run", "Run on from frame 00006")
    by(page, "run").click()
    says(page, "hint", "Jump to|Look through")
    assert {path.name: path.read_bytes() for path in sorted((session / "masks").iterdir())} == before

    # Remove an object, and export the rest.
    by(page, "object-2").get_by_label("remove").click()
    expect(by(page, "object-2")).to_have_count(0)
    by(page, "export").click()
    by(page, "format-coco").click()
    picture(page, "export")
    by(page, "export-now").click()
    page.get_by_text(re.compile("^Exported to")).first.wait_for()
    export = folder / "out" / "discs" / "export"
    assert len(list((export / "masks" / "discs").iterdir())) == LENGTH
    assert overlap(mask_of(export / "masks" / "discs", 0, 1), large(red(0))) > 0.85
    assert not any(mask_of(export / "masks" / "discs", t, 2).any() for t in range(LENGTH))
    assert (export / "overlays" / "discs.mp4").is_file()
    assert (export / "coco" / "discs.json").is_file()


def test_stop_cut_keys_gone_tabs_both_ways_cutouts(pages: Callable[[], Any], folder: Path) -> None:
    from playwright.sync_api import expect

    page = pages()
    session = folder / "out" / "scenes" / "session"
    if by(page, "another").is_visible():
        by(page, "another").click()
    page.get_by_text("scenes.mp4", exact=True).click()
    says(page, "hint", "draw a box around it")

    # The keys: from frame to frame, by ten, and playing.
    for key, frame_name in (("ArrowRight", "00001"), ("Shift+ArrowRight", "00011"), ("ArrowLeft", "00010")):
        page.keyboard.press(key)
        says(page, "where", f"Frame {frame_name}")
    page.keyboard.press("Space")
    says(page, "where", "Frame 0001[1-9]")
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    stands = by(page, "where").inner_text()
    page.wait_for_timeout(500)
    assert by(page, "where").inner_text() == stands

    # Marks, a change that Ctrl-Z takes back, and a name, whose letters are no keys.
    go(page, MARKED, LONG)
    drag(page, (MARKED + 3, 5), (MARKED + 25, 27))
    says(page, "hint", "Press “Follow the objects”")
    by(page, "add").click()
    expect(by(page, "object-2")).to_be_visible()
    drag(page, (39 - MARKED, 23), (61 - MARKED, 45))
    expect(by(page, "clear")).to_be_enabled()
    by(page, "tool-eraser").click()
    marks = session / "marks" / f"{MARKED:06d}.png"
    before = read_label_map(marks)
    drag(page, (50 - MARKED, 34), (52 - MARKED, 34))
    until(page, lambda: not read_label_map(marks).equal(before))
    page.keyboard.press("Control+z")
    until(page, lambda: read_label_map(marks).equal(before))
    field = by(page, "object-1").locator("input")
    field.fill("a n p")
    field.press("Enter")
    until(page, lambda: '"a n p"' in (session / "session.json").read_text())
    says(page, "where", f"Frame {MARKED:05d}")

    # Stopping, and going on to the cut.
    by(page, "run").click()
    by(page, "stop").click()
    page.get_by_text(re.compile("^Stopped after|^Another scene")).first.wait_for()
    if by(page, "hint").inner_text().startswith("Press"):
        says(page, "run", "Run on from frame")
        by(page, "run").click()
    says(page, "hint", f"Another scene begins in frame {CUT:05d}. Mark a n p and Object 2 there, or say that they are gone")
    says(page, "where", f"Frame {CUT:05d}")
    says(page, "warning", "was let go: another scene begins here")
    says(page, "flagged", "1 doubtful frame")
    picture(page, "cut")

    # Jumping between flags.
    go(page, 1, LONG)
    expect(by(page, "warning")).to_be_hidden()
    page.keyboard.press("n")
    says(page, "where", f"Frame {CUT:05d}")
    by(page, "previous").click()
    page.get_by_text("There are no doubtful frames before this one.").first.wait_for()
    go(page, CUT + 2, LONG)
    page.keyboard.press("p")
    says(page, "where", f"Frame {CUT:05d}")

    # A second tab says that one of them is gone; the first one hears of it and marks the other.
    other = pages()
    expect(by(other, "object-2")).to_be_visible()
    by(other, "next").click()
    says(other, "where", f"Frame {CUT:05d}")
    by(other, "object-2").locator(".vos-chip").click()
    by(other, "gone").click()
    says(page, "run", f"Run on from frame {CUT:05d}")
    by(page, "object-1").locator(".vos-chip").click()
    by(page, "tool-box").click()
    drag(page, (CUT + 3, 5), (CUT + 25, 27))
    expect(by(page, "clear")).to_be_enabled()
    by(other, "run").click()
    for tab in (page, other):
        tab.get_by_text(re.compile("^Done")).first.wait_for()
    found = [read_label_map(path).numpy() for path in sorted((session / "masks").iterdir())]
    assert [bool((label_map == 1).any()) for label_map in found] == [t >= MARKED for t in range(LONG)]
    assert [bool((label_map == 2).any()) for label_map in found] == [MARKED <= t < CUT for t in range(LONG)]
    says(page, "hint", f"Frames before {MARKED:05d} are empty: tick “Also backwards”")
    other.close()

    # Backwards too.
    by(page, "both").click()
    says(page, "run", "Run on")
    by(page, "run").click()
    expect(by(page, "run")).to_contain_text("All frames are up to date")
    picture(page, "both")

    # Transparent pictures and videos.
    by(page, "export").click()
    for name in ("overlay", "cutouts", "webm", "prores"):
        by(page, f"format-{name}").click()
    by(page, "export-now").click()
    page.get_by_text(re.compile("^Exported to")).first.wait_for()
    export = folder / "out" / "scenes" / "export"
    assert sorted(path.name for path in export.iterdir()) == ["cutouts", "index", "masks", "names", "written.jsonl"]
    assert [path.name for path in sorted((export / "cutouts").iterdir())] == ["scenes", "scenes.mov", "scenes.webm"]
    masks = [mask_of(export / "masks" / "scenes", t, 1) for t in range(LONG)]
    assert all(overlap(mask, large(red(t))) > 0.6 for t, mask in enumerate(masks))
    for t in (0, MARKED, LONG - 1):
        alpha = np.asarray(Image.open(export / "cutouts" / "scenes" / f"{t:05d}.png"))[..., 3]
        assert ((alpha > 0) == (masks[t] | mask_of(export / "masks" / "scenes", t, 2))).all()
    for name in ("scenes.mov", "scenes.webm"):
        assert len(list(open_frames(export / "cutouts" / name))) == LONG
    assert "a n p" in (export / "names" / "scenes.json").read_text()


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Wait for something on disk."""
    for _ in range(600):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it has not come")
