"""Parts of clip recipes: which frames, geometry of every frame, thin-plate splines, gaps that follow the training."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from data_modules.clips.dataset import ClipDataset, ClipKey, ClipSource, Draw
from data_modules.clips.geometry import (
    draw_affine_matrices,
    pad_to,
    random_thin_plate,
    random_warp,
    rescaled_box,
    thin_plate_field,
    warp,
)
from data_modules.clips.recipe import FILL, AffineRecipe, ClipRecipe, ColorRecipe, ThinPlateRecipe
from data_modules.clips.sampling import choose_by_recipe, choose_frames, sample_generator
from data_modules.clips.transforms import ClipTransform, RawClip
from tests.oracles.clips import stcn_triples, warp_with_torchvision
from tests.unit.data_modules.test_transforms import COLOURS, PLAIN, misaligned, painted_clip

BICUBIC = AffineRecipe(accumulate=False, image_interpolation="bicubic", fill=(30, 30, 30))


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "max_gap"), [(7, 3), (4, 25), (1, 5), (30, 1), (2, 1)])
def test_stcn_frames_are_drawn_as_in_its_code(length: int, max_gap: int) -> None:
    expected = stcn_triples(length, max_gap)
    rng = sample_generator(0, 0, 0)
    drawn = Counter(choose_frames(rng, length, 3, max_gap, 0.0, "stcn") for _ in range(6000))
    assert set(drawn) == set(expected)
    for triple, probability in expected.items():
        assert abs(drawn[triple] / 6000 - probability) < 0.03
    backward = {choose_frames(rng, length, 3, max_gap, 1.0, "stcn") for _ in range(2000)}
    assert backward == {triple[::-1] for triple in expected}


def test_clips_inside_leave_room() -> None:
    starts = set()
    for index in range(200):
        frames = choose_frames(sample_generator(0, 0, index), 9, 4, reverse_probability=0.0, choice="inside", stride=2)
        assert frames == tuple(frames[0] + 2 * k for k in range(4))
        starts.add(frames[0])
    assert starts == {0, 1, 2}
    assert choose_frames(sample_generator(0, 0, 0), 2, 4, reverse_probability=0.0, choice="inside") == (0, 1, 1, 1)


def test_shuffled_frames_are_distinct_where_they_can_be() -> None:
    drawn = [choose_frames(sample_generator(0, 0, i), 6, 4, choice="shuffled") for i in range(100)]
    assert all(len(set(frames)) == 4 for frames in drawn)
    assert any(list(frames) != sorted(frames) for frames in drawn)
    assert len(choose_frames(sample_generator(0, 0, 0), 2, 4, choice="shuffled")) == 4


def test_recipes_choose_with_all_of_their_values() -> None:
    recipe = ClipRecipe(num_frames=3, max_gap=2, frame_stride=3, frame_choice="inside", reverse_probability=1.0)
    for index in range(20):
        rngs = sample_generator(0, 0, index), sample_generator(0, 0, index)
        assert choose_by_recipe(rngs[0], 20, recipe) == choose_frames(rngs[1], 20, 3, 2, 1.0, "inside", 3)


def test_recipes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frame_choice stcn is for num_frames 3"):
        ClipRecipe(num_frames=4, frame_choice="stcn")
    for curriculum in (((0.5, 3), (0.1, 5)), ((0.5, 0),), ((1.5, 3),)):
        with pytest.raises(ValueError, match=r"recipe\.gap_curriculum must be ascending pairs"):
            ClipRecipe(gap_curriculum=curriculum)


@pytest.mark.parametrize(("height", "width"), [(480, 854), (720, 1280), (1280, 720), (384, 384), (300, 500)])
def test_rescaled_windows_go_from_native_scale_to_the_whole_short_side(height: int, width: int) -> None:
    """Of STM: the scale of a window is uniform between crop size over short side and 1, and it lies anywhere in the frame."""
    rng = np.random.default_rng(0)
    boxes = np.array([rescaled_box(rng, height, width, 384) for _ in range(4000)])
    left, top, side, other = boxes.T
    short = min(height, width)
    assert (side == other).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + side <= width).all()
    assert (top + side <= height).all()
    if short <= 384:
        assert (side == short).all()
        return
    scales = 384 / side
    assert 384 <= side.min() <= 385
    assert side.max() == short
    assert np.mean(scales) == pytest.approx((384 / short + 1) / 2, abs=0.01)
    assert np.std(scales) == pytest.approx((1 - 384 / short) / 12**0.5, abs=0.01)
    assert (left == 0).any()
    assert (left + side == width).any()


def test_clips_of_stm_are_cut_from_frames_at_their_own_scale() -> None:
    recipe = dataclasses.replace(PLAIN, short_side=None, crop="rescaled", crop_size=48)
    clip = painted_clip()
    samples = [ClipTransform(recipe)(sample_generator(0, 0, i), clip) for i in range(20)]
    assert {tuple(sample.frames.shape[-2:]) for sample in samples} == {(48, 48)}
    assert all(sample.object_ids for sample in samples)


# Gaps that follow the training ----------------------------------------------------------------------------------------


class Counting(ClipSource):
    """Shows the gap that it was asked for; the first draws of an item have no object."""

    def __init__(self, empty_draws: int = 0) -> None:
        self.empty_draws = empty_draws
        self.draws = 0

    def __len__(self) -> int:
        return 4

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        self.draws += 1
        label_maps = np.full((3, 8, 8), 0 if self.draws <= self.empty_draws else 1, dtype=np.uint8)
        return RawClip(np.full((3, 8, 8, 3), recipe.max_gap, dtype=np.uint8), label_maps, "v", (0, 1, 2))


def test_the_gap_follows_the_position_in_the_training() -> None:
    recipe = dataclasses.replace(PLAIN, max_gap=5, gap_curriculum=((0.25, 10), (0.75, 2)))
    dataset = ClipDataset([(Counting(), recipe)], seed=0)
    gaps = [
        int(dataset[ClipKey(Draw(0, 0), None, progress)].frames[0, 0, 0, 0]) for progress in (0.0, 0.24, 0.25, 0.7, 0.75, 0.99)
    ]
    assert gaps == [5, 5, 10, 10, 2, 2]
    sparse = recipe.in_steps_of(5)
    assert (sparse.max_gap, sparse.gap_curriculum) == (1, ((0.25, 2), (0.75, 1)))


@pytest.mark.parametrize(("attempts", "found"), [(3, False), (4, True), (9, True)])
def test_clips_without_an_object_are_drawn_anew(attempts: int, found: bool) -> None:
    source = Counting(empty_draws=3)
    dataset = ClipDataset([(source, dataclasses.replace(PLAIN, clip_attempts=attempts))], seed=0)
    assert bool(dataset[ClipKey(Draw(0, 0))].object_ids) == found
    assert source.draws == min(attempts, 4)


# Affine warps ---------------------------------------------------------------------------------------------------------


def test_a_shared_warp_is_the_same_for_all_frames() -> None:
    matrices = draw_affine_matrices(sample_generator(0, 0, 0), 4, dataclasses.replace(BICUBIC, shared=True))
    assert (matrices == matrices[0]).all()
    assert not np.allclose(matrices[0], np.eye(2))


def test_shear_along_x_alone_keeps_rows_level() -> None:
    recipe = AffineRecipe(degrees=0.0, scale=(1.0, 1.0), shear=10.0, shear_axes="x", accumulate=False)
    matrices = draw_affine_matrices(sample_generator(0, 0, 0), 50, recipe)
    assert (matrices[:, 1] == (0, 1)).all()
    assert (matrices[:, 0, 0] == 1).all()
    assert 0.1 < np.abs(matrices[:, 0, 1]).max() <= np.tan(np.deg2rad(10))


def test_shifts_are_those_of_torchvision() -> None:
    clip = painted_clip(num_frames=1)
    matrices, shifts = np.eye(2)[None], np.array([[7.0, -4.0]])
    frames, label_maps = warp(clip.frames, clip.label_maps, matrices, (1, 2, 3), shifts)
    image = warp_with_torchvision(clip.frames[0], 0.0, 1.0, (0.0, 0.0), (1, 2, 3), translate=(7, -4))
    assert (frames[0] == image).all()
    assert (label_maps[0, :-4, 7:] == clip.label_maps[0, 4:, :-7]).all()
    assert (label_maps[0, -4:] == 0).all()
    recipe = AffineRecipe(degrees=0.0, scale=(1.0, 1.0), shear=0.0, translate=0.1)
    wide = [random_warp(sample_generator(0, 0, i), clip.frames, clip.label_maps, recipe) for i in range(40)]
    moved = [int(np.flatnonzero((m[0] == 1).any(0))[0]) - 30 for _, m, _ in wide]
    assert max(map(abs, moved)) <= 20
    assert max(moved) > 10
    assert min(moved) < -10


@pytest.mark.parametrize("mask_interpolation", ["nearest", "soft"])
def test_bicubic_frames_stay_aligned_with_masks(mask_interpolation: str) -> None:
    clip = painted_clip()
    recipe = dataclasses.replace(BICUBIC, mask_interpolation=mask_interpolation)
    frames, label_maps, _ = random_warp(sample_generator(0, 0, 3), clip.frames, clip.label_maps, recipe)
    assert misaligned(frames, label_maps) < 0.02
    assert set(np.unique(label_maps)) == {0, 1, 2, 3}
    assert not (frames[0] == frames[1]).all()


def test_soft_masks_are_cut_at_one_half() -> None:
    label_maps = np.zeros((1, 60, 60), dtype=np.uint8)
    label_maps[0, 20:40, 20:40] = 5
    label_maps[0, :4] = 255
    frames = COLOURS[label_maps.clip(max=1)]
    quarter = np.array([[0.0, 0.25]])
    _, moved = warp(frames, label_maps, np.eye(2)[None], (0, 0, 0), quarter, mask_interpolation="soft")
    assert (moved == label_maps).all()  # a quarter of a pixel covers no further one
    angle = np.deg2rad(45)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])[None]
    _, turned = warp(frames, label_maps, turn, (0, 0, 0), mask_interpolation="soft")
    away = np.abs(np.arange(60) - 29.5)
    assert ((turned[0] == 5) == (away[:, None] + away <= 10 * np.sqrt(2))).all()


# Frames by themselves -------------------------------------------------------------------------------------------------


def still(height: int = 120, width: int = 200) -> RawClip:
    clip = painted_clip(height, width, num_frames=1)
    return dataclasses.replace(
        clip, frames=np.repeat(clip.frames, 3, 0), label_maps=np.repeat(clip.label_maps, 3, 0), frame_indices=(0, 0, 0)
    )


@pytest.mark.parametrize("part", ["frame_affine", "frame_color", "thin_plate", "crop_per_frame"])
def test_frames_are_changed_by_themselves(part: str) -> None:
    changes = {
        "frame_affine": {"frame_affine": BICUBIC},
        "frame_color": {"frame_color": ColorRecipe(brightness=0.5)},
        "thin_plate": {"thin_plate": ThinPlateRecipe(probability=1.0, fill=(30, 30, 30))},
        "crop_per_frame": {"crop": "random_resized", "crop_per_frame": True, "short_side": 100},
    }
    sample = ClipTransform(dataclasses.replace(PLAIN, max_objects=3, **changes[part]))(sample_generator(0, 0, 1), still())
    frames = sample.frames.numpy()
    assert not (frames[0] == frames[1]).all()
    same_masks = bool((sample.label_maps[0] == sample.label_maps[1]).all())
    assert same_masks == (part == "frame_color")
    if part != "frame_color":
        assert misaligned(frames.transpose(0, 2, 3, 1), np.array([0, *sample.object_ids])[sample.label_maps.numpy()]) < 0.04
    if part == "crop_per_frame":
        assert frames.shape[2:] == (64, 64)


def test_objects_are_chosen_after_the_frames_were_moved() -> None:
    label_maps = np.zeros((2, 40, 40), dtype=np.uint8)
    label_maps[:, :3, :3] = 1  # leaves the frame when it is enlarged
    label_maps[:, 18:22, 18:22] = 2
    clip = RawClip(COLOURS[label_maps], label_maps, "v", (0, 1))
    enlarge = AffineRecipe(degrees=0.0, scale=(1.5, 1.5), shear=0.0, accumulate=False)
    assert ClipTransform(PLAIN)(sample_generator(0, 0, 0), clip).object_ids == (1, 2)
    recipe = dataclasses.replace(PLAIN, frame_affine=enlarge)
    assert ClipTransform(recipe)(sample_generator(0, 0, 0), clip).object_ids == (2,)


def test_small_frames_are_padded_as_torchvision_does() -> None:
    clip = painted_clip(100, 30, num_frames=2)
    frames, label_maps = pad_to(clip.frames, clip.label_maps, 64)
    assert frames.shape == (2, 100, 30 + 2 * 34, 3)
    assert (frames[:, :, 34:64] == clip.frames).all()
    assert (frames[:, :, :34] == FILL).all()
    assert (label_maps[:, :, 64:] == 0).all()
    recipe = dataclasses.replace(PLAIN, crop="padded", crop_per_frame=True)
    assert ClipTransform(recipe)(sample_generator(0, 0, 0), still(100, 60)).frames.shape == (3, 3, 64, 64)


# Thin-plate splines ---------------------------------------------------------------------------------------------------


def test_thin_plate_field_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    sources = rng.uniform(0, 1, (12, 2))
    targets = sources + rng.normal(0, 0.03, (12, 2))
    field = np.stack(thin_plate_field(sources, targets, 30, 40), axis=-1)
    y, x = np.mgrid[:30, :40]
    positions = np.stack([x.ravel() / 40, y.ravel() / 30], axis=1)
    expected = RBFInterpolator(targets, sources, kernel="thin_plate_spline", degree=1)(positions) * (40, 30)
    assert np.abs(field.reshape(-1, 2) - expected).max() < 0.01  # of a pixel, in single precision


def test_thin_plates_move_some_frames_a_little() -> None:
    clip = painted_clip(96, 96, num_frames=1)
    frames, label_maps = np.repeat(clip.frames, 100, 0), np.repeat(clip.label_maps, 100, 0)
    recipe = ThinPlateRecipe(fill=(30, 30, 30))
    warped_frames, warped_maps = random_thin_plate(sample_generator(0, 0, 0), frames, label_maps, recipe)
    moved = (warped_frames != frames).any(axis=(1, 2, 3))
    assert 0.25 < moved.mean() < 0.42
    assert misaligned(warped_frames[moved], warped_maps[moved]) < 0.05
    assert (warped_maps[~moved] == label_maps[~moved]).all()
    assert 0.01 < (warped_maps[moved] != label_maps[moved]).mean() < 0.2
