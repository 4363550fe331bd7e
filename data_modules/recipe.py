"""How a training clip is made: plain typed values that an experiment file sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

CropMode = Literal["none", "balanced", "random_resized", "released"]


@dataclass(frozen=True)
class AffineRecipe:
    """Random affine warp of every frame, about the image centre, without translation.

    The defaults are EMVOS's for static images (released code).

    Attributes:
        degrees: rotation, uniform in ``[-degrees, degrees]``.
        scale: smallest and largest factor, uniform.
        shear: shear angles along x and y in degrees, each uniform in ``[-shear, shear]``.
        accumulate: add angles and shears and multiply scales from frame to frame, so that a clip drifts away from its first
            frame (EMVOS); False draws every frame anew (STCN).
        fill: RGB of image pixels that come from outside; masks get 0.
    """

    degrees: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 10.0
    accumulate: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)


@dataclass(frozen=True)
class ColorRecipe:
    """Random colours, as torchvision's colour jitter; 0 turns a part off.

    Attributes:
        brightness: factor uniform in ``[1 - brightness, 1 + brightness]``.
        contrast: likewise.
        saturation: likewise.
        hue: shift uniform in ``[-hue, hue]``, of a full turn.
        gray_probability: how often the colours are dropped.
        per_frame: draw for every frame instead of once a clip.
    """

    brightness: float = 0.1
    contrast: float = 0.05
    saturation: float = 0.05
    hue: float = 0.0
    gray_probability: float = 0.0
    per_frame: bool = False


@dataclass(frozen=True)
class ClipRecipe:
    """Everything that decides how a training clip is drawn and transformed.

    Order: frames are chosen, warped (``affine``), resized (``short_side``), cropped, flipped, coloured; objects are chosen among
    those visible in the cropped first frame. All frames of a clip share resizing, crop and flips.

    Attributes:
        num_frames: length of a clip, ``T``.
        max_gap: step from frame to frame, uniform in 1..max_gap; 1 takes consecutive frames. Past the end of the video the last
            frame repeats.
        reverse_probability: how often a video is read backwards.
        horizontal_flip_probability: once a clip.
        vertical_flip_probability: once a clip.
        short_side: resize frames to this short side in pixels (long side truncated to an integer); None keeps the size.
        size: resize frames to this height and width instead, whatever their shape (A-GAME, PMVOS); None follows ``short_side``.
        crop: ``balanced``: a window of ``crop_size`` pixels, redrawn until it shows enough of a chosen object;
            ``random_resized``: a box of random area and aspect ratio, squeezed to ``crop_size``, redrawn likewise;
            ``released``: the same with the areas of EMVOS's released code, which for wide frames always fall back to the centre
            box; ``none``: whole frames, which must then all have one size.
        crop_size: side of the square crop in pixels.
        crop_area: smallest and largest share of the frame's area, for ``random_resized``.
        crop_ratio: smallest and largest width / height, log-uniform, for ``random_resized``.
        crop_attempts: draws of the crop before the last one is taken as it is.
        min_object_pixels: pixels that a chosen object needs in the cropped first frame.
        max_objects: object slots of a clip; more objects than that are chosen from at random, the others are background.
        late_objects: fill free slots with objects that are not in the first frame but appear in a later one; without it they are
            background.
        ignore_as_background: read label 255 as background instead of leaving those pixels out of the loss (EMVOS).
        swap_probability: how often, for a whole batch, the objects of each clip are pasted over the next clip as occluders
            (swap-and-attach, EMVOS and TBD).
        affine: random warp of every frame; None for none.
        color: random colours; None for none.
    """

    num_frames: int = 10
    max_gap: int = 1
    reverse_probability: float = 0.5
    horizontal_flip_probability: float = 0.5
    vertical_flip_probability: float = 0.5
    short_side: int | None = 480
    size: tuple[int, int] | None = None
    crop: CropMode = "balanced"
    crop_size: int = 384
    crop_area: tuple[float, float] = (0.36, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_attempts: int = 10
    min_object_pixels: int = 256
    max_objects: int = 1
    late_objects: bool = False
    ignore_as_background: bool = False
    swap_probability: float = 0.2
    affine: AffineRecipe | None = None
    color: ColorRecipe | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "max_gap", "crop_size", "crop_attempts", "max_objects"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be at least 1, not {getattr(self, name)}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"recipe.size must be a height and a width in pixels, not {self.size}")
        if self.crop == "balanced" and self.size is None and self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(f"recipe.crop_size {self.crop_size} does not fit into recipe.short_side {self.short_side}")

    def in_steps_of(self, frame_step: int) -> ClipRecipe:
        """The same gaps for videos of which every ``frame_step``-th frame is stored: divided and rounded down, but at least 1."""
        return replace(self, max_gap=max(1, self.max_gap // frame_step))


DEFAULT_RECIPE = ClipRecipe()
