"""Every clip recipe that an experiment trains on, drawn 1,000 times.

The pictures are small, and sizes of crops are made as small, so that a draw takes a millisecond; boxes, warps and choices of
frames are drawn as for the real ones. Colours and the pixels of resized frames are left out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from data_modules.base import VOSDataModule
from data_modules.clips import geometry, transforms
from data_modules.clips.recipe import AffineRecipe, ClipRecipe
from data_modules.clips.sampling import choose_by_recipe, sample_generator
from data_modules.clips.transforms import ClipTransform, RawClip
from data_modules.datasets.coco import COCODataModule
from data_modules.datasets.static_images import StaticImagesDataModule
from data_modules.datasets.static_sets import StaticSetDataModule
from tests.facts.facts import PAPERS, read_facts
from tests.recipes.experiments import EXPERIMENTS

DRAWS = 1000
SMALL = 32
"""Side of crops, in pixels; everything else is smaller by the same factor."""
STILL, VIDEO = (480, 640), (480, 854)
LENGTHS = (27, 70)
"""Frames of a video of YouTube-VOS and of DAVIS."""
STILLS = (COCODataModule, StaticImagesDataModule, StaticSetDataModule)
ONE_BOX = {"released"}
"""Crops that are one box in wide frames, as the paper's README says."""


def recipes_in(data: Any) -> Iterator[Any]:
    """What a section says of clips: kind of data, recipe and steps between stored frames, at any depth."""
    if isinstance(data, Mapping):
        if "class_path" in data:
            arguments = data.get("init_args") or {}
            still = any(data["class_path"].endswith(kind.__name__) for kind in STILLS)
            yield [still, arguments.get("recipe"), arguments.get("frame_steps")]
        for key, value in data.items():
            if key != "evaluation":
                yield from recipes_in(value)
    elif isinstance(data, list):
        for value in data:
            yield from recipes_in(value)


def trained() -> Iterator[tuple[str, dict[str, Any]]]:
    """One experiment of those with the same clips, with its data."""
    seen = set()
    for name, experiment in EXPERIMENTS.items():
        data = experiment.config.get("data") or {}
        if experiment.stages or experiment.checkpoint_of or "Synthetic" in str(data.get("class_path", "Synthetic")):
            continue
        key = str(list(recipes_in(data)))
        if key not in seen:
            seen.add(key)
            yield name, data


TRAINED = dict(trained())


