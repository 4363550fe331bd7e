"""Two runs never write into one folder at the same time, and a run that was killed is in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dummies import make_frames, make_label_map
from vos_lightning.app.cli import main
from vos_lightning.io.folder_lock import FolderLock
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.videos import VideoWriter

OTHER = """
import sys
from pathlib import Path
from vos_lightning.io.outputs import OutputFolder

try:
    output = OutputFolder(Path(sys.argv[1]), "segment", resume="--resume" in sys.argv, alone=True)
    output.start()
except ValueError as error:
    print(error, flush=True)
else:
    print("writes", flush=True)
    sys.stdin.read()
"""
"""A run that has begun to write and does not end by itself."""


class Runs:
    """Processes that write into a folder until they are ended."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def begin(self, folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
        """Another process, and the line that it prints."""
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder), *options], **pipes)
        self.running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()


@pytest.fixture
def runs() -> Iterator[Runs]:
    found = Runs()
    yield found
    for process in found.running:
        process.kill()
        process.communicate()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "film.mp4") as writer:
        for frame in make_frames(3, height=32, width=48):
            writer.write(frame)
    write_label_map(tmp_path / "film.png", make_label_map((1, 2), height=32, width=48))
    return tmp_path / "film.mp4"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def segment(checkpoint: Path, film: Path, *options: str) -> int:
    fixed = ("--checkpoint", str(checkpoint), "--output", str(film.parent / "out"), "--device", "cpu")
    return main(["segment", str(film), *fixed, *options])


@pytest.mark.parametrize("options", [(), ("--resume",), ("--overwrite",)])
def test_a_second_run_is_refused_until_the_first_one_is_killed(
    options: tuple[str, ...], checkpoint: Path, film: Path, runs: Runs, capsys: Any
) -> None:
    folder = film.parent / "out"
    process, said = runs.begin(folder)
    assert said == "writes"
    before = content(folder)
    assert segment(checkpoint, film, *options) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}: another run is writing into this folder; wait until it has ended, or choose another folder\n"
    )
    assert content(folder) == before
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert segment(checkpoint, film, "--overwrite") == 0
    assert '"finished": true' in (folder / "written.jsonl").read_text()


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_keeps_others_out_until_it_has_ended(exists: bool, tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
    with OutputFolder(folder, "segment", alone=True) as output:
        assert exists == folder.exists()
        output.start()
        for options in ((), ("--resume",)):
            assert "another run is writing into this folder" in runs.begin(folder, *options)[1]
        output.put("a.txt", lambda path: path.write_text("a"))
        output.close_item("a")
        output.finish()
    assert sorted(content(folder)) == ["a.txt", "written.jsonl"], "the lock leaves nothing behind"
    assert runs.begin(folder, "--resume")[1] == "writes"


def test_two_runs_that_begin_together(tmp_path: Path) -> None:
    """Neither has seen the folder of the other; the second one to write is refused."""
    first, second = (OutputFolder(tmp_path / "out", "segment", alone=True) for _ in range(2))
    first.start()
    with pytest.raises(ValueError, match="another run is writing into this folder"):
        second.start()
    first.release()
    third = OutputFolder(tmp_path / "out", "segment", resume=True, alone=True)
    third.start()


def test_a_refused_folder_is_not_kept_locked(tmp_path: Path) -> None:
    (tmp_path / "strange.txt").write_text("of somebody else")
    with pytest.raises(ValueError, match=r"has not written \(strange.txt\)"):
        OutputFolder(tmp_path, "segment", alone=True)
    FolderLock(tmp_path).take()


def test_commands_that_do_not_ask_are_not_kept_out(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "test", alone=True) as output:
        output.start()
        OutputFolder(tmp_path / "out", "test", part=1, alone=True).start()
        OutputFolder(tmp_path / "out", "test", resume=True)


def test_a_forked_process_neither_keeps_the_lock_nor_gives_it_back(tmp_path: Path) -> None:
    """As the loaders of data do, which may live longer than the run that has begun them."""
    lock = FolderLock(tmp_path)
    lock.take()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()  # as when its copy of the object is collected
        os.read(reading, 1)
        os._exit(0)
    try:
        with pytest.raises(ValueError, match="another run"):
            FolderLock(tmp_path).take()
        lock.release()
        FolderLock(tmp_path).take()
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_where_there_are_no_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: Any) -> None:
        raise OSError("no locks available")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    locks = [FolderLock(tmp_path), FolderLock(tmp_path), FolderLock(tmp_path / "nowhere")]
    for lock in locks:
        lock.take()
        lock.release()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    FolderLock(tmp_path).take()
