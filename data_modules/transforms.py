"""Joint transforms of the frames and label maps of a clip.

Flips and colours come from Albumentations behind one adapter; resampling (warp, resize, crop box) is explicit, because it needs
what Albumentations cannot say: parameters that accumulate over the frames, a crop that is redrawn until it shows an object, and
Pillow's anti-aliased bicubic filter, which the published recipes used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from data_modules import clip_geometry
from data_modules.clip_geometry import ClipProposals
from data_modules.clip_sampling import choose_objects
from data_modules.recipe import AffineRecipe, ClipRecipe, ColorRecipe
from vos_lightning.structures import IGNORE_LABEL, ClipSample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks a server for newer versions
import albumentations as A

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

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
    """Makes the proposals of the transformed clip; None for none."""


class SeededTransforms:
    """Albumentations transforms whose draws come from the sample's generator.

    Albumentations 2.0.8 keeps its own random state, which every forked worker inherits, so that all workers and epochs would
    draw the same: the state is set anew for every call. One call uses the same parameters for all of its frames.
    """

    def __init__(self, transforms: Sequence[A.BasicTransform]) -> None:
        self.compose = A.Compose(list(transforms))
        self._seed = 0

    def __call__(
        self, rng: np.random.Generator, frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"]
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
        """Transform frames and label maps alike."""
        self._seed = int(rng.integers(2**31))
        return self.again(frames, label_maps)

    def again(
        self, frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"]
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
        """Transform others with the draws of the last call."""
        self.compose.set_random_seed(self._seed)
        result = self.compose(images=frames, masks=label_maps)
        return np.asarray(result["images"]), np.asarray(result["masks"])


class ClipTransform:
    """Turns raw clips into samples as a recipe says.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: ClipRecipe) -> None:
        self.recipe = recipe
        self.flips = SeededTransforms(
            [A.HorizontalFlip(p=recipe.horizontal_flip_probability), A.VerticalFlip(p=recipe.vertical_flip_probability)]
        )
        self.colors = SeededTransforms(_color_transforms(recipe.color)) if recipe.color is not None else None

    def __call__(self, rng: np.random.Generator, clip: RawClip) -> ClipSample:
        """Warp, resize, crop with a choice of objects, flip, colour."""
        recipe = self.recipe
        frames, label_maps = clip.frames, clip.label_maps
        maps = clip_geometry.identity(len(frames))
        if recipe.ignore_as_background:
            label_maps = np.where(label_maps == IGNORE_LABEL, np.uint8(0), label_maps)
        if recipe.affine is not None:
            matrices = draw_affine_matrices(rng, len(frames), recipe.affine)
            maps = clip_geometry.about_centre(maps, matrices, *frames.shape[1:3])
            frames, label_maps = warp(frames, label_maps, matrices, recipe.affine.fill)
        height, width = frames.shape[1:3]
        if recipe.size is not None:
            height, width = recipe.size
        elif recipe.short_side is not None:
            height, width = short_side_size(height, width, recipe.short_side)
        if (height, width) != frames.shape[1:3]:
            whole = (0, 0, frames.shape[2], frames.shape[1])
            maps = clip_geometry.window(maps, whole, height, width)
            frames, label_maps = resize_box(frames, label_maps, whole, height, width)
        # The published order is flips, then crop; windows are drawn symmetrically, so this is the same and has fewer pixels.
        frames, label_maps, object_ids, box = self._crop(rng, frames, label_maps, clip.video_name)
        maps = clip_geometry.window(maps, box, *frames.shape[1:3])
        frames, label_maps = self.flips(rng, frames, label_maps)
        if self.colors is not None and recipe.color is not None:
            if recipe.color.per_frame:
                frames = np.concatenate([self.colors(rng, f[None], m[None])[0] for f, m in zip(frames, label_maps, strict=True)])
            else:
                frames, _ = self.colors(rng, frames, label_maps)
        slots = torch.from_numpy(_slots(label_maps, object_ids))
        proposals = None
        if clip.proposals is not None:
            maps = clip_geometry.flip(maps, *self._last_flips(), *frames.shape[1:3])
            proposals = clip.proposals(rng, slots, maps)
        return ClipSample(
            frames=torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))),
            label_maps=slots,
            object_ids=object_ids,
            video_name=clip.video_name,
            frame_indices=clip.frame_indices,
            proposals=proposals,
        )

    def _last_flips(self) -> tuple[bool, bool]:
        """Whether the last clip was mirrored horizontally and vertically."""
        corners = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
        _, mirrored = self.flips.again(np.zeros((1, 2, 2, 3), np.uint8), corners)
        return bool(mirrored[0, 0, 0] % 2), bool(mirrored[0, 0, 0] // 2)

    def _crop(
        self,
        rng: np.random.Generator,
        frames: UInt8[np.ndarray, "T H W 3"],
        label_maps: UInt8[np.ndarray, "T H W"],
        name: str,
    ) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"], tuple[int, ...], Box]:
        recipe = self.recipe
        height, width = frames.shape[1:3]
        if recipe.crop == "none":
            object_ids = choose_objects(rng, list(_pixels_by_id(label_maps[0])), recipe.max_objects)
            return frames, label_maps, self._with_late_objects(rng, label_maps, object_ids), (0, 0, width, height)
        size = recipe.crop_size
        if recipe.crop == "balanced" and min(height, width) < size:
            raise ValueError(
                f"{name}: frames of {height}x{width} are smaller than recipe.crop_size {size}: set recipe.short_side >= {size}"
            )
        for _ in range(recipe.crop_attempts):
            box = self._draw_box(rng, height, width)
            pixels = _pixels_by_id(_resize_label_map(label_maps[0], box, size, size))
            object_ids = choose_objects(rng, list(pixels), recipe.max_objects)
            if max((pixels[i] for i in object_ids), default=0) >= recipe.min_object_pixels:
                break
        frames, label_maps = resize_box(frames, label_maps, box, size, size)
        return frames, label_maps, self._with_late_objects(rng, label_maps, object_ids), box

    def _with_late_objects(
        self, rng: np.random.Generator, label_maps: UInt8[np.ndarray, "T H W"], object_ids: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Fill free slots with objects that appear after the first frame, if the recipe wants them."""
        free = self.recipe.max_objects - len(object_ids)
        if not self.recipe.late_objects or free == 0:
            return object_ids
        late = sorted(set(_pixels_by_id(label_maps)) - set(_pixels_by_id(label_maps[0])))
        return object_ids + choose_objects(rng, late, free)

    def _draw_box(self, rng: np.random.Generator, height: int, width: int) -> Box:
        recipe = self.recipe
        if recipe.crop == "balanced":
            size = recipe.crop_size
            return int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1)), size, size
        if recipe.crop == "released":
            return random_resized_box(rng, height, width, RELEASED_CROP_AREA, RELEASED_CROP_RATIO)
        return random_resized_box(rng, height, width, recipe.crop_area, recipe.crop_ratio)


# Geometry -------------------------------------------------------------------------------------------------------------


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the given short side; the long side is truncated to an integer."""
    if height <= width:
        return short_side, int(width * short_side / height)
    return int(height * short_side / width), short_side


def random_resized_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    attempts: int = 10,
) -> Box:
    """Box of random area and aspect ratio inside the frame; the centre box of the nearest allowed ratio if none fits.

    Args:
        rng: generator of the sample.
        height: of the frame.
        width: of the frame.
        area: share of the frame's area, uniform; shares above 1 can only fail.
        ratio: width / height, log-uniform.
        attempts: draws before the fallback.

    Returns:
        Left, top, width, height.

    Reference: GoogLeNet (Szegedy et al., CVPR 2015) as in torchvision's RandomResizedCrop.
    """
    for _ in range(attempts):
        target_area = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(target_area * aspect)), round(math.sqrt(target_area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(rng.integers(width - box_width + 1)), int(rng.integers(height - box_height + 1))
            return left, top, box_width, box_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width, box_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def resize_box(
    frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"], box: Box, height: int, width: int
) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"]]:
    """Cut a box out of every frame and resize it, images bicubic with anti-aliasing, label maps nearest."""
    left, top, box_width, box_height = box
    if (box_height, box_width) == (height, width):
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        return frames[window], label_maps[window]
    corners = (left, top, left + box_width, top + box_height)
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=corners)) for frame in frames
    ]
    return np.stack(resized), np.stack([_resize_label_map(m, box, height, width) for m in label_maps])


