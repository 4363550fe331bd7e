"""Draws ``docs/clips/<paper>.jpg``: training clips of every recipe that an experiment of the paper has.

``python -m docs.draw_clips`` draws them anew, in a minute on two cores. All recipes get the same video and pictures: the rabbit
of the demo's clip, cut out with the network that comes with the library. ``vos visualize EXP --clips N --output DIR`` draws
clips of an experiment from its own data.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.progress import track

from vos_lightning import load_engine
from vos_lightning.app.composition import value_at
from vos_lightning.app.data import data_of
from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment
from vos_lightning.io.given_masks import GivenMasks, own_video
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.videos import open_frames
from vos_lightning.visualization.sheets import clip_rows, sheet

HERE = Path(__file__).parent
DRAWINGS = HERE / "clips"
NOT_DRAWN = ("_smoke", "_demo")
"""Ends of the names of experiments that train nothing of a paper."""
CLIPS = 2
"""Clips of a recipe: of the first step, and of the middle of the training, as gaps between frames may grow."""
Recipe = dict[str, Any]


def recipes() -> dict[tuple[str, str], list[tuple[Experiment, Recipe]]]:
    """Experiments that draw clips by the same recipe, from the same kind of data.

    Returns:
        ``(kind, recipe)`` -> experiments with their recipe; the kind is ``stills`` or ``videos``.
    """
    found: dict[tuple[str, str], list[tuple[Experiment, Recipe]]] = {}
    for name in experiment_files():
        experiment = load_experiment(name)
        if experiment.stages or experiment.checkpoint_of or name.endswith(NOT_DRAWN):
            continue
        for section in _sections(experiment.config.get("data") or {}):
            of_images = any(word in json.dumps(section) for word in ("image_root", "StaticSet", "COCO"))
            key = ("stills" if of_images else "videos", json.dumps(section["recipe"], sort_keys=True))
            found.setdefault(key, []).append((experiment, section["recipe"]))
    return found


def _sections(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "recipe" in value:
            yield value
        for item in value.values():
            yield from _sections(item)
    elif isinstance(value, list):
        for item in value:
            yield from _sections(item)


def cut_out() -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames (RGB, 854 x 480) and masks of the rabbit."""
    clip = subprocess.run([sys.executable, "-m", "docs.demo.clip"], capture_output=True, text=True, check=True).stdout.strip()
    frames = open_frames(clip)
    video = own_video(frames, GivenMasks(HERE / "demo" / "masks", frames))
    found = []
    for prediction in load_engine("lite").run(video):
        frame = prediction.frame.permute(1, 2, 0).contiguous().numpy()
        mask = prediction.label_map.numpy()
        if mask.any():
            found.append(
                (cv2.resize(frame, (854, 480), interpolation=cv2.INTER_AREA), cv2.resize(mask, (854, 480), interpolation=0))
            )
    return found


def write_data(root: Path, found: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Write the frames as a data set of videos and as one of stills.

    Returns:
        Kind of data -> section ``data`` of an experiment, without a recipe.
    """
    places = (root / "DAVIS" / name / "480p" / "rabbit" for name in ("JPEGImages", "Annotations"))
    images, masks = root / "images", root / "masks"
    frames, labels = places
    for folder in (frames, labels, images, masks):
        folder.mkdir(parents=True)
    for index, (frame, mask) in enumerate(found):
        Image.fromarray(frame).save(frames / f"{index:05d}.jpg", quality=95)
        write_label_map(labels / f"{index:05d}.png", torch.from_numpy(mask))
    middle = len(found) // 2
    Image.fromarray(found[middle][0]).save(images / "rabbit.jpg", quality=95)
    write_label_map(masks / "rabbit.png", torch.from_numpy(found[middle][1]))
    lists = root / "DAVIS" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("rabbit\n")
    loading = {"batch_size": 1, "num_workers": 0}
    davis = {"root": str(root / "DAVIS"), "year": 2017, "loading": loading}
    stills = {"image_root": str(images), "mask_root": str(masks), "loading": loading}
    return {
        "videos": {"class_path": "data_modules.datasets.davis.DAVISDataModule", "init_args": davis},
        "stills": {"class_path": "data_modules.datasets.static_images.StaticImagesDataModule", "init_args": stills},
    }


def draw() -> None:
    """Write the drawings."""
    rows: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = write_data(Path(folder), cut_out())
        for (kind, _), users in track(recipes().items(), "drawing"):
            experiment, recipe = users[0]
            source = sources[kind]
            section = {**source, "init_args": {**source["init_args"], "recipe": recipe}}
            data, _ = data_of(dataclasses.replace(experiment, config={**experiment.config, "data": section}))
            also = f" and {len(users) - 1} more" if len(users) > 1 else ""
            steps = value_at(experiment.config, "trainer.max_steps")
            for step, clip in data.clips_of_training(CLIPS, steps):  # type: ignore[attr-defined]
                title = f"{experiment.name}{also}: {kind}, step {step}"
                rows.setdefault(experiment.path.parent.name, []).extend(clip_rows(clip, title, height=112))
    DRAWINGS.mkdir(exist_ok=True)
    for paper, pictures in rows.items():
        sheet(pictures).save(DRAWINGS / f"{paper}.jpg", quality=85)


if __name__ == "__main__":
    draw()
