"""Resampling of frames and label maps: boxes, affine warps and thin-plate splines.

It is written explicitly because Albumentations cannot express it: parameters that accumulate over the frames, a crop that is
drawn again until it shows an object, and Pillow's anti-aliased bicubic filter, which the published systems used.
"""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from data_modules.clips.recipe import FILL, AffineRecipe, ThinPlateRecipe

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

# Boxes ----------------------------------------------------------------------------------------------------------------


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
    """Box of random area and aspect ratio inside the frame; if none fits, the centre box of the nearest allowed ratio.

    Args:
        rng: random generator of the sample.
        height: height of the frame.
        width: width of the frame.
        area: range of the share of the frame's area, uniform; shares above 1 always fail.
        ratio: range of width / height, log-uniform.
        attempts: number of draws before the fallback.

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


def rescaled_box(rng: np.random.Generator, height: int, width: int, size: int) -> Box:
    """Square of ``size`` pixels in a frame whose short side is resized to a uniform draw from ``size`` to its own length.

    In the frame itself, its side is between ``size`` and the short side, which it is in frames that are smaller.

    Reference: STM, as its author describes the training.
    """
    short = min(height, width)
    side = round(size * short / int(rng.integers(size, short + 1))) if short > size else short
    return int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side, side


def resize_box(
    frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"], box: Box, height: int, width: int
) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"]]:
    """Cut a box out of every frame and resize it: images bicubically with anti-aliasing, label maps to the nearest pixel."""
    left, top, box_width, box_height = box
    if (box_height, box_width) == (height, width):
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        return frames[window], label_maps[window]
    corners = (left, top, left + box_width, top + box_height)
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=corners)) for frame in frames
    ]
    return np.stack(resized), np.stack([resize_label_map(m, box, height, width) for m in label_maps])


def resize_label_map(label_map: UInt8[np.ndarray, "H W"], box: Box, height: int, width: int) -> UInt8[np.ndarray, "H2 W2"]:
    """Cut a box out of a label map and resize it by the nearest pixel."""
    left, top, box_width, box_height = box
    image = Image.fromarray(np.ascontiguousarray(label_map[top : top + box_height, left : left + box_width]))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def pad_to(
    frames: UInt8[np.ndarray, "T H W 3"], label_maps: UInt8[np.ndarray, "T H W"], size: int
) -> tuple[UInt8[np.ndarray, "T H2 W2 3"], UInt8[np.ndarray, "T H2 W2"]]:
    """Pad frames to at least ``size`` pixels in each direction, at both ends of a side, as torchvision's crop does."""
    y, x = (max(size - side, 0) for side in frames.shape[1:3])
    if not (x or y):
        return frames, label_maps
    padded = np.empty((len(frames), frames.shape[1] + 2 * y, frames.shape[2] + 2 * x, 3), dtype=np.uint8)
    padded[:] = FILL
    padded[:, y : y + frames.shape[1], x : x + frames.shape[2]] = frames
    return padded, np.pad(label_maps, ((0, 0), (y, y), (x, x)))


def flip(images: UInt8[np.ndarray, "T H W *C"], horizontal: bool, vertical: bool) -> UInt8[np.ndarray, "T H W *C"]:
    """Mirror frames or label maps from left to right (horizontal) and upside down (vertical); the copy is contiguous."""
    return np.ascontiguousarray(images[:, :: -1 if vertical else 1, :: -1 if horizontal else 1])


# Affine warps ---------------------------------------------------------------------------------------------------------


