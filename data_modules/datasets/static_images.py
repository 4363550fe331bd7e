"""Single images with masks, which warping turns into clips: the pre-training data of many systems."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.recipe import AffineRecipe, ClipRecipe
from data_modules.clips.transforms import RawClip
from data_modules.clips.videos import CHECKED_ITEMS, REFERENCE_ATTEMPTS, evenly_spread
from data_modules.records import check_size
from vos_lightning.io.files import find_files
from vos_lightning.io.images import IMAGE_SUFFIXES, read_pixels
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.mask_ops import as_object_map
from vos_lightning.structures import IGNORE_LABEL, LazySequence, VideoSample

IMAGE_RECIPE = ClipRecipe(num_frames=5, affine=AffineRecipe())
"""EMVOS's recipe for clips of still images."""


def repeat_image(image: UInt8[np.ndarray, "H W 3"], label_map: UInt8[np.ndarray, "H W"], num_frames: int, name: str) -> RawClip:
    """A clip that shows the same image in every frame; transforms then make the frames differ."""
    return RawClip(
        frames=np.repeat(image[None], num_frames, axis=0),
        label_maps=np.repeat(label_map[None], num_frames, axis=0),
        video_name=name,
        frame_indices=(0,) * num_frames,
    )


MaskRule = Literal["labels", "levels", "voc"]
"""Meaning of mask values.

``labels``: ids, or a black and white mask of one object. ``levels``: every grey level from 128 on is an object, lower levels are
background (PASCAL-S as AFB-URR reads it). ``voc``: ids, where ids above 20 are background and 255 is void (PASCAL VOC as AFB-URR
reads it).
"""


def objects_from_levels(mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Ids 1, 2, ... for the grey levels from 128 on, ascending."""
    levels = np.unique(mask[mask >= 128])
    table = np.zeros(256, dtype=np.uint8)
    table[levels] = np.arange(1, len(levels) + 1)
    return table[mask]


def voc_objects(mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Ids up to 20, and 255; other values become background."""
    return np.where((mask > 20) & (mask < IGNORE_LABEL), np.uint8(0), mask)


_LABELS = {"levels": objects_from_levels, "voc": voc_objects}


class ImageClips(ClipSource):
    """Clips of still images.

    Args:
        pairs: name, image path and mask path of every image.
        threshold: mask values above it are the object, all others background (for saliency sets, whose masks are grey); None uses
            ``rule``.
        rule: meaning of mask values, see :data:`MaskRule`.
        as_stored: masks lie on the stored pixels, so orientation tags of the images are ignored.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str, str]],
        threshold: int | None = None,
        rule: MaskRule = "labels",
        as_stored: bool = False,
    ) -> None:
        self.pairs = pairs
        self.threshold = threshold
        self.rule: MaskRule = rule
        self.as_stored = as_stored

    def __len__(self) -> int:
        return len(self.pairs)

    def names(self, index: int) -> ItemNames:
        """Name of an image."""
        return ItemNames(self.pairs[index][0], None, self.pairs[index][1])

    def check_objects(self) -> None:
        """Look for an object in up to :data:`data_modules.clips.videos.CHECKED_ITEMS` masks, until one is found.

        Raises:
            ValueError: no object is found.
        """
        looked_at = evenly_spread(len(self.pairs), CHECKED_ITEMS)
        if not any(_shows_object(self._labels(self.pairs[i][2])) for i in looked_at):
            folder = Path(self.pairs[0][2]).parent if self.pairs else "the data set"
            raise ValueError(
                f"{folder}: of {len(self.pairs)} masks {len(looked_at)} were looked at, and none shows an object: there is "
                "nothing to train on; number the pixels of the objects 1, 2, ..., or draw one in white"
            )

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """Repeat image ``index``, or another one if it shows no object."""
        for _ in range(REFERENCE_ATTEMPTS):
            name, image_path, mask_path = self.pairs[index]
            label_map = self._labels(mask_path)
            if _shows_object(label_map):
                break
            index = int(rng.integers(len(self.pairs)))
        image = read_pixels(image_path, self.as_stored)
        check_size(mask_path, label_map.shape, image_path, image.shape[:2])
        return repeat_image(image, label_map, recipe.num_frames, name)

    def _labels(self, path: str) -> UInt8[np.ndarray, "H W"]:
        label_map = read_label_map(path)
        if self.threshold is not None:
            return (label_map.numpy() > self.threshold).astype(np.uint8)
        if self.rule == "labels":
            return as_object_map(label_map, name=path).numpy()
        return _LABELS[self.rule](label_map.numpy())


def _shows_object(label_map: UInt8[np.ndarray, "H W"]) -> bool:
    return bool(((label_map > 0) & (label_map < IGNORE_LABEL)).any())


def find_pairs(image_root: str, mask_root: str, image_ending: str = "", mask_ending: str = "") -> list[tuple[str, str, str]]:
    """Name, image and mask of every image that has a mask with the same relative path, in the natural order of their names.

    The two folders may be the same, with ``X.jpg`` beside ``X.png``. Images without a mask and hidden files are left out. Endings
    are the parts of the stems after the common name (``cat_im.jpg``, ``cat_gt.png``).

    Raises:
        FileNotFoundError: a folder is missing, or a mask has no image.
        ValueError: there is no mask, or a link leads out of the two folders.
    """
    for argument, folder in (("image_root", image_root), ("mask_root", mask_root)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is not a folder: pass --data.init_args.{argument}")
    one_folder = Path(image_root).resolve() == Path(mask_root).resolve()
    both = one_folder and image_ending == mask_ending
    roots = (mask_root, image_root)
    images = _by_relative_path(image_root, IMAGE_SUFFIXES - {".png"} if both else IMAGE_SUFFIXES, image_ending, roots)
    masks = _by_relative_path(mask_root, (".png",), mask_ending, roots)
    if not masks:
        raise ValueError(f"{mask_root} has no .png masks: pass --data.init_args.mask_root")
    missing = next((name for name in masks if name not in images), None)
    if missing is not None:
        raise FileNotFoundError(f"{image_root} has no image {missing} for the mask {masks[missing]}")
    return [(name, images[name], masks[name]) for name in masks]


def _by_relative_path(folder: str, suffixes: Collection[str], ending: str, links_into: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in find_files(folder, suffixes, links_into):
        if path.stem.endswith(ending):
            name = str(path.relative_to(folder).with_suffix("")).removesuffix(ending)
            if name in found:
                raise ValueError(f"{path} and {Path(found[name]).name} have one name: remove one of them")
            found[name] = str(path)
    return found


STATIC_IMAGES_LOADING = Loading(batch_size=16)


class StaticImagesDataModule(VOSDataModule):
    """A folder of images and a folder of masks with the same relative paths. There are no videos to evaluate.

    Args:
        image_root: folder of images, searched with its sub-folders.
        mask_root: folder of PNG masks; may be the same folder.
        threshold: mask values above it are the object, see :class:`ImageClips`; 127 for masks in 0..255.
        recipe: how clips are made; the default is EMVOS's.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        image_root: str,
        mask_root: str,
        threshold: int | None = None,
        recipe: ClipRecipe = IMAGE_RECIPE,
        loading: Loading = STATIC_IMAGES_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.image_root = image_root
        self.mask_root = mask_root
        self.threshold = threshold

    def clip_source(self) -> ImageClips:
        """Clips of the images."""
        return ImageClips(find_pairs(self.image_root, self.mask_root), self.threshold)

    def val_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()

    def test_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()
