"""How a training clip is made: plain typed values that an experiment file sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

CropMode = Literal["none", "balanced", "random_resized", "released", "padded", "rescaled"]
FrameChoice = Literal["repeat_last", "inside", "stcn", "shuffled"]
FILL = (124, 116, 104)
"""RGB of pixels that come from outside the image; the mean of ImageNet."""


@dataclass(frozen=True)
class AffineRecipe:
    """Random affine warp of every frame, about the image centre.

    The defaults are EMVOS's for static images (released code).

    Attributes:
        degrees: largest rotation; the angle is uniform in ``[-degrees, degrees]``.
        scale: smallest and largest factor, uniform.
        shear: largest shear angle along x and y in degrees; each angle is uniform in ``[-shear, shear]``.
        accumulate: add angles and shears and multiply scales from frame to frame, so that a clip moves away from its first frame
            (EMVOS); False draws every frame independently (STCN).
        keep_first: leave the first frame as it is (EMVOS's paper: a source image and sequentially augmented ones); False warps it
            too (EMVOS's released code).
        fill: RGB of image pixels that come from outside the image; masks get 0.
        shared: one draw for all frames of a clip, instead of ``accumulate``.
        shear_axes: ``xy``: both angles are drawn (EMVOS); ``x``: the second angle is 0 (STCN, which passes torchvision a single
            number).
        translate: largest shift along each axis, as a share of the width and the height; uniform, rounded to pixels.
        image_interpolation: interpolation of the frames.
        mask_interpolation: interpolation of the masks: ``nearest``, or ``soft``: every object's mask is interpolated bicubically
            and cut at one half.

    Raises:
        ValueError: the first frame is to be kept and to be warped as all others.
    """

    degrees: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 10.0
    accumulate: bool = True
    keep_first: bool = False
    fill: tuple[int, int, int] = FILL
    shared: bool = False
    shear_axes: Literal["xy", "x"] = "xy"
    translate: float = 0.0
    image_interpolation: Literal["nearest", "bicubic"] = "nearest"
    mask_interpolation: Literal["nearest", "soft"] = "nearest"

    def __post_init__(self) -> None:
        if self.keep_first and self.shared:
            raise ValueError("affine.keep_first leaves the first frame as it is, and affine.shared warps all alike: unset one")


@dataclass(frozen=True)
class ColorRecipe:
    """Random colours, as in torchvision's colour jitter; 0 turns a part off.

    Attributes:
        brightness: strength; the brightness factor is uniform in ``[1 - brightness, 1 + brightness]``.
        contrast: strength; the contrast factor is uniform in ``[1 - contrast, 1 + contrast]``.
        saturation: strength; the saturation factor is uniform in ``[1 - saturation, 1 + saturation]``.
        hue: largest shift as a share of a full turn; the shift is uniform in ``[-hue, hue]``.
        gray_probability: probability that the colours are removed.
        per_frame: draw colours for every frame instead of once a clip.
    """

    brightness: float = 0.1
    contrast: float = 0.05
    saturation: float = 0.05
    hue: float = 0.0
    gray_probability: float = 0.0
    per_frame: bool = False


@dataclass(frozen=True)
class ThinPlateRecipe:
    """Random thin-plate-spline warp of a frame: smooth local deformations, unlike affine maps. The defaults are STCN's.

    Attributes:
        probability: probability that a frame is warped.
        num_points: number of control points, which lie on distinct rows and distinct columns of the frame.
        sigma: standard deviation of their displacements along each axis, as a share of the frame's width and height.
        fill: RGB of pixels that come from outside the image; masks get 0.
    """

    probability: float = 0.33
    num_points: int = 12
    sigma: float = 0.02
    fill: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class ClipRecipe:
    """Everything that decides how a training clip is drawn and transformed.

    The order is: frames are chosen; the geometry and the colours of the clip are applied (``affine``, resizing, crop, flips,
    ``color``); then those of each single frame (``frame_affine``, ``frame_color``, ``thin_plate``). Objects are chosen among
    those visible in the resulting first frame. All frames share resizing, crop and flips, unless ``crop_per_frame`` is set: then
    every frame is resized and cropped by itself, after ``frame_affine``.

    Attributes:
        num_frames: length ``T`` of a clip.
        max_gap: largest step from frame to frame; steps are uniform in 1..max_gap; 1 takes consecutive frames.
        frame_stride: factor of all steps.
        gap_curriculum: pairs ``(share, max_gap)`` in ascending order; each sets ``max_gap`` from that share of the training's
            steps on (STCN). It follows the position in the training, so it is the same after a restart and for any number of
            workers.
        frame_choice: ``repeat_last``: the start is any frame, and past the end the last one repeats (EMVOS); ``inside``: the
            start leaves room for the clip where the video is long enough; ``stcn``: STCN's choice of three frames, whose start
            keeps ``max_gap`` from the end; ``shuffled``: any frames in any order, distinct if there are enough (AFB-URR).
        reverse_probability: probability that a video is read backwards.
        clip_attempts: number of draws of a whole clip, with frames and geometry, before a clip without an object in its first
            frame is accepted.
        horizontal_flip_probability: probability of a horizontal flip, drawn once a clip.
        vertical_flip_probability: probability of a vertical flip, drawn once a clip.
        short_side: resize frames to this short side in pixels (long side truncated to an integer); None keeps the size.
        size: resize frames to this height and width instead, whatever their shape (A-GAME, PMVOS); None uses ``short_side``.
        crop: ``balanced``: a window of ``crop_size`` pixels, redrawn until it shows enough of a chosen object;
            ``random_resized``: a box of random area and aspect ratio, resized to ``crop_size`` and also redrawn; ``released``:
            the same with the areas of EMVOS's released code, which for wide frames always fall back to the centre box;
            ``padded``: a window of ``crop_size`` pixels in frames that are padded if they are smaller; ``rescaled``: a window
            of ``crop_size`` pixels in frames whose short side is resized to a uniform draw from ``crop_size`` to its own length,
            also redrawn (STM); ``none``: whole frames, which must then all have one size.
        crop_size: side of the square crop in pixels.
        crop_area: smallest and largest share of the frame's area, for ``random_resized``.
        crop_ratio: smallest and largest width / height, log-uniform, for ``random_resized``.
        crop_attempts: number of draws of the crop before the last one is accepted.
        min_object_pixels: number of pixels that a chosen object needs in the cropped first frame.
        max_objects: number of object slots of a clip; from more objects, so many are chosen at random, and the others are
            background.
        late_objects: fill free slots with objects that are not in the first frame but appear in a later one; otherwise such
            objects are background.
        ignore_as_background: read label 255 as background instead of leaving those pixels out of the loss (EMVOS).
        swap_probability: probability, for a whole batch, that the objects of each clip are pasted over the next clip as occluders
            (swap-and-attach, EMVOS and TBD).
        affine: random warp of every frame; None for none.
        color: random colours; None for none.
        crop_per_frame: resize and crop every frame by itself, after ``frame_affine``.
        frame_affine: a second random warp of every frame; None for none.
        frame_color: random colours drawn for every frame, after those of the clip; None for none.
        thin_plate: random smooth warp of every frame; None for none.
    """

    num_frames: int = 10
    max_gap: int = 1
    frame_stride: int = 1
    gap_curriculum: tuple[tuple[float, int], ...] = ()
    frame_choice: FrameChoice = "repeat_last"
    clip_attempts: int = 1
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
    crop_per_frame: bool = False
    frame_affine: AffineRecipe | None = None
    frame_color: ColorRecipe | None = None
    thin_plate: ThinPlateRecipe | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "max_gap", "frame_stride", "clip_attempts", "crop_size", "crop_attempts", "max_objects"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe.{name} must be at least 1, not {getattr(self, name)}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"recipe.size must be a height and a width in pixels, not {self.size}")
        if self.crop == "balanced" and self.size is None and self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(f"recipe.crop_size {self.crop_size} does not fit into recipe.short_side {self.short_side}")

        if self.frame_choice == "stcn" and (self.num_frames != 3 or self.frame_stride != 1):
            raise ValueError(f"recipe.frame_choice stcn is for num_frames 3 and frame_stride 1, not {self.num_frames} frames")
        shares = [share for share, _ in self.gap_curriculum]
        if shares != sorted(shares) or any(not 0 <= share <= 1 or gap < 1 for share, gap in self.gap_curriculum):
            raise ValueError(
                f"recipe.gap_curriculum must be ascending pairs (share in [0, 1], gap >= 1), not {self.gap_curriculum}"
            )

    @property
    def frame_geometry(self) -> bool:
        """Whether frames are moved after the crop, so that objects can only be chosen at the end."""
        return self.crop_per_frame or self.frame_affine is not None or self.thin_plate is not None

    def at(self, progress: float) -> ClipRecipe:
        """The recipe at a share of the training's steps: ``gap_curriculum`` resolved to ``max_gap``."""
        gap = next((gap for share, gap in reversed(self.gap_curriculum) if progress >= share), self.max_gap)
        return self if gap == self.max_gap else replace(self, max_gap=gap)

    def in_steps_of(self, frame_step: int) -> ClipRecipe:
        """The same gaps for videos that store every ``frame_step``-th frame: divided and rounded down, but at least 1."""
        return replace(
            self,
            max_gap=max(1, self.max_gap // frame_step),
            gap_curriculum=tuple((share, max(1, gap // frame_step)) for share, gap in self.gap_curriculum),
        )


DEFAULT_RECIPE = ClipRecipe()
