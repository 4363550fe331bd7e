"""Synthetic data written in the layouts of real data sets: fixtures for tests, and something to try a command on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from data_modules.scenes import SceneRecipe
from data_modules.synthetic import TRAIN, VAL, SyntheticVideos, make_scene
from vos_lightning.label_io import write_label_map
from vos_lightning.structures import VideoSample

SMALL_SCENE = SceneRecipe(height=48, width=80, num_frames=6, num_objects=(2, 2))
JPEG_QUALITY = 95


def write_image(path: Path, frame: UInt8[Tensor, "3 H W"]) -> None:
    """Write an RGB image; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(path, quality=JPEG_QUALITY)


def write_davis_layout(root: str | Path, num_videos: int, scene: SceneRecipe = SMALL_SCENE, seed: int = 0) -> list[VideoSample]:
    """Write synthetic videos as DAVIS: frames, label maps, and the same lists for 2016 and 2017.

    The last half of the videos (rounded down) are the split ``val``, the rest is ``train``.

    Args:
        root: folder that gets ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        num_videos: at least 1.
        scene: what the videos look like.
        seed: decides the scenes.

    Returns:
        The videos, named ``video-00``, ``video-01``, ... on disk.
    """
    root = Path(root)
    videos = list(SyntheticVideos(num_videos, VAL, scene, seed))
    names = [f"video-{i:02d}" for i in range(num_videos)]
    for name, video in zip(names, videos, strict=True):
        for t, (stem, frame) in enumerate(zip(video.frame_names, video.frames, strict=True)):
            write_image(root / "JPEGImages" / "480p" / name / f"{stem}.jpg", frame)
            write_label_map(root / "Annotations" / "480p" / name / f"{stem}.png", video.targets[t])
    first_val = num_videos - num_videos // 2
    for year in ("2016", "2017"):
        folder = root / "ImageSets" / year
        folder.mkdir(parents=True, exist_ok=True)
        for split, members in (("train", names[:first_val]), ("val", names[first_val:])):
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in members))
    return videos


def _still(index: int, scene: SceneRecipe, seed: int) -> tuple[UInt8[Tensor, "3 H W"], UInt8[Tensor, "H W"]]:
    frames, label_maps = make_scene(seed, TRAIN, index, scene).render([0])
    return torch.from_numpy(np.ascontiguousarray(frames[0].transpose(2, 0, 1))), torch.from_numpy(label_maps[0])


def write_static_images(root: str | Path, num_images: int, scene: SceneRecipe = SMALL_SCENE, seed: int = 0) -> None:
    """Write ``images/00000.jpg`` and ``masks/00000.png`` (label maps), and so on."""
    for index in range(num_images):
        image, label_map = _still(index, scene, seed)
        write_image(Path(root) / "images" / f"{index:05d}.jpg", image)
        write_label_map(Path(root) / "masks" / f"{index:05d}.png", label_map)


def write_coco(root: str | Path, num_images: int, scene: SceneRecipe = SMALL_SCENE, seed: int = 0) -> None:
    """Write ``images/000000000001.jpg`` ... and ``instances.json`` with compressed run lengths."""
    root = Path(root)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        image, label_map = _still(index, scene, seed)
        name = f"{index + 1:012d}.jpg"
        write_image(root / "images" / name, image)
        images.append({"id": index + 1, "file_name": name, "height": scene.height, "width": scene.width})
        for object_id in range(1, int(label_map.max()) + 1):
            mask = (label_map == object_id).numpy()
            runs = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": float(mask.sum()),
                    "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "shape"}]}
    (root / "instances.json").write_text(json.dumps(content))
