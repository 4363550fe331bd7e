"""Annotations of tools: COCO, labelme and CVAT, as :class:`vos_lightning.io.drawings.Drawing`.

=======================  =============================================================================================
a file of                names an object by
=======================  =============================================================================================
COCO (``annotations``)   ``track_id`` of an annotation, also in its ``attributes``; in a file with one annotated image
                         every annotation is an object; otherwise the category, if it occurs once in an image
run lengths alone        their place in the list; the frame by the name of the file
labelme                  the label and the group; a label that is a number from 1 to 254 is the id
CVAT (XML, JSON)         the track; of a shape without a track: the label and the group
=======================  =============================================================================================

Shapes of the same object in one frame are its parts.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Required

import numpy as np
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from vos_lightning.io.cvat import read_cvat_json, read_cvat_xml
from vos_lightning.io.documents import checked
from vos_lightning.io.drawings import MAX_ID, Drawing, Key, Shape, box, ellipse
from vos_lightning.io.texts import read_json

ANNOTATION_SUFFIXES = frozenset({".json", ".xml"})
_KINDS = "COCO, labelme or CVAT annotations, or run lengths {size, counts}"
_Number = Annotated[int | float, Field(allow_inf_nan=False)]


class _Runs(TypedDict):
    size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    counts: str | list[int]


class _CocoImage(TypedDict, total=False):
    id: Required[int | str]
    file_name: Required[str]
    height: int
    width: int


class _CocoAnnotation(TypedDict, total=False):
    image_id: Required[int | str]
    category_id: int
    track_id: int
    attributes: dict[str, Any]
    segmentation: Required[_Runs | list[list[_Number]]]


class _CocoCategory(TypedDict):
    id: int
    name: str


class _Coco(TypedDict, total=False):
    images: Required[list[_CocoImage]]
    annotations: Required[list[_CocoAnnotation]]
    categories: list[_CocoCategory]


class _LabelmeShape(TypedDict, total=False):
    label: Required[str]
    points: Required[list[Annotated[list[_Number], Field(min_length=2, max_length=2)]]]
    shape_type: str | None
    group_id: int | None
    mask: str | None


class _Labelme(TypedDict, total=False):
    shapes: Required[list[_LabelmeShape]]
    imageHeight: int | None
    imageWidth: int | None


def read_annotations(path: Path) -> list[Drawing]:
    """The drawn frames of a file of annotations, whatever tool it comes from.

    Args:
        path: ``.json`` or ``.xml`` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the kinds that are read, or a value in it is wrong; the message names file and key.
    """
    if path.suffix.lower() == ".xml":
        return read_cvat_xml(path)
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content and "images" in content:
        return _read_coco(path, checked(content, _Coco, path))
    if isinstance(content, dict) and "shapes" in content and "tracks" not in content and "version" in content:
        return [_read_labelme(path, checked(content, _Labelme, path))]
    runs = [content] if isinstance(content, dict) and "counts" in content else content
    if isinstance(runs, list) and runs and all(isinstance(one, dict) and "counts" in one for one in runs):
        checked(runs, list[_Runs], path)
        return [Drawing(path.stem, tuple(Shape(i, rle=one) for i, one in enumerate(runs, start=1)), size=_size(runs[0]["size"]))]
    drawings = read_cvat_json(path, content)
    if drawings is None:
        raise ValueError(f"{path}: this JSON file holds no masks; {_KINDS} are read")
    return drawings


def _size(size: Sequence[int]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


# COCO -----------------------------------------------------------------------------------------------------------------


def _read_coco(path: Path, content: Any) -> list[Drawing]:
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    images = {image["id"]: image for image in content["images"]}
    by_image: dict[int | str, list[Any]] = {}
    for number, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in images:
            raise ValueError(f"{path}: annotations[{number}].image_id {annotation['image_id']!r} is the id of no image")
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    drawings = []
    for image_id, drawn in by_image.items():
        image = images[image_id]
        keys = _coco_keys(path, image["file_name"], drawn, names, alone=len(by_image) == 1)
        shapes = []
        for key, annotation in zip(keys, drawn, strict=True):
            mask = annotation["segmentation"]
            if isinstance(mask, dict):
                shapes.append(Shape(key, rle=mask))
            else:
                _check_outlines(mask, f"{path}: image {image['file_name']!r}")
                shapes.append(Shape(key, polygons=mask))
        size = (image["height"], image["width"]) if "height" in image and "width" in image else None
        drawings.append(Drawing(Path(image["file_name"].replace("\\", "/")).stem, tuple(shapes), size=size))
    return drawings


def _coco_keys(path: Path, image: str, annotations: Sequence[Any], names: dict[int, str], alone: bool) -> list[Key]:
    tracks = [one.get("track_id", (one.get("attributes") or {}).get("track_id")) for one in annotations]
    if all(track is not None for track in tracks):
        return [track if isinstance(track, int) and 1 <= track <= MAX_ID else ("track", str(track)) for track in tracks]
    categories = [names.get(one.get("category_id"), str(one.get("category_id", "object"))) for one in annotations]
    twice = [name for name, count in Counter(categories).items() if count > 1]
    if alone:
        numbers: Counter[str] = Counter()
        keys: list[Key] = []
        for name in categories:
            numbers[name] += 1
            keys.append((name, str(numbers[name])) if name in twice else (name,))
        return keys
    if twice:
        raise ValueError(
            f"{path}: image {image!r} has several annotations of the category {twice[0]!r}, and other images have annotations "
            "too: give every annotation a track_id, which says which object it is"
        )
    return [(name,) for name in categories]


def _check_outlines(polygons: Sequence[Sequence[int | float]], where: str) -> None:
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"{where}: a polygon has {len(polygon)} numbers; at least 3 points of x and y are needed")
    if not polygons:
        raise ValueError(f"{where}: a segmentation is empty")


# Labelme --------------------------------------------------------------------------------------------------------------


def _read_labelme(path: Path, content: Any) -> Drawing:
    shapes = []
    for number, shape in enumerate(content["shapes"]):
        label, group = shape["label"].strip(), shape.get("group_id")
        key: Key = (label,) if group is None else (label, f"group {group}")
        if group is None and label.isascii() and label.isdigit() and 1 <= int(label) <= MAX_ID:
            key = int(label)
        shapes.append(_labelme_shape(key, shape, f"{path}: shapes[{number}]"))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return Drawing(path.stem, tuple(shapes), size=(height, width) if height and width else None)


def _labelme_shape(key: Key, shape: Any, where: str) -> Shape:
    kind, points = shape.get("shape_type") or "polygon", [[float(x), float(y)] for x, y in shape["points"]]
    if kind == "polygon":
        outline = [value for point in points for value in point]
        _check_outlines([outline], where)
        return Shape(key, polygons=[outline])
    if len(points) == 2 and kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return Shape(key, polygons=[box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))])
    if len(points) == 2 and kind == "circle":
        radius = float(np.hypot(points[1][0] - points[0][0], points[1][1] - points[0][1]))
        return Shape(key, polygons=[ellipse(points[0][0], points[0][1], (radius, radius))])
    if points and kind == "mask" and shape.get("mask"):
        try:
            content = base64.b64decode(shape["mask"], validate=True)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                part = np.array(image.convert("L")) > 0
        except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{where}.mask is no PNG image ({error})") from error
        return Shape(key, patch=(round(points[0][0]), round(points[0][1]), part))
    raise ValueError(f"{where}: a shape of the type {kind!r} with {len(points)} points encloses no pixels; draw a polygon")
