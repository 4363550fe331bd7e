"""COCO instances as still images for pre-training."""

from __future__ import annotations

import functools
import pickle
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycocotools.mask
from jaxtyping import UInt8
from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict  # pydantic reads it from `typing` from Python 3.12 on

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.transforms import RawClip
from data_modules.datasets.static_images import IMAGE_RECIPE, repeat_image
from data_modules.records import check_size
from vos_lightning.io.documents import read_document
from vos_lightning.io.files import check_name, refuse_link
from vos_lightning.io.images import read_pixels
from vos_lightning.structures import IGNORE_LABEL, LazySequence, VideoSample

MAX_BYTES = 4 << 30
"""Largest annotation file, in bytes; that of the training images has 450 million."""
Size = Annotated[int, Field(ge=1, le=65_535)]
"""Height or width in pixels."""


class _Runs(TypedDict):
    """A mask as run lengths; in the letters of COCO's compression, the last one ends a number."""

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    counts: Annotated[str, Field(pattern="^[0-o]*[0-O]$")] | list[Annotated[int, Field(ge=0, lt=2**32)]]


class _Instance(TypedDict):
    image_id: int
    area: FiniteFloat
    iscrowd: int | bool
    segmentation: Annotated[list[Annotated[list[FiniteFloat], Field(min_length=6)]], Field(min_length=1)] | _Runs


class _Image(TypedDict):
    id: int
    file_name: str
    height: Size
    width: Size


class _Instances(TypedDict):
    """What is read of a file of instances. Polygons have three points or more."""

    images: list[_Image]
    annotations: list[_Instance]


class CocoClips(ClipSource):
    """Clips of the images of one annotation file that have at least one usable instance.

    Args:
        annotation_file: annotation file ``instances_*.json``.
        image_root: folder of the images.
        min_area: instances with a smaller ``area`` (pixels) are left out.
        exclude_crowd: leave out instances with ``iscrowd``.

    Raises:
        FileNotFoundError: file or folder is missing.
        ValueError: the file is not an annotation file, or no image is left.
    """

    def __init__(self, annotation_file: str, image_root: str, min_area: float = 500.0, exclude_crowd: bool = True) -> None:
        if not Path(annotation_file).is_file():
            raise FileNotFoundError(f"{annotation_file} does not exist: pass --data.init_args.annotation_file")
        if not Path(image_root).is_dir():
            raise FileNotFoundError(f"{image_root} is not a folder: pass --data.init_args.image_root")
        content = read_document(
            Path(annotation_file), _Instances, "this is not a file of COCO instances, or an instance is wrong", MAX_BYTES
        )
        segmentations: dict[int, list[Any]] = defaultdict(list)
        for instance in content["annotations"]:
            if instance["area"] >= min_area and not (exclude_crowd and instance["iscrowd"]):
                segmentations[instance["image_id"]].append(instance["segmentation"])
        images = sorted((image for image in content["images"] if image["id"] in segmentations), key=lambda image: image["id"])
        # Each image is one bytes object: as Python objects, the polygons of COCO would be copied page by page into every worker.
        self.items = [
            pickle.dumps(
                (_image_path(image["file_name"], annotation_file), image["height"], image["width"], segmentations[image["id"]])
            )
            for image in images
        ]
        if not self.items:
            raise ValueError(f"{annotation_file} has no instances of at least {min_area} pixels: lower min_area")
        self.annotation_file, self.image_root = annotation_file, image_root

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> ItemNames:
        """Name of an image."""
        path = Path(self.image_root, pickle.loads(self.items[index])[0])
        return ItemNames(path.stem, None, str(path))

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:  # noqa: ARG002
        """Repeat image ``index`` in every frame."""
        file_name, height, width, segmentations = pickle.loads(self.items[index])
        path = Path(self.image_root) / file_name
        refuse_link(path, [self.image_root])
        image = read_pixels(path)
        check_size(str(path), image.shape[:2], "its entry in the annotation file", (height, width))
        try:
            label_map = paint_instances(segmentations, height, width)
        except Exception as error:  # wrong values make the library raise almost anything
            raise ValueError(f"{self.annotation_file}: an instance of {file_name} cannot be drawn ({error!r})") from error
        return repeat_image(image, label_map, recipe.num_frames, Path(file_name).stem)


def _image_path(file_name: Any, annotation_file: str) -> str:
    """The path of an image below its folder, as the annotation file has it."""
    for part in str(file_name).split("/"):
        check_name(part, annotation_file)
    return str(file_name)


def paint_instances(segmentations: Sequence[Any], height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    """Label map with ids 1, 2, ... in the order of the instances; later ones cover earlier ones.

    Args:
        segmentations: polygons ``[[x0, y0, x1, y1, ...], ...]``, or run lengths ``{size, counts}``, compressed or not; instances
            after the first 254 are left out.
        height: height of the image.
        width: width of the image.
    """
    label_map = np.zeros((height, width), dtype=np.uint8)
    for object_id, segmentation in enumerate(segmentations[: IGNORE_LABEL - 1], start=1):
        if isinstance(segmentation, list):
            runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != height * width:
                raise ValueError("the runs of an instance do not cover its image")
            runs = pycocotools.mask.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        if list(runs["size"]) != [height, width]:
            raise ValueError(f"an instance has the size {runs['size']}, its image {[height, width]}")
        label_map[pycocotools.mask.decode(runs).astype(bool)] = object_id
    return label_map


COCO_LOADING = Loading(batch_size=16)


class COCODataModule(VOSDataModule):
    """COCO instances as clips of still images. There are no videos to evaluate.

    Args:
        annotation_file: annotation file ``instances_*.json``.
        image_root: folder of the images.
        min_area: instances with a smaller ``area`` (pixels) are left out.
        exclude_crowd: leave out instances with ``iscrowd``.
        recipe: how clips are made; the default is EMVOS's.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        annotation_file: str,
        image_root: str,
        min_area: float = 500.0,
        exclude_crowd: bool = True,
        recipe: ClipRecipe = IMAGE_RECIPE,
        loading: Loading = COCO_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.annotation_file = annotation_file
        self.image_root = image_root
        self.min_area = min_area
        self.exclude_crowd = exclude_crowd

    def clip_source(self) -> CocoClips:
        """Clips of the images."""
        return self._clips

    @functools.cached_property
    def _clips(self) -> CocoClips:
        # The annotation file of the training set takes a while to read, so it is read once.
        return CocoClips(self.annotation_file, self.image_root, self.min_area, self.exclude_crowd)

    def val_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()

    def test_videos(self) -> LazySequence[VideoSample]:
        """No videos: still images have none."""
        return ()
