"""Masks from boxes, strokes, brush and eraser."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from tests.unit.app.browser.clips import HEIGHT, WIDTH, blue, disc, frame, overlap, red
from vos_lightning.app.browser.drawing import INNER_SIDE, Stroke, Tool, draw, paint

NOTHING = np.zeros((HEIGHT, WIDTH), bool)


def stroke(tool: Tool, *pixels: tuple[float, float], size: float = 0.05) -> Stroke:
    return Stroke(tool, [(x / (WIDTH - 1), y / (HEIGHT - 1)) for x, y in pixels], size)


class TestGrabCut:
    @pytest.mark.parametrize("corners", [((4, 6), (24, 26)), ((24, 26), (4, 6)), ((4, 26), (24, 6))])
    def test_a_box_finds_the_object_in_it(self, corners: tuple[tuple[float, float], ...]) -> None:
        assert overlap(draw(frame(0), NOTHING, stroke("box", *corners)), red(0)) > 0.95

    def test_a_box_replaces_the_mask(self) -> None:
        assert not (draw(frame(0), blue(0), stroke("box", (4, 6), (24, 26))) & blue(0)).any()

    def test_a_box_around_the_whole_frame(self) -> None:
        found = draw(frame(0), NOTHING, stroke("box", (-5, -5), (WIDTH + 5, HEIGHT + 5)))
        assert overlap(found, red(0) | blue(0)) > 0.9

    def test_other_objects_are_left_out(self) -> None:
        around_both = stroke("box", (2, 2), (61, 45))
        assert (draw(frame(0), NOTHING, around_both) & blue(0)).any()
        found = draw(frame(0), NOTHING, around_both, others=blue(0))
        assert not (found & blue(0)).any()
        assert overlap(found, red(0)) > 0.9

    def test_a_box_without_an_object_is_the_mask(self) -> None:
        flat = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        found = draw(flat, NOTHING, stroke("box", (10, 10), (19, 14)))
        assert found.any()
        assert not found[:10].any()
        assert not found[:, 20:].any()

    def test_a_click_is_a_box_of_one_pixel(self) -> None:
        assert draw(frame(0), NOTHING, stroke("box", (14, 16))).sum() <= 1

    def test_a_stroke_finds_the_object_below_it(self) -> None:
        assert overlap(draw(frame(0), NOTHING, stroke("inside", (10, 16), (18, 16))), red(0)) > 0.95

    def test_a_stroke_outside_takes_away(self) -> None:
        too_much = red(0) | disc(24, 16, 5)
        line = stroke("outside", (24, 14), (26, 18))
        mended = draw(frame(0), too_much, line)
        assert overlap(too_much, red(0)) < 0.85
        assert overlap(mended, red(0)) > 0.95
        assert not (mended & paint(line, (HEIGHT, WIDTH))).any()

    def test_a_stroke_changes_its_neighbourhood_alone(self) -> None:
        far = np.zeros_like(NOTHING)
        far[40:, 40:] = True
        found = draw(frame(0), far, stroke("inside", (10, 16), (18, 16)))
        assert found[40:, 40:].all()
        assert (found & red(0)).any()

    def test_strokes_inside_only_add_and_strokes_outside_only_take_away(self) -> None:
        mask = red(0) | disc(24, 12, 4)
        added = draw(frame(0), mask, stroke("inside", (10, 16), (18, 16)))
        assert (added & mask).sum() == mask.sum()
        half = red(0) & (np.indices((HEIGHT, WIDTH))[1] < 14)
        taken = draw(frame(0), half, stroke("outside", (2, 4), (4, 4)))
        assert not (taken & ~half).any()

    def test_pixels_below_a_stroke_are_inside(self) -> None:
        line = stroke("inside", (30, 4), (40, 4))
        assert (draw(frame(0), red(0), line) & paint(line, (HEIGHT, WIDTH))).sum() == paint(line, (HEIGHT, WIDTH)).sum()

    def test_large_frames_are_reduced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[int, ...]] = []
        grab_cut = cv2.grabCut

        def watch(image: np.ndarray, *arguments: Any) -> Any:
            seen.append(image.shape)
            return grab_cut(image, *arguments)

        monkeypatch.setattr(cv2, "grabCut", watch)
        large = cv2.resize(frame(0), (WIDTH * 30, HEIGHT * 30), interpolation=cv2.INTER_NEAREST)
        truth = cv2.resize(red(0).astype(np.uint8), (WIDTH * 30, HEIGHT * 30), interpolation=cv2.INTER_NEAREST) > 0
        found = draw(large, np.zeros(large.shape[:2], bool), stroke("box", (4, 6), (24, 26)))
        assert max(max(shape[:2]) for shape in seen) <= INNER_SIDE
        assert overlap(found, truth) > 0.95

    def test_the_same_stroke_gives_the_same_mask(self) -> None:
        cv2.setRNGSeed(5)
        first = draw(frame(0), NOTHING, stroke("box", (2, 2), (61, 45)))
        cv2.setRNGSeed(99)
        assert (draw(frame(0), NOTHING, stroke("box", (2, 2), (61, 45))) == first).all()


class TestBrush:
    def test_brush_and_eraser_change_what_they_cover(self) -> None:
        line = stroke("brush", (10, 10), (30, 10), size=5 / HEIGHT)
        painted = draw(frame(0), NOTHING, line)
        assert (painted == paint(line, (HEIGHT, WIDTH))).all()
        assert painted[8:13, 15:25].all()
        assert not painted[:7].any()
        assert not painted[14:].any()
        erased = draw(frame(0), painted, stroke("eraser", (10, 10), (19, 10), size=5 / HEIGHT))
        assert erased[10, 25]
        assert not erased[10, 12:18].any()

    def test_a_stroke_outside_of_nothing_is_nothing(self) -> None:
        assert not draw(frame(0), NOTHING, stroke("outside", (10, 10), (30, 10))).any()

    def test_strokes_end_at_the_edge(self) -> None:
        painted = paint(stroke("brush", (-50, -50), (200, 200)), (HEIGHT, WIDTH))
        assert painted[0, 0]
        assert painted[-1, -1]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tool": "axe", "points": [[0, 0]], "size": 0.1},
        {"tool": "box", "points": [], "size": 0.1},
        {"tool": "box", "points": [[0, 0, 0]], "size": 0.1},
        {"tool": "box", "points": [[0, float("nan")]], "size": 0.1},
        {"tool": "brush", "points": [[0, 0]], "size": 0},
        {"tool": "brush", "points": [[0, 0]], "size": "large"},
        {"tool": "brush", "points": 3, "size": 0.1},
    ],
)
def test_what_is_no_stroke(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no stroke; reload"):
        Stroke.read(values)


def test_a_stroke_is_read() -> None:
    assert Stroke.read({"tool": "brush", "points": [[0, 1]], "size": 0.1}) == Stroke("brush", [(0.0, 1.0)], 0.1)
