"""Every shared data fragment builds, and those that follow released code say what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_modules.clips.recipe import ClipRecipe
from tests.recipes.experiments import without_pretrained
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build

FRAGMENTS = {
    "davis16": [],
    "davis17_youtube_vos18": ["munet_clips"],
    "youtube_vos18": ["munet_independent_clips"],
    "youtube_vos19": ["munet_clips"],
    "afb_urr_static": ["munet_static_clips"],
    "stcn_static": [],
    "stcn_main": [],
}


def built(name: str, tmp_path: Path) -> Any:
    """Data module of a fragment under EMVOS."""
    extends = ["emvos/_emvos", *(f"_shared/{each}" for each in (name, *FRAGMENTS[name]))]
    content = {"extends": extends, "trainer": {"max_steps": 5, "accelerator": "cpu"}, "wandb": {"mode": "disabled"}}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(content))
    experiment = load_experiment(str(path))
    return build(experiment, Run(tmp_path), without_pretrained(experiment), "fit").datamodule


@pytest.mark.parametrize("name", [name for name in sorted(FRAGMENTS) if not name.startswith("stcn_")])
def test_fragments_build(name: str, tmp_path: Path) -> None:
    module = built(name, tmp_path)
    if FRAGMENTS[name]:
        assert module.recipe.num_frames == 6
        assert module.recipe.crop_size == 400
        assert module.recipe.crop_per_frame == (FRAGMENTS[name] == ["munet_independent_clips"])


def test_every_data_fragment_is_built_here() -> None:
    folder = experiments_folder() / "_shared"
    with_data = {path.stem for path in folder.glob("*.yaml") if "class_path" in yaml.safe_load(path.read_text()).get("data", {})}
    recipes = {path.stem for path in folder.glob("munet_*.yaml")}
    tested = set(FRAGMENTS) | {each for more in FRAGMENTS.values() for each in more}
    assert (with_data | recipes) - {"davis17", "bsds_davis16", "bsds_davis16_small", "lite"} <= tested


def test_stm_main() -> None:
    """Gaps of up to 25 stored frames in both sets, and windows that reach native scale in both."""
    arguments = load_experiment("stm_main").config["data"]["init_args"]
    gaps = tuple(map(tuple, arguments["recipe"]["gap_curriculum"]))
    recipe = ClipRecipe(**{**arguments["recipe"], "gap_curriculum": gaps})
    assert (recipe.crop, recipe.crop_size, recipe.short_side) == ("rescaled", 384, None)
    shares = (0.0, 0.0999, 0.1, 0.25, 0.35, 0.4, 0.5, 0.9999)
    for step in arguments["frame_steps"]:
        assert [recipe.in_steps_of(step).at(share).max_gap for share in shares] == [1, 1, 5, 10, 15, 20, 25, 25]


def test_stcn_main(tmp_path: Path) -> None:
    module = built("stcn_main", tmp_path)
    davis, youtube = module.recipes
    shares = (0.0, 0.0999, 0.1, 0.25, 0.35, 0.4, 0.8999, 0.9, 0.9999)
    assert [davis.at(share).max_gap for share in shares] == [5, 5, 10, 15, 20, 25, 25, 5, 5]
    assert [youtube.at(share).max_gap for share in shares] == [1, 1, 2, 3, 4, 5, 5, 1, 1]
    assert module.repeats == [5, 1]
    assert module.train_modules[1].train_subset == "stcn"
    assert davis.frame_affine.scale == (1.0, 1.0)
    assert (module.loading.batch_size, davis.max_objects, davis.crop_size) == (8, 2, 384)


def test_stcn_static(tmp_path: Path) -> None:
    module = built("stcn_static", tmp_path)
    assert [member.dataset for member in module.train_modules] == ["fss-1000", "duts-tr", "duts-te", "ecssd", "big", "hrsod"]
    assert module.repeats == [1, 1, 1, 1, 5, 5]
    assert module.recipe.thin_plate is not None
    assert module.recipe.thin_plate.num_points == 12
    assert module.recipe.affine.shared