def parts(name: str) -> list[tuple[bool, ClipRecipe]]:
    """Whether an experiment trains on still images, and the recipe of its clips, of each data set that has another one."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VOSDataModule, "data")
    section = copy.deepcopy(TRAINED[name])  # the parser writes into what it is given
    module = parser.instantiate(parser.parse_object({"data": section})).data
    module = getattr(module, "source", module)
    members = getattr(module, "train_modules", [module])
    found = zip((isinstance(one, STILLS) for one in members), getattr(module, "recipes", [module.recipe]), strict=True)
    return list(dict.fromkeys(found))


def in_small(recipe: ClipRecipe) -> tuple[ClipRecipe, float]:
    """The recipe with sizes divided by a factor, and the factor."""
    factor = min(recipe.size or (recipe.crop_size,)) / SMALL
    return dataclasses.replace(
        recipe,
        crop_size=SMALL if recipe.size is None else max(1, int(recipe.crop_size / factor)),
        short_side=None if recipe.short_side is None else round(recipe.short_side / factor),
        size=None if recipe.size is None else (round(recipe.size[0] / factor), round(recipe.size[1] / factor)),
        min_object_pixels=max(1, int(recipe.min_object_pixels / factor**2)),
        color=None,
        frame_color=None,
    ), factor


def clip(num_frames: int, height: int, width: int) -> RawClip:
    """Two objects, each of a tenth of the picture, that move a little."""
    label_maps = np.zeros((num_frames, height, width), dtype=np.uint8)
    for t in range(num_frames):
        shift = (t * width) // 200
        label_maps[t, height // 5 : height * 3 // 5, width // 5 + shift : width * 9 // 20 + shift] = 1
        label_maps[t, height * 2 // 5 : height * 4 // 5, width * 11 // 20 : width * 4 // 5] = 2
    return RawClip(np.zeros((*label_maps.shape, 3), dtype=np.uint8), label_maps, "clip", tuple(range(num_frames)))


class Drawn:
    """What a recipe draws."""

    def __init__(self, recipe: ClipRecipe, still: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boxes: list[tuple[int, ...]] = []
        self.warps: dict[AffineRecipe, list[np.ndarray]] = {}
        self.survived = {"first": 0, "last": 0}
        small, factor = in_small(recipe)
        height, width = (round(side / factor) for side in (STILL if still else VIDEO))
        source = clip(recipe.num_frames, height, width)
        draw_box, draw_affine = ClipTransform._draw_box, geometry.draw_affine_matrices

        def box(this: ClipTransform, rng: np.random.Generator, height: int, width: int) -> geometry.Box:
            self.boxes.append(draw_box(this, rng, height, width))
            return self.boxes[-1]

        def affine(rng: np.random.Generator, num_frames: int, one: AffineRecipe) -> np.ndarray:
            self.warps.setdefault(one, []).append(draw_affine(rng, num_frames, one))
            return self.warps[one][-1]

        def labels_only(frames: Any, label_maps: Any, box: geometry.Box, height: int, width: int) -> tuple[Any, Any]:
            resized = np.stack([geometry.resize_label_map(one, box, height, width) for one in label_maps])
            return np.zeros((*resized.shape, 3), dtype=np.uint8), resized

        with monkeypatch.context() as patch:
            patch.setattr(transforms, "resize_box", labels_only)
            patch.setattr(transforms.ClipTransform, "_draw_box", box)
            patch.setattr(geometry, "draw_affine_matrices", affine)
            transform = ClipTransform(small)
            for index in range(DRAWS):
                sample = transform(sample_generator(0, 0, index), source)
                maps = sample.label_maps.numpy()
                self.survived["first"] += int(((maps[0] > 0) & (maps[0] < 255)).sum() >= small.min_object_pixels)
                self.survived["last"] += int(((maps[-1] > 0) & (maps[-1] < 255)).any())


def stated(name: str, option: str, otherwise: Any) -> Any:
    """What the facts say of a part of a recipe; of an experiment without facts, what its recipe says."""
    paper = next(paper for paper in (*PAPERS, name) if name.startswith(paper))
    known = paper in PAPERS and name in read_facts(paper).experiments
    facts = read_facts(paper).expected(name.removeprefix(f"{paper}_")) if known else {}
    value = facts[option][0] if option in facts else otherwise
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", TRAINED)
def test_a_thousand_clips(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for still, recipe in parts(name):
        check_frames(name, recipe, still)
        drawn = Drawn(recipe, still, monkeypatch)
        # Objects survive: nearly all clips begin with one, and few lose it.
        assert drawn.survived["first"] > 0.97 * DRAWS
        assert drawn.survived["last"] > 0.9 * DRAWS
        check_boxes(name, recipe, still, drawn)
        for which in ("affine", "frame_affine"):
            one = getattr(recipe, which)
            if one is not None:
                check_warps(name, f"data.recipe.{which}", one, drawn.warps[one])


def check_frames(name: str, recipe: ClipRecipe, still: bool) -> None:
    """Clips are as long as the facts say and in order, and steps reach the largest gap."""
    assert recipe.num_frames == stated(name, "data.recipe.num_frames", recipe.num_frames)
    if still or recipe.num_frames == 1:
        return
    for length in LENGTHS:
        for progress in (0.0, *(share for share, _ in recipe.gap_curriculum)):
            at = recipe.at(progress)
            largest = at.max_gap * at.frame_stride
            chosen = np.array([choose_by_recipe(sample_generator(1, 0, i), length, at) for i in range(DRAWS)])
            assert chosen.shape == (DRAWS, recipe.num_frames)
            assert chosen.min() == 0
            assert length - 1 - largest <= chosen.max() <= length - 1
            if at.frame_choice == "shuffled":
                assert all(len(set(one)) == at.num_frames for one in chosen.tolist())
                continue
            steps = np.diff(chosen, axis=1)
            backward = (steps.sum(axis=1) < 0).mean()
            assert abs(backward - at.reverse_probability) < 0.12
            assert ((steps >= 0).all(axis=1) | (steps <= 0).all(axis=1)).all()
            most = largest + int(at.frame_choice == "stcn")  # STCN's own limits allow one more; see its oracle
            assert np.abs(steps).max() <= most
            if length > at.num_frames * most:
                assert np.abs(steps).max() == most
            repeated = (steps == 0).any(axis=1).mean()
            if at.frame_choice == "inside" and largest * (at.num_frames - 1) < length:
                assert repeated == 0
            if at.frame_choice == "repeat_last" and largest == 1:
                assert repeated == pytest.approx((at.num_frames - 1) / length, abs=0.05)


def check_boxes(name: str, recipe: ClipRecipe, still: bool, drawn: Drawn) -> None:
    """Crops are at many places, of the areas and sides that the facts say."""
    if recipe.crop == "none":
        assert not drawn.boxes
        return
    if recipe.crop in ONE_BOX and not still:
        assert len(set(drawn.boxes)) == 1
        return
    assert len(set(drawn.boxes)) > 50 if recipe.crop == "random_resized" else len(set(drawn.boxes)) > 8
    widths, heights = (np.array([box[side] for box in drawn.boxes]) for side in (2, 3))
    height, width = (round(side / in_small(recipe)[1]) for side in (STILL if still else VIDEO))
    if recipe.crop in ("balanced", "padded"):
        assert set(widths) == set(heights) == {SMALL}
        assert stated(name, "data.recipe.crop_size", recipe.crop_size) == recipe.crop_size
    elif recipe.crop == "rescaled":
        assert stated(name, "data.recipe.crop_size", recipe.crop_size) == recipe.crop_size
        assert (widths == heights).all()
        assert widths.min() == SMALL  # of a frame at its own scale
        assert widths.max() == height
    elif recipe.crop == "random_resized":
        low, high = stated(name, "data.recipe.crop_ratio", recipe.crop_ratio)
        assert (widths / heights > low - 0.1).all()
        assert (widths / heights < high + 0.1).all()
        area = widths * heights / (width * height)
        widest = min(width, height * high) / width  # of a box that is as high as the frame
        low, high = stated(name, "data.recipe.crop_area", recipe.crop_area)
        assert low - 0.05 < area.min() < low + 0.1
        assert min(high, widest) - 0.1 < area.max() < high + 0.05


def check_warps(name: str, option: str, recipe: AffineRecipe, drawn: list[np.ndarray]) -> None:
    """Turns, scales and shears reach the ends of the ranges that the facts say, and do not pass them."""
    first = 1 if recipe.keep_first else 0
    single = np.stack([matrices[first] for matrices in drawn])  # before anything accumulates
    if recipe.keep_first:
        assert all(np.array_equal(matrices[0], np.eye(2)) for matrices in drawn)
    scale = np.sqrt(np.linalg.det(single))
    low, high = stated(name, f"{option}.scale", recipe.scale)
    assert low - 1e-9 <= scale.min() <= low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) <= scale.max() <= high + 1e-9
    # The second column of R(angle) shear_y shear_x depends on both shears; the first one on the angle and the second shear.
    degrees, shear = (stated(name, f"{option}.{part}", getattr(recipe, part)) for part in ("degrees", "shear"))
    turn = np.rad2deg(np.arctan2(single[:, 1, 0], single[:, 0, 0]))
    most = degrees + (shear if recipe.shear_axes == "xy" else 0)
    assert np.abs(turn).max() <= most + 1e-6
    assert np.abs(turn).max() >= 0.8 * most
    columns = np.einsum("nk,nk->n", single[:, :, 0], single[:, :, 1]) / scale**2
    assert np.abs(columns).max() >= 0.8 * np.tan(np.deg2rad(shear)) - 1e-9
    last = np.stack([matrices[-1] for matrices in drawn])
    if recipe.shared:
        assert np.array_equal(last, single)
    elif recipe.accumulate and low < high:
        assert np.std(np.sqrt(np.linalg.det(last))) > 1.5 * np.std(scale)
    elif low < high:
        assert np.std(np.sqrt(np.linalg.det(last))) == pytest.approx(np.std(scale), rel=0.15)
