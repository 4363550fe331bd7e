"""How frames, masks and proposals are resized on their way into a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.dummies import DummyNetwork
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.frame_step import resize_masks
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation
from vos_lightning.propagation.streaming import nearest


@pytest.mark.parametrize("length", [1, 2, 7, 48, 480, 853])
def test_the_nearest_pixel_is_that_of_pytorch(length: int) -> None:
    row = torch.arange(length, dtype=torch.float32)[None, None]
    for wanted in (1, 2, 3, 5, 7, 31, 64, 479, 480, 481, 1000):
        expected = F.interpolate(row, size=wanted, mode="nearest")[0, 0].numpy()
        assert np.array_equal(nearest(length, wanted), expected)


@pytest.mark.parametrize(
    ("short_side", "enlarge", "size", "inner"),
    [
        (None, True, (30, 45), (30, 45)),
        (20, True, (30, 45), (20, 30)),
        (20, True, (45, 30), (30, 20)),
        (20, True, (30, 46), (20, 30)),
        (30, True, (30, 45), (30, 45)),
        (60, True, (30, 45), (60, 90)),
        (60, False, (30, 45), (30, 45)),
        (20, False, (30, 45), (20, 30)),
        (1, True, (30, 45), (1, 1)),
    ],
)
def test_the_short_side_decides(short_side: int | None, enlarge: bool, size: tuple[int, int], inner: tuple[int, int]) -> None:
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"), short_side=short_side, enlarge=enlarge)
    assert engine.inner_size(size) == inner


def test_a_mask_that_would_be_lost_keeps_what_it_touches() -> None:
    """Each object by itself: the nearest pixels where one of them is left, every touched pixel where none is."""
    masks = torch.zeros(2, 2, 6, 8)
    masks[0, 0, :, :4] = 1
    masks[0, 1, 1, 5] = 1
    masks[1, 0, 3, 3], masks[1, 0, 5, 7] = 1, 1
    found = resize_masks(masks, (3, 4))
    assert torch.equal(found[0, 0], masks[0, 0, ::2, ::2])
    for b, n, cells in ((0, 1, [[0, 2]]), (1, 0, [[1, 1], [2, 3]])):
        assert not bool(masks[b, n, ::2, ::2].any())
        assert found[b, n].nonzero().tolist() == cells
    assert found[1, 1].eq(0).all()
