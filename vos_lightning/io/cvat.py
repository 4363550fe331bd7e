"""Annotations of CVAT: its XML for images and for videos, and its JSON (``annotations.json`` of a backup, or from the server).

Only key frames count, as the shapes between them were made by the tool and not drawn. A track that leaves the picture
(``outside``) says that its object is gone from that frame on. CVAT also writes this into the frame after a single shape that was
no track; there it says nothing, and is left out.
"""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Required

import numpy as np
from jaxtyping import Bool
from pydantic import Field
from typing_extensions import TypedDict

from vos_lightning.io.documents import checked
from vos_lightning.io.drawings import Drawing, Key, Shape, box, ellipse
from vos_lightning.io.texts import read_text

_Numbers = list[Annotated[int | float, Field(allow_inf_nan=False)]]
_Part = tuple[Key, int, bool, Shape | None]
"""Object, frame, whether it is gone, and its shape."""


class _Shape(TypedDict, total=False):
    type: Required[str]
    points: Required[_Numbers]
    frame: Required[int]
    outside: bool
    keyframe: bool
    rotation: float | int
    label: str
    label_id: int
    group: int | None
    z_order: int


class _Track(TypedDict, total=False):
    label: str
    label_id: int
    shapes: Required[list[_Shape]]


class _Job(TypedDict, total=False):
    shapes: list[_Shape]
    tracks: list[_Track]


