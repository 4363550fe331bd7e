"""Training clips per second of every shared recipe: ``python -m benchmarks.clips --workers 2``.

Videos of 480 x 854 and images of 300 x 400 are made by code and written as JPEG and PNG in a temporary folder first. Measured are
one process by itself, part by part (reading and decoding; transforms; collation), in processor time, which other programs do not
change, and the loader with its workers, in time that passes.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import torch
import yaml
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from data_modules.base import _one_thread
from data_modules.clips.dataset import ClipBatchSampler, ClipDataset, ClipSource, collate_clips
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.sampling import sample_generator
from data_modules.clips.transforms import ClipTransform
from data_modules.clips.videos import RecordClips
from data_modules.datasets.scenes import SceneRecipe
from data_modules.datasets.static_images import ImageClips, find_pairs
from data_modules.records import find_record, folders_in
from tests.layouts import write_davis_layout, write_static_images
from vos_lightning.io.files import write_atomically

SHARED = Path(__file__).resolve().parents[1] / "experiments" / "_shared"
VIDEO = SceneRecipe(height=480, width=854, num_frames=20, num_objects=(2, 3))
IMAGE = SceneRecipe(height=300, width=400, num_frames=1, num_objects=(1, 1))


def recipes() -> dict[str, ClipRecipe]:
    """Every recipe in the shared fragments, and EMVOS's."""
    parser = ArgumentParser()
    parser.add_argument("--recipe", type=ClipRecipe)
    found = {"emvos": ClipRecipe()}
    for path in sorted(SHARED.glob("*.yaml")):
        values = yaml.safe_load(path.read_text()).get("data", {}).get("init_args", {}).get("recipe")
        if values is not None and "num_frames" in values:
            found[path.stem] = parser.instantiate(parser.parse_object({"recipe": values})).recipe
    return found


def sources(root: Path) -> dict[str, ClipSource]:
    """A few videos, and as many images."""
    write_davis_layout(root, 6, VIDEO)
    write_static_images(root / "static", 12, IMAGE)
    images, labels = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    pairs = find_pairs(str(root / "static" / "images"), str(root / "static" / "masks"))
    return {
        "videos": RecordClips([find_record(name, images, labels, images.parent.parent) for name in folders_in(images)]),
        "images": ImageClips(pairs, threshold=0),
    }


def measure(source: ClipSource, recipe: ClipRecipe, batch_size: int, num_batches: int) -> dict[str, float]:
    """Milliseconds of processor time a clip, in one process."""
    transform, spent = ClipTransform(recipe), defaultdict(float)

    def timed(part: str, function: Any, *arguments: Any) -> Any:
        started = time.process_time()
        result = function(*arguments)
        spent[part] += time.process_time() - started
        return result

    for batch in range(num_batches + 1):
        if batch == 1:
            spent.clear()  # the first one warms up
        samples = []
        for item in range(batch_size):
            rng = sample_generator(0, batch, item)
            raw = timed("read", source.draw, item % len(source), rng, recipe)
            samples.append(timed("transform", transform, rng, raw))
        timed("collate", collate_clips, samples, recipe.max_objects)
    return {part: 1e3 * seconds / (num_batches * batch_size) for part, seconds in spent.items()}


def loaded(source: ClipSource, recipe: ClipRecipe, workers: int, batch_size: int, num_batches: int) -> float:
    """Clips per second that pass through the loader, after the workers have started."""
    loader = DataLoader(
        dataset=ClipDataset([(source, recipe)], seed=0),
        batch_sampler=ClipBatchSampler(len(source), num_batches + 2 * workers, batch_size, seed=0),
        num_workers=workers,
        collate_fn=functools.partial(collate_clips, num_slots=recipe.max_objects),
        worker_init_fn=_one_thread,
    )
    batches = iter(loader)
    for _ in range(2 * workers):  # those that were prepared while the workers started
        next(batches)
    started = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return num_batches * batch_size / (time.perf_counter() - started)


def main() -> None:
    """Measure, print and optionally save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="of the loader; 0 leaves it out")
    parser.add_argument("--batches", type=int, default=10, help="of 4 clips")
    parser.add_argument("--only", nargs="*", help="recipes")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results = {}
    print(f"{'recipe':<24}{'clip':>14}  {'read':>7}{'transform':>11}{'collate':>9}  ms a clip   clips/s a worker")
    with tempfile.TemporaryDirectory() as folder:
        made = sources(Path(folder))
        for name, recipe in recipes().items():
            if arguments.only and name not in arguments.only:
                continue
            source = made["images" if "static" in name else "videos"]
            parts = measure(source, recipe, 4, arguments.batches)
            rate = 1e3 / sum(parts.values())
            clip = f"{recipe.num_frames} x {recipe.crop_size}^2"
            numbers = f"{parts['read']:>7.1f}{parts['transform']:>11.1f}{parts['collate']:>9.1f}"
            line = f"{name:<24}{clip:>14}  {numbers}  {sum(parts.values()):>9.1f}   {rate:>16.1f}"
            results[name] = {"ms": parts, "clips_per_second_a_worker": rate}
            if arguments.workers:
                results[name]["loader"] = loaded(source, recipe, arguments.workers, 4, 4 * arguments.batches)
                line += f"   {results[name]['loader']:.1f} through {arguments.workers} workers"
            print(line, flush=True)
    if arguments.json:
        write_atomically(arguments.json, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
