"""Ways to break an input: documents by their structure, files by their bytes, folders by their names, and arguments."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.fuzz.corpus import put, to_yaml

LONG = "n" * 300
NAMES = ("ünï çødé", "名前", "a b", "-dash", "a\nb", "x" * 200, "CON", "00000 (1)", "[red]a[/red]", "%s{0}", "\u202eabc")
TEXTS = ("", "x", "5", "null", *NAMES, LONG, "1e999", "a/b", "vos_lightning.networks.stm.STM", "p_one", "\u0000")
NUMBERS = (0, -1, 3, 0.5, -0.5, 1e308, 10**30, float("nan"), float("inf"), 255, 65536)
PLAIN = (None, True, False, [], {}, [None], [[]], {"a": 1}, [1, 2, 3], {"": None}, ["x"], [{}])


def any_value(rng: random.Random) -> Any:
    """A value of some type."""
    return rng.choice([rng.choice(TEXTS), rng.choice(NUMBERS), rng.choice(PLAIN)])


# Documents ------------------------------------------------------------------------------------------------------------


def _places(value: Any, inside: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value of a document, the document itself left out."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, entry in list(entries)[:200]:
        found += [(*inside, key), *_places(entry, (*inside, key))]
    return found


def _holder(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content


def change_document(rng: random.Random, content: Any, how: str) -> Any:
    """A document of plain values with one change.

    Args:
        rng: random generator.
        content: mappings, lists and plain values; it is changed.
        how: a key of :data:`DOCUMENT`.
    """
    places = _places(content)
    if how == "root" or not places:
        return any_value(rng)
    # Every level is as likely as any other: lists of numbers would take most of the draws else.
    depth = rng.choice(sorted({len(place) for place in places}))
    place = rng.choice([place for place in places if len(place) == depth])
    holder, key = _holder(content, place), place[-1]
    if how == "drop":
        del holder[key]
    elif how == "null":
        holder[key] = None
    elif how == "type":
        holder[key] = any_value(rng)
    elif how == "number":
        holder[key] = rng.choice(NUMBERS)
    elif how == "empty":
        holder[key] = rng.choice([[], {}, ""])
    elif how == "text":
        holder[key] = rng.choice(TEXTS)
    elif how == "wrap":
        holder[key] = rng.choice([[holder[key]], {"a": holder[key]}])
    elif how == "nest":
        for _ in range(30):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"extends": holder[key]}
    elif how == "name":
        if isinstance(holder, dict):
            holder[rng.choice([*NAMES, LONG, "", 5, None, True, "a.b", "\u0000"])] = holder.pop(key)
    elif how == "twice":
        if isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[f"{key}x"] = holder[key]
    else:  # swap
        other = rng.choice(places)
        try:
            second = _holder(content, other)
            holder[key], second[other[-1]] = second[other[-1]], holder[key]
        except (TypeError, KeyError, IndexError):
            holder[key] = None
        if _is_cyclic(content):
            return {}
    return content


def _is_cyclic(content: Any) -> bool:
    try:
        repr_length = len(json.dumps(content, default=str, skipkeys=True))
    except (ValueError, RecursionError):
        return True
    return repr_length < 0


DOCUMENT = ("drop", "null", "type", "number", "empty", "text", "wrap", "nest", "name", "twice", "swap", "root")


def _json(rng: random.Random, path: Path, how: str) -> None:
    content = change_document(rng, json.loads(path.read_text()), how)
    put(path, json.dumps({str(k): v for k, v in content.items()} if isinstance(content, dict) else content))


def _yaml(rng: random.Random, path: Path, how: str) -> None:
    put(path, to_yaml(change_document(rng, yaml.safe_load(path.read_text()), how)))


def _checkpoint(rng: random.Random, path: Path, how: str) -> None:
    content = torch.load(path, weights_only=True)
    content = change_document(
        rng, {**content, "state_dict": dict(content["state_dict"])} if "state_dict" in content else content, how
    )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put(path, buffer.getvalue())


def _tensor(rng: random.Random, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    state = content.get("state_dict", content)
    key = rng.choice(sorted(state))
    state[key] = rng.choice(
        [torch.zeros(3, 5), torch.zeros(0), torch.tensor(float("nan")), torch.tensor(1), torch.tensor(True), torch.zeros(1) * 1j]
    )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put(path, buffer.getvalue())


def _archive(rng: random.Random, path: Path, how: str) -> None:
    with np.load(path) as before:
        arrays = dict(before)
    if rng.random() < 0.7:
        header = change_document(rng, json.loads(str(arrays["header"])), how)
        arrays["header"] = np.asarray(json.dumps(header))
    else:
        key = rng.choice(sorted(arrays))
        arrays[key] = rng.choice(
            [np.zeros(3), np.zeros((0, 2)), np.asarray("x"), arrays["00000"][:0], np.zeros(2, "i4"), np.float64(1)]
        )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    put(path, buffer.getvalue())


def _lines(rng: random.Random, path: Path, how: str) -> None:
    lines = change_document(rng, path.read_text().splitlines(), how)
    put(path, "".join(f"{line}\n" for line in lines) if isinstance(lines, list) else str(lines))


def _picture(rng: random.Random, path: Path) -> None:
    """The same name, another picture."""
    kind = rng.choice(["size", "rgb", "rgba", "grey", "white", "sixteen", "one", "palette", "format", "thin"])
    with Image.open(path) as before:
        size = {"size": (20, 33), "one": (1, 1), "thin": (1, 500)}.get(kind, before.size)
    noise = np.random.default_rng(rng.randrange(2**32))
    width, height = size
    if kind in ("rgb", "rgba", "size"):
        image = Image.fromarray(noise.integers(0, 255, (height, width, 4 if kind == "rgba" else 3), dtype=np.uint8))
    elif kind == "sixteen":
        image = Image.fromarray(noise.integers(0, 65535, (height, width)).astype(np.uint16))
    elif kind == "white":
        image = Image.new("L", size, 255)
    elif kind == "palette":
        image = Image.fromarray(noise.integers(0, 255, (height, width), dtype=np.uint8)).convert("P")
    else:
        image = Image.fromarray(noise.integers(0, 4, (height, width), dtype=np.uint8))
    buffer = io.BytesIO()
    jpeg = path.suffix == ".jpg" and kind != "format" and image.mode in ("L", "RGB")
    image.save(buffer, format="JPEG" if jpeg else "GIF" if kind == "format" else "PNG")
    put(path, buffer.getvalue())


# Bytes ----------------------------------------------------------------------------------------------------------------


def _truncated(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    put(path, content[: rng.randrange(max(len(content), 1))])


def _flipped(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 20])):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    put(path, bytes(content))


def _emptied(rng: random.Random, path: Path) -> None:  # noqa: ARG001
    put(path, b"")


GARBAGE = (
    b"\xff\xfe" + b"a\x00" * 20,  # UTF-16
    b"\xef\xbb\xbf{}",
    b"\x00" * 64,
    b"PK\x03\x04abc",
    *(b"{", b"a: b: c", b"[", b"- \t- x", b"\x80\x04."),
)


def _garbage(rng: random.Random, path: Path) -> None:
    put(path, rng.choice([rng.randbytes(200), *GARBAGE]))


def _exchanged(rng: random.Random, path: Path) -> None:
    """The content of any other file of the case."""
    others = sorted(other for other in _case(path).rglob("*") if other.is_file() and other != path)
    put(path, rng.choice(others).read_bytes() if others else b"")


# Folders --------------------------------------------------------------------------------------------------------------


def _case(path: Path) -> Path:
    """The folder of the case in which a path lies."""
    return next(parent for parent in path.parents if parent.name == "case")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _removed(rng: random.Random, path: Path) -> None:  # noqa: ARG001
    _remove(path)


def _folder(rng: random.Random, path: Path) -> None:
    """A folder where a file was, and the other way round."""
    was_folder = path.is_dir()
    _remove(path)
    if was_folder:
        put(path, rng.choice([b"", b"x"]))
    else:
        path.mkdir()
        if rng.random() < 0.5:
            put(path / path.name, b"x")


def _renamed(rng: random.Random, path: Path) -> None:
    name = rng.choice(NAMES) + rng.choice([path.suffix, path.suffix.upper(), ""])
    if not path.with_name(name).exists():
        shutil.move(path, path.with_name(name))


def _copied(rng: random.Random, path: Path) -> None:
    """A second file for the same thing."""
    stem, suffix = path.stem, path.suffix
    name = rng.choice([f"0{path.name}", f"{stem}.png", f"{stem}.jpg", f"{stem} 2{suffix}", f".{path.name}", rng.choice(NAMES)])
    target = path.with_name(name)
    if not target.exists():
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def _linked(rng: random.Random, path: Path) -> None:
    """A link that leads nowhere, to itself, or to another file."""
    case = _case(path)
    others = sorted(other for other in case.rglob("*") if other != path and path not in other.parents)
    target = rng.choice(["nowhere", path.name, os.path.relpath(rng.choice(others), path.parent) if others else "nowhere"])
    if os.path.normpath(path.parent / target) in map(str, path.parents):
        target = "nowhere"  # a folder inside itself
    _remove(path)
    os.symlink(target, path)


def _bare(rng: random.Random, path: Path) -> None:
    """A folder without its content, or with a stray file or folder."""
    folder = path if path.is_dir() else path.parent
    how = rng.choice(["empty", "file", "folder"])
    if how == "empty" and folder.name != "case":
        for inner in folder.iterdir():
            _remove(inner)
    elif how == "folder":
        (folder / rng.choice(NAMES)).mkdir(exist_ok=True)
    else:
        put(folder / f"{rng.choice(NAMES)}{rng.choice(['.png', '.jpg', '.txt', '.json', '.yaml'])}", b"stray")


# Which mutation fits which file ----------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, Path], None]
BYTES: dict[str, Mutation] = {
    "truncated": _truncated,
    "flipped": _flipped,
    "emptied": _emptied,
    "garbage": _garbage,
    "exchanged": _exchanged,
}
NAMING: dict[str, Mutation] = {
    "removed": _removed,
    "folder": _folder,
    "renamed": _renamed,
    "copied": _copied,
    "linked": _linked,
    "bare": _bare,
}


def _structured(kind: str, change: Callable[[random.Random, Path, str], None]) -> dict[str, Mutation]:
    def of(how: str) -> Mutation:
        return lambda rng, path: change(rng, path, how)

    return {f"{kind}-{how}": of(how) for how in DOCUMENT}


_CHECKPOINT = {**_structured("checkpoint", _checkpoint), "tensor": _tensor}
STRUCTURE: dict[str, dict[str, Mutation]] = {
    ".json": _structured("json", _json),
    ".yaml": _structured("yaml", _yaml),
    ".txt": _structured("lines", _lines),
    ".ckpt": _CHECKPOINT,
    ".pth": _CHECKPOINT,
    ".npz": _structured("archive", _archive),
    ".png": {"picture": _picture},
    ".jpg": {"picture": _picture},
}
"""Suffix -> mutations that know what such a file holds."""
MUTATIONS: dict[str, Mutation] = {**BYTES, **NAMING}
for _known in STRUCTURE.values():
    MUTATIONS.update(_known)


def draw_mutation(rng: random.Random, path: str) -> str:
    """Name of a mutation that fits a file or folder (a path without a suffix is a folder)."""
    suffix = Path(path).suffix
    known = STRUCTURE.get(suffix, {})
    if not suffix and Path(path).name != "finished":
        return rng.choice(sorted(NAMING))
    if known and rng.random() < 0.7:
        return rng.choice(sorted(known))
    return rng.choice(sorted({**BYTES, **NAMING}))


# Arguments ------------------------------------------------------------------------------------------------------------

ARGUMENTS = ("missing", "repeated", "wrong", "unknown", "shuffled", "an-input", "extra")


UNKNOWN = (
    *("--unknown", "--unknown=1", "-x", "--model.nothing=1", "--trainer.nothing=1"),
    *("--data=5", "--model=null", "--trainer=[]"),
)
WRONG = (
    *("", "-1", "0", "nan", "1e30", "x", "nowhere/at/all", LONG, LONG * 20, "\udcff", "名前", "null", "[]", "{}", "--"),
    *("a\nb", ".", "~"),
)


def change_arguments(rng: random.Random, argv: list[str], how: str, files: list[str]) -> list[str]:
    """An argument list with one change.

    Args:
        rng: random generator.
        argv: name of the command and its arguments.
        how: one of :data:`ARGUMENTS`.
        files: files and folders of the case.
    """
    command, rest = argv[0], list(argv[1:])
    position = rng.randrange(len(rest)) if rest else 0
    if how == "missing" and rest:
        del rest[position]
    elif how == "repeated" and rest:
        rest[position:position] = rest[position : position + rng.choice([1, 2])]
    elif how == "wrong" and rest:
        wrong = rng.choice(WRONG)
        key, equals, _ = rest[position].partition("=")
        rest[position] = f"{key}={wrong}" if equals else wrong
    elif how == "unknown":
        rest.insert(position, rng.choice(UNKNOWN))
    elif how == "shuffled":
        rng.shuffle(rest)
    elif how == "an-input":
        options = [i + 1 for i, text in enumerate(rest[:-1]) if text in ("--output", "--run-dir", "--json", "--runs")]
        if options:
            rest[rng.choice(options)] = rng.choice(files)
        elif rest:
            rest[position] = rng.choice(files)
    elif how == "extra":
        rest.append(rng.choice(["", "x", *files[:20]]))
    return [command, *rest]