def read_cvat_xml(path: Path) -> list[Drawing]:
    """Drawn frames of a file in ``CVAT for images`` or ``CVAT for video``.

    Raises:
        ValueError: the file is damaged, or of another kind; the message names it.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path}: the file defines names of its own (DOCTYPE), which CVAT does not; it is not read")
    try:
        root = Tree.fromstring(text)
    except Tree.ParseError as error:
        raise ValueError(f"{path} is not valid XML: {error}") from error
    if root.tag != "annotations":
        raise ValueError(f"{path}: the file begins with <{root.tag}>, where annotations of CVAT begin with <annotations>")
    try:
        drawings = [_of_image(image, path) for image in root.iter("image")]
        parts: list[_Part] = []
        for number, track in enumerate(root.iter("track")):
            label = f"{track.get('label', 'object')}"
            parts += _of_track((label, f"track {track.get('id', number)}"), list(_track_entries(track, path)))
    except (KeyError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: an annotation lacks a value or has a wrong one ({error})") from error
    return [drawing for drawing in drawings if drawing.shapes] + _by_frame(parts)


def read_cvat_json(path: Path, content: Any) -> list[Drawing] | None:
    """Drawn frames of CVAT's JSON; None if it is of another kind.

    Raises:
        ValueError: a value is wrong; the message names file and key.
    """
    jobs = content if isinstance(content, list) else [content]
    if not jobs or not all(isinstance(job, dict) and ("tracks" in job or "shapes" in job) for job in jobs):
        return None
    checked(jobs, list[_Job], path)
    parts: list[_Part] = []
    count = 0
    for job in jobs:
        for shape in sorted(job.get("shapes", ()), key=lambda shape: shape.get("z_order", 0)):
            key = _named(_label(shape), shape.get("group"))
            parts.append((key, shape["frame"], False, _json_shape(key, shape, path)))
        for track in job.get("tracks", ()):
            key = (_label(track), f"track {count}")
            count += 1
            entries = [
                (shape["frame"], shape.get("outside", False), None if shape.get("outside") else _json_shape(key, shape, path))
                for shape in track["shapes"]
                if shape.get("keyframe", True)
            ]
            parts += _of_track(key, entries)
    return _by_frame(parts)


def _label(entry: Any) -> str:
    return str(entry.get("label", entry.get("label_id", "object")))


def _named(label: str, group: object) -> Key:
    return (label, f"group {group}") if group not in (None, 0, "0", "") else (label,)


def _of_track(key: Key, entries: Iterable[tuple[int, bool, Shape | None]]) -> list[_Part]:
    """Key frames of a track, without the end that CVAT writes behind a single shape."""
    ordered = sorted(entries, key=lambda entry: entry[0])
    single = len(ordered) == 2 and ordered[1][1] and ordered[1][0] == ordered[0][0] + 1
    return [(key, frame, outside, shape) for frame, outside, shape in ordered[: 1 if single else None]]


def _by_frame(parts: Sequence[_Part]) -> list[Drawing]:
    found = []
    for frame in sorted({part[1] for part in parts}):
        here = [part for part in parts if part[1] == frame]
        shapes = tuple(shape for _, _, _, shape in here if shape is not None)
        gone = tuple(key for key, _, outside, _ in here if outside)
        found.append(Drawing(str(frame), shapes, gone, counted=True))
    return found


# XML ------------------------------------------------------------------------------------------------------------------


def _of_image(image: Tree.Element, path: Path) -> Drawing:
    entries = sorted(image, key=lambda entry: int(entry.get("z_order", 0)))
    shapes = tuple(
        _xml_shape(_named(entry.get("label", "object"), entry.get("group_id")), entry, path)
        for entry in entries
        if entry.tag in ("polygon", "box", "ellipse", "mask")
    )
    size = (int(image.attrib["height"]), int(image.attrib["width"])) if "height" in image.attrib else None
    return Drawing(PurePosixPath(image.attrib["name"].replace("\\", "/")).stem, shapes, size=size)


def _track_entries(track: Tree.Element, path: Path) -> Iterator[tuple[int, bool, Shape | None]]:
    key = (track.get("label", "object"), f"track {track.get('id', '')}")
    for entry in track:
        if entry.get("keyframe", "1") == "1" and entry.tag in ("polygon", "box", "ellipse", "mask"):
            outside = entry.get("outside") == "1"
            yield int(entry.attrib["frame"]), outside, None if outside else _xml_shape(key, entry, path)


def _xml_shape(key: Key, entry: Tree.Element, path: Path) -> Shape:
    value = {name: float(text) for name, text in entry.attrib.items() if name in _PLACES}
    turn = value.get("rotation", 0.0)
    if entry.tag == "box":
        return Shape(key, polygons=[box(value["xtl"], value["ytl"], value["xbr"], value["ybr"], turn)])
    if entry.tag == "ellipse":
        return Shape(key, polygons=[ellipse(value["cx"], value["cy"], (value["rx"], value["ry"]), turn)])
    if entry.tag == "mask":
        left, top, width, height = (int(entry.attrib[name]) for name in ("left", "top", "width", "height"))
        runs = [int(text) for text in entry.attrib["rle"].split(",")]
        return Shape(key, patch=(left, top, _rows(runs, height, width, path)))
    outline = [float(text) for point in entry.attrib["points"].split(";") for text in point.split(",")]
    return Shape(key, polygons=[_outline(outline, path)])


_PLACES = frozenset({"xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "rotation"})


def _rows(runs: Sequence[int], height: int, width: int, path: Path) -> Bool[np.ndarray, "h w"]:
    """Run lengths of CVAT, in rows, background first."""
    if height < 1 or width < 1 or any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"{path}: the run lengths of a mask do not fill its box of {width}x{height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)


def _outline(points: Sequence[int | float], path: Path) -> Sequence[int | float]:
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"{path}: a polygon has {len(points)} numbers; at least 3 points of x and y are needed")
    return points


# JSON -----------------------------------------------------------------------------------------------------------------


def _json_shape(key: Key, shape: Any, path: Path) -> Shape:
    kind, points, turn = shape["type"], shape["points"], float(shape.get("rotation", 0.0))
    if kind == "polygon":
        return Shape(key, polygons=[_outline(points, path)])
    if kind == "rectangle" and len(points) == 4:
        left, top, right, bottom = map(float, points)
        return Shape(key, polygons=[box(left, top, right, bottom, turn)])
    if kind == "ellipse" and len(points) == 4:
        x, y, right, top = map(float, points)
        return Shape(key, polygons=[ellipse(x, y, (right - x, y - top), turn)])
    if kind == "mask" and len(points) > 4:
        x0, y0, x1, y1 = map(int, points[-4:])
        runs = [int(point) for point in points[:-4]]
        return Shape(key, patch=(x0, y0, _rows(runs, y1 - y0 + 1, x1 - x0 + 1, path)))
    raise ValueError(f"{path}: a shape of the type {kind!r} encloses no pixels; draw a polygon or a mask")
