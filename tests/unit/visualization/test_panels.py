"""Score maps, displacements, points and boxes over their frame."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from tests.tolerances import assert_close
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.structures import FramePrediction
from vos_lightning.visualization.panels import (
    BAR_WIDTH,
    FrameView,
    draw_boxes,
    draw_points,
    flow_map,
    frame_view,
    heat_map,
    score_panels,
)

BLACK = torch.zeros(3, 40, 60, dtype=torch.uint8)


def view_of(size: tuple[int, int], ids: tuple[int, ...] = (3,), **aux: torch.Tensor) -> FrameView:
    frame = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    prediction = FramePrediction(
        1,
        frame,
        torch.zeros(size, dtype=torch.uint8),
        torch.rand(len(ids), *size),
        ids,
        processed_size=size,
        aux={k: v[None] for k, v in aux.items()},
    )
    return frame_view(prediction, PaddingRule(), 16)


class TestFrameView:
    def test_maps_lie_where_the_network_saw_them(self) -> None:
        """38 x 45 is padded by 5 at the top and left 2 (of 10 and 3): cell (1, 2) covers rows 11..26 and columns 30..45."""
        view = view_of((38, 45))
        assert (view.padding.top, view.padding.left) == (5, 2)
        cells = torch.zeros(3, 3)
        cells[1, 2] = 1
        large = view.enlarge(cells[None])[0]
        assert large.shape == (38, 45)
        padded = torch.nn.functional.interpolate(cells[None, None], (48, 48), mode="bilinear", align_corners=False)[0, 0]
        assert_close(large, padded[5:43, 2:47])
        row, column = divmod(int(large.argmax()), 45)
        assert 11 <= row < 27
        assert 30 <= column < 46
        assert_close(view.place(torch.tensor([[40.0, 20.0]])), torch.tensor([[38.0, 15.0]]))

    def test_frame_and_probabilities_come_at_the_size_of_the_network(self) -> None:
        prediction = FramePrediction(0, BLACK, BLACK[0], torch.rand(2, 40, 60), (1, 2), processed_size=(20, 30))
        view = frame_view(prediction, PaddingRule(), 16)
        assert view.frame.shape == (3, 20, 30)
        assert view.probabilities.shape == (2, 20, 30)
        assert (
            frame_view(FramePrediction(0, BLACK, BLACK[0], torch.zeros(0, 40, 60), ()), PaddingRule(), 16).frame.shape
            == BLACK.shape
        )


class TestDrawing:
    def test_colours_are_where_the_values_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also if the module is imported while another device is the default, as when an experiment is built on "meta"."""
        spec = importlib.util.find_spec("vos_lightning.visualization.panels")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        with torch.device("meta"):
            spec.loader.exec_module(module)
        assert torch.equal(module.heat_map(BLACK, torch.eye(40, 60)), heat_map(BLACK, torch.eye(40, 60)))

    def test_heat_grows_from_dark_to_bright_on_its_own_scale(self) -> None:
        values = torch.linspace(-3, 5, 60).expand(40, 60)
        picture = heat_map(BLACK, values)
        assert picture.shape == (3, 40, 60 + BAR_WIDTH)
        brightness = picture[:, 20, :60].float().mean(dim=0)
        assert (brightness.diff() >= -1).all()
        assert brightness[-1] > brightness[0] + 100
        fixed = heat_map(BLACK, values, 0.0, 100.0)
        assert fixed[:, 20, :60].float().mean() < brightness.mean() - 30
        assert heat_map(BLACK, torch.zeros(40, 60)).shape == picture.shape

    def test_hues_are_directions_and_nothing_is_grey(self) -> None:
        frame = torch.zeros(3, 100, 100, dtype=torch.uint8)
        right = torch.zeros(2, 100, 100)
        right[0, 50:] = 2.0
        picture = flow_map(frame, right)
        assert picture[0, 80, 20] > picture[1, 80, 20] + 100  # red
        left = flow_map(frame, -right)
        assert (left[1:, 80, 20] > left[0, 80, 20] + 100).all()  # cyan
        still = picture[:, 30, 20].int()
        assert still.max() - still.min() <= 1
        # The wheel in the corner: its right is red, its left cyan.
        assert picture[0, 10, -2] > picture[1, 10, -2] + 100
        assert picture[1, 10, -19] > picture[0, 10, -19] + 100

    def test_points_and_boxes(self) -> None:
        points = torch.tensor([[10.0, 30.0], [50.0, 5.0]])
        picture = draw_points(BLACK, points, torch.tensor([1.0, 0.2]))
        assert picture[:, 30, 10].float().mean() > picture[:, 5, 50].float().mean() > 0
        assert picture[:, 30, 50].eq(0).all()
        assert draw_points(BLACK, points[:0]).eq(0).all()
        boxes = torch.tensor([[5.0, 5.0, 40.0, 30.0], [20.0, 10.0, 90.0, 35.0]])
        picture = draw_boxes(BLACK, boxes, torch.tensor([0.9, 0.0]))
        heavy, light = picture[:, 20, 5].max(), picture[:, 34, 55].max()
        assert heavy > light > 0
        assert picture[:, 38, 3].eq(0).all()
        assert draw_boxes(BLACK, boxes).ne(0).any()

    def test_scores_of_every_object(self) -> None:
        view = view_of((32, 48), (4, 9))
        panels = score_panels(view, torch.rand(2, 3, 2, 3), ["x", "y", "z"], "kind")
        assert [(p.row, p.title) for p in panels] == [(f"object {i} kind", name) for i in (4, 9) for name in "xyz"]
        assert panels[0].image.shape == (3, 32, 48 + BAR_WIDTH)
