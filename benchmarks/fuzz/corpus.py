"""Small valid inputs of every command, made by code. A family is a folder that a case copies before it breaks something."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from data_modules.datasets.scenes import SceneRecipe
from tests.layouts import (
    write_coco,
    write_davis_layout,
    write_image,
    write_lvos_layout,
    write_static_images,
    write_video_folders,
    write_youtube_vos_layout,
)
from tests.unit.dummies import DummyModule, DummyNetwork, make_frames, make_label_map
from vos_lightning.app.experiments import load_experiment, training_identity
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.videos import VideoWriter

SCENE = SceneRecipe(height=32, width=48, num_frames=3, num_objects=(1, 2))
YOUTUBE = SceneRecipe(height=32, width=48, num_frames=11, num_objects=(1, 2))
MODEL = f"{DummyModule.__module__}.{DummyModule.__name__}"
NETWORK = f"{DummyNetwork.__module__}.{DummyNetwork.__name__}"


def make_corpus(root: Path) -> dict[str, list[str]]:
    """Write every family below a folder.

    Returns:
        Family -> its files and folders in order, relative to the folder of the family.
    """
    families: dict[str, list[str]] = {}
    for name, write in FAMILIES.items():
        folder = root / name
        folder.mkdir(parents=True)
        write(folder)
        families[name] = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return families


def put(path: Path, content: str | bytes) -> None:
    """Write a file of a corpus; it is not worth waiting for the disk."""
    write_atomically(path, content if isinstance(content, bytes) else content.encode(), durable=False)


def to_yaml(content: Any) -> str:
    """A document as YAML."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def experiment(data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tiny experiment on some data, one step long."""
    return {
        "description": "One step",
        "model": {"class_path": MODEL, "init_args": {"network": {"class_path": NETWORK, "init_args": {"scale": 7.5}}}},
        "data": data,
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "enable_progress_bar": False, "logger": False},
        "last_checkpoint": {"every_n_train_steps": 1},
        "wandb": {"mode": "disabled"},
        "pictures": {"videos": 0},
        "predictions": {"overlays": False, "contact_sheet": False},
        **more,
    }


def data_section(kind: str, **arguments: Any) -> dict[str, Any]:
    """The data section of an experiment with one clip of two frames a step."""
    recipe = {"num_frames": 2, "short_side": None, "crop": "none", "max_objects": 2}
    loading = {"batch_size": 1, "num_workers": 0}
    return {"class_path": f"data_modules.datasets.{kind}", "init_args": {**arguments, "loading": loading, "recipe": recipe}}


SYNTHETIC = data_section(
    "synthetic.SyntheticDataModule",
    num_train_videos=2,
    num_val_videos=1,
    num_test_videos=1,
    scene={"height": 32, "width": 32, "num_frames": 3},
)


