"""Label maps as colours, alone and over their frames."""

from __future__ import annotations

import torch

from tests.tolerances import assert_close
from vos_lightning.io.label_maps import PALETTE
from vos_lightning.visualization.overlays import colorize, overlay


def test_colorize_looks_up_the_palette() -> None:
    label_map = torch.randint(0, 6, (9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert_close(colorize(label_map), torch.from_numpy(PALETTE[label_map.numpy()]).permute(2, 0, 1))


def test_overlay_blends_inside_and_draws_the_outline() -> None:
    frame = torch.full((3, 7, 7), 200, dtype=torch.uint8)
    label_map = torch.zeros(7, 7, dtype=torch.uint8)
    label_map[1:6, 1:6] = 1
    drawn = overlay(frame, label_map, alpha=0.25)
    assert drawn[:, 0, 0].tolist() == [200, 200, 200]
    assert drawn[:, 1, 1].tolist() == [128, 0, 0]
    assert drawn[:, 3, 3].tolist() == [182, 150, 150]
    assert drawn[:, 2, 2].tolist() == [182, 150, 150]
