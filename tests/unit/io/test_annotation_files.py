"""Masks as annotation tools store them, in the frames and under the ids that they mean."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from tests.unit.dummies import make_frames
from vos_lightning.io.drawings import decode_runs, encode_runs
from vos_lightning.io.given_masks import GivenMasks
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.videos import FrameSource, VideoWriter, open_frames

SIZE = (32, 48)


def rectangle(left: int, top: int, right: int, bottom: int, i: int = 1) -> Tensor:
    plane = torch.zeros(SIZE, dtype=torch.uint8)
    plane[top:bottom, left:right] = i
    return plane


def corners(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def flat(*box: int) -> list[int]:
    return [value for point in corners(*box) for value in point]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "v.mp4"
    with VideoWriter(path, 25) as writer:
        for frame in make_frames(6, height=32, width=48):
            writer.write(frame)
    return path


@pytest.fixture
def frames(film: Path) -> FrameSource:
    return open_frames(film)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def labelme(*shapes: dict[str, Any], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "x.jpg",
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


class TestLabelme:
    def test_names_groups_and_ids_through_a_folder(self, tmp_path: Path, frames: FrameSource) -> None:
        cat, dog, nine = (
            {"label": "cat", "points": corners(4, 4, 12, 12), "group_id": None, "shape_type": "polygon"},
            {"label": "dog", "points": [[20, 4], [30, 14]], "group_id": 7, "shape_type": "rectangle"},
            {"label": "9", "points": corners(32, 16, 44, 28), "group_id": None, "shape_type": "polygon"},
        )
        written(tmp_path / "m" / "frame_0.json", labelme(cat, dog))
        written(tmp_path / "m" / "frame_3.json", labelme(nine, cat))
        given = GivenMasks(tmp_path / "m", frames)
        assert list(given) == [0, 3]
        assert torch.equal(given[0], rectangle(4, 4, 12, 12, 1) + rectangle(20, 4, 30, 14, 2))
        assert torch.equal(given[3], rectangle(32, 16, 44, 28, 9) + rectangle(4, 4, 12, 12, 1))
        assert {"object 1: cat", "object 2: dog, group 7"} < set(given.report())

    def test_a_patch_and_a_circle(self, tmp_path: Path, frames: FrameSource) -> None:
        patch = np.zeros((6, 5), np.uint8)
        patch[2:, 1:] = 255
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "PNG")
        shapes = (
            {
                "label": "a",
                "points": [[10, 20], [14, 25]],
                "shape_type": "mask",
                "mask": base64.b64encode(buffer.getvalue()).decode(),
            },
            {"label": "b", "points": [[30, 12], [36, 12]], "shape_type": "circle"},
        )
        found = GivenMasks(written(tmp_path / "first.json", labelme(*shapes)), frames)[0]
        assert torch.equal((found == 1).to(torch.uint8), rectangle(11, 22, 15, 26))
        y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")
        distance = ((y - 12) ** 2 + (x - 30) ** 2).sqrt()
        assert (found[distance < 5] == 2).all()
        assert not (found[distance > 7] == 2).any()

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (
                {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "line"},
                "shapes.0.: a shape of the type 'line' .* draw a poly",
            ),
            ({"label": "a", "points": [[1, 2], [3, 4]]}, r"shapes\[0\]: a polygon has 4 numbers"),
            ({"label": "a", "points": "x"}, r"shapes\[0\].points must be a list"),
            ({"label": "a", "points": [[1, float("nan")]] * 3}, "points"),
            ({"label": "a", "points": [[1, 1]], "shape_type": "mask", "mask": "AAAA"}, "mask is no PNG"),
            ({"points": corners(1, 1, 2, 2)}, "label is missing"),
        ],
    )
    def test_broken_shapes(self, tmp_path: Path, frames: FrameSource, shape: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=rf"first\.json: .*{message}"):
            GivenMasks(written(tmp_path / "first.json", labelme(shape)), frames)

    def test_another_size(self, tmp_path: Path, frames: FrameSource) -> None:
        shape = {"label": "a", "points": corners(1, 1, 20, 20)}
        with pytest.raises(ValueError, match=r"first\.json: the mask is 64x48, the frames are 48x32"):
            GivenMasks(written(tmp_path / "first.json", labelme(shape, size=(48, 64))), frames)


def as_coco(annotations: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name, "height": 32, "width": 48} for i, name in enumerate(names, start=1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations)],
    }


class TestCoco:
    def test_polygons_and_both_kinds_of_runs(self, tmp_path: Path, frames: FrameSource) -> None:
        plane = rectangle(20, 4, 30, 14).numpy()
        compressed = coco.encode(np.asfortranarray(plane))
        counts = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], plane.flatten("F"), [2]])) != 0), prepend=0).tolist()
        annotations = [
            {"image_id": 1, "category_id": 1, "segmentation": [flat(4, 4, 12, 12)]},
            {"image_id": 1, "category_id": 2, "segmentation": {"size": [32, 48], "counts": compressed["counts"].decode()}},
            {"image_id": 1, "category_id": 1, "segmentation": [flat(36, 20, 44, 28)]},
        ]
        path = written(tmp_path / "c.json", as_coco(annotations, "x.jpg"))
        given = GivenMasks(path, frames)
        expected = rectangle(4, 4, 12, 12, 1) + rectangle(20, 4, 30, 14, 2) + rectangle(36, 20, 44, 28, 3)
        assert torch.equal(given[0], expected)
        assert "object 3: cat, 2" in given.report()
        annotations[1]["segmentation"] = {"size": [32, 48], "counts": counts}
        assert torch.equal(GivenMasks(written(path, as_coco(annotations, "x.jpg")), frames)[0], expected)

    @pytest.mark.parametrize("inside", [True, False])
    def test_tracks_through_frames(self, tmp_path: Path, frames: FrameSource, inside: bool) -> None:
        def track(number: int) -> dict[str, Any]:
            return {"attributes": {"track_id": number}} if inside else {"track_id": number}

        annotations = [
            {"image_id": 1, "category_id": 1, "segmentation": [flat(4, 4, 12, 12)], **track(5)},
            {"image_id": 2, "category_id": 1, "segmentation": [flat(6, 4, 14, 12)], **track(5)},
            {"image_id": 2, "category_id": 1, "segmentation": [flat(30, 4, 40, 12)], **track(8)},
        ]
        given = GivenMasks(written(tmp_path / "c.json", as_coco(annotations, "f/frame_000000.png", "f/frame_000004.png")), frames)
        assert list(given) == [0, 4]
        assert torch.equal(given[4], rectangle(6, 4, 14, 12, 5) + rectangle(30, 4, 40, 12, 8))

    def test_objects_that_cannot_be_told_apart(self, tmp_path: Path, frames: FrameSource) -> None:
        annotations = [{"image_id": i, "category_id": 1, "segmentation": [flat(4, 4, 12, 12)]} for i in (1, 2, 2)]
        with pytest.raises(ValueError, match=r"several annotations of the category 'cat'.* give every annotation a track_id"):
            GivenMasks(written(tmp_path / "c.json", as_coco(annotations, "0.png", "4.png")), frames)

    @pytest.mark.parametrize("counts", [[5], [-1, 32 * 48 + 1], "", "0", "o" * 40, "ooo", [32 * 48 - 1, 2]])
    def test_runs_that_do_not_fill_the_frame(self, tmp_path: Path, frames: FrameSource, counts: Any) -> None:
        path = written(tmp_path / "r.json", [{"size": [32, 48], "counts": counts}])
        with pytest.raises(ValueError, match=r"r\.json: frame r: the run lengths do not fill a frame of 48x32"):
            GivenMasks(path, frames)

    def test_runs_alone(self, tmp_path: Path, frames: FrameSource) -> None:
        runs = [encode_runs(rectangle(*box).numpy() > 0) for box in ((4, 4, 12, 12), (20, 4, 30, 14))]
        found = GivenMasks(written(tmp_path / "0.json", runs), frames)[0]
        assert torch.equal(found, rectangle(4, 4, 12, 12, 1) + rectangle(20, 4, 30, 14, 2))

    def test_compressed_runs_of_any_mask(self) -> None:
        noise = np.random.default_rng(0)
        for share in (0.0, 0.001, 0.1, 0.5, 1.0):
            mask = noise.random((40, 300)) < share
            runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
            assert np.array_equal(decode_runs(runs, (40, 300)), mask)
            assert encode_runs(mask) == {"size": [40, 300], "counts": runs}

    def test_json_of_something_else(self, tmp_path: Path, frames: FrameSource) -> None:
        for content in ({}, [], {"a": 1}, [1, 2], "text"):
            with pytest.raises(ValueError, match=r"c\.json: this JSON file holds no masks; COCO, labelme or CVAT"):
                GivenMasks(written(tmp_path / "c.json", json.dumps(content)), frames)


def xml(inside: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{inside}</annotations>'


def track(i: int, label: str, *entries: tuple[int, tuple[int, ...], str]) -> str:
    shapes = "".join(
        f'<polygon frame="{frame}" occluded="0" {flags} points="{";".join(f"{x}.0,{y}.0" for x, y in corners(*box))}"/>'
        for frame, box, flags in entries
    )
    return f'<track id="{i}" label="{label}" source="manual">{shapes}</track>'


KEY, BETWEEN, OUTSIDE = 'keyframe="1" outside="0"', 'keyframe="0" outside="0"', 'keyframe="1" outside="1"'


class TestCvat:
    def test_tracks_key_frames_and_what_is_gone(self, tmp_path: Path, frames: FrameSource) -> None:
        text = xml(
            track(
                0,
                "cat",
                (0, (4, 4, 12, 12), KEY),
                (1, (5, 4, 13, 12), BETWEEN),
                (3, (7, 4, 15, 12), KEY),
                (4, (7, 4, 15, 12), OUTSIDE),
            )
            + track(1, "cat", (0, (30, 4, 40, 12), KEY), (1, (30, 4, 40, 12), OUTSIDE))  # a single shape, which is not gone
        )
        given = GivenMasks(written(tmp_path / "a.xml", text), frames)
        assert list(given) == [0, 3, 4]
        assert torch.equal(given[0], rectangle(4, 4, 12, 12, 1) + rectangle(30, 4, 40, 12, 2))
        assert torch.equal(given[3], rectangle(7, 4, 15, 12, 1))
        assert given.gone == {4: (1,)}
        assert any(line.endswith("(frame 00004): object 1 is gone from here on") for line in given.report())

    def test_images_with_every_shape(self, tmp_path: Path, frames: FrameSource) -> None:
        text = xml(
            '<image id="0" name="a/frame_2.jpg" width="48" height="32">'
            '<box label="a" xtl="4" ytl="4" xbr="12" ybr="12" z_order="0"/>'
            '<mask label="b" left="20" top="4" width="3" height="2" rle="1, 2, 3"/></image>'
        )
        given = GivenMasks(written(tmp_path / "a.xml", text), frames)
        assert list(given) == [2]
        assert torch.equal(given[2], rectangle(4, 4, 12, 12, 1) + rectangle(21, 4, 23, 5, 2))

    def test_json(self, tmp_path: Path, frames: FrameSource) -> None:
        shape = {"type": "mask", "points": [1, 2, 3, 20, 4, 22, 5], "frame": 2, "label": "b", "group": 0, "z_order": 1}
        boxed = {"type": "rectangle", "points": [4, 4, 12, 12], "frame": 2, "outside": False}
        content = [
            {
                "version": 1,
                "tags": [],
                "shapes": [shape],
                "tracks": [{"label": "a", "shapes": [boxed, {**boxed, "frame": 5, "outside": True}]}],
            }
        ]
        given = GivenMasks(written(tmp_path / "annotations.json", content), frames)
        assert torch.equal(given[2], rectangle(4, 4, 12, 12, 2) + rectangle(21, 4, 23, 5, 1))
        assert given.gone == {5: (2,)}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("<annotations>", "is not valid XML"),
            ("<osm/>", "begins with <osm>"),
            ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "names of its own"),
            (xml(""), "no object is drawn"),
            (xml('<image id="0" name="0"><box label="a" xtl="4"/></image>'), "lacks a value"),
            (xml('<image id="0" name="0"><polygon label="a" points="1,2;3,x"/></image>'), "wrong one"),
            (
                xml('<image id="0" name="0"><mask label="a" left="0" top="0" width="2" height="2" rle="1,9"/></image>'),
                "do not fill",
            ),
        ],
    )
    def test_broken_files(self, tmp_path: Path, frames: FrameSource, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"a\.xml:? .*{message}"):
            GivenMasks(written(tmp_path / "a.xml", text), frames)


class TestColours:
    def save(self, path: Path, *drawn: tuple[Tensor, tuple[int, int, int]]) -> None:
        path.parent.mkdir(exist_ok=True)
        picture = np.zeros((*SIZE, 3), np.uint8)
        for plane, colour in drawn:
            picture[plane.numpy() > 0] = colour
        Image.fromarray(picture).save(path)

    def test_a_colour_is_one_object_in_all_masks(self, tmp_path: Path, frames: FrameSource) -> None:
        one, two, three = rectangle(4, 4, 14, 14), rectangle(20, 4, 30, 14), rectangle(32, 18, 44, 28)
        self.save(tmp_path / "m" / "0.png", (one, (255, 0, 0)), (two, (0, 255, 0)))
        self.save(tmp_path / "m" / "2.png", (two, (0, 255, 0)), (three, (10, 20, 30)), (one, (128, 0, 0)))
        given = GivenMasks(tmp_path / "m", frames)
        assert given.colours == {0xFF0000: 2, 0x00FF00: 3, 0x0A141E: 4}  # 1 is the palette's dark red
        assert torch.equal(given[0], one * 2 + two * 3)
        assert torch.equal(given[2], one + two * 3 + three * 4)
        assert "object 3: colour #00ff00" in given.report()

    def test_smoothed_colours_are_refused(self, tmp_path: Path, frames: FrameSource) -> None:
        noise = np.random.default_rng(0).integers(1, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "n.png")
        with pytest.raises(ValueError, match=r"n\.png: \d+ stray colours"):
            GivenMasks(tmp_path / "n.png", frames)
        one = rectangle(6, 6, 30, 26)
        inner = rectangle(8, 8, 28, 24)
        self.save(tmp_path / "s.png", (one, (120, 0, 10)), (inner, (255, 0, 20)))
        with pytest.raises(ValueError, match=r"s\.png: .* like a rim around"):
            GivenMasks(tmp_path / "s.png", frames)


class TestParts:
    def test_masks_of_frames_that_are_not_chosen(self, tmp_path: Path, film: Path) -> None:
        for number in (0, 2, 3, 4):
            write_label_map(tmp_path / "m" / f"{number}.png", rectangle(4, 4, 14, 14))
        given = GivenMasks(tmp_path / "m", open_frames(film).choose(2, None, 2))
        assert [(index, mask.frame) for index, mask in given.files.items()] == [(0, "00002"), (1, "00004")]
        assert [line.rpartition(" (")[0][-5:] for line in given.left_out] == ["0.png", "3.png"]
        with pytest.raises(ValueError, match="no mask belongs to a frame that --start"):
            GivenMasks(tmp_path / "m", open_frames(film).choose(5))

    def test_black_means_gone_until_a_mask_comes_back(self, tmp_path: Path, frames: FrameSource) -> None:
        both = rectangle(4, 4, 14, 14) + rectangle(20, 4, 30, 14, 2)
        for number, mask in ((0, both), (2, both * 0), (3, both * 0), (4, rectangle(20, 4, 30, 14, 2)), (5, both * 0)):
            write_label_map(tmp_path / "m" / f"{number}.png", mask)
        assert GivenMasks(tmp_path / "m", frames).gone == {2: (1, 2), 5: (2,)}
