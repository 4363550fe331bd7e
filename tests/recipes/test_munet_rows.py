"""What every row of MUNet's tables is, transcribed from the paper and not from the experiments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_modules.clips.geometry import random_resized_box
from data_modules.doctor.known import KNOWN
from vos_lightning.app.composition import differing_keys, value_at
from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment

NETWORK = "model.init_args.network.init_args"
MOTION = f"{NETWORK}.motion"
STM = f"{NETWORK}.stm.init_args"
LETTER = {"sign": -1, "temperature": 1.0, "normalize": False, "out_of_frame": "zero"}
BEST_MATCH = {"sign": 1, "temperature": 0.02, "normalize": True, "out_of_frame": "mean"}
D17, Y18 = "DAVIS 2017 val", "YouTube-VOS 2018 val"
IMAGENET, MASK_RCNN = "IMAGENET1K_V1", "MASK_RCNN_COCO_V1"

# Name -> training stages, J&F, J and F of Table 2.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[float, float, float]]] = {
    "protocol1": ((), (75.0, 72.4, 77.8)),
    "protocol1_v2": ((), (76.5, 74.5, 78.5)),
    "protocol2": ((), (81.1, 78.3, 83.9)),
    "protocol3_1": (("static", "protocol1"), (78.1, 74.7, 81.4)),
    "protocol3_2": (("static", "protocol2"), (81.9, 79.2, 84.6)),
}
# Letter -> whether there is motion, whether there is uncertainty, fusion, loss, and the scores of Table 4.
ABLATION: dict[str, tuple[bool, bool, str, str, tuple[float, float, float]]] = {
    "a": (False, False, "attention", "cross_entropy", (76.5, 74.5, 78.4)),
    "b": (False, False, "attention", "bootstrapped+iou", (78.6, 76.2, 80.9)),
    "c": (True, True, "attention", "cross_entropy", (78.0, 75.9, 80.1)),
    "d": (True, False, "attention", "bootstrapped+iou", (79.7, 76.9, 82.5)),
    "e": (True, True, "attention", "bootstrapped+iou", (81.1, 78.3, 83.9)),
    "f": (True, True, "addition", "bootstrapped+iou", (80.1, 77.9, 82.3)),
    "g": (True, True, "attention", "bootstrapped+iou", (81.1, 78.3, 83.9)),
}
# Name -> the training that it evaluates, G, J seen, J unseen, F seen, F unseen of Table 3.
YOUTUBE = {
    "youtube_vos18": ("protocol2", (77.4, 78.5, 70.6, 82.7, 77.9)),
    "youtube_vos18_static": ("protocol3_2", (80.3, 79.0, 75.1, 83.5, 83.4)),
}
# Departures of single factors.
FACTORS = {
    "protocol1": {"sign": "sign", "temperature": "temperature", "normalized": "normalize", "border": "out_of_frame"},
    "protocol1_match": {"sign": "sign", "temperature": "temperature", "cells": "normalize", "border": "out_of_frame"},
}
EITHER = pytest.mark.parametrize(("suffix", "displacement"), [("", LETTER), ("_match", BEST_MATCH)])


def experiment(name: str) -> Experiment:
    return load_experiment(f"munet_{name}")


def trained(one: Experiment) -> Experiment:
    """The last training behind an experiment."""
    while one.checkpoint_of or one.stages:
        one = load_experiment(one.checkpoint_of or one.stages[-1])
    return one


def at(one: Experiment, key: str) -> Any:
    return value_at(one.config, key)


def displacement_of(one: Experiment) -> dict[str, Any]:
    return {name: at(one, f"{MOTION}.{name}") for name in LETTER}


def check_published(one: Experiment, dataset: str, names: tuple[str, ...], scores: tuple[float, ...], suffix: str) -> None:
    assert one.published["dataset"] == dataset
    assert one.published["metrics"] == dict(zip(names, scores, strict=True))
    assert bool(one.published.get("departs")) == bool(suffix)


# What holds for every training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["static", "protocol1", "protocol2", "ablation_a", "ablation_f", "protocol1_v2"])
def test_every_training_is_that_of_section_3_5(name: str) -> None:
    """Six frames of 400 x 400 of one sequence a step, AdamW at 2e-5 with decay 0.5, ResNet-50 twice, a mask of one channel."""
    one = experiment(name)
    optimisation = at(one, "model.init_args.optimisation")
    assert (optimisation["optimizer"], optimisation["learning_rate"], optimisation["weight_decay"]) == ("adamw", 2e-5, 0.5)
    assert at(one, "data.init_args.loading.batch_size") == 1
    recipe = at(one, "data.init_args.recipe")
    assert (recipe["num_frames"], recipe["crop"], recipe["crop_size"]) == (6, "random_resized", 400)
    assert recipe["horizontal_flip_probability"] > 0
    assert recipe["affine"]
    assert recipe["color"]
    if name != "static":
        assert (recipe["frame_choice"], recipe["max_gap"], recipe["reverse_probability"]) == ("inside", 1, 0.0)
    assert at(one, "model.init_args.hardest_fraction") == 0.4
    # Not stated: the memory of AFB-URR's training and of STM's inference.
    assert at(one, "model.init_args.train_memory") == "reference"
    assert at(one, "model.init_args.memory_stride") == 5
    assert at(one, "model.init_args.iou_weight") in (None, 1.0)  # its default is 1
    assert at(one, f"{STM}.mask_encoder.init_args.others") is None
    expected = MASK_RCNN if name == "protocol1_v2" else IMAGENET
    for encoder in (f"{STM}.backbone", f"{STM}.mask_encoder.init_args.trunk"):
        resnet = at(one, f"{encoder}.init_args")
        assert (resnet["block"], resnet["blocks"], resnet["last"]) == ("bottleneck", [3, 4, 6, 3], "layer3")
        assert resnet["weights"] == expected


def images(release: str) -> int:
    return next(known.videos for known in KNOWN if known.release == release and known.split in ("images", "trainval", "train"))


def test_an_epoch_is_one_pass_over_the_data() -> None:
    """Section 4.1: 17 hours and 25 minutes an epoch are 0.45 and 0.42 seconds a clip, if an epoch shows everything once.

    Of COCO 117,266 and 4,952 images are annotated. Protocol (1) does not fit, as 60 clips take no 12 minutes.
    """
    pictures = 117_266 + 4_952 + sum(map(images, ("MSRA10K", "ECSSD", "PASCAL-S", "PASCAL VOC 2012")))
    videos = images("DAVIS 2017") + images("YouTube-VOS 2018")
    assert 17 * 3600 / pictures == pytest.approx(25 * 60 / videos, rel=0.06)
    steps = {name: at(experiment(name), "trainer.max_steps") for name in ("static", "protocol1", "protocol2")}
    assert steps["static"] == pytest.approx(9 * pictures, rel=1e-3)
    assert 6 <= 9 * 17 / 24 <= 7
    assert steps["protocol2"] == 150 * videos
    assert steps["protocol1"] == 1000 * images("DAVIS 2017")
    assert at(experiment("protocol2"), "data.init_args.repeats") == [1, 1]
    assert set(at(experiment("static"), "data.init_args.repeats")) == {1}


@pytest.mark.parametrize(("name", "epochs", "halved"), [("static", 9, 3), ("protocol1", 1000, 200), ("protocol2", 150, 30)])
def test_the_rate_is_halved_as_in_afb_urr(name: str, epochs: int, halved: int) -> None:
    schedule = at(experiment(name), "model.init_args.optimisation.schedule")
    assert (schedule["kind"], schedule["factor"]) == ("exponential", 0.5)
    assert schedule["period"] == at(experiment(name), "trainer.max_steps") * halved // epochs


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("static", [(480, 640), (640, 480), (333, 500), (300, 400), (375, 500), (400, 400)]),
        ("protocol1", [(480, 854), (480, 910)]),
        ("protocol2", [(480, 854), (720, 1280), (1280, 720)]),
    ],
)
def test_frames_are_randomly_resized_and_cropped(name: str, sizes: list[tuple[int, int]]) -> None:
    """Section 3.5. A thousand boxes in frames of usual sizes differ, and none is the centre box of a range that cannot be."""
    recipe = at(experiment(name), "data.init_args.recipe")
    (low, high), ratio = recipe["crop_area"], tuple(recipe["crop_ratio"])
    rng = np.random.default_rng(0)
    for height, width in sizes:
        boxes = [random_resized_box(rng, height, width, (low, high), ratio, recipe["crop_attempts"]) for _ in range(1000)]
        shares = [box[2] * box[3] / (height * width) for box in boxes]
        assert len(set(boxes)) > 950
        assert low - 0.01 <= min(shares)
        assert max(shares) <= high + 0.01
        assert max(shares) - min(shares) > 0.1
        assert all(ratio[0] - 0.02 <= box[2] / box[3] <= ratio[1] + 0.02 for box in boxes)
        assert len({box[:2] for box in boxes}) > 500


# Tables ---------------------------------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_table_2(name: str, suffix: str, displacement: dict[str, Any]) -> None:
    stages, scores = PROTOCOLS[name]
    one = experiment(name + suffix)
    check_published(one, D17, ("J&F", "J", "F"), scores, suffix)
    assert one.stages == tuple(f"munet_{stage}{suffix}" for stage in stages)
    for stage in map(load_experiment, one.stages or [one.name]):
        assert displacement_of(stage) == displacement
        assert at(stage, f"{MOTION}.uncertainty") == "maximum"
        assert at(stage, f"{MOTION}.window") == 25
        assert at(stage, f"{NETWORK}.fusion") == "attention"
        assert at(stage, "model.init_args.loss") == "bootstrapped+iou"
    members = at(trained(one), "data.init_args.train")
    found = {member["class_path"].rsplit(".", 1)[1] for member in members or []}
    assert found == ({"DAVISDataModule", "YouTubeVOSDataModule"} if "2" in name.removesuffix("_v2") else set())


@EITHER
@pytest.mark.parametrize("name", sorted(YOUTUBE))
def test_table_3(name: str, suffix: str, displacement: dict[str, Any]) -> None:
    source, scores = YOUTUBE[name]
    one = experiment(name + suffix)
    check_published(one, Y18, ("G", "J_seen", "J_unseen", "F_seen", "F_unseen"), scores, suffix)
    assert one.checkpoint_of == f"munet_{source}{suffix}"
    assert displacement_of(one) == displacement
    # "We use the raw image size during inference" (section 3.5), "every 5 interval frames" (section 4.1).
    assert at(one, "model.init_args.evaluation.short_side") is None
    assert at(one, "data.init_args.frames") == "6fps"


@EITHER
@pytest.mark.parametrize("letter", sorted(ABLATION))
def test_table_4(letter: str, suffix: str, displacement: dict[str, Any]) -> None:
    motion, uncertainty, fusion, loss, scores = ABLATION[letter]
    if suffix and not motion:
        assert f"munet_ablation_{letter}_match" not in experiment_files()
        return
    one = experiment(f"ablation_{letter}{suffix}")
    check_published(one, D17, ("J&F", "J", "F"), scores, suffix)
    one = trained(one)
    assert at(one, "model.init_args.loss") == loss
    assert at(one, f"{NETWORK}.fusion") == fusion
    assert (at(one, MOTION) is not None) == motion
    if motion:
        assert displacement_of(one) == displacement
        assert at(one, f"{MOTION}.uncertainty") == ("maximum" if uncertainty else None)
    # All of them train as protocol (2), and differ in what the row says alone.
    allowed = (MOTION, f"{NETWORK}.fusion", "model.init_args.loss")
    different = differing_keys(experiment("protocol2").config, one.config)
    assert all(key.startswith(allowed) for key in different)


@pytest.mark.parametrize("base", sorted(FACTORS))
def test_variants_differ_in_one_factor(base: str) -> None:
    other = BEST_MATCH if base == "protocol1" else LETTER
    for name, key in FACTORS[base].items():
        one = experiment(f"{base}_{name}")
        assert differing_keys(experiment(base).config, one.config) == [f"{MOTION}.{key}"]
        assert at(one, f"{MOTION}.{key}") == other[key]
        assert not one.published
    assert set(FACTORS[base].values()) == set(LETTER)
