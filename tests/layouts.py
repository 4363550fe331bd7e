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

from data_modules.datasets.scenes import SceneRecipe
from data_modules.datasets.static_sets import LAYOUTS, StaticSet
from data_modules.datasets.synthetic import TRAIN, VAL, SyntheticVideos, make_scene
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.structures import IGNORE_LABEL, VideoSample

SMALL_SCENE = SceneRecipe(height=48, width=80, num_frames=6, num_objects=(2, 2))
YOUTUBE_SCENE = SceneRecipe(height=48, width=80, num_frames=21, num_objects=(2, 3), late_probability=0.5)
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


def write_youtube_vos_layout(
    root: str | Path, num_train: int = 3, num_valid: int = 3, scene: SceneRecipe = YOUTUBE_SCENE, seed: int = 0
) -> dict[str, dict[str, UInt8[Tensor, "H W"]]]:
    """Write synthetic videos as YouTube-VOS with its quirks.

    Every fifth frame is annotated. Validation videos come at both frame rates, have label maps of new objects alone and no
    categories; the second one starts at 00110 and has a gap in its ids; every scene may have late objects. The first frame of the
    second training video is empty though an object is listed there.

    Args:
        root: folder that gets ``train``, ``valid`` and ``valid_all_frames``.
        num_train: training videos, at least 1.
        num_valid: validation videos, at least 1.
        scene: what the videos look like at 30 frames a second.
        seed: decides the scenes.

    Returns:
        Validation video -> stem -> true label map of every required frame.
    """
    root = Path(root)
    truth: dict[str, dict[str, UInt8[Tensor, "H W"]]] = {}
    for split, count in (("train", num_train), ("valid", num_valid)):
        videos = {}
        for index in range(count):
            name = f"{split[0]}{index:09x}"
            offset = 110 if split == "valid" and index == 1 else 0
            frames, label_maps = make_scene(seed, TRAIN if split == "train" else VAL, index, scene).render(
                range(scene.num_frames)
            )
            if offset:
                label_maps[label_maps > 0] += 1  # ids start at 2 ...
                label_maps[label_maps == 2] = 1  # ... but for the first, so that 2 is missing
            if split == "train" and index == 1:
                label_maps[0] = 0
            sampled = range(0, scene.num_frames, 5)
            shown: dict[int, list[int]] = {}
            for t in sampled:
                for object_id in {*shown, *np.unique(label_maps[t]).tolist()} - {0}:
                    shown.setdefault(int(object_id), []).append(t)
            if split == "train" and index == 1:
                shown = {object_id: list(sampled) for object_id in shown}
            for t, frame in enumerate(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))):
                stem = f"{t + offset:05d}"
                if split == "valid":
                    write_image(root / "valid_all_frames" / "JPEGImages" / name / f"{stem}.jpg", frame)
                if t not in sampled:
                    continue
                write_image(root / split / "JPEGImages" / name / f"{stem}.jpg", frame)
                label_map = torch.from_numpy(label_maps[t])
                if split == "valid":
                    truth.setdefault(name, {})[stem] = label_map
                    new = [object_id for object_id, times in shown.items() if times[0] == t]
                    label_map = label_map * torch.isin(label_map, torch.tensor(new, dtype=torch.uint8))
                if split == "train" or bool(label_map.any()):
                    write_label_map(root / split / "Annotations" / name / f"{stem}.png", label_map)
            videos[name] = {
                "objects": {
                    str(object_id): {
                        "category": ("ape", "person", "others")[object_id % 3] if split == "train" else None,
                        "frames": [f"{t + offset:05d}" for t in times],
                    }
                    for object_id, times in sorted(shown.items())
                }
            }
        (root / split / "meta.json").write_text(json.dumps({"videos": videos}))
    return truth


def write_video_folders(
    root: str | Path, split: str, num_videos: int, first_only: bool = False, scene: SceneRecipe = SMALL_SCENE, seed: int = 0
) -> list[VideoSample]:
    """Write ``<split>/JPEGImages/<video>`` and ``<split>/Annotations/<video>`` as MOSE does.

    Args:
        root: folder of the splits.
        split: its name.
        num_videos: at least 1.
        first_only: label the first frame alone, as in the validation set.
        scene: what the videos look like.
        seed: decides the scenes.

    Returns:
        The videos, named ``00000000``, ``00000001``, ... on disk.
    """
    videos = list(SyntheticVideos(num_videos, VAL, scene, seed))
    for index, video in enumerate(videos):
        for t, (stem, frame) in enumerate(zip(video.frame_names, video.frames, strict=True)):
            write_image(Path(root) / split / "JPEGImages" / f"{index:08d}" / f"{stem}.jpg", frame)
            if t == 0 or not first_only:
                write_label_map(Path(root) / split / "Annotations" / f"{index:08d}" / f"{stem}.png", video.targets[t])
    return videos


