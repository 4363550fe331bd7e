"""The order of names, listing of folders, and writing of files."""

from __future__ import annotations

import ast
import os
import random
import re
import socket
from pathlib import Path

import pytest

import benchmarks
import data_modules
import vos_lightning
from vos_lightning.io.files import find_files, inside, list_everything, list_files, list_folders, natural_key, regular_file


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


# Names and links that lead elsewhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "is empty"),
        ("a//b", "is empty"),
        ("/etc/passwd", "is empty"),
        ("a/", "is empty"),
        ("..", "leads to another folder"),
        (".", "leads to another folder"),
        ("a/../../b", "leads to another folder"),
        ("a/..", "leads to another folder"),
        ("a\\..\\b", "leads to another folder"),
        ("a\0b", "leads to another folder"),
        ("C:", "leads to another folder"),
        ("C:/b", "leads to another folder"),
        ("x" * 256, "is longer than 255 bytes"),
        ("\u00e9" * 128, "is longer than 255 bytes"),
    ],
)
def test_paths_that_lead_out(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"list.txt: the name .* {message}; a name of a file or folder is needed") as caught:
        inside(tmp_path, path, "list.txt")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("path", ["a", "a/b.png", "..a", "a..", "a:b %d", "[x]", "\u00e9", "x" * 255, ".hidden", " ", "\udcff"])
def test_paths_that_stay(tmp_path: Path, path: str) -> None:
    assert inside(tmp_path, path) == tmp_path / path


def test_links_that_lead_out(tmp_path: Path) -> None:
    touch(tmp_path, "set/v/0.png", "set/v/1.png", "other/0.png", "setting/0.png")
    (tmp_path / "link").symlink_to("set")
    (tmp_path / "set" / "v" / "2.png").symlink_to("1.png")
    assert inside(tmp_path / "link", "v/2.png") == tmp_path / "link" / "v" / "2.png"
    assert len(list_files(tmp_path / "link" / "v", (".png",), [tmp_path / "set"])) == 3
    for number, target in enumerate(("other/0.png", "setting/0.png", "nowhere.png", "set/../other")):
        link = tmp_path / "set" / "v" / f"{number + 3}.png"
        link.symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=r"\.png: a link leads out of .*set, which is not followed; put a copy"):
            inside(tmp_path / "set", f"v/{number + 3}.png")
        assert inside(tmp_path / "set", f"v/{number + 3}.png", links_into=[tmp_path]) == link
        if not link.is_dir():
            for look in (
                lambda places: list_files(tmp_path / "set" / "v", (".png",), places),
                lambda places: find_files(tmp_path / "set", (".png",), places),
            ):
                look(None)
                look([tmp_path])
                with pytest.raises(ValueError, match="a link leads out of"):
                    look([tmp_path / "set"])
        link.unlink()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    assert regular_file(tmp_path / "link") == tmp_path / "link"
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # the name of a socket must be short
    for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), (".", "a folder"), ("/dev/null", "a device")):
        with pytest.raises(ValueError, match=f"this is {kind}, not a file"):
            regular_file(tmp_path / name)
    for name in ("nowhere", "a/b"):
        with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
            regular_file(tmp_path / name)


# One module lists and reads -------------------------------------------------------------------------------------------

LISTING = {"iterdir", "glob", "rglob", "scandir", "listdir", "walk"}
NO_FRAMES = {
    "vos_lightning/app/experiments.py",  # experiment files
    "vos_lightning/app/runs.py",  # checkpoints and logs
    "vos_lightning/app/results/scores.py",  # score files
    "vos_lightning/app/browser/desk.py",  # only whether a folder holds a picture
    "vos_lightning/io/sources.py",  # patterns that people write, sorted by the one order of names
}
DECODING = {("Image", "open"), ("cv2", "imread"), ("cv2", "imdecode"), ("np", "load"), ("np", "fromfile")}
DECODERS = {
    "vos_lightning/io/images.py",
    "vos_lightning/io/label_maps.py",
    "vos_lightning/io/plain_png.py",
    "vos_lightning/proposals/store.py",  # an archive of arrays
    "vos_lightning/io/annotation_files.py",  # pictures inside JSON
}


ROOTS = [Path(str(package.__file__)).parent for package in (vos_lightning, data_modules, benchmarks)]


def modules() -> list[tuple[str, ast.Module]]:
    """File and syntax tree of every module."""
    return [
        (path.relative_to(root.parent).as_posix(), ast.parse(path.read_text())) for root in ROOTS for path in root.rglob("*.py")
    ]


