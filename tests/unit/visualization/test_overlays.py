"""Label maps as colours, alone and over their frames."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import torch

from tests.tolerances import assert_close
from vos_lightning.io.label_maps import PALETTE
from vos_lightning.visualization.overlays import BRIGHT, colorize, overlay


def test_colorize_looks_up_the_palette() -> None:
    label_map = torch.randint(0, 6, (9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert_close(colorize(label_map), torch.from_numpy(PALETTE[label_map.numpy()]).permute(2, 0, 1))


def square(i: int = 1) -> torch.Tensor:
    label_map = torch.zeros(11, 11, dtype=torch.uint8)
    label_map[2:9, 2:9] = i
    return label_map


def test_overlay_blends_inside_with_a_contour_of_two_sides() -> None:
    drawn = overlay(torch.full((3, 11, 11), 200, dtype=torch.uint8), square(), alpha=0.25)
    colour = BRIGHT[1].tolist()
    assert drawn[:, 0, 0].tolist() == [200, 200, 200]
    assert drawn[:, 1, 5].tolist() == [0, 0, 0]  # just outside
    assert drawn[:, 2, 5].tolist() == colour  # just inside
    assert drawn[:, 5, 5].tolist() == [round(200 + 0.25 * (part - 200)) for part in colour]


def test_the_rest_can_be_dimmed_and_ids_written() -> None:
    frame = torch.full((3, 60, 60), 100, dtype=torch.uint8)
    label_map = torch.zeros(60, 60, dtype=torch.uint8)
    label_map[10:50, 10:50] = 7
    plain, dark = overlay(frame, label_map), overlay(frame, label_map, dim=0.6)
    assert dark[:, 0, 0].tolist() == [40, 40, 40]
    assert torch.equal(dark[:, 12:48, 12:48], plain[:, 12:48, 12:48])
    written = overlay(frame, label_map, ids=True)
    changed = (written != plain).any(dim=0).nonzero()
    assert len(changed) > 20
    assert 15 <= int(changed.min()) <= int(changed.max()) <= 45  # in the middle of the object
    assert (written == 255).all(dim=0).any()


def test_colours_are_bright_and_apart() -> None:
    """The first colours have to be told apart, and none may be dark: the palette's dark red is lost in dark scenes."""
    brightness = BRIGHT[1:].max(axis=1)
    assert brightness.min() == 255
    lightness = BRIGHT[1:].astype(float) @ [0.299, 0.587, 0.114]
    assert lightness.min() > 90
    assert len({tuple(colour) for colour in BRIGHT.tolist()}) == 256
    first = BRIGHT[1:13].astype(float)
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(first, 2)) > 90
    hues = sorted(colorsys.rgb_to_hsv(*(part / 255 for part in colour))[0] for colour in BRIGHT[1:7])
    assert min(b - a for a, b in itertools.pairwise(hues)) > 0.05
