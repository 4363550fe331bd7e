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
from vos_lightning.structures import VideoSample


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


@pytest.mark.parametrize(
    ("short_side", "size", "inner", "smaller"),
    [
        (None, (1080, 1920), "", 480),
        (None, (481, 700), "", 480),
        (None, (480, 640), "", 240),
        (320, (480, 640), ", processed at 426x320,", 160),
        (None, (1, 5), "", 1),
    ],
)
def test_a_smaller_size_is_proposed(short_side: int | None, size: tuple[int, int], inner: str, smaller: int) -> None:
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"), short_side=short_side)
    assert engine._too_large(3, size, 2) == (
        f"frame 3 of {size[1]}x{size[0]} pixels{inner} with 2 object(s) does not fit into memory: process it at a smaller size "
        f"with short_side={smaller} (--short-side {smaller}), or remember fewer frames"
    )


def video(*annotations: torch.Tensor) -> VideoSample:
    given = dict(enumerate(annotations))
    return VideoSample("v", [torch.zeros(3, 30, 45, dtype=torch.uint8)] * 2, given, {}, (1, 2), (30, 45), None)


def test_a_tiny_object_keeps_the_size_of_its_video() -> None:
    """What counts is the number of pixels after resizing, of any object in any annotation."""
    large, small = torch.zeros(2, 30, 45, dtype=torch.uint8)
    large[4:12, 10:30] = 1
    small[:] = large
    small[20:24, 6:10] = 2  # 16 pixels, of which every fourth is left at half the size

    def keeps(least: int, short_side: int | None, *annotations: torch.Tensor) -> bool:
        propagation = Propagation(AnnotatedOnly(), "minimum")
        engine = InferenceEngine(DummyNetwork(), propagation, short_side=short_side, min_object_pixels=least)
        sizes = {prediction.processed_size for prediction in engine.run(video(*annotations))}
        assert sizes in ({(30, 45)}, {(15, 22)})
        return sizes == {(30, 45)}

    assert not keeps(4, 15, large, small)
    assert keeps(5, 15, large, small)
    assert keeps(5, 15, small, large)
    assert not keeps(5, 15, large)
    assert not keeps(0, 15, small)
    assert keeps(5, None, small)
    assert keeps(5, 30, small)
