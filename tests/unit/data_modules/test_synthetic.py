"""Synthetic scenes: the same for the same numbers, exact, and not solved by copying the first mask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from data_modules.base import VOSDataModule
from data_modules.clips.proposals import ProposalVideos
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.scenes import SceneRecipe
from data_modules.datasets.synthetic import (
    DEFAULT_SCENE,
    TEST,
    TRAIN,
    VAL,
    SyntheticClips,
    SyntheticDataModule,
    SyntheticVideos,
    make_scene,
)
from data_modules.videos import LazyVideos, RecordVideos
from tests.oracles.clips import copying_first_mask

SMALL = SceneRecipe(height=64, width=96, num_frames=12)


def test_scenes_depend_on_their_numbers_only() -> None:
    first, again = make_scene(0, VAL, 1, SMALL), make_scene(0, VAL, 1, SMALL)
    frames, label_maps = first.render(range(12))
    some, some_maps = again.render([7, 3])
    assert (frames[[7, 3]] == some).all()
    assert (label_maps[[7, 3]] == some_maps).all()
    for seed, split, index in ((1, VAL, 1), (0, TEST, 1), (0, TRAIN, 1), (0, VAL, 2)):
        assert (make_scene(seed, split, index, SMALL).render([0])[0] != some[:1]).any()


def test_copying_the_first_mask_scores_low() -> None:
    scores = [
        copying_first_mask([video.targets[t].numpy() for t in range(len(video.frames))], object_id)
        for video in SyntheticVideos(12)
        for object_id in video.object_ids
    ]
    assert np.mean(scores) < 0.45
    assert np.mean(scores) > 0.05  # but objects do not jump either


def test_every_object_is_seen_in_its_first_frame_and_mostly_afterwards() -> None:
    for video in SyntheticVideos(6, TEST, SMALL):
        assert list(video.annotations) == [0]
        assert video.object_ids == tuple(range(1, len(video.object_ids) + 1))
        for object_id in video.object_ids:
            areas = [int((video.targets[t] == object_id).sum()) for t in range(12)]
            assert areas[0] >= SMALL.min_pixels
            assert np.mean([area > 0 for area in areas]) > 0.6


def test_masks_are_where_the_texture_is() -> None:
    # Without a difference in texture, an object's pixels would change between scenes that differ in nothing else.
    plain = dataclasses.replace(SMALL, num_objects=(1, 1), num_distractors=0)
    strong = dataclasses.replace(plain, contrast=90.0)
    for index in range(4):
        frames, label_maps = make_scene(0, VAL, index, plain).render([0])
        other, other_maps = make_scene(0, VAL, index, strong).render([0])
        assert (label_maps == other_maps).all()
        changed = (frames != other).any(-1)
        inside = label_maps > 0
        assert changed[inside].mean() > 0.95
        assert changed[~inside].mean() < 0.05  # a rim of the blur


def test_late_objects_are_given_when_they_appear() -> None:
    scene = dataclasses.replace(SMALL, num_objects=(3, 3), late_probability=1.0)
    late = 0
    for video in SyntheticVideos(4, VAL, scene):
        assert 1 in torch.unique(video.annotations[0]).tolist()
        for object_id in video.object_ids:
            first = next(t for t in range(12) if (video.targets[t] == object_id).any())
            assert torch.equal(video.annotations[first] == object_id, video.targets[first] == object_id)
            assert all(t == first or not (m == object_id).any() for t, m in video.annotations.items())
            late += first > 0
    assert late >= 4


def test_clips_are_frames_of_their_scene() -> None:
    source = SyntheticClips(3, SMALL)
    recipe = ClipRecipe(num_frames=4, max_gap=2, short_side=None, crop="none")
    clip = source.draw(2, np.random.default_rng(0), recipe)
    frames, label_maps = make_scene(0, TRAIN, 2, SMALL).render(clip.frame_indices)
    assert (clip.frames == frames).all()
    assert (clip.label_maps == label_maps).all()
    assert clip.label_maps[0].any()


def test_impossible_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"20 objects do not fit into 16x16: lower scene\.num_objects"):
        make_scene(0, VAL, 0, SceneRecipe(height=16, width=16, num_frames=2, num_objects=(20, 20)))
    with pytest.raises(ValueError, match=r"scene\.num_objects must be"):
        SceneRecipe(num_objects=(0, 2))


def test_rendering_is_fast() -> None:
    SyntheticVideos(1)[0]
    start = time.process_time()
    frames = sum(len(SyntheticVideos(4)[i].frames) for i in range(4))
    assert frames / (time.process_time() - start) > 100  # several hundred on an idle core, without the type checks of tests


def test_data_modules_are_configured_from_plain_values() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VOSDataModule, "data")
    mixture = {
        "class_path": "data_modules.datasets.mixed.MixedDataModule",
        "init_args": {
            "repeats": [1, 2],
            "train": [
                {
                    "class_path": "data_modules.datasets.static_images.StaticImagesDataModule",
                    "init_args": {
                        "image_root": "a",
                        "mask_root": "b",
                        "recipe": {"num_frames": 3, "affine": {"degrees": 20, "scale": [0.8, 1.25]}, "color": {"hue": 0}},
                    },
                },
                {
                    "class_path": "data_modules.datasets.davis.DAVISDataModule",
                    "init_args": {"root": "c", "year": 2016, "recipe": {"num_frames": 3, "reverse_probability": 0}},
                },
            ],
            "evaluation": {
                "class_path": "data_modules.datasets.synthetic.SyntheticDataModule",
                "init_args": {"scene": {"num_objects": [1, 2]}, "recipe": {"num_frames": 8}},
            },
        },
    }
    module = parser.instantiate(parser.parse_object({"data": mixture})).data
    first, second = module.train_modules
    assert first.recipe.affine.scale == (0.8, 1.25)
    assert first.recipe.affine.accumulate is True
    assert second.recipe.reverse_probability == 0
    assert module.recipe.num_frames == 3
    assert module.evaluation.scene == dataclasses.replace(DEFAULT_SCENE, num_objects=(1, 2))
    assert module.evaluation.recipe.crop == "none"  # unset values keep the defaults of their data module


def test_videos_are_made_when_they_are_asked_for() -> None:
    """No sequences: checks of types would make some item, and fail where that one is broken."""
    for kind in (SyntheticVideos, RecordVideos, ProposalVideos):
        assert not issubclass(kind, Sequence)
        assert issubclass(kind, LazyVideos)
    videos = SyntheticVideos(2, scene=SceneRecipe(height=40, width=48, num_frames=2))
    assert [video.name for video in videos] == ["synthetic-val-00000", "synthetic-val-00001"]


@pytest.mark.parametrize(("processes", "expected"), [(1, ["01234"]), (2, ["024", "13"]), (6, ["0", "1", "2", "3", "4", "0"])])
def test_processes_share_the_videos(processes: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost or done twice, and no process is without one: the others would wait for it for ever."""
    data = SyntheticDataModule(num_val_videos=5, num_test_videos=5, scene=SceneRecipe(height=16, width=16, num_frames=2))
    data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, use_distributed_sampler=False)
    monkeypatch.setattr(Trainer, "world_size", processes)
    for rank, videos in enumerate(expected):
        monkeypatch.setattr(Trainer, "global_rank", rank)
        for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
            assert "".join(video.name[-1] for video in loader) == videos
            assert len(loader) == len(videos)
