"""The clips of DMN-AOA, drawn: four frames in order with gaps of 1 to 5; images are warped smoothly and never turned over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from data_modules.clips.recipe import AffineRecipe, ClipRecipe
from data_modules.clips.sampling import choose_by_recipe
from tests.recipes.experiments import EXPERIMENTS

COCO = "data_modules.datasets.coco.COCODataModule"


def recipes_in(section: Any, owner: str = "") -> Iterator[tuple[str, ClipRecipe]]:
    """Every recipe of an experiment, with the class that it belongs to."""
    for value in section if isinstance(section, list) else []:
        yield from recipes_in(value, owner)
    if isinstance(section, dict):
        owner = section.get("class_path", owner)
        for key, value in section.items():
            if key == "recipe":
                affine = value.get("affine")
                warp = {k: tuple(v) if isinstance(v, list) else v for k, v in affine.items()} if affine else None
                yield owner, ClipRecipe(**{**value, "affine": AffineRecipe(**warp) if warp else None})
            else:
                yield from recipes_in(value, owner)


RECIPES = [
    pytest.param(owner, recipe, id=f"{name}-{owner.rpartition('.')[2]}")
    for name, experiment in EXPERIMENTS.items()
    if name.startswith("dmn_aoa_") and name.endswith(("_main", "_coco", "_c1"))
    for owner, recipe in recipes_in(experiment.config["data"])
]


def test_all_trainings_are_looked_at() -> None:
    assert len(RECIPES) > 20


@pytest.mark.parametrize(("owner", "recipe"), RECIPES)
def test_clips_are_those_of_the_paper(owner: str, recipe: ClipRecipe) -> None:
    assert recipe.num_frames == 4
    # The paper says nothing of these; EMVOS has them.
    assert recipe.vertical_flip_probability == recipe.reverse_probability == recipe.swap_probability == 0
    if owner == COCO:
        assert recipe.affine is not None
        assert recipe.affine.image_interpolation == "bicubic"
        return
    rng = np.random.default_rng(0)
    # The shortest training videos have 25 (DAVIS) and 20 (YouTube-VOS, as stored) frames.
    gaps = np.array([np.diff(choose_by_recipe(rng, 20, recipe)) for _ in range(1000)])
    assert set(gaps.flatten()) == {1, 2, 3, 4, 5}
    assert (np.abs(np.bincount(gaps.flatten())[1:] / gaps.size - 0.2) < 0.04).all()