def write_lvos_layout(
    root: str | Path, split: str, num_videos: int, scene: SceneRecipe = YOUTUBE_SCENE, seed: int = 0
) -> list[VideoSample]:
    """Write a split as LVOS does: frames 00000001, 00000006, ..., every label map, late objects, ``<split>_meta.json``.

    Args:
        root: folder of the splits.
        split: its name.
        num_videos: at least 1.
        scene: what the videos look like.
        seed: decides the scenes.

    Returns:
        The videos, named as on disk: ``v0000000``, ...
    """
    root = Path(root)
    videos = list(SyntheticVideos(num_videos, VAL, scene, seed))
    meta: dict[str, Any] = {}
    for index, video in enumerate(videos):
        name = f"v{index:07d}"
        stems = [f"{5 * t + 1:08d}" for t in range(len(video.frames))]
        for t, (stem, frame) in enumerate(zip(stems, video.frames, strict=True)):
            write_image(root / split / "JPEGImages" / name / f"{stem}.jpg", frame)
            write_label_map(root / split / "Annotations" / name / f"{stem}.png", video.targets[t])
        first = {i: t for t, given in video.annotations.items() for i in object_ids_in(given)}
        ranges = {str(i): {"start": stems[t], "end": stems[-1], "frame_nums": len(stems) - t} for i, t in first.items()}
        meta[name] = {"objects": {i: {"frame_range": frame_range} for i, frame_range in ranges.items()}}
    (root / f"{split}_meta.json").write_text(json.dumps({"videos": meta}))
    return videos


def write_vost_layout(root: str | Path, num_videos: int, scene: SceneRecipe = SMALL_SCENE, seed: int = 0) -> list[VideoSample]:
    """Write videos as VOST: every other frame is annotated and in ``JPEGImages``, all are in ``JPEGImages_10fps``; 255 is void.

    Args:
        root: folder that gets ``JPEGImages``, ``JPEGImages_10fps``, ``Annotations`` and ``ImageSets`` (one list for all splits).
        num_videos: at least 1.
        scene: what the videos look like.
        seed: decides the scenes.

    Returns:
        The videos, named ``0001_cut``, ``0002_cut``, ... on disk.
    """
    root = Path(root)
    videos = list(SyntheticVideos(num_videos, VAL, scene, seed))
    names = [f"{index + 1:04d}_cut" for index in range(num_videos)]
    for name, video in zip(names, videos, strict=True):
        for t, frame in enumerate(video.frames):
            stem = f"frame{6 * t + 12:05d}"
            write_image(root / "JPEGImages_10fps" / name / f"{stem}.jpg", frame)
            if t % 2 == 0:
                write_image(root / "JPEGImages" / name / f"{stem}.jpg", frame)
                label_map = video.targets[t].clone()
                label_map[:2] = IGNORE_LABEL
                write_label_map(root / "Annotations" / name / f"{stem}.png", label_map)
    (root / "ImageSets").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
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


def write_static_set(
    root: str | Path, dataset: StaticSet, num_images: int, layout: int = 0, scene: SceneRecipe = SMALL_SCENE, seed: int = 0
) -> None:
    """Write images and masks as a published set has them: grey, graded, or ids with void.

    Args:
        root: folder of the set.
        dataset: which set.
        num_images: at least 1.
        layout: index into the set's layouts in :data:`data_modules.datasets.static_sets.LAYOUTS`.
        scene: what the images look like.
        seed: decides the scenes.
    """
    where = LAYOUTS[dataset][layout]
    for index in range(num_images):
        image, label_map = _still(index, scene, seed)
        name = f"class{index % 2}/{index + 1}" if dataset == "fss-1000" else f"{index + 1:04d}"
        suffix = ".png" if dataset == "hku-is" and where.images != where.masks else ".jpg"
        write_image(Path(root) / where.images / f"{name}{where.image_ending}{suffix}", image)
        mask = label_map.clamp_max(1) * 255
        if dataset == "pascal-s":
            mask = torch.tensor([0, 200, 255], dtype=torch.uint8)[label_map.long()]
            mask[:2] = 60  # few of the people who were asked
        elif dataset == "voc2012":
            mask = label_map.clone()
            mask[:, 0] = IGNORE_LABEL
            mask[:, 1] = 21
        path = Path(root) / where.masks / f"{name}{where.mask_ending}.png"
        if dataset == "voc2012":
            write_label_map(path, mask)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.numpy()).save(path)
    if dataset == "voc2012":
        lists = Path(root) / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "train.txt").write_text("".join(f"{index + 1:04d}\n" for index in range(0, num_images, 2)))


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
