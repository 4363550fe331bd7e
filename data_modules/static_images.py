"""Single images with masks, made into clips by warping: the pre-training data of many systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_modules.base import VOSDataModule
from data_modules.clip_dataset import ClipSource
from data_modules.recipe import AffineRecipe, ClipRecipe
from data_modules.sources import REFERENCE_ATTEMPTS, check_size
from data_modules.transforms import RawClip
from vos_lightning.label_io import read_image, read_label_map
from vos_lightning.structures import IGNORE_LABEL, VideoSample

IMAGE_RECIPE = ClipRecipe(num_frames=5, affine=AffineRecipe())
"""EMVOS's clips of still images."""


def repeat_image(image: UInt8[np.ndarray, "H W 3"], label_map: UInt8[np.ndarray, "H W"], num_frames: int, name: str) -> RawClip:
    """A clip that shows the same image in every frame; the transforms make them differ."""
    return RawClip(
        frames=np.repeat(image[None], num_frames, axis=0),
        label_maps=np.repeat(label_map[None], num_frames, axis=0),
        video_name=name,
        frame_indices=(0,) * num_frames,
    )


class ImageClips(ClipSource):
    """Clips of still images.

    Args:
        pairs: name, image path and mask path of every image.
        threshold: mask values above it are the object, all others background (saliency sets, whose masks are grey); None reads
            masks as label maps.
    """

    def __init__(self, pairs: Sequence[tuple[str, str, str]], threshold: int | None = None) -> None:
        self.pairs = pairs
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.pairs)

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """Repeat image ``index``, or another one if it shows no object."""
        for _ in range(REFERENCE_ATTEMPTS):
            name, image_path, mask_path = self.pairs[index]
            label_map = read_label_map(mask_path).numpy()
            if self.threshold is not None:
                label_map = (label_map > self.threshold).astype(np.uint8)
            if ((label_map > 0) & (label_map < IGNORE_LABEL)).any():
                break
            index = int(rng.integers(len(self.pairs)))
        image = read_image(image_path).permute(1, 2, 0).numpy()
        check_size(mask_path, label_map.shape, image_path, image.shape[:2])
        return repeat_image(image, label_map, recipe.num_frames, name)


def find_pairs(image_root: str, mask_root: str) -> list[tuple[str, str, str]]:
    """Name, image and mask of every image that has a mask of the same relative path, in the order of their names.

    The two folders may be one, with ``X.jpg`` beside ``X.png``. Images without a mask are left out; hidden files too.

    Raises:
        FileNotFoundError: a folder is missing, or a mask has no image.
        ValueError: there is no mask.
    """
    for argument, folder in (("image_root", image_root), ("mask_root", mask_root)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is not a folder: pass --data.init_args.{argument}")
    one_folder = Path(image_root).resolve() == Path(mask_root).resolve()
    images = _by_relative_path(image_root, (".jpg", ".jpeg") if one_folder else (".jpg", ".jpeg", ".png"))
    masks = _by_relative_path(mask_root, (".png",))
    if not masks:
        raise ValueError(f"{mask_root} has no .png masks: pass --data.init_args.mask_root")
    missing = next((name for name in masks if name not in images), None)
    if missing is not None:
        raise FileNotFoundError(f"{image_root} has no image {missing} for the mask {masks[missing]}")
    return [(name, images[name], masks[name]) for name in sorted(masks)]


def _by_relative_path(folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    return {
        str(path.relative_to(folder).with_suffix("")): str(path)
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }


class StaticImagesDataModule(VOSDataModule):
    """A folder of images and a folder of masks with the same relative paths. There are no videos to evaluate.

    Args:
        image_root: folder of images, searched with its sub-folders.
        mask_root: folder of PNG masks; may be the same.
        threshold: see :class:`ImageClips`; 127 for masks in 0..255.
        recipe: how clips are made; the default is EMVOS's.
        batch_size: see :class:`data_modules.base.VOSDataModule`, as for the rest.
        num_workers: likewise.
        seed: likewise.
        pin_memory: likewise.
        predict_root: likewise.
    """

    def __init__(
        self,
        image_root: str,
        mask_root: str,
        threshold: int | None = None,
        recipe: ClipRecipe = IMAGE_RECIPE,
        batch_size: int = 16,
        num_workers: int = 4,
        seed: int = 0,
        pin_memory: bool = False,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, recipe, pin_memory, predict_root)
        self.image_root = image_root
        self.mask_root = mask_root
        self.threshold = threshold

    def clip_source(self) -> ImageClips:
        """Clips of the images."""
        return ImageClips(find_pairs(self.image_root, self.mask_root), self.threshold)

    def val_videos(self) -> Sequence[VideoSample]:
        """None."""
        return ()

    def test_videos(self) -> Sequence[VideoSample]:
        """None."""
        return ()
