"""Joint transforms of the frames and label maps of a clip.

Colours come from Albumentations behind one adapter; flips and resampling are in :mod:`data_modules.clips.geometry`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from data_modules.clips import maps as clip_geometry
from data_modules.clips.geometry import (
    Box,
    flip,
    pad_to,
    random_resized_box,
    random_thin_plate,
    random_warp,
    rescaled_box,
    resize_box,
    resize_label_map,
    short_side_size,
)
from data_modules.clips.maps import ClipProposals
from data_modules.clips.recipe import ClipRecipe, ColorRecipe
from data_modules.clips.sampling import choose_objects
from vos_lightning.structures import IGNORE_LABEL, ClipSample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks a server for newer versions
import albumentations as A

RELEASED_CROP_AREA = (0.8, 1.25)
RELEASED_CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class RawClip:
    """Frames and label maps as read, before any transform."""

    frames: UInt8[np.ndarray, "T H W 3"]
    label_maps: UInt8[np.ndarray, "T H W"]
    """Original ids; 255 is ignored."""
    video_name: str
    frame_indices: tuple[int, ...]
    proposals: ClipProposals | None = None
    """Function that makes the proposals of the transformed clip; None without proposals."""


class SeededColors:
    """Albumentations transforms of colours that draw from the sample's generator.

    Albumentations 2.0.8 keeps its own random state, which every forked worker inherits, so that all workers and epochs would draw
    the same values. The state is therefore set for every call. One call uses the same parameters for all of its frames.

    Albumentations gives every transform of a list the same state, so that their draws depend on each other (two flips of
    probability 0.5 would always happen together). Here they do not: the only number of ``ToGray`` decides whether it is applied,
    and so does the first one of ``ColorJitter``, which always is; its colours come from the numbers after that.
    """

    def __init__(self, recipe: ColorRecipe) -> None:
        jitter = A.ColorJitter(
            brightness=recipe.brightness, contrast=recipe.contrast, saturation=recipe.saturation, hue=recipe.hue, p=1.0
        )
        self.compose = A.Compose([jitter, A.ToGray(p=recipe.gray_probability)])

    def __call__(self, rng: np.random.Generator, frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Change the colours of all frames in the same way."""
        self.compose.set_random_seed(int(rng.integers(2**31)))
        return np.asarray(self.compose(images=frames)["images"])

    def each_by_itself(self, rng: np.random.Generator, frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Change the colours of every frame in a way of its own."""
        return np.concatenate([self(rng, frame[None]) for frame in frames])


class ClipTransform:
    """Turns raw clips into samples by a recipe.

    Args:
        recipe: how clips are made.
    """

    def __init__(self, recipe: ClipRecipe) -> None:
        self.recipe = recipe
        self.colors = SeededColors(recipe.color) if recipe.color is not None else None
        self.frame_colors = SeededColors(recipe.frame_color) if recipe.frame_color is not None else None

    def __call__(self, rng: np.random.Generator, clip: RawClip) -> ClipSample:
        """Apply geometry and colours of the clip, then those of every frame, and choose the objects."""
        recipe = self.recipe
        frames, label_maps = clip.frames, clip.label_maps
        if clip.proposals is not None:
            clip_geometry.check_followed(recipe)
        maps = clip_geometry.identity(len(frames))
        if recipe.ignore_as_background:
            label_maps = np.where(label_maps == IGNORE_LABEL, np.uint8(0), label_maps)
        # Transforms of the whole clip.
        if recipe.affine is not None:
            frames, label_maps, matrices = random_warp(rng, frames, label_maps, recipe.affine)
            maps = clip_geometry.about_centre(maps, matrices, *frames.shape[1:3])
        object_ids: tuple[int, ...] = ()
        if not recipe.crop_per_frame:
            # The published order is flips, then crop. Windows are drawn symmetrically, so this order is equivalent and handles
            # fewer pixels.
            before = frames.shape[1:3]
            frames, label_maps = self._resize(frames, label_maps)
            maps = clip_geometry.window(maps, (0, 0, before[1], before[0]), *frames.shape[1:3])
            frames, label_maps, object_ids, box = self._crop(rng, frames, label_maps, clip.video_name)
            maps = clip_geometry.window(maps, box, *frames.shape[1:3])
        horizontal, vertical = self._draw_flips(rng)
        frames, label_maps = flip(frames, horizontal, vertical), flip(label_maps, horizontal, vertical)
        maps = clip_geometry.flip(maps, horizontal, vertical, *frames.shape[1:3])
        if self.colors is not None and recipe.color is not None:
            frames = self.colors.each_by_itself(rng, frames) if recipe.color.per_frame else self.colors(rng, frames)
        # Transforms of each single frame.
        if recipe.frame_affine is not None:
            frames, label_maps, _ = random_warp(rng, frames, label_maps, recipe.frame_affine)
        if recipe.crop_per_frame:
            frames, label_maps = self._resize(frames, label_maps)
            cut = [self._crop(rng, f[None], m[None], clip.video_name) for f, m in zip(frames, label_maps, strict=True)]
            frames, label_maps = np.concatenate([c[0] for c in cut]), np.concatenate([c[1] for c in cut])
        if self.frame_colors is not None:
            frames = self.frame_colors.each_by_itself(rng, frames)
        if recipe.thin_plate is not None:
            frames, label_maps = random_thin_plate(rng, frames, label_maps, recipe.thin_plate)
        if recipe.frame_geometry:
            object_ids = choose_objects(rng, list(_pixels_by_id(label_maps[0])), recipe.max_objects)
            object_ids = self._with_late_objects(rng, label_maps, object_ids)
        slots = torch.from_numpy(_slots(label_maps, object_ids))
        proposals = None
        if clip.proposals is not None:
            proposals = clip.proposals(rng, slots, maps)
        return ClipSample(
            frames=torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))),
            label_maps=slots,
            object_ids=object_ids,
            video_name=clip.video_name,
            frame_indices=clip.frame_indices,
            proposals=proposals,
        )

    def _draw_flips(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether the clip is flipped horizontally and whether vertically; the two do not depend on each other."""
        horizontal, vertical = rng.random(2) < (self.recipe.horizontal_flip_probability, self.recipe.vertical_flip_probability)
        return bool(horizontal), bool(vertical)

    def _resize(
        self, frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"]
    ) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"]]:
        height, width = frames.shape[1:3]
        if self.recipe.size is not None:
            height, width = self.recipe.size
        elif self.recipe.short_side is not None:
            height, width = short_side_size(height, width, self.recipe.short_side)
        if (height, width) == frames.shape[1:3]:
            return frames, label_maps
        return resize_box(frames, label_maps, (0, 0, frames.shape[2], frames.shape[1]), height, width)

    def _crop(
        self,
        rng: np.random.Generator,
        frames: UInt8[np.ndarray, "T H W 3"],
        label_maps: UInt8[np.ndarray, "T H W"],
        name: str,
    ) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"], tuple[int, ...], Box]:
        recipe = self.recipe
        if recipe.crop == "none":
            object_ids = choose_objects(rng, list(_pixels_by_id(label_maps[0])), recipe.max_objects)
            box = (0, 0, frames.shape[2], frames.shape[1])
            return frames, label_maps, self._with_late_objects(rng, label_maps, object_ids), box
        size = recipe.crop_size
        if recipe.crop == "padded":
            frames, label_maps = pad_to(frames, label_maps, size)
        height, width = frames.shape[1:3]
        if recipe.crop == "balanced" and min(height, width) < size:
            raise ValueError(
                f"{name}: frames of {height}x{width} are smaller than recipe.crop_size {size}: set recipe.short_side >= {size}"
            )
        for _ in range(recipe.crop_attempts):
            box = self._draw_box(rng, height, width)
            pixels = _pixels_by_id(resize_label_map(label_maps[0], box, size, size))
            object_ids = choose_objects(rng, list(pixels), recipe.max_objects)
            if max((pixels[i] for i in object_ids), default=0) >= recipe.min_object_pixels:
                break
        frames, label_maps = resize_box(frames, label_maps, box, size, size)
        return frames, label_maps, self._with_late_objects(rng, label_maps, object_ids), box

    def _with_late_objects(
        self, rng: np.random.Generator, label_maps: UInt8[np.ndarray, "T H W"], object_ids: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Fill free slots with objects that appear after the first frame, if the recipe asks for them."""
        free = self.recipe.max_objects - len(object_ids)
        if not self.recipe.late_objects or free == 0:
            return object_ids
        late = sorted(set(_pixels_by_id(label_maps)) - set(_pixels_by_id(label_maps[0])))
        return object_ids + choose_objects(rng, late, free)

    def _draw_box(self, rng: np.random.Generator, height: int, width: int) -> Box:
        recipe = self.recipe
        if recipe.crop in ("balanced", "padded"):
            size = recipe.crop_size
            return int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1)), size, size
        if recipe.crop == "rescaled":
            return rescaled_box(rng, height, width, recipe.crop_size)
        if recipe.crop == "released":
            return random_resized_box(rng, height, width, RELEASED_CROP_AREA, RELEASED_CROP_RATIO)
        return random_resized_box(rng, height, width, recipe.crop_area, recipe.crop_ratio)


# Ids ------------------------------------------------------------------------------------------------------------------


def _pixels_by_id(label_maps: UInt8[np.ndarray, "*T H W"]) -> dict[int, int]:
    counts = np.bincount(label_maps.ravel(), minlength=256)
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts[:IGNORE_LABEL]) if i > 0}


def _slots(label_maps: UInt8[np.ndarray, "T H W"], object_ids: Sequence[int]) -> UInt8[np.ndarray, "T H W"]:
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORE_LABEL] = IGNORE_LABEL
    table[list(object_ids)] = np.arange(1, len(object_ids) + 1, dtype=np.uint8)
    return table[label_maps]