def draw_affine_matrices(rng: np.random.Generator, num_frames: int, recipe: AffineRecipe) -> Float[np.ndarray, "T 2 2"]:
    r"""Forward matrices of the warps, one for each frame.

    With rotation :math:`\theta`, shear angles :math:`\phi_x, \phi_y` and scale :math:`s`,

    .. math:: A = s \, R(\theta) \begin{pmatrix} 1 & 0 \\ -\tan\phi_y & 1 \end{pmatrix}
                        \begin{pmatrix} 1 & -\tan\phi_x \\ 0 & 1 \end{pmatrix}.

    Args:
        rng: random generator of the sample.
        num_frames: number ``T`` of frames.
        recipe: ranges of the parameters. With ``accumulate``, angles and shears are summed and scales multiplied over the frames,
            the first frame included unless ``keep_first`` is set; with ``shared``, all frames have the parameters of the first
            one.

    Returns:
        Matrices ``(T, 2, 2)``, by which positions relative to the image centre are multiplied.

    Reference: EMVOS section 3.7 and released code; the matrix is torchvision's ``affine``.
    """
    num_draws = 1 if recipe.shared else num_frames
    angle: np.ndarray = rng.uniform(-recipe.degrees, recipe.degrees, size=num_draws)
    scale: np.ndarray = rng.uniform(*recipe.scale, size=num_draws)
    shear: np.ndarray = rng.uniform(-recipe.shear, recipe.shear, size=(num_draws, 2))
    if recipe.shear_axes == "x":
        shear[:, 1] = 0
    if recipe.keep_first:
        angle[0], scale[0], shear[0] = 0, 1, 0
    if recipe.accumulate:
        angle, scale, shear = np.cumsum(angle), np.cumprod(scale), np.cumsum(shear, axis=0)
    angle, shear = np.deg2rad(angle), np.deg2rad(shear)
    cos, sin, tan_x, tan_y = np.cos(angle), np.sin(angle), np.tan(shear[:, 0]), np.tan(shear[:, 1])
    zero, one = np.zeros(num_draws), np.ones(num_draws)
    rotation = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
    shear_x = np.stack([one, -tan_x, zero, one], axis=-1).reshape(-1, 2, 2)
    shear_y = np.stack([one, zero, -tan_y, one], axis=-1).reshape(-1, 2, 2)
    matrices: np.ndarray = scale[:, None, None] * rotation @ shear_y @ shear_x
    return np.repeat(matrices, num_frames // num_draws, axis=0)


def random_warp(
    rng: np.random.Generator,
    frames: UInt8[np.ndarray, "T H W 3"],
    label_maps: UInt8[np.ndarray, "T H W"],
    recipe: AffineRecipe,
) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"], Float[np.ndarray, "T 2 2"]]:
    """Draw affine warps and apply them; the third result is their matrices, see :func:`draw_affine_matrices`."""
    matrices = draw_affine_matrices(rng, len(frames), recipe)
    shifts = np.zeros((len(frames), 2))
    if recipe.translate > 0:
        largest = recipe.translate * np.array([frames.shape[2], frames.shape[1]])
        shifts[:] = np.rint(rng.uniform(-largest, largest, size=(1 if recipe.shared else len(frames), 2)))
        if recipe.keep_first:
            shifts[0] = 0
    frames, label_maps = warp(
        frames, label_maps, matrices, recipe.fill, shifts, recipe.image_interpolation, recipe.mask_interpolation
    )
    return frames, label_maps, matrices


def warp(
    frames: UInt8[np.ndarray, "T H W 3"],
    label_maps: UInt8[np.ndarray, "T H W"],
    matrices: Float[np.ndarray, "T 2 2"],
    fill: tuple[int, int, int],
    shifts: Float[np.ndarray, "T 2"] | None = None,
    image_interpolation: Literal["nearest", "bicubic"] = "nearest",
    mask_interpolation: Literal["nearest", "soft"] = "nearest",
) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
    """Warp every frame about its centre and shift it; :class:`data_modules.clips.recipe.AffineRecipe` sets the interpolations."""
    height, width = frames.shape[1:3]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    warped_frames, warped_maps = np.empty_like(frames), np.empty_like(label_maps)
    for t, matrix in enumerate(matrices):
        inverse = np.linalg.inv(matrix)
        target = centre if shifts is None else centre + shifts[t]
        full = np.column_stack([inverse, centre - inverse @ target])
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if image_interpolation == "bicubic" else cv2.INTER_NEAREST)
        cv2.warpAffine(frames[t], full, (width, height), warped_frames[t], flags, cv2.BORDER_CONSTANT, fill)
        if mask_interpolation == "soft":
            warped_maps[t] = _warp_soft(label_maps[t], full)
        else:
            flags = cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST
            cv2.warpAffine(label_maps[t], full, (width, height), warped_maps[t], flags, cv2.BORDER_CONSTANT, 0)
    return warped_frames, warped_maps


