"""Where the pixels of a clip move: an affine map for each frame, from the frame as read to the frame of the sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from data_modules.clips.recipe import ClipRecipe
from vos_lightning.structures import Proposals

Maps = Float[np.ndarray, "T 2 3"]
"""Affine maps from ``(x, y, 1)`` to ``(x, y)`` in pixels; the centre of the first pixel is at 0.5."""


ClipProposals = Callable[[np.random.Generator, Tensor, Maps], Proposals]
"""Function that makes the proposals of a clip after its transforms, one row for each frame. Its arguments are the generator of
the sample, the label maps ``uint8 (T, H, W)`` in slots, and the maps of the pixels."""


def check_followed(recipe: ClipRecipe) -> None:
    """Refuse recipes whose geometry these maps do not follow.

    Raises:
        ValueError: the recipe moves frames one by one, shifts them or pads them.
    """
    shifts = recipe.affine is not None and recipe.affine.translate > 0
    if recipe.frame_geometry or shifts or recipe.crop == "padded":
        raise ValueError(
            "proposals follow the warp, the size, the crop and the flips of a clip: leave recipe.frame_affine, thin_plate, "
            "crop_per_frame, affine.translate and crop 'padded' out"
        )


def identity(num_frames: int) -> Maps:
    """Maps that move nothing."""
    return np.repeat(np.eye(2, 3)[None], num_frames, axis=0)


def about_centre(maps: Maps, matrices: Float[np.ndarray, "T 2 2"], height: int, width: int) -> Maps:
    """Append a multiplication of positions relative to the centre of the frame."""
    centre = np.array([width / 2, height / 2])
    return _then(maps, matrices, centre - matrices @ centre)


def window(maps: Maps, box: tuple[int, int, int, int], height: int, width: int) -> Maps:
    """Append a cut to a box (left, top, width, height) and its resizing."""
    left, top, box_width, box_height = box
    scale = np.array([width / box_width, height / box_height])
    return _then(maps, np.diag(scale), -scale * np.array([left, top]))


def flip(maps: Maps, horizontal: bool, vertical: bool, height: int, width: int) -> Maps:
    """Append flips."""
    sign = np.array([-1.0 if horizontal else 1.0, -1.0 if vertical else 1.0])
    return _then(maps, np.diag(sign), np.array([width if horizontal else 0, height if vertical else 0]))


def _then(maps: Maps, linear: np.ndarray, shift: np.ndarray) -> Maps:
    moved = linear @ maps
    moved[..., 2] += shift
    return moved
