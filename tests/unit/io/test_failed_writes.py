"""Whatever cannot be written leaves the old file and no temporary one, and the error names the file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.doctor.files import Finding
from data_modules.doctor.fixes import backup_folder, fix
from data_modules.submission.archive import write_submission
from vos_lightning.app.runs import Run, write_text
from vos_lightning.checkpoints.released import command, conversion
from vos_lightning.checkpoints.saving import AtomicCheckpointIO
from vos_lightning.evaluation.folders import Evaluation
from vos_lightning.evaluation.reports import write_scores
from vos_lightning.io import files
from vos_lightning.io.files import Replacement, target_of_temporary, write_atomically
from vos_lightning.io.label_maps import PALETTE, write_label_map
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.io.videos import VideoWriter
from vos_lightning.metrics.scores import ObjectScores
from vos_lightning.proposals.store import Found, write_proposals
from vos_lightning.visualization.curves import FrameScore, write_table

LIMIT = 1000
"""Size in bytes at which the disk is full; every writer writes more."""


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def scores(path: Path) -> None:
    rows = [ObjectScores(f"video{n}", 1, *[0.5] * 6) for n in range(100)]
    Evaluation("davis17", tuple(rows)).write(path.parent)


def proposals(path: Path) -> None:
    found = Found(torch.rand(9, 4), torch.rand(9, 28, 28), torch.rand(9), torch.zeros(9, dtype=torch.int64))
    write_proposals(path, {"0": found}, {"frame_size": [8, 8]})


PREDICTIONS: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def predictions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is submitted; written before anything fails."""
    PREDICTIONS[:] = [tmp_path_factory.mktemp("predictions")]
    for name in ("a", "b"):
        for n in range(3):
            write_label_map(PREDICTIONS[0] / name / f"{n:05d}.png", noise(32, 32) % 3)


def video(path: Path) -> None:
    with VideoWriter(path) as writer:
        for _ in range(3):
            writer.write(noise(3, 48, 64))


def checkpoint(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.zeros(5000)}}, path)


def imported(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "import_released", lambda *_: ({"state_dict": {"weight": torch.zeros(5000)}}, ()))
        command.main(["none.tar", "--paper", "stm", "--output", str(path), "--overwrite"])


DURABLE: dict[str, Callable[[Path], object]] = {
    "a.bin": lambda path: write_atomically(path, b"0" * 5000),
    "a.txt": lambda path: write_text(path, "0" * 5000),
    "record.json": lambda path: Run(path.parent).write_record({"starts": list(range(1000))}),
    "scores.json": lambda path: write_scores(path, {"rows": list(range(1000))}),
    "objects.csv": scores,
    "frames.csv": lambda path: write_table(path, [FrameScore("STM", "video", str(n), 1, 0.5) for n in range(500)]),
    "video.npz": proposals,
    "masks.zip": lambda path: write_submission("mose", PREDICTIONS[0], path),
    "last.ckpt": checkpoint,
    "imported.ckpt": imported,
}
"""Name of a file -> function that writes it to a path. They survive a power cut."""
PICTURES: dict[str, Callable[[Path], object]] = {
    "mask.png": lambda path: write_label_map(path, noise(64, 64)),
    "sheet.png": lambda path: write_png(path, Image.fromarray(noise(64, 64).numpy())),
    "video.mp4": video,
}
"""The same for files that may be empty after a power cut."""
WRITERS = DURABLE | PICTURES


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond :data:`LIMIT` bytes, whichever library writes it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def failing(call: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, call, full)
        yield


def old_file(folder: Path, name: str) -> Path:
    path = folder / "new" / "folder" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", WRITERS)