def _warp_soft(label_map: UInt8[np.ndarray, "H W"], full: Float[np.ndarray, "2 3"]) -> UInt8[np.ndarray, "H W"]:
    """Warp every id's mask bicubically; a pixel gets the id that covers more than half of it."""
    size = label_map.shape[::-1]
    warped = np.zeros_like(label_map)
    for object_id in np.unique(label_map[label_map > 0]):
        plane = np.where(label_map == object_id, np.uint8(255), np.uint8(0))
        warped[cv2.warpAffine(plane, full, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP) > 127] = object_id
    return warped


# Thin-plate splines ---------------------------------------------------------------------------------------------------


def random_thin_plate(
    rng: np.random.Generator,
    frames: UInt8[np.ndarray, "T H W 3"],
    label_maps: UInt8[np.ndarray, "T H W"],
    recipe: ThinPlateRecipe,
) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
    """Warp some frames smoothly: images bilinearly, label maps by their nearest pixel."""
    height, width = frames.shape[1:3]
    frames, label_maps = frames.copy(), label_maps.copy()
    for t in np.flatnonzero(rng.random(len(frames)) < recipe.probability):
        sources = np.stack([rng.choice(side, recipe.num_points, replace=False) / side for side in (width, height)], axis=1)
        targets = sources + rng.normal(0, recipe.sigma, sources.shape)
        field = thin_plate_field(sources, targets, height, width)
        frames[t] = cv2.remap(frames[t], *field, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=recipe.fill)
        label_maps[t] = cv2.remap(label_maps[t], *field, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return frames, label_maps


def thin_plate_field(
    sources: Float[np.ndarray, "K 2"], targets: Float[np.ndarray, "K 2"], height: int, width: int
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    r"""Source of every pixel under the thin-plate spline that maps ``sources`` to ``targets``.

    .. math:: f(p) = p + a_0 + A p + \sum_k w_k\, U(|p - t_k|), \quad U(r) = r^2 \log r, \quad f(t_k) = s_k,

    with :math:`\sum_k w_k = 0` and :math:`\sum_k w_k t_k = 0`.

    Args:
        sources: control points ``s_k``, as shares of width and height.
        targets: control points ``t_k``, as shares of width and height.
        height: height of the frame.
        width: width of the frame.

    Returns:
        x and y of the source in pixels, as ``cv2.remap`` expects them.

    Reference: Bookstein, "Principal warps: thin-plate splines and the decomposition of deformations", PAMI 1989.
    """
    count = len(targets)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _thin_plate_kernel(((targets[:, None] - targets) ** 2).sum(-1))
    system[:count, count:] = np.column_stack([np.ones(count), targets])
    system[count:, :count] = system[:count, count:].T
    solution = np.linalg.solve(system, np.concatenate([sources - targets, np.zeros((3, 2))])).astype(np.float32)
    x, y = (np.arange(side, dtype=np.float32) / side for side in (width, height))
    knots = targets.astype(np.float32)[..., None]
    squared = np.square(x - knots[:, 0])[:, None, :] + np.square(y - knots[:, 1])[:, :, None]
    kernel = _thin_plate_kernel(squared.reshape(count * height, width))
    moves = (solution[:count].T @ kernel.reshape(count, -1)).reshape(2, height, width)
    constant, by_x, by_y = solution[count:, :, None, None]
    moves += constant + by_x * x + by_y * y[:, None]
    return (moves[0] + x) * width, (moves[1] + y[:, None]) * height


def _thin_plate_kernel(squared: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """``r^2 log r`` of squared distances, 0 at 0."""
    kernel: np.ndarray = cv2.log(np.maximum(squared, np.finfo(np.float32).tiny))
    kernel *= squared
    kernel *= 0.5
    return kernel
