"""Still images as clips: folders, COCO, and mixtures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.base import Loading
from data_modules.clips.dataset import ClipDataset, ClipKey, Draw
from data_modules.clips.recipe import AffineRecipe, ClipRecipe
from data_modules.datasets.coco import CocoClips, COCODataModule, paint_instances
from data_modules.datasets.mixed import MixedDataModule
from data_modules.datasets.static_images import ImageClips, StaticImagesDataModule, find_pairs
from data_modules.datasets.synthetic import SyntheticDataModule
from tests.layouts import SMALL_SCENE, write_coco, write_static_images
from tests.unit.data_modules.helpers import Recorder, trainer
from vos_lightning.io.label_maps import read_label_map, write_label_map

# pycocotools on newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

RECIPE = ClipRecipe(
    num_frames=3,
    short_side=None,
    crop="balanced",
    crop_size=32,
    min_object_pixels=16,
    max_objects=2,
    affine=AffineRecipe(),
    swap_probability=0.5,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_static_images(tmp_path, 4)
    return tmp_path


def static(root: Path, **kwargs: object) -> StaticImagesDataModule:
    return StaticImagesDataModule(str(root / "images"), str(root / "masks"), **{"recipe": RECIPE, **kwargs})


def test_a_clip_of_an_image_drifts(images: Path) -> None:
    dataset = ClipDataset(static(images).clip_parts(), seed=0)
    assert len(dataset) == 4
    sample = dataset[ClipKey(Draw(0, 2))]
    assert sample.video_name == "00002"
    assert sample.frame_indices == (0, 0, 0)
    assert not torch.equal(sample.frames[0], sample.frames[1])
    assert (sample.label_maps > 0).flatten(1).any(1).all()


def test_images_without_an_object_are_drawn_again(images: Path) -> None:
    write_label_map(images / "masks" / "00001.png", torch.zeros(48, 80, dtype=torch.uint8))
    source = static(images).clip_source()
    names = {source.draw(1, np.random.default_rng(seed), RECIPE).video_name for seed in range(20)}
    assert names == {"00000", "00002", "00003"}


def test_grey_masks_are_thresholded_and_folders_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:30, 10:30] = 200
    mask[30] = 90
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "class" / "a.jpg")
    Image.fromarray(mask).save(tmp_path / "class" / "a.png")
    Image.new("L", (40, 40)).save(tmp_path / "class" / "._a.png")
    pairs = find_pairs(str(tmp_path), str(tmp_path))
    assert [name for name, _, _ in pairs] == ["class/a"]
    clip = ImageClips(pairs, threshold=127).draw(0, np.random.default_rng(0), RECIPE)
    assert int((clip.label_maps[0] == 1).sum()) == 400
    assert clip.label_maps.max() == 1


def test_broken_image_folders(images: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: pass --data\.init_args\.mask_root"):
        StaticImagesDataModule(str(images / "images"), str(images / "nowhere")).setup("fit")
    write_label_map(images / "masks" / "00003.png", torch.ones(10, 80, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"00003\.png is 10x80 but .*00003\.jpg is 48x80"):
        static(images).clip_source().draw(3, np.random.default_rng(0), RECIPE)
    (images / "images" / "00001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no image 00001 for the mask"):
        static(images).setup("fit")
    shutil.rmtree(images / "masks")
    (images / "masks").mkdir()
    with pytest.raises(ValueError, match=r"has no \.png masks"):
        static(images).setup("fit")


# COCO -----------------------------------------------------------------------------------------------------------------


def coco_clips(root: Path, **kwargs: object) -> CocoClips:
    return CocoClips(str(root / "instances.json"), str(root / "images"), **{"min_area": 20.0, **kwargs})


def test_coco_instances_become_label_maps(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", 3)
    write_static_images(tmp_path / "static", 3)
    source = coco_clips(tmp_path / "coco")
    assert len(source) == 3
    for index in range(3):
        clip = source.draw(index, np.random.default_rng(0), RECIPE)
        assert clip.video_name == f"{index + 1:012d}"
        expected = read_label_map(tmp_path / "static" / "masks" / f"{index:05d}.png").numpy()
        assert (clip.label_maps == expected).all()
        assert clip.frames.shape == (3, 48, 80, 3)


def test_polygons_and_runs_are_painted_in_order() -> None:
    polygon = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0], [20.0, 2.0, 25.0, 2.0, 25.0, 7.0, 20.0, 7.0]]
    runs = {"size": [16, 32], "counts": [8 * 16, 4 * 16, (32 - 12) * 16]}  # columns 8..11
    label_map = paint_instances([polygon, runs], 16, 32)
    expected = np.zeros((16, 32), dtype=np.uint8)
    expected[2:12, 2:12] = 1
    expected[2:7, 20:25] = 1
    expected[:, 8:12] = 2
    assert (label_map == expected).all()


def test_crowds_and_small_instances_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, 3)
    content = json.loads((tmp_path / "instances.json").read_text())
    first, second, third = ([a for a in content["annotations"] if a["image_id"] == image] for image in (1, 2, 3))
    for annotation in first:
        annotation["area"] = 19.0
    for annotation in second[1:]:
        annotation["iscrowd"] = 1
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = coco_clips(tmp_path)
    assert len(source) == 2  # the first image has nothing left
    assert source.draw(0, np.random.default_rng(0), RECIPE).label_maps.max() == 1
    assert coco_clips(tmp_path, exclude_crowd=False).draw(0, np.random.default_rng(0), RECIPE).label_maps.max() == len(second)
    assert len(third) == SMALL_SCENE.num_objects[1]


def test_broken_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, 1)
    with pytest.raises(ValueError, match="no instances of at least"):
        coco_clips(tmp_path, min_area=1e6)
    with pytest.raises(FileNotFoundError, match=r"other\.json does not exist: pass --data\.init_args\.annotation_file"):
        COCODataModule(str(tmp_path / "other.json"), str(tmp_path / "images")).setup("fit")
    (tmp_path / "captions.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"captions\.json: .* this is not a file of COCO instances"):
        COCODataModule(str(tmp_path / "captions.json"), str(tmp_path / "images")).setup("fit")
    (tmp_path / "images" / "000000000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000001\.jpg"):
        coco_clips(tmp_path).draw(0, np.random.default_rng(0), RECIPE)


# Mixtures -------------------------------------------------------------------------------------------------------------


def synthetic(**kwargs: object) -> SyntheticDataModule:
    arguments = {"num_train_videos": 3, "num_val_videos": 1, "num_test_videos": 2, "scene": SMALL_SCENE}
    return SyntheticDataModule(**{**arguments, "recipe": dataclasses.replace(RECIPE, affine=None), **kwargs})


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_mixture_trains_on_all_and_evaluates_one(images: Path) -> None:
    videos = synthetic()
    mixture = MixedDataModule([static(images), videos], [2, 1], videos, loading=Loading(batch_size=11, num_workers=0))
    dataset = ClipDataset(mixture.clip_parts(), seed=0)
    names = [dataset[ClipKey(Draw(0, i))].video_name for i in range(len(dataset))]
    assert names == [f"{i:05d}" for i in range(4)] * 2 + [f"synthetic-train-{i:05d}" for i in range(3)]
    assert not torch.equal(dataset[ClipKey(Draw(0, 0))].frames, dataset[ClipKey(Draw(0, 4))].frames)
    module = Recorder()
    trainer(images, max_steps=2, val_check_interval=1).fit(module, datamodule=mixture)
    assert len(module.batches) == 2
    assert module.videos == ["synthetic-val-00000"] * 2


def test_a_mixture_may_have_one_recipe_for_all(images: Path) -> None:
    other = synthetic(recipe=dataclasses.replace(RECIPE, num_frames=5))
    recipe = dataclasses.replace(RECIPE, max_gap=12)
    mixture = MixedDataModule([static(images), other, other], [2, 1, 1], other, recipe=recipe, frame_steps=[1, 5, 20])
    assert [part[1].max_gap for part in mixture.clip_parts()] == [12, 12, 2, 1]
    assert {part[1].num_frames for part in mixture.clip_parts()} == {3}
    assert mixture.recipe.max_objects == recipe.max_objects
    with pytest.raises(ValueError, match=r"frame_steps must give a positive number for each of the 1 .* \[1, 0\]"):
        MixedDataModule([other], [1], other, recipe=recipe, frame_steps=[1, 0])
    with pytest.raises(ValueError, match="frame_steps divide the gaps of recipe"):
        MixedDataModule([other], [1], other, frame_steps=[5])


def test_mixtures_must_agree(images: Path) -> None:
    other = synthetic(recipe=dataclasses.replace(RECIPE, num_frames=5))
    with pytest.raises(ValueError, match=r"recipe\.num_frames must be the same .* \[3, 5\]"):
        MixedDataModule([static(images), other], [1, 1], other)
    with pytest.raises(ValueError, match="repeats must give a positive number"):
        MixedDataModule([static(images)], [1, 2], other)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_images_alone_train_without_validation(images: Path) -> None:
    module = Recorder()
    trainer(images, max_steps=2, val_check_interval=1).fit(
        module, datamodule=static(images, loading=Loading(batch_size=2, num_workers=0))
    )
    assert len(module.batches) == 2
    assert module.videos == []