def _resize_label_map(label_map: UInt8[np.ndarray, "H W"], box: Box, height: int, width: int) -> UInt8[np.ndarray, "H2 W2"]:
    left, top, box_width, box_height = box
    image = Image.fromarray(np.ascontiguousarray(label_map[top : top + box_height, left : left + box_width]))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def draw_affine_matrices(rng: np.random.Generator, num_frames: int, recipe: AffineRecipe) -> Float[np.ndarray, "T 2 2"]:
    r"""Forward matrices of the warps, one a frame.

    With rotation :math:`\theta`, shear angles :math:`\phi_x, \phi_y` and scale :math:`s`,

    .. math:: A = s \, R(\theta) \begin{pmatrix} 1 & 0 \\ -\tan\phi_y & 1 \end{pmatrix}
                        \begin{pmatrix} 1 & -\tan\phi_x \\ 0 & 1 \end{pmatrix}.

    Args:
        rng: generator of the sample.
        num_frames: ``T``.
        recipe: ranges; with ``accumulate`` angles and shears are summed and scales multiplied over the frames, the first
            frame included.

    Returns:
        ``(T, 2, 2)``: positions relative to the image centre are multiplied by them.

    Reference: EMVOS released code; the matrix is torchvision's ``affine``.
    """
    angle: np.ndarray = rng.uniform(-recipe.degrees, recipe.degrees, size=num_frames)
    scale: np.ndarray = rng.uniform(*recipe.scale, size=num_frames)
    shear: np.ndarray = rng.uniform(-recipe.shear, recipe.shear, size=(num_frames, 2))
    if recipe.accumulate:
        angle, scale, shear = np.cumsum(angle), np.cumprod(scale), np.cumsum(shear, axis=0)
    angle, shear = np.deg2rad(angle), np.deg2rad(shear)
    cos, sin, tan_x, tan_y = np.cos(angle), np.sin(angle), np.tan(shear[:, 0]), np.tan(shear[:, 1])
    zero, one = np.zeros(num_frames), np.ones(num_frames)
    rotation = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
    shear_x = np.stack([one, -tan_x, zero, one], axis=-1).reshape(-1, 2, 2)
    shear_y = np.stack([one, zero, -tan_y, one], axis=-1).reshape(-1, 2, 2)
    return scale[:, None, None] * rotation @ shear_y @ shear_x


