"""Lengths and crops of MUNet's trainings, derived; what the paper states is compared in ``tests/facts``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_modules.clips.geometry import random_resized_box
from data_modules.doctor.known import KNOWN
from vos_lightning.app.composition import value_at
from vos_lightning.app.experiments import load_experiment


def at(name: str, key: str) -> Any:
    return value_at(load_experiment(f"munet_{name}").config, key)


def images(release: str) -> int:
    return next(known.videos for known in KNOWN if known.release == release and known.split in ("images", "trainval", "train"))


def test_an_epoch_is_one_pass_over_the_data() -> None:
    """Section 4.1: 17 hours and 25 minutes an epoch are 0.45 and 0.42 seconds a clip, if an epoch shows everything once.

    Of COCO 117,266 and 4,952 images are annotated. Protocol (1) does not fit, as 60 clips take no 12 minutes.
    """
    pictures = 117_266 + 4_952 + sum(map(images, ("MSRA10K", "ECSSD", "PASCAL-S", "PASCAL VOC 2012")))
    videos = images("DAVIS 2017") + images("YouTube-VOS 2018")
    assert 17 * 3600 / pictures == pytest.approx(25 * 60 / videos, rel=0.06)
    steps = {name: at(name, "trainer.max_steps") for name in ("static", "protocol1", "protocol2")}
    assert steps["static"] == pytest.approx(9 * pictures, rel=1e-3)
    assert 6 <= 9 * 17 / 24 <= 7
    assert steps["protocol2"] == 150 * videos
    assert steps["protocol1"] == 1000 * images("DAVIS 2017")


@pytest.mark.parametrize(("name", "epochs", "halved"), [("static", 9, 3), ("protocol1", 1000, 200), ("protocol2", 150, 30)])
def test_the_rate_is_halved_as_in_afb_urr(name: str, epochs: int, halved: int) -> None:
    period = at(name, "model.init_args.optimisation.schedule.period")
    assert period == at(name, "trainer.max_steps") * halved // epochs


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
    recipe = at(name, "data.init_args.recipe")
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
