"""Pictures of what a network computes inside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.networks import NETWORKS
from tests.tolerances import assert_close
from tests.unit.dummies import DummyModule, make_video
from tests.unit.visualization.test_visuals import FakeWandb, fit
from vos_lightning.app.visualize import draw
from vos_lightning.callbacks.panels import FramePanels, panels_of, write_panels
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.modules.emvos import EMVOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.pmvos import PMVOSModule
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.structures import FramePrediction
from vos_lightning.visualization.panels import (
    BAR_WIDTH,
    FrameView,
    Panel,
    draw_boxes,
    draw_points,
    flow_map,
    frame_view,
    heat_map,
    score_panels,
)
from vos_lightning.visualization.sheets import CAPTION_HEIGHT, GAP, contact_sheet

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
    return frame_view(frame, prediction, PaddingRule(), 16)


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
        view = frame_view(BLACK, prediction, PaddingRule(), 16)
        assert view.frame.shape == (3, 20, 30)
        assert view.probabilities.shape == (2, 20, 30)
        assert (
            frame_view(BLACK, FramePrediction(0, BLACK, BLACK[0], torch.zeros(0, 40, 60), ()), PaddingRule(), 16).frame.shape
            == BLACK.shape
        )


class TestDrawing:
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

    def test_a_sheet_has_a_row_for_every_group(self) -> None:
        panels = [Panel(f"p{i}", BLACK, row) for i, row in enumerate(["a", "b", "a", "a"])]
        width, height = contact_sheet(panels, columns=2, height=40).size
        assert width == 2 * (60 + GAP) + GAP
        assert height == 3 * (40 + CAPTION_HEIGHT + GAP) + GAP

    def test_scores_of_every_object(self) -> None:
        view = view_of((32, 48), (4, 9))
        panels = score_panels(view, torch.rand(2, 3, 2, 3), ["x", "y", "z"], "kind")
        assert [(p.row, p.title) for p in panels] == [(f"object {i} kind", name) for i in (4, 9) for name in "xyz"]
        assert panels[0].image.shape == (3, 32, 48 + BAR_WIDTH)


class TestPapers:
    @pytest.mark.parametrize(
        ("module", "rows"),
        [
            (EMVOSModule(EMVOS.small(), evaluation=Evaluation()), {"surjective": 4, "equalized": 4}),
            (
                PMVOSModule(PMVOS.small()),
                {
                    f"{side} {what}": 3
                    for side in ("background", "foreground")
                    for what in ("scores", "after spatial attention", "after channel attention")
                },
            ),
        ],
        ids=["emvos", "pmvos"],
    )
    def test_score_maps(self, module: EMVOSModule | PMVOSModule, rows: dict[str, int]) -> None:
        video = make_video("v", length=2, ids=(2, 7))
        first, second = module.eval().engine().run(video)
        assert {p.title for p in panels_of(module, video.frames[0], first)} == {"probability"}
        panels = panels_of(module, video.frames[1], second)
        counted = {row: sum(p.row == row for p in panels) for row in {p.row for p in panels}}
        assert counted == {"object 2": 1, "object 7": 1} | {f"object {i} {row}": n for i in (2, 7) for row, n in rows.items()}
        assert len({(p.row, p.title) for p in panels}) == len(panels)
        assert all(p.image.shape == (3, 30, 45 + BAR_WIDTH) for p in panels)

    def test_the_maps_are_those_of_the_network(self) -> None:
        torch.manual_seed(0)
        module = EMVOSModule(EMVOS.small(), evaluation=Evaluation()).eval()
        video = make_video("v", length=2)
        _, prediction = module.engine().run(video)
        scores = prediction.aux["scores"]
        assert scores.shape == (1, 2, 8, 2, 3)
        assert module.network.score_names[5] == "equalized global foreground"
        assert (scores[:, :, 4:] <= 1).all()
        assert (scores[:, :, :4] >= 0).all()

    @pytest.mark.parametrize("name", sorted(NETWORKS))
    def test_aux_has_a_row_for_every_clip(self, name: str) -> None:
        """Whatever a network shows is of tensors whose first dimension is the batch."""
        from tests.clips import given_at, proposals_of, random_clip
        from vos_lightning.propagation.policies import AnnotatedOnly
        from vos_lightning.propagation.step import Propagation, unroll

        frames, labels = random_clip(2, 2, 2, (64, 80))
        network = NETWORKS[name].small().eval()
        proposals = proposals_of(network, frames.transpose(0, 1).flatten(0, 1))
        propagation = Propagation(AnnotatedOnly(), "minimum", "join")
        with torch.no_grad():
            outputs = unroll(network, propagation, frames, {0: given_at(labels, 0, [1, 2], 2)}, proposals)
        assert outputs[0].aux == {}
        assert all(value.shape[0] == 2 for value in outputs[1].aux.values() if isinstance(value, torch.Tensor))


class TestCallback:
    def test_validation_and_weights_and_biases(self, tmp_path: Path) -> None:
        logger = FakeWandb()
        module = fit(tmp_path, FramePanels(), logger)
        folder = tmp_path / "panels"
        names = [f"step={step:06d}_one_f00003.png" for step in (2, 4)]
        assert sorted(p.name for p in folder.iterdir()) == names
        assert logger.calls == [("image", "panels/one_f00003", [str(folder / name)]) for name in names]
        assert module.frame_listeners == []

    def test_chosen_videos_and_frames(self, tmp_path: Path) -> None:
        fit(tmp_path, FramePanels(["two", "three"], [1, 5, 99]), val_check_interval=4)
        names = sorted(p.name for p in (tmp_path / "panels").iterdir())
        assert names == [f"step=000004_{video}_f0000{t}.png" for video in ("three", "two") for t in (1, 5)]
        fit(tmp_path / "none", FramePanels([]))
        assert not (tmp_path / "none" / "panels").exists()


class TestVisualize:
    def test_files(self, tmp_path: Path) -> None:
        module = DummyModule().eval()
        output = OutputFolder(tmp_path / "o", "visualize")
        sheets = draw(module, make_video("v", length=4), [0, 2], output)
        assert sheets == [tmp_path / "o" / name / "sheet.png" for name in ("f00000", "f00002")]
        assert sorted(p.name for p in (tmp_path / "o" / "f00002").iterdir()) == [
            "object_1_probability.png", "object_2_probability.png", "sheet.png",
        ]  # fmt: skip
        with Image.open(tmp_path / "o" / "f00002" / "object_1_probability.png") as image:
            assert image.size == (45 + BAR_WIDTH, 30)

    def test_errors(self, tmp_path: Path) -> None:
        module = DummyModule().eval()
        with pytest.raises(ValueError, match="the video has frames 0 to 3"):
            draw(module, make_video("v", length=4), [4], OutputFolder(tmp_path / "o", "visualize"))

    def test_writes_nothing_for_nothing(self, tmp_path: Path) -> None:
        write_panels(OutputFolder(tmp_path / "o", "visualize"), "f", [Panel("a b/c", BLACK, "r")])
        assert sorted(p.name for p in (tmp_path / "o" / "f").iterdir()) == ["r_a_b_c.png", "sheet.png"]