def warp(
    frames: UInt8[np.ndarray, "T H W 3"],
    label_maps: UInt8[np.ndarray, "T H W"],
    matrices: Float[np.ndarray, "T 2 2"],
    fill: tuple[int, int, int],
) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
    """Warp every frame about its centre, images and label maps by their nearest pixel."""
    height, width = frames.shape[1:3]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    warped_frames, warped_maps = np.empty_like(frames), np.empty_like(label_maps)
    for t, matrix in enumerate(matrices):
        inverse = np.linalg.inv(matrix)
        full = np.column_stack([inverse, centre - inverse @ centre])
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(frames[t], full, (width, height), warped_frames[t], flags, cv2.BORDER_CONSTANT, fill)
        cv2.warpAffine(label_maps[t], full, (width, height), warped_maps[t], flags, cv2.BORDER_CONSTANT, 0)
    return warped_frames, warped_maps


# Colours and ids ------------------------------------------------------------------------------------------------------


def _color_transforms(recipe: ColorRecipe) -> list[A.BasicTransform]:
    jitter = A.ColorJitter(
        brightness=recipe.brightness, contrast=recipe.contrast, saturation=recipe.saturation, hue=recipe.hue, p=1.0
    )
    return [jitter, A.ToGray(p=recipe.gray_probability)]


def _pixels_by_id(label_maps: UInt8[np.ndarray, "*T H W"]) -> dict[int, int]:
    counts = np.bincount(label_maps.ravel(), minlength=256)
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts[:IGNORE_LABEL]) if i > 0}


def _slots(label_maps: UInt8[np.ndarray, "T H W"], object_ids: Sequence[int]) -> UInt8[np.ndarray, "T H W"]:
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORE_LABEL] = IGNORE_LABEL
    table[list(object_ids)] = np.arange(1, len(object_ids) + 1, dtype=np.uint8)
    return table[label_maps]
