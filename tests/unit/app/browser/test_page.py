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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.app.browser.clips import HEIGHT, WIDTH, blue, frame, overlap, red
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.videos import VideoWriter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LENGTH = 10
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


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    import torch

    path = tmp_path / "videos" / "discs.mp4"
    path.parent.mkdir()
    with VideoWriter(path, 12) as writer:
        for index in range(LENGTH):
            writer.write(torch.from_numpy(large(frame(index)).transpose(2, 0, 1).copy()))
    return path


@pytest.fixture
def address(tmp_path: Path, clip: Path) -> Iterator[str]:
    """The app with the network that ships, in a process of its own, on a folder of videos."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--output", str(tmp_path / "out"), "--port", str(port), "--no-browser", "--device", "cpu", "--short-side", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_CURRENT_TEST")  # NiceGUI takes the process for a test of its own where it sees this
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "vos_lightning", "app", str(clip.parent), *options]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                with socket.socket() as attempt:
                    if attempt.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(address)
        yield page
        browser.close()


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
        page.screenshot(path=Path(PICTURES) / f"{name}.jpg", type="jpeg", quality=75)


def mask_of(folder: Path, index: int, object_id: int) -> np.ndarray:
    return (read_label_map(folder / f"{index:05d}.png") == object_id).numpy()


def test_load_mark_run_correct_export(page: Any, clip: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    requests: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.reload()

    # An error is said in words, and changes nothing.
    by(page, "path").fill(str(tmp_path / "nothing.mp4"))
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
    session = tmp_path / "out" / "discs" / "session"
    before = {path.name: path.read_bytes() for path in sorted((session / "masks").iterdir())}
    assert len(before) == LENGTH
    first = (read_label_map(session / "masks" / "000000.png")).numpy()
    assert overlap(first == 1, large(red(0))) > 0.85
    assert overlap(first == 2, large(blue(0))) > 0.85

    # Correct frame 6 with the eraser and the brush, and run on from there.
    box = page.locator(".vos-timeline").bounding_box()
    page.mouse.click(box["x"] + 6.5 / LENGTH * box["width"], box["y"] + 20)
    says(page, "where", "Frame 00006")
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
    export = tmp_path / "out" / "discs" / "export"
    assert len(list((export / "masks" / "discs").iterdir())) == LENGTH
    assert overlap(mask_of(export / "masks" / "discs", 0, 1), large(red(0))) > 0.85
    assert not any(mask_of(export / "masks" / "discs", t, 2).any() for t in range(LENGTH))
    assert (export / "overlays" / "discs.mp4").is_file()
    assert (export / "coco" / "discs.json").is_file()

    assert not faults
    assert not [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:"))]
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert sorted(path.name for path in clip.parent.iterdir()) == ["discs.mp4"]