def checkpoint(short_side: int | None = 24) -> bytes:
    """A checkpoint of the dummy system, as a run writes it."""
    content = {
        "state_dict": {"network.scale": torch.tensor(7.5)},
        "hyper_parameters": {
            "network": {"class_path": NETWORK, "init_args": {"scale": 7.5}},
            "evaluation": {"short_side": short_side},
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": MODEL,
        },
        "pytorch-lightning_version": "2.6.6",
        "epoch": 0,
        "global_step": 1,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _experiments_at(folder: Path) -> Iterator[None]:
    before = os.environ.get("VOS_EXPERIMENTS")
    os.environ["VOS_EXPERIMENTS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("VOS_EXPERIMENTS")
        if before is not None:
            os.environ["VOS_EXPERIMENTS"] = before


def _experiments(folder: Path) -> None:
    place = folder / "experiments" / "p"
    metrics = {"J&F": 75.0, "J": 73.0}
    published = {"paper": "P", "table": 1, "row": "One", "dataset": "DAVIS 2017 val", "metrics": metrics, "fps": 49.8}
    base = experiment(SYNTHETIC)
    files: dict[str, Any] = {
        "_base": {key: base[key] for key in ("model", "data")},
        "one": {**{k: v for k, v in base.items() if k not in ("model", "data")}, "extends": ["p/_base"], "published": published},
        "staged": {"stages": ["p_one"], "hand_over": "last", "published": {**published, "row": "Two", "table": "2, left"}},
        "other": {"extends": ["p/one"], "checkpoint_of": "p_one", "select": "last", "description": "Evaluates p_one"},
        "fine": {key: value for key, value in base.items() if key != "model"},
        "tables": {
            "paper": "P, 2020",
            "hardware": "a card",
            "columns": {
                "DAVIS 2016 val": {},
                "YouTube-VOS 2018 val": {"suffix": "_y", "extends": ["p/one"], "set": {"seed_everything": 1}},
            },
            "tables": {
                3: {
                    "checkpoint_of": "p_one",
                    "extends": ["p/_base"],
                    "departs": "less data",
                    "rows": {
                        "beta": {
                            "row": "beta 10",
                            "set": {"model.init_args.network.init_args.scale": 3.0},
                            "published": {"DAVIS 2016 val": {"J&F": 85.9, "fps": 14.1}, "YouTube-VOS 2018 val": {"G": 78.2}},
                        }
                    },
                }
            },
            "others": {"static": {"extends": ["p/one"], "set": {"trainer.max_steps": 1}, "description": "Another"}},
        },
    }
    for name, content in files.items():
        put(place / f"{name}.yaml", to_yaml(content))
    with _experiments_at(folder / "experiments"):
        one = load_experiment("p_one")
        identity = training_identity(one)
    start = {"date": "2026-01-01", "commit": {"id": "abcdef0123456", "changed": False}, "hardware": "a card", "departures": []}
    record = {
        "experiment": "p_one",
        "fingerprint": one.fingerprint,
        "identity": identity,
        "start": None,
        "seed": [0, 0],
        "data": "Synthetic",
        "train_items": [2],
        "batch_size": 1,
        "max_steps": 1,
        "initial": None,
        "starts": [{**start, "from_step": 0, "torch": "2.11"}],
        "steps": 1,
        "finished": "2026-01-01",
    }
    trained = {"checkpoint": "runs/p_one/checkpoints/last.ckpt", "weights": "last", "step": 1, "run": record}
    row = {"video": "v", "object_id": 1, "J": 0.7, "J_recall": 0.8, "J_decay": 0.0, "F": 0.7, "F_recall": 0.8, "F_decay": 0.1}
    scores = {
        "experiment": "p_one",
        "fingerprint": one.fingerprint,
        "checkpoint": trained["checkpoint"],
        "weights": "last",
        "protocol": "DAVIS 2017 semi-supervised: first and last frame skipped, 61 objects in 30 videos",
        "summary": {"J&F": 0.75, "J": 0.7},
        "rows": [row],
        "baselines": {"copy": {"J&F": 0.5}},
        "baseline_rows": {"copy": [row]},
        "evaluation": {
            "date": "2026-01-02",
            "commit": start["commit"],
            "hardware": "a card",
            "data": "Synthetic",
            "departures": [],
            "trained": trained,
        },
    }
    server = {
        "experiment": "p_beta_y",
        "dataset": "YouTube-VOS 2018 val",
        "date": "2026-01-03",
        "metrics": {"G": 78.0},
        "checkpoint": trained["checkpoint"],
    }
    run = folder / "runs" / "p_one"
    put(run / "record.json", json.dumps(record, indent=1))
    put(run / "scores" / "test.json", json.dumps(scores, indent=1))
    put(run / "scores" / "server.json", json.dumps(server, indent=1))
    put(run / "finished", "1\n")
    put(run / "checkpoints" / "last.ckpt", checkpoint(None))
    put(run / "experiment.yaml", to_yaml({"experiment": "p_one", "config": {}, "overrides": []}))
    stages = {"experiment": "p_staged", "hand_over": "last"}
    listed = [{"experiment": "p_one", "identity": identity, "run": "../p_one"}]
    put(folder / "runs" / "p_staged" / "stages.json", json.dumps({**stages, "stages": listed}))


def _evaluation(folder: Path) -> None:
    for video in ("v1", "v2"):
        for t in range(4):
            label_map = make_label_map(height=30, width=45)
            write_label_map(folder / "truth" / video / f"{t:05d}.png", label_map)
            write_label_map(folder / "predictions" / video / f"{t:05d}.png", label_map.roll(t, 1))
    objects = {"1": {"category": "ape", "frames": ["00000", "00003"]}, "2": {"category": "bird", "frames": ["00000"]}}
    put(folder / "meta.json", json.dumps({"videos": {"v1": {"objects": objects}, "v2": {"objects": objects}}}))
    put(folder / "train.json", json.dumps({"videos": {"t": {"objects": {"1": {"category": "ape", "frames": ["00000"]}}}}}))
    put(folder / "videos.txt", "v1\nv2\n")


def _with_experiment(folder: Path, data: dict[str, Any]) -> None:
    put(folder / "experiments" / "p" / "one.yaml", to_yaml(experiment(data)))
    put(folder / "last.ckpt", checkpoint(None))


def _davis(folder: Path) -> None:
    write_davis_layout(folder / "data", 2, SCENE)
    _with_experiment(folder, data_section("davis.DAVISDataModule", root="data"))


def _youtube(folder: Path) -> None:
    write_youtube_vos_layout(folder / "data", 2, 1, YOUTUBE)
    _with_experiment(folder, data_section("youtube_vos.YouTubeVOSDataModule", root="data", num_held_out=1))


def _coco(folder: Path) -> None:
    write_coco(folder / "data", 2, SCENE)
    content = json.loads((folder / "data" / "instances.json").read_text())
    polygon = {"id": 9, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100.0, "segmentation": [[1, 1, 20, 1, 20, 20]]}
    counts = {**polygon, "id": 10, "segmentation": {"size": [32, 48], "counts": [0, 300, 1236]}}
    content["annotations"] += [polygon, counts]
    put(folder / "data" / "instances.json", json.dumps(content))
    arguments = {"annotation_file": "data/instances.json", "image_root": "data/images", "min_area": 1.0}
    _with_experiment(folder, data_section("coco.COCODataModule", **arguments))


def _folders(folder: Path) -> None:
    write_lvos_layout(folder / "data", "val", 1, SCENE)
    write_lvos_layout(folder / "data", "train", 1, SCENE)
    write_video_folders(folder / "own", "valid", 1, True, SCENE)
    _with_experiment(folder, data_section("video_folders.LVOSDataModule", root="data"))


def _stills(folder: Path) -> None:
    write_static_images(folder / "data", 2, SCENE)
    section = data_section("static_images.StaticImagesDataModule", image_root="data/images", mask_root="data/masks")
    _with_experiment(folder, section)


def _submission(folder: Path) -> None:
    videos = write_video_folders(folder / "data", "valid", 2, True, SCENE)
    for index, video in enumerate(videos):
        for stem, label_map in zip(video.frame_names or (), video.targets.values(), strict=True):
            write_label_map(folder / "predictions" / f"{index:08d}" / f"{stem}.png", label_map)


def _own(folder: Path) -> None:
    frames = make_frames(2, 30, 46)  # a video has even sides
    writer = VideoWriter(folder / "video.mp4", 5)
    for t, frame in enumerate(frames):
        write_image(folder / "frames" / f"{t:05d}.jpg", frame)
        writer.write(frame)
    writer.close()
    write_label_map(folder / "mask.png", make_label_map(width=46))
    write_label_map(folder / "masks" / "00000.png", make_label_map(width=46))
    write_label_map(folder / "masks" / "00001.png", make_label_map(width=46))
    put(folder / "last.ckpt", checkpoint())
    put(folder / "real.ckpt", _real_checkpoint())
    put(folder / "proposals.npz", _proposals())


def _real_checkpoint() -> bytes:
    """A checkpoint of a small system that reads proposals: the one of the smoke experiment."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    section: Any = load_experiment("dmn_aoa_smoke").config["model"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = parser.instantiate_classes(parser.parse_object({"model": section})).model
    buffer = io.BytesIO()
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {
            **section["init_args"],
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": section["class_path"],
        },
        "pytorch-lightning_version": "2.6.6",
        "epoch": 0,
        "global_step": 1,
    }
    torch.save(content, buffer)
    return buffer.getvalue()


def _proposals() -> bytes:
    from vos_lightning.proposals.store import ROW, VERSION

    rows = np.zeros(2, ROW)
    rows["box"], rows["score"], rows["mask"] = [[5, 4, 20, 14], [25, 12, 40, 28]], 0.9, 255
    about = {"generator": "fuzz", "frame_size": [30, 46], "version": VERSION, "frames": ["00000", "00001"], "counts": [2, 2]}
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"header": np.asarray(json.dumps(about)), "00000": rows, "00001": rows}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _released(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"module.Encoder_M.conv1.weight": torch.zeros(2, 2), "module.Decoder.pred2.bias": torch.zeros(2)}, buffer)
    put(folder / "weights.pth", buffer.getvalue())
    Image.new("RGB", (8, 8)).save(folder / "picture.jpg")


FAMILIES: dict[str, Callable[[Path], None]] = {
    "experiments": _experiments,
    "evaluation": _evaluation,
    "davis": _davis,
    "youtube": _youtube,
    "coco": _coco,
    "folders": _folders,
    "stills": _stills,
    "submission": _submission,
    "own": _own,
    "released": _released,
}
