"""A session on disk: ``session.json``, and the masks that were drawn in ``marks/<index>.png``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import TypedDict

from vos_lightning.app.browser.marks import Marks, Mask, Said
from vos_lightning.io.documents import read_document
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import read_label_map, write_label_map


class _Document(TypedDict):
    """``session.json``."""

    video: str
    names: list[list[Any]]
    last_id: int
    said: list[list[Any]]
    results: dict[str, Any]


def write_session(folder: Path, facts: str, marks: Marks, results: dict[str, Any]) -> None:
    """Write ``session.json``.

    Args:
        folder: folder of the session.
        facts: what a changed video is noticed by.
        marks: what was said; the masks themselves are written by :func:`write_marks`.
        results: plain values that say what was found.

    Raises:
        OSError: it cannot be written.
    """
    content: _Document = {
        "video": facts,
        "names": [[i, name] for i, name in marks.names.items()],
        "last_id": marks.last_id,
        "said": [[t, i, mask is not None] for t, said in marks.given.items() for i, mask in said.items()],
        "results": results,
    }
    write_atomically(folder / "session.json", json.dumps(content).encode(), durable=False)


def read_session(folder: Path, facts: str, restore: Callable[[Mapping[str, Any]], None]) -> Marks:
    """Read what :func:`write_session` and :func:`write_marks` have written.

    Args:
        folder: folder of the session.
        facts: what a changed video is noticed by.
        restore: takes over what was found.

    Raises:
        ValueError: it is damaged, or belongs to another video; the message says what to do.
    """
    path = folder / "session.json"
    mend = "choose another --output, or move this folder away"
    content = read_document(path, _Document, mend)
    if content["video"] != facts:
        raise ValueError(f"{folder}: this is the session of another video, or the video has changed since; {mend}")
    try:
        names = {int(i): str(name) for i, name in content["names"]}
        given: dict[int, dict[int, Mask | None]] = {}
        for t, i, is_mask in content["said"]:
            given.setdefault(int(t), {})[int(i)] = _read_mark(folder, int(t), int(i)) if is_mask else None
        restore(content["results"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: the session cannot be read ({error}); {mend}") from error
    return Marks(names, {}, content["last_id"]).saying(given)


def write_marks(folder: Path, index: int, said: Said, size: tuple[int, int]) -> None:
    """Write the masks of a frame, if there are any.

    Raises:
        OSError: it cannot be written.
    """
    if any(said.values()):
        write_label_map(_mark(folder, index), label_map_of(said, size))


def drop_marks(folder: Path, index: int) -> None:
    """Remove the masks of a frame, after ``session.json`` has stopped naming them."""
    _mark(folder, index).unlink(missing_ok=True)


def label_map_of(said: Said, size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """The masks of a frame as a label map."""
    return lay_over(torch.zeros(size, dtype=torch.uint8), said)


def lay_over(label_map: UInt8[Tensor, "H W"], said: Said) -> UInt8[Tensor, "H W"]:
    """Write the masks of a frame over a label map, which is changed and returned."""
    for object_id, mask in said.items():
        if mask is not None:
            label_map[torch.from_numpy(mask.pixels())] = object_id
    return label_map


def _read_mark(folder: Path, index: int, object_id: int) -> Mask:
    label_map = read_label_map(_mark(folder, index))
    return Mask.of((label_map == object_id).numpy())


def _mark(folder: Path, index: int) -> Path:
    return folder / "marks" / f"{index:06d}.png"
