"""Colours of frames and their likeness, one pixel and one block at a time."""

from __future__ import annotations

import math
from itertools import product

import cv2
import numpy as np
import pytest
import torch

from vos_lightning.propagation import cuts
from vos_lightning.propagation.cuts import (
    block_histograms,
    colour_bins,
    colour_histogram,
    is_cut,
    likeness,
    reduced,
    similarity,
)

BINS = (8, 16, 16)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_histogram(bins: np.ndarray) -> np.ndarray:
    """Shares of 1/4, 1/2 and 1/4 of each pixel along each channel; what would leave a channel stays at its end."""
    found = np.zeros(BINS)
    for number in bins.ravel():
        place = np.unravel_index(number, BINS)
        for steps in product((-1, 0, 1), repeat=3):
            cell = tuple(min(max(p + s, 0), size - 1) for p, s, size in zip(place, steps, BINS, strict=True))
            found[cell] += math.prod(0.25 if s else 0.5 for s in steps)
    return found.ravel() / max(bins.size, 1)


def test_a_colour_has_8_steps_of_lightness_and_16_of_either_hue() -> None:
    image = np.concatenate([picture(0, 9, 13), np.full((1, 13, 3), 255, np.uint8), np.zeros((1, 13, 3), np.uint8)])
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    found = colour_bins(image)
    for y, x in np.ndindex(found.shape):
        lightness, green_red, blue_yellow = (int(v) for v in lab[y, x])
        assert found[y, x] == 256 * (lightness // 32) + 16 * (green_red // 16) + blue_yellow // 16
    assert found[-1, 0] < 256
    assert found[-2, 0] >= 7 * 256


def test_a_histogram_is_smoothed_along_each_channel() -> None:
    bins = colour_bins(picture(1, 6, 7))
    bins[0, :3] = 0, 2047, 15  # at the ends of all channels
    mask = np.random.default_rng(2).random(bins.shape) < 0.6
    mask[0, :3] = True
    assert colour_histogram(bins, mask) == pytest.approx(plain_histogram(bins[mask]), abs=1e-6)
    assert not colour_histogram(bins, np.zeros_like(mask)).any()


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 14), (5, 4)])
def test_blocks_have_the_histograms_of_their_pixels(height: int, width: int) -> None:
    """Four across and four down; a pixel belongs to the block in which its upper left corner lies."""
    bins = colour_bins(picture(3, height, width))
    blocks = block_histograms(bins)
    assert blocks.shape == (16, 2048)
    for row, column in product(range(4), repeat=2):
        inside = [bins[y, x] for y, x in np.ndindex(bins.shape) if 4 * y // height == row and 4 * x // width == column]
        assert blocks[4 * row + column] == pytest.approx(plain_histogram(np.array(inside)), abs=1e-6)


def test_the_likeness_of_frames_is_the_mean_of_their_blocks() -> None:
    one, other = (np.random.default_rng(seed).dirichlet(np.ones(6), 3).astype(np.float32) for seed in (0, 1))
    by_hand = [sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)) for p, q in zip(one, other, strict=True)]
    assert [likeness(p, q) for p, q in zip(one, other, strict=True)] == pytest.approx(by_hand, abs=1e-6)
    assert similarity(one, other) == pytest.approx(sum(by_hand) / 3, abs=1e-6)


def test_a_cut_is_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = np.full((2, 4), 0.25, np.float32)
    monkeypatch.setattr(cuts, "SAME_SCENE", similarity(blocks, blocks))
    assert not is_cut(blocks, blocks)
    monkeypatch.setattr(cuts, "SAME_SCENE", similarity(blocks, blocks) + 1e-6)
    assert is_cut(blocks, blocks)


@pytest.mark.parametrize(
    ("size", "inner"),
    [((320, 480), (160, 240)), ((480, 320), (240, 160)), ((90, 120), (90, 120)), ((161, 483), (160, 480)), ((400, 1), (400, 1))],
)
def test_colours_are_measured_at_160_pixels(size: tuple[int, int], inner: tuple[int, int]) -> None:
    image = picture(4, *size)
    expected = np.stack([cv2.resize(image[..., c], inner[::-1], interpolation=cv2.INTER_AREA) for c in range(3)], axis=2)
    frame = torch.from_numpy(image).permute(2, 0, 1)
    assert expected.shape == (*inner, 3)
    assert np.array_equal(reduced(frame), expected)
    assert np.array_equal(reduced(frame.float() / 255), expected)


def test_a_frame_of_floats_is_rounded_and_clamped() -> None:
    frame = torch.tensor([-0.1, 0.0, 0.6 / 255, 0.4 / 255, 254.6 / 255, 1.0, 1.1]).expand(3, 1, 7)
    assert reduced(frame)[0, :, 0].tolist() == [0, 0, 1, 0, 255, 255, 255]
