"""The order of names, listing of folders, and writing of files."""

from __future__ import annotations

import ast
import os
import random
from pathlib import Path

import pytest

import data_modules
import vos_lightning
from vos_lightning.io import files
from vos_lightning.io.files import (
    find_files,
    list_everything,
    list_files,
    list_folders,
    natural_key,
    replacing,
    write_atomically,
)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "9", "10", "100"],
        [f"frame_{i}" for i in range(1, 13)],
        ["00000", "00001", "00010", "00100"],
        ["img2a", "img2b", "img12a", "img12b"],
        ["0001.left", "0001.right", "0002.left", "0010.left"],
        ["7", "a2", "a10", "b"],
        ["a", "a1", "a1b", "a2", "a10b2", "a10b11", "b"],
        ["9", "9_2", "9_10", "10"],
        ["-1", "-2", "-10"],  # a sign is text
        ["1.5", "1.25"],  # and so is a point
        ["9", "１０", "11"],  # decimal digits of any script count; a superscript does not
        ["x1", "x²"],
        ["01", "1", "2"],  # equal numbers: the name decides
        ["2023-01-31 9h", "2023-01-31 10h", "2023-02-01 0h"],
        ["clip 9/1", "clip 9/2", "clip 10/1"],
    ],
)
def test_natural_order(ordered: list[str]) -> None:
    shuffled = list(ordered)
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert sorted(shuffled, key=natural_key) == ordered


def test_files_are_listed_in_order_without_hidden_ones_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "f10.png", "f9.PNG", "f1.jpg", "._f1.jpg", "notes.txt", "f2.png/inside.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "f3.png")
    expected = {"f1": "f1.jpg", "f3": "f3.png", "f9": "f9.PNG", "f10": "f10.png"}  # a broken link is not passed over
    found = list_files(tmp_path, (".jpg", ".png"))
    assert list(found.items()) == [(stem, tmp_path / name) for stem, name in expected.items()]
    assert list_folders(tmp_path) == ["f2.png"]
    assert [path.name for path in list_everything(tmp_path)][:3] == ["._f1.jpg", "f1.jpg", "f2.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.jpg", "1.png"), r"1\.png and 1\.jpg are the same frame"),
        (("1.jpg", "01.jpg"), r"1\.jpg and 01\.jpg are the same frame"),
        (("f_1.jpg", "f_001.png", "f_2.png"), r"f_1\.jpg and f_001\.png are the same frame"),
    ],
)
def test_two_files_for_one_frame_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_files(touch(tmp_path, *names), (".jpg", ".png"))


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "c10/1.png", "c9/10.png", "c9/2.png", ".trash/3.png", "c9/._2.png", "c9/a.txt", "0.png")
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, (".png",))]
    assert found == ["0.png", "c9/2.png", "c9/10.png", "c10/1.png"]


@pytest.mark.parametrize("look", [list_folders, list_everything, lambda f: list_files(f, ()), lambda f: find_files(f, ())])
def test_missing_folders_are_named(tmp_path: Path, look: object) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        look(tmp_path / "nowhere")  # type: ignore[operator]


def test_a_file_that_is_written_piece_by_piece_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "archive.zip"
    with replacing(path) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


# One module lists and reads -------------------------------------------------------------------------------------------

LISTING = {"iterdir", "glob", "rglob", "scandir", "listdir", "walk"}
NO_FRAMES = {
    "vos_lightning/app/experiments.py",  # experiment files
    "vos_lightning/app/runs.py",  # checkpoints and logs
    "vos_lightning/app/results/scores.py",  # score files
}
DECODING = {("Image", "open"), ("cv2", "imread"), ("cv2", "imdecode"), ("np", "load"), ("np", "fromfile")}
DECODERS = {
    "vos_lightning/io/images.py",
    "vos_lightning/io/label_maps.py",
    "vos_lightning/io/plain_png.py",
    "vos_lightning/proposals/store.py",  # an archive of arrays
}


def calls() -> list[tuple[str, str, str]]:
    """File, object and method of every call of a method in the two packages."""
    roots = [Path(str(package.__file__)).parent for package in (vos_lightning, data_modules)]
    return [
        (path.relative_to(root.parent).as_posix(), ast.unparse(node.func.value), node.func.attr)
        for root in roots
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def test_no_other_module_lists_folders() -> None:
    """Who lists files sorts them: a second order of frames could only come from there."""
    elsewhere = {
        (name, method)
        for name, owner, method in calls()
        if method in LISTING and owner != "ast" and name != "vos_lightning/io/files.py" and name not in NO_FRAMES
    }
    assert not elsewhere


def test_no_other_module_decodes_pictures() -> None:
    assert not {(name, method) for name, owner, method in calls() if (owner, method) in DECODING and name not in DECODERS}
