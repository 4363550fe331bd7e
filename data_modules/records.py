"""Records of videos on disk: finding frames and label maps, and reading label maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.files import inside, list_files, list_folders
from vos_lightning.io.images import IMAGE_SUFFIXES
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.texts import read_text
from vos_lightning.mask_ops import as_object_map
from vos_lightning.structures import IGNORE_LABEL, VideoRecord

# Finding --------------------------------------------------------------------------------------------------------------


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names in a split file with one name a line, without repetition.

    A line as in DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png``) names the folder of its image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lists nothing, or is no text file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"split file {path} does not exist")
    entries = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    names = dict.fromkeys(Path(entry).parent.name if "/" in entry else entry for entry in entries)
    if not names:
        raise ValueError(f"split file {path} lists no video")
    return list(names)


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders of videos in a folder, in natural order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no folders in it.
    """
    names = list_folders(folder)
    if not names:
        raise ValueError(f"{folder} has no video folders")
    return names


def find_record(
    name: str,
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    root: str | os.PathLike[str],
    exhaustive: bool = True,
    merge_objects: bool = False,
    has_void: bool = False,
) -> VideoRecord:
    """Record of a video from a folder of frames and one of label maps with the same stems.

    The name often comes from a file of the data set, and so may the links in it: neither leads out of the data set, see
    :func:`vos_lightning.io.files.inside`. ``root``, ``images`` and ``labels`` may be links to anywhere, as on clusters.

    Args:
        name: name of the video.
        images: folder that has a folder of frames for each video.
        labels: folder that has a folder of label maps for each video.
        root: folder of the data set.
        exhaustive: see :class:`vos_lightning.structures.VideoRecord`, as for the others.
        merge_objects: see there.
        has_void: see there.

    Raises:
        FileNotFoundError: a folder, or the frame of a label map, is missing.
        ValueError: there are no frames or no label maps, or two files for one frame; or the name or a link leads out of the data
            set.
    """
    places = (images, labels, root)
    image_folder, label_folder = inside(images, name, links_into=places), inside(labels, name, links_into=places)
    frames = list_files(image_folder, IMAGE_SUFFIXES, places)
    labelled = list_files(label_folder, (".png",), places)
    if not frames:
        raise ValueError(f"{image_folder} has no {', '.join(sorted(IMAGE_SUFFIXES))} files")
    if not labelled:
        raise ValueError(f"{label_folder} has no .png files: a video needs at least the mask of its first frame")
    missing = [stem for stem in labelled if stem not in frames]
    if missing:
        raise FileNotFoundError(f"{image_folder} has no frame {missing[0]} for the label map {labelled[missing[0]]}")
    position = {stem: i for i, stem in enumerate(frames)}
    return VideoRecord(
        name=name,
        frame_names=tuple(frames),
        frame_paths=tuple(map(str, frames.values())),
        label_paths={position[stem]: str(path) for stem, path in labelled.items()},
        exhaustive=exhaustive,
        merge_objects=merge_objects,
        has_void=has_void,
    )


# Reading --------------------------------------------------------------------------------------------------------------


def read_labels(record: VideoRecord, index: int) -> UInt8[Tensor, "H W"]:
    """Label map of frame ``index`` in its meaning for the record: with merged objects or void pixels (255) where it says so.

    Raises:
        ValueError: the file cannot be read, or holds 255 beside ids although the data set has no void.
    """
    path = record.label_paths[index]
    label_map = read_label_map(path)
    return (label_map > 0).to(torch.uint8) if record.merge_objects else as_object_map(label_map, record.has_void, path)


def without_ignored(label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "H W"]:
    """Label map with void (255) as background, as it is given to networks and scored."""
    return label_map.masked_fill(label_map == IGNORE_LABEL, 0)


def check_size(path: str, size: Sequence[int], expected_path: str, expected: Sequence[int]) -> None:
    """Raise a ValueError that names both files when ``(H, W)`` differ."""
    if tuple(size) != tuple(expected):
        raise ValueError(f"{path} is {size[0]}x{size[1]} but {expected_path} is {expected[0]}x{expected[1]} (height x width)")
