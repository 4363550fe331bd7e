"""Published sets of still images with masks, each in the layouts in which it is distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.static_images import IMAGE_RECIPE, ImageClips, MaskRule, find_pairs
from data_modules.records import read_names
from vos_lightning.io.files import find_files
from vos_lightning.structures import LazySequence, VideoSample

StaticSet = Literal["duts-tr", "duts-te", "msra10k", "ecssd", "hku-is", "pascal-s", "voc2012", "fss-1000", "big", "hrsod"]


class Layout(NamedTuple):
    """Folders of the images and masks of a set, relative to its root."""

    images: str
    masks: str
    image_ending: str = ""
    """Part of an image's stem after the name that it shares with its mask."""
    mask_ending: str = ""


FLAT = Layout(".", ".")
"""``X.jpg`` beside ``X.png``, with or without sub-folders: the copies that STCN, XMem and HQ-SAM distribute."""

LAYOUTS: dict[StaticSet, tuple[Layout, ...]] = {
    "duts-tr": (Layout("DUTS-TR-Image", "DUTS-TR-Mask"), Layout("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"), FLAT),
    "duts-te": (Layout("DUTS-TE-Image", "DUTS-TE-Mask"), Layout("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"), FLAT),
    "msra10k": (Layout("Imgs", "Imgs"), Layout("MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs"), FLAT),
    "ecssd": (Layout("images", "ground_truth_mask"), FLAT),
    "hku-is": (Layout("imgs", "gt"), FLAT),
    "pascal-s": (Layout("datasets/imgs/pascal", "datasets/masks/pascal"), FLAT),
    "voc2012": (Layout("JPEGImages", "SegmentationObject"),),
    "fss-1000": (Layout("fewshot_data/fewshot_data", "fewshot_data/fewshot_data"), Layout("fewshot_data", "fewshot_data"), FLAT),
    "big": (Layout(".", ".", "_im", "_gt"), FLAT),
    "hrsod": (Layout("images", "masks"), Layout("image", "mask"), FLAT),
}

RULES: dict[StaticSet, MaskRule] = {"pascal-s": "levels", "voc2012": "voc"}
"""Rules of sets whose masks are not grey; in grey masks, values above one half are the object. Only PASCAL VOC has void."""


def find_static_set(dataset: StaticSet, root: str, split: str | None = None) -> list[tuple[str, str, str]]:
    """Name, image and mask of every image of a set.

    Args:
        dataset: name of the set.
        root: folder of the set.
        split: for ``voc2012``, the list ``ImageSets/Segmentation/<split>.txt``; None takes all masks.

    Raises:
        FileNotFoundError: the folder has none of the layouts of the set.
        ValueError: there is no pair, or the set has no list of the split.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder: pass --data.init_args.root of {dataset}")
    layout = next(
        (one for one in LAYOUTS[dataset] if (Path(root) / one.images).is_dir() and (Path(root) / one.masks).is_dir()), None
    )
    if dataset == "big" and not any(path.stem.endswith("_gt") for path in find_files(root, (".png",))):
        layout = FLAT
    if layout is None:
        expected = " or ".join(f"{one.images} and {one.masks}" for one in LAYOUTS[dataset])
        raise FileNotFoundError(f"{root} has no {expected}: pass --data.init_args.root of {dataset}")
    pairs = find_pairs(str(Path(root) / layout.images), str(Path(root) / layout.masks), layout.image_ending, layout.mask_ending)
    if split is None:
        return pairs
    if dataset != "voc2012":
        raise ValueError(f"{dataset} has no list of a split {split!r}: leave data.init_args.split out")
    names = set(read_names(Path(root) / "ImageSets" / "Segmentation" / f"{split}.txt"))
    return [pair for pair in pairs if pair[0] in names]


STATIC_SET_LOADING = Loading(batch_size=16)


class StaticSetDataModule(VOSDataModule):
    """Clips simulated from a published set of still images. There are no videos to evaluate.

    Args:
        dataset: name of the set; every layout in :data:`LAYOUTS` is recognised.
        root: folder of the set.
        split: for ``voc2012``, name of a list of images, see :func:`find_static_set`.
        recipe: how clips are made; the default is EMVOS's.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        dataset: StaticSet,
        root: str,
        split: str | None = None,
        recipe: ClipRecipe = IMAGE_RECIPE,
        loading: Loading = STATIC_SET_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.dataset: StaticSet = dataset
        self.root = root
        self.split = split

    def clip_source(self) -> ImageClips:
        """Clips of the images."""
        pairs = find_static_set(self.dataset, self.root, self.split)
        rule = RULES.get(self.dataset)
        # The authors' readers ignore orientation tags, so masks lie on the stored pixels.
        return ImageClips(pairs, threshold=None if rule else 127, rule=rule or "labels", as_stored=True)

    def val_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()

    def test_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()