def test_everything_is_written(name: str, tmp_path: Path) -> None:
    """Folders are created, the old file is replaced, and the writers of these tests do write more than the limit."""
    path = tmp_path / "new" / "folder" / name
    for _ in range(2):
        WRITERS[name](path)
        assert path.stat().st_size > LIMIT
        assert not [other for other in os.listdir(path.parent) if other.endswith(".tmp")]
        path.write_bytes(b"old")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    path = old_file(tmp_path, name)
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert_untouched(path)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("name", DURABLE)
def test_a_name_or_content_that_cannot_be_stored(name: str, call: str, tmp_path: Path) -> None:
    path = old_file(tmp_path, name)
    with failing(call), pytest.raises(OSError, match="No space left on device") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert_untouched(path)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_do_not_wait_for_the_disk(name: str, tmp_path: Path) -> None:
    path = old_file(tmp_path, name)
    with failing("replace"), pytest.raises(OSError, match="No space left on device") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert_untouched(path)
    with failing("fsync"):
        WRITERS[name](path)
    assert path.stat().st_size > LIMIT


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_where_a_folder_should_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    path = tmp_path / "file" / name
    with pytest.raises(NotADirectoryError) as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert_untouched(tmp_path / "file")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_the_record_of_an_output_folder(call: str, tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "o", "predict")
    output.put("0.png", lambda path: write_label_map(path, noise(8, 8)))
    before = (tmp_path / "o" / "written.jsonl").read_bytes()
    with failing(call), pytest.raises(OSError, match="No space left on device") as caught:
        output.finish()
    assert caught.value.filename == str(tmp_path / "o" / "written.jsonl")
    assert (tmp_path / "o" / "written.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "o")) == ["0.png", "written.jsonl"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_repair(call: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    mask = root / "Annotations" / "0.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(PALETTE[np.eye(8, dtype=np.uint8)]).save(mask)
    before, kept = mask.read_bytes(), backup_folder(root) / "Annotations" / "0.png"
    with failing(call), pytest.raises(OSError, match="No space left on device") as caught:
        fix(root, [Finding("colour-mask", str(mask), "", fixable=True)])
    assert caught.value.filename == str(kept)
    assert mask.read_bytes() == before
    assert os.listdir(mask.parent) == ["0.png"]
    assert os.listdir(kept.parent) == []


def test_a_video_is_discarded_on_a_full_disk(tmp_path: Path) -> None:
    """Closing the container fails then, which must not hide the error because of which the video is discarded."""
    path = old_file(tmp_path, "video.mp4")
    writer = VideoWriter(path)
    for _ in range(60):  # the encoder holds the first ones back
        writer.write(noise(3, 48, 64))
    with full_disk():
        writer.discard()
    assert_untouched(path)


# The primitive --------------------------------------------------------------------------------------------------------


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut between the two leaves an empty file under the name of the old one."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def rename(*arguments: Path) -> None:
        calls.append("name")
        replace(*arguments)

    monkeypatch.setattr(files.os, "fsync", flush)
    monkeypatch.setattr(files.os, "replace", rename)
    write_atomically(tmp_path / "a", b"")
    assert calls == ["content", "name", "folder"]


def test_an_exception_discards(tmp_path: Path) -> None:
    path = old_file(tmp_path, "a")

    def begin(error: BaseException) -> None:
        with Replacement(path) as new:
            new.temporary.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise error

    for error in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            begin(error)
        assert_untouched(path)


def test_errors_that_name_another_file_keep_its_name(tmp_path: Path) -> None:
    path = old_file(tmp_path, "a")
    with pytest.raises(FileNotFoundError) as caught, Replacement(path):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")
    with pytest.raises(OSError, match="a picture is damaged") as damaged, Replacement(path):
        raise OSError("a picture is damaged")
    assert damaged.value.filename is None


def test_the_temporary_file_is_hidden_and_recognised(tmp_path: Path) -> None:
    name = Replacement(tmp_path / "a.b.tmp").temporary.name
    assert name.startswith(".")
    assert target_of_temporary(name) == "a.b.tmp"
    for other in ("a.b.tmp", ".a.tmp", f".a.{'g' * 32}.tmp", f"a.{'0' * 32}.tmp", f".a.{'0' * 31}.tmp"):
        assert target_of_temporary(other) is None
