"""Small pictures of segmented frames, and sheets of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vos_lightning.io.outputs import OutputFolder
from vos_lightning.structures import ClipSample, Proposals
from vos_lightning.visualization.panels import Panel
from vos_lightning.visualization.sheets import (
    CAPTION_HEIGHT,
    GAP,
    clip_rows,
    contact_sheet,
    sheet,
    spread,
    thumbnail,
    write_panels,
)  # fmt: skip

BLACK = torch.zeros(3, 40, 60, dtype=torch.uint8)


class TestThumbnails:
    @pytest.mark.parametrize(
        ("length", "count", "expected"), [(1, 8, (0,)), (3, 8, (0, 1, 2)), (100, 3, (0, 50, 99)), (5, 1, (0,))]
    )
    def test_spread(self, length: int, count: int, expected: tuple[int, ...]) -> None:
        assert spread(length, count) == expected

    def test_thumbnail_shows_object_and_target(self) -> None:
        frame = torch.full((3, 40, 60), 90, dtype=torch.uint8)
        label_map = torch.zeros(40, 60, dtype=torch.uint8)
        label_map[10:30, 10:30] = 1
        target = torch.full((40, 60), 255, dtype=torch.uint8)
        target[10:30, 30:50] = 2
        picture = thumbnail(frame, label_map, "0", target, height=40)[:, CAPTION_HEIGHT:]
        assert picture.shape == (3, 40, 60)
        assert picture[:, 20, 20].tolist() == [54, 134, 156]  # 0.4 of the first colour, (0, 200, 255)
        white = (picture == 255).all(dim=0)
        assert white[20, 30]
        assert white[20, 49]
        assert white[10:30, 30:50].sum() == 4 * 19
        assert white.sum() == 4 * 19
        assert picture[:, 5, 5].tolist() == [90, 90, 90]

    def test_sheet_holds_every_picture(self) -> None:
        picture = torch.full((3, 10, 20), 255, dtype=torch.uint8)
        wide = torch.full((3, 6, 50), 255, dtype=torch.uint8)
        image = sheet([[picture, picture], [wide]])
        white = sum(1 for value in image.convert("L").tobytes() if value == 255)
        assert white == 2 * 200 + 300

    def test_a_clip_shows_its_objects_and_the_boxes_of_its_proposals(self) -> None:
        frames = torch.stack([BLACK, BLACK])
        label_maps = torch.zeros(2, 40, 60, dtype=torch.uint8)
        label_maps[1, 20:30, 40:50] = 1
        boxes = torch.tensor([[[4.0, 4.0, 20.0, 20.0]], [[0.0, 0.0, 0.0, 0.0]]])
        proposals = Proposals(boxes, torch.ones(2, 1, 28, 28), torch.tensor([[0.5], [0.0]]))
        clip = ClipSample(frames, label_maps, (1,), "v", (3, 7), proposals)
        (title,), row = clip_rows(clip, "a title that is wider than the frames", height=80)
        without_boxes = clip_rows(ClipSample(frames, label_maps, (1,), "v", (3, 7)), "", height=80)[1]
        assert title.shape[2] > sum(picture.shape[2] for picture in row)
        first, second = (picture[:, CAPTION_HEIGHT:] for picture in row)
        assert first.shape == (3, 80, 120)
        assert first[:, 8, 24].any(), "the box is as large as the picture"
        assert not first[:, 20:38, 12:38].any()
        assert not first[:, 44:, :].any()
        assert second[:, 50, 90].any()
        assert torch.equal(second, without_boxes[1][:, CAPTION_HEIGHT:]), "a proposal with a score of 0 is not there"


class TestPanels:
    def test_a_sheet_has_a_row_for_every_group(self) -> None:
        panels = [Panel(f"p{i}", BLACK, row) for i, row in enumerate(["a", "b", "a", "a"])]
        width, height = contact_sheet(panels, columns=2, height=40).size
        assert width == 2 * (60 + GAP) + GAP
        assert height == 3 * (40 + CAPTION_HEIGHT + GAP) + GAP

    def test_files_have_the_names_of_their_panels(self, tmp_path: Path) -> None:
        write_panels(OutputFolder(tmp_path / "o", "visualize"), "f", [Panel("a b/c", BLACK, "r")])
        assert sorted(p.name for p in (tmp_path / "o" / "f").iterdir()) == ["r_a_b_c.png", "sheet.png"]
