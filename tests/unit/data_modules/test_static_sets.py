"""Published image sets in each of their layouts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from data_modules.clips.dataset import ClipDataset, ClipKey, Draw
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.static_images import objects_from_levels, voc_objects
from data_modules.datasets.static_sets import LAYOUTS, StaticSet, StaticSetDataModule, find_static_set
from tests.layouts import write_static_images, write_static_set
from vos_lightning.io.label_maps import read_label_map

RECIPE = ClipRecipe(num_frames=2, short_side=None, crop="none", max_objects=2, swap_probability=0.0)
CASES = [(dataset, layout) for dataset in get_args(StaticSet) for layout in range(len(LAYOUTS[dataset]))]


@pytest.mark.parametrize(("dataset", "layout"), CASES)
def test_every_layout_is_read(tmp_path: Path, dataset: StaticSet, layout: int) -> None:
    write_static_set(tmp_path / "set", dataset, 3, layout)
    (tmp_path / "set" / "readme.txt").touch()
    (tmp_path / "set" / "._0001.jpg").write_bytes(b"left by a file manager")
    write_static_images(tmp_path / "plain", 3)
    source = StaticSetDataModule(dataset, str(tmp_path / "set"), recipe=RECIPE).clip_source()
    assert len(source) == 3
    for index, (name, *_) in enumerate(source.pairs):
        number = int(name.split("/")[-1]) - 1
        true = read_label_map(tmp_path / "plain" / "masks" / f"{number:05d}.png").numpy()
        drawn = source.draw(index, np.random.default_rng(0), RECIPE).label_maps[0]
        if dataset == "voc2012":
            assert (drawn[:, 0] == 255).all()
            assert (drawn[:, 1] == 0).all()
            assert (drawn[:, 2:] == true[:, 2:]).all()
        elif dataset == "pascal-s":
            assert (drawn[:2] == 0).all()
            assert ((drawn[2:] > 0) == (true[2:] > 0)).all()
            assert drawn.max() == 2
        else:
            assert (drawn == (true > 0)).all()


def test_voc_has_lists(tmp_path: Path) -> None:
    write_static_set(tmp_path, "voc2012", 4)
    assert [name for name, *_ in find_static_set("voc2012", str(tmp_path), "train")] == ["0001", "0003"]
    write_static_set(tmp_path / "ecssd", "ecssd", 1)
    with pytest.raises(ValueError, match="ecssd has no list of a split 'train'"):
        find_static_set("ecssd", str(tmp_path / "ecssd"), "train")


def test_objects_from_levels_and_voc_ids() -> None:
    mask = np.array([[0, 100, 127, 128], [255, 200, 128, 255]], dtype=np.uint8)
    assert objects_from_levels(mask).tolist() == [[0, 0, 0, 1], [3, 2, 1, 3]]
    assert voc_objects(np.array([[0, 1, 20, 21, 254, 255]], dtype=np.uint8)).tolist() == [[0, 1, 20, 0, 0, 255]]


def test_sets_train(tmp_path: Path) -> None:
    write_static_set(tmp_path, "fss-1000", 2)
    module = StaticSetDataModule("fss-1000", str(tmp_path), recipe=RECIPE)
    sample = ClipDataset(module.clip_parts(), seed=0)[ClipKey(Draw(0, 1))]
    assert (sample.video_name, sample.object_ids) == ("class1/2", (1,))


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: pass --data\.init_args\.root of ecssd"):
        StaticSetDataModule("ecssd", str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"has no JPEGImages and SegmentationObject: pass .* of voc2012"):
        StaticSetDataModule("voc2012", str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match=r"has no \.png masks"):
        StaticSetDataModule("ecssd", str(tmp_path)).setup("fit")