def calls() -> list[tuple[str, str, str]]:
    """File, object and method of every call of a method in the two packages."""
    return [
        (name, ast.unparse(node.func.value), node.func.attr)
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not name.startswith("benchmarks/")
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


# One module writes ----------------------------------------------------------------------------------------------------

RENAMING = {"replace", "rename", "renames", "link", "symlink", "hardlink_to", "symlink_to"}
WRITING = {"write_text", "write_bytes", "touch", "tofile", "imwrite", "savefig", "download_url_to_file", "ZipFile"} | {
    *("save", "savez", "savez_compressed", "savetxt")
}
WRITERS = {
    ("vos_lightning/io/outputs.py", "open"): "the record of an output folder grows by a line for each file",
    ("vos_lightning/io/pretrained.py", "download_url_to_file"): "torch.hub replaces the file itself when it is complete",
    ("vos_lightning/app/runs.py", "open"): "the lock of a run, which has to stay the same file",
    ("vos_lightning/app/lightning_cli.py", "save"): "the logs of Lightning, whose files grow",
    ("vos_lightning/callbacks/last_checkpoint.py", "save"): "the same logs",
    ("vos_lightning/app/benchmark/measure.py", "write_text"): "a switch of the system under /proc",
    ("vos_lightning/app/training.py", "tempfile"): "the parser reads a file, which is removed at once",
    ("vos_lightning/app/training.py", "write_text"): "the same file",
    ("vos_lightning/app/show.py", "tempfile"): "a run that is only described has a directory without files",
    ("vos_lightning/app/benchmark/command.py", "tempfile"): "a run that is only measured has a directory without files",
    ("vos_lightning/checkpoints/released/conversion.py", "rename"): "it renames parameters, not files",
    ("vos_lightning/checkpoints/portable.py", "save"): "it returns bytes",
    (
        "vos_lightning/propagation/directions.py",
        "tempfile",
    ): "predictions that wait for the other direction, in a file without a name",
    ("vos_lightning/app/browser/session.py", "save"): "its own function, which writes atomically",
    ("vos_lightning/app/browser/tasks.py", "save"): "the same function",
    ("data_modules/doctor/fixes.py", "move"): "a hidden file is moved out of the data set as it is",
    ("benchmarks/clips.py", "tempfile"): "data that are made for one measurement",
    ("benchmarks/evaluate.py", "tempfile"): "data that are made for one measurement",
    ("benchmarks/kills.py", "tempfile"): "runs that are made for one measurement",
    ("benchmarks/evaluate.py", "save"): "data that are made for one measurement",
    ("benchmarks/fuzz/__main__.py", "tempfile"): "inputs that are made for one case",
    ("benchmarks/fuzz/oracle.py", "tempfile"): "what the processes of one case print",
    ("benchmarks/fuzz/__main__.py", "rmtree"): "inputs that are made for one case",
    ("benchmarks/fuzz/cases.py", "copytree"): "inputs that are made for one case",
    ("benchmarks/fuzz/corpus.py", "save"): "inputs that are made for one case",
    **{
        ("benchmarks/fuzz/mutations.py", call): "inputs that are made for one case"
        for call in ("copy", "copytree", "move", "rmtree", "symlink")
    },
}
"""Module and call -> why it does not go through ``io/files.py``."""


def writes(tree: ast.Module) -> set[str]:
    """Calls that write, rename or make temporary files, but for those that write the temporary file of a ``Replacement``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & {"tempfile"}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & {"tempfile", "shutil", "os"}  # calls name their module, else they are not recognised
        elif isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            values = [ast.unparse(value) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
            if any(text.removesuffix(".absolute()").endswith(".temporary") for text in (owner, *values)):
                continue
            if name in ("open", "ZipFile"):  # by a mode, and ZipFile only reads without one
                writing = any(re.fullmatch(r"'[rwxabt+]+'", text) and set(text) & set("wxa+") for text in values)
            elif owner == "shutil" and name != "get_terminal_size":
                writing = True
            elif name in RENAMING:  # texts and dataclasses have a method or function of this name with more arguments
                writing = owner == "os" or (bool(owner) and len(values) == 1)
            else:
                writing = bool(owner) and name in WRITING and not {"buffer", "file"} & set(values)
            found |= {name} if writing else set()
    return found


def test_no_other_module_writes() -> None:
    """A file that is written in another way can be cut off and still have the name of a complete one."""
    found = {(name, call) for name, tree in modules() for call in writes(tree) if name != "vos_lightning/io/files.py"}
    assert found == set(WRITERS)


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("os.replace(a, b)", "replace"),
        ("Path(a).replace(b)", "replace"),
        ("path.rename(b)", "rename"),
        ("shutil.move(a, b)", "move"),
        ("shutil.copy2(a, b)", "copy2"),
        ("import tempfile", "tempfile"),
        ("from tempfile import mkdtemp", "tempfile"),
        ("from os import replace", "os"),
        ("open(path, 'w')", "open"),
        ("path.open('a+')", "open"),
        ("path.open(mode='xb')", "open"),
        ("av.open(path, 'w', format='mp4')", "open"),
        ("path.write_text(text)", "write_text"),
        ("torch.save(content, path)", "save"),
        ("np.savez(path, a=a)", "savez"),
        ("zipfile.ZipFile(path, 'w')", "ZipFile"),
    ],
)
def test_every_way_of_writing_is_recognised(source: str, call: str) -> None:
    assert writes(ast.parse(source)) == {call}


@pytest.mark.parametrize(
    "source",
    [
        *(
            "text.replace('a', 'b')",
            "dataclasses.replace(a, b=c)",
            "dataclasses.replace(a, **b)",
            "open(path)",
            "path.open('rb')",
        ),
        *("zipfile.ZipFile(path)", "image.save(buffer, format='PNG')", "copy.copy(network)", "torch.save(content, file)"),
        *("zipfile.ZipFile(new.temporary, 'w')", "new.temporary.open('wb')", "av.open(self._file.temporary.absolute(), 'w')"),
    ],
)
def test_reading_and_writing_in_memory_pass(source: str) -> None:
    assert not writes(ast.parse(source))
