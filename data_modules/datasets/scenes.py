"""Scenes made by code: textured shapes that move, deform and occlude each other, with exact masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

TEXTURE_SIZE = 96
"""Side of a shape's texture in texels."""
_VERTICES = 64
_SUBPIXEL_BITS = 4
_SCENE_ATTEMPTS = 50


@dataclass(frozen=True)
class SceneRecipe:
    """Appearance of synthetic scenes. Lengths are shares of the frame's short side.

    Attributes:
        height: height of the frames in pixels.
        width: width of the frames in pixels.
        num_frames: number of frames of a video.
        num_objects: smallest and largest number of objects of a scene.
        num_distractors: number of shapes that are not objects, at random depths.
        late_probability: probability that an object (never the first one) enters later.
        radius: smallest and largest mean radius of a shape.
        speed: smallest and largest shift from frame to frame.
        rotation: largest rotation from frame to frame, in degrees.
        contrast: distance of a shape's mean colour from the background's, in grey levels.
    """

    height: int = 128
    width: int = 128
    num_frames: int = 18
    num_objects: tuple[int, int] = (1, 3)
    num_distractors: int = 2
    late_probability: float = 0.0
    radius: tuple[float, float] = (0.13, 0.2)
    speed: tuple[float, float] = (0.02, 0.045)
    rotation: float = 8.0
    contrast: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_objects[0] <= self.num_objects[1]:
            raise ValueError(f"scene.num_objects must be (fewest, most) with at least one object, not {self.num_objects}")

    @property
    def min_pixels(self) -> int:
        """Fewest pixels that an object shows when it is introduced."""
        return max(16, self.height * self.width // 400)


class Scene:
    """One scene, drawn once and rendered at any of its frames.

    Args:
        rng: random generator for all draws.
        recipe: appearance of the scene.

    Attributes:
        num_objects: number of objects; their ids are 1..num_objects.

    Raises:
        ValueError: there are so many objects that some are hidden in the first frame, however they are placed.
    """

    def __init__(self, rng: np.random.Generator, recipe: SceneRecipe) -> None:
        self.recipe = recipe
        for _ in range(_SCENE_ATTEMPTS):
            self._draw(rng)
            _, label_maps = self.render([0])
            visible = np.bincount(label_maps.ravel(), minlength=256) >= recipe.min_pixels
            if visible[1:][: self.num_objects][self._entry[: self.num_objects] == 0].all():
                return
        raise ValueError(f"{self.num_objects} objects do not fit into {recipe.height}x{recipe.width}: lower scene.num_objects")

    def _draw(self, rng: np.random.Generator) -> None:
        recipe = self.recipe
        low, high = recipe.num_objects
        self.num_objects = int(rng.integers(low, high + 1))
        shapes = self.num_objects + recipe.num_distractors
        frames = recipe.num_frames
        side = min(recipe.height, recipe.width)
        time = np.arange(frames)

        # Shape s has id s+1 if it is an object and 0 if it is a distractor; nearer shapes hide farther ones.
        self._ids = [s + 1 if s < self.num_objects else 0 for s in range(shapes)]
        self._depth_order = rng.permutation(shapes)
        self._entry = np.zeros(shapes, dtype=np.int64)
        late = rng.random(self.num_objects) < recipe.late_probability
        late[0] = False
        entries = rng.integers(frames // 4, max(frames // 2, frames // 4 + 1), size=self.num_objects)
        self._entry[: self.num_objects] = np.where(late, entries, 0)

        radius = rng.uniform(*recipe.radius, size=shapes) * side
        centres = _trajectories(rng, recipe, shapes, radius)
        # Late shapes slide in from the left or the right within four frames.
        outside = np.where(rng.random(shapes) < 0.5, -1.0, 1.0) * recipe.width
        remaining = np.clip((self._entry[:, None] + 3 - time) / 4, 0, 1) * (self._entry > 0)[:, None]
        centres[..., 0] += outside[:, None] * remaining
        angles = np.cumsum(rng.uniform(-1, 1, size=(shapes, 1)) * np.deg2rad(recipe.rotation) * np.ones(frames), axis=1)
        scales = np.exp(0.3 * np.sin(rng.uniform(0, 2 * np.pi, (shapes, 1)) + rng.uniform(0.1, 0.35, (shapes, 1)) * time))

        # Polygons: r(theta, t) = R s(t) (1 + sum_k a_k cos(k theta + phase_k + speed_k t)), k = 2..5.
        theta = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
        order = np.arange(2, 6)
        amplitude = rng.uniform(0, 0.45, (shapes, 4)) / order
        phase = rng.uniform(0, 2 * np.pi, (shapes, 1, 4)) + rng.uniform(-0.3, 0.3, (shapes, 1, 4)) * time[:, None]
        waves = amplitude[:, None, None, :] * np.cos(order * theta[:, None] + phase[:, :, None, :])
        lengths = (radius[:, None] * scales)[..., None] * np.maximum(1 + waves.sum(-1), 0.35)
        directions = theta + angles[..., None]
        self._polygons = centres[:, :, None] + lengths[..., None] * np.stack([np.cos(directions), np.sin(directions)], axis=-1)

        # A shape's texture moves with it: texel = half + (texels a pixel) R(-angle) (pixel - centre).
        density = TEXTURE_SIZE / (4 * radius[:, None] * scales)
        cos, sin = density * np.cos(angles), density * np.sin(angles)
        linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=-2)
        self._texture_maps = np.concatenate(
            [linear, TEXTURE_SIZE / 2 - linear @ centres[..., None]], axis=-1
        )  # (shapes, frames, 2, 3)

        colour = rng.uniform(70, 185, 3)
        self._margin = side // 4
        size = (recipe.height + 2 * self._margin, recipe.width + 2 * self._margin)
        self._background = noise_texture(rng, *size, colour)
        self._background_shift = self._margin * np.sin(rng.uniform(0, 2 * np.pi, 2) + rng.uniform(0.05, 0.2, 2) * time[:, None])
        offsets = rng.normal(size=(shapes, 3))
        offsets *= recipe.contrast / np.linalg.norm(offsets, axis=1, keepdims=True)
        self._textures = [noise_texture(rng, TEXTURE_SIZE, TEXTURE_SIZE, colour + offset) for offset in offsets]
        self._grain = rng.normal(0, 3, (recipe.height + 16, recipe.width + 16, 3)).astype(np.int16)
        self._grain_shift = rng.integers(0, 16, (frames, 2))

    def render(self, times: Sequence[int]) -> tuple[UInt8[np.ndarray, "T H W 3"], UInt8[np.ndarray, "T H W"]]:
        """Frames (RGB) and label maps at the given frame indices."""
        height, width = self.recipe.height, self.recipe.width
        frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
        label_maps = np.zeros((len(times), height, width), dtype=np.uint8)
        for frame, label_map, t in zip(frames, label_maps, times, strict=True):
            shift = self._margin + self._background_shift[t]
            canvas = cv2.warpAffine(
                self._background,
                np.array([[1, 0, shift[0]], [0, 1, shift[1]]]),
                (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            )
            for s in self._depth_order:
                if t >= self._entry[s]:
                    self._paint(canvas, label_map, int(s), t)
            canvas = cv2.blur(canvas, (2, 2))
            y, x = self._grain_shift[t]
            np.clip(canvas + self._grain[y : y + height, x : x + width], 0, 255, out=frame, casting="unsafe")
        return frames, label_maps

    def _paint(self, canvas: np.ndarray, label_map: np.ndarray, s: int, t: int) -> None:
        height, width = label_map.shape
        polygon = self._polygons[s, t]
        left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 2, (width, height))
        if left >= right or top >= bottom:
            return
        corner = np.array([left, top])
        mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
        vertices = np.rint((polygon - corner) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask, [vertices], 1, shift=_SUBPIXEL_BITS)
        texture_map = self._texture_maps[s, t].copy()
        texture_map[:, 2] += texture_map[:, :2] @ corner
        texture = cv2.warpAffine(
            self._textures[s],
            texture_map,
            (int(right - left), int(bottom - top)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        inside = mask.astype(bool)
        np.copyto(canvas[top:bottom, left:right], texture, where=inside[..., None])
        label_map[top:bottom, left:right][inside] = self._ids[s]


def noise_texture(
    rng: np.random.Generator, height: int, width: int, colour: Float[np.ndarray, " channels"]
) -> UInt8[np.ndarray, "height width channels"]:
    """Smooth colour noise of four scales about a mean colour."""
    texture = np.zeros((height, width, 3), dtype=np.float32)
    for cells, amplitude in ((3, 22.0), (6, 18.0), (12, 15.0), (24, 12.0)):
        grid = rng.normal(0, amplitude, (cells, cells, 3)).astype(np.float32)
        texture += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(texture + colour.astype(np.float32), 0, 255).astype(np.uint8)


def _trajectories(
    rng: np.random.Generator, recipe: SceneRecipe, shapes: int, radius: Float[np.ndarray, " shapes"]
) -> Float[np.ndarray, "shapes frames 2"]:
    """Centres on gently curved paths that are reflected before they leave the frame."""
    extent = np.array([recipe.width, recipe.height], dtype=float)
    inner = np.minimum(radius[:, None], 0.4 * extent)  # distance of shapes from the border
    starts = np.empty((shapes, 2))
    for s in range(shapes):
        # The candidate farthest from all earlier shapes is taken, so that the first frame shows every object.
        candidates = rng.uniform(inner[s], extent - inner[s], (16, 2))
        distances = np.linalg.norm(candidates[:, None] - starts[None, :s], axis=-1).min(axis=1, initial=np.inf)
        starts[s] = candidates[distances.argmax()]
    time = np.arange(recipe.num_frames)
    heading = rng.uniform(0, 2 * np.pi, (shapes, 1)) + rng.uniform(-0.04, 0.04, (shapes, 1)) * time
    step = rng.uniform(*recipe.speed, (shapes, 1)) * extent.min()
    moves = step[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    free = starts[:, None] + np.cumsum(moves, axis=1) - moves[:, :1]
    span = (extent - 2 * inner)[:, None]
    phase = (free - inner[:, None]) % (2 * span)
    return inner[:, None] + np.minimum(phase, 2 * span - phase)
