"""The same clips in the same order, for any number of workers, processes and restarts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.base import Loading, split_batch
from data_modules.clips.dataset import ClipBatchSampler, ClipDataset, ClipKey, Draw, collate_clips
from data_modules.clips.recipe import AffineRecipe, ClipRecipe, ColorRecipe
from data_modules.datasets.scenes import SceneRecipe
from data_modules.datasets.synthetic import SyntheticClips, SyntheticDataModule
from tests.unit.data_modules.helpers import Recorder, fingerprint, trainer
from vos_lightning.structures import ClipBatch

# Lightning 2.6.6 on newer torch, and checkpoints that are looked at twice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

SCENE = SceneRecipe(height=40, width=48, num_frames=6)
RECIPE = ClipRecipe(
    num_frames=2,
    short_side=None,
    crop="balanced",
    crop_size=32,
    min_object_pixels=16,
    max_objects=2,
    swap_probability=0.5,
    affine=AffineRecipe(),
    color=ColorRecipe(brightness=0.3, gray_probability=0.5),
)


def data_module(recipe: ClipRecipe = RECIPE, **kwargs: Any) -> SyntheticDataModule:
    loading = Loading(**{"batch_size": 2, "num_workers": 0, "seed": 3, **kwargs})
    return SyntheticDataModule(
        num_train_videos=5, num_val_videos=2, num_test_videos=3, scene=SCENE, recipe=recipe, loading=loading
    )


def fit(tmp_path: Path, **kwargs: Any) -> list[tuple[float, ...]]:
    module = Recorder()
    trainer(tmp_path).fit(module, datamodule=data_module(**kwargs))
    return module.batches


@pytest.mark.parametrize("num_workers", [1, 2])
def test_draws_do_not_depend_on_workers(tmp_path: Path, num_workers: int) -> None:
    assert fit(tmp_path, num_workers=num_workers) == fit(tmp_path, num_workers=0)


def test_draws_depend_on_the_seed_and_never_repeat(tmp_path: Path) -> None:
    # Six batches of two over five videos are more than two epochs; two workers used to repeat each other's draws.
    batches = fit(tmp_path, num_workers=2)
    assert len(batches) == 6
    means = [value for batch in batches for value in batch[:2]]
    assert len(set(means)) == len(means)
    assert fit(tmp_path, seed=4) != batches


def test_one_process_and_two_draw_the_same() -> None:
    def keys(rank: int, world_size: int) -> list[list[ClipKey]]:
        return list(ClipBatchSampler(7, 9, 6, seed=1, swap_probability=0.5, rank=rank, world_size=world_size))

    one, first, second = keys(0, 1), keys(0, 2), keys(1, 2)
    assert one == [a + b for a, b in zip(first, second, strict=True)]
    swapped = [batch for batch in one if batch[0].partner is not None]
    assert 0 < len(swapped) < 9
    for batch in swapped:
        assert [key.partner for key in batch] == [batch[j - 1].draw for j in range(6)]


@pytest.mark.parametrize(("world_size", "parts"), [(1, 2), (1, 6), (2, 3), (3, 1), (3, 2)])
def test_a_step_has_the_same_clips_however_it_is_split(world_size: int, parts: int) -> None:
    def steps(world_size: int, parts: int) -> list[list[ClipKey]]:
        ranks = [
            list(ClipBatchSampler(7, 9 * parts, 6, 1, 0.5, rank=rank, world_size=world_size, accumulate=parts))
            for rank in range(world_size)
        ]
        return [[key for part in range(parts) for rank in ranks for key in rank[step * parts + part]] for step in range(9)]

    assert steps(world_size, parts) == steps(1, 1)
    assert [step[0].progress for step in steps(world_size, parts)] == [step / 9 for step in range(9)]


def test_batches_are_split_into_parts_that_fit(tmp_path: Path) -> None:
    assert [split_batch(16, world_size, 4) for world_size in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert split_batch(12, 1, 5) == 3  # parts are equal
    assert split_batch(7, 1, 3) == 7
    with pytest.raises(ValueError, match=r"batch_size 6 .* not a multiple of 4 processes"):
        split_batch(6, 4, 1)
    with pytest.raises(ValueError, match="max_device_batch must be at least 1"):
        data_module(max_device_batch=0)


def test_a_split_training_sees_the_same_clips_and_ends_where_it_should(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    module, fit_trainer = Recorder(), trainer(tmp_path, val_check_interval=3)
    fit_trainer.fit(module, datamodule=data_module(max_device_batch=1))
    assert (fit_trainer.global_step, fit_trainer.accumulate_grad_batches) == (6, 2)
    pairs = zip(module.batches[::2], module.batches[1::2], strict=True)
    assert [one[:1] + other[:1] + one[1:] + other[1:] for one, other in pairs] == whole
    assert len(module.videos) == 4  # two validations of two videos, after steps 3 and 6
    fit_trainer.save_checkpoint(tmp_path / "split.ckpt")
    again = trainer(tmp_path, max_steps=8)
    with pytest.raises(ValueError, match="started with a batch in 2 parts, now in 1"):
        again.fit(Recorder(), datamodule=data_module(), ckpt_path=tmp_path / "split.ckpt", weights_only=True)
    with pytest.raises(
        ValueError, match=r"set either trainer\.accumulate_grad_batches or data\.init_args\.loading\.max_device_batch"
    ):
        trainer(tmp_path, accumulate_grad_batches=2).fit(Recorder(), datamodule=data_module(max_device_batch=1))


def test_gaps_follow_the_training_for_any_workers_and_after_a_restart(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, num_frames=2, max_gap=1, gap_curriculum=((0.5, 4),), reverse_probability=0.0)
    runs = []
    for num_workers in (0, 2):
        module = FrameRecorder()
        trainer(tmp_path, max_steps=8).fit(module, datamodule=data_module(recipe=recipe, num_workers=num_workers))
        runs.append(module.gaps)
    assert runs[0] == runs[1]
    assert max(runs[0][:8]) == 1
    assert max(runs[0][8:]) > 1
    keys = list(ClipBatchSampler(5, 12, 2, seed=3, start_batch=7))
    assert [key.progress for key in keys[0]] == [7 / 12] * 2


class FrameRecorder(Recorder):
    """Remembers the gap of every clip of two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[int] = []

    def training_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        self.gaps += (batch.frame_indices[:, 1] - batch.frame_indices[:, 0]).tolist()
        return super().training_step(batch, batch_idx)


def test_every_epoch_is_a_new_permutation() -> None:
    draws = [key.draw for batch in ClipBatchSampler(5, 6, 5, seed=0) for key in batch]
    orders = [tuple(d.item for d in draws[5 * e : 5 * e + 5]) for e in range(6)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(orders)) > 1
    assert [d.epoch for d in draws] == [e for e in range(6) for _ in range(5)]


def test_sampler_starts_where_it_is_told_and_keeps_its_length() -> None:
    whole, rest = ClipBatchSampler(5, 8, 3, seed=0), ClipBatchSampler(5, 8, 3, seed=0, start_batch=5)
    assert list(rest) == list(whole)[5:]
    assert len(rest) == len(whole) == 8


def test_batch_size_must_be_divisible() -> None:
    with pytest.raises(ValueError, match=r"batch_size 3 .* not a multiple of 2"):
        ClipBatchSampler(5, 8, 3, seed=0, world_size=2)


@pytest.mark.parametrize(("accumulate", "stop", "num_workers"), [(1, 4, 0), (2, 2, 0), (1, 5, 1)])
def test_resumed_training_sees_exactly_the_remaining_clips(tmp_path: Path, accumulate: int, stop: int, num_workers: int) -> None:
    kwargs = {"accumulate_grad_batches": accumulate, "max_steps": 6}
    whole = Recorder()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoint], val_check_interval=3, **kwargs).fit(
        whole, datamodule=data_module(num_workers=num_workers)
    )
    assert len(whole.batches) == 6 * accumulate
    resumed = Recorder()
    fit_trainer = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoint], val_check_interval=3, **kwargs)
    fit_trainer.fit(
        resumed,
        datamodule=data_module(num_workers=num_workers),
        ckpt_path=tmp_path / f"step={stop}.ckpt",
        weights_only=True,
    )
    assert resumed.batches == whole.batches[stop * accumulate :]
    assert fit_trainer.global_step == 6
    torch.testing.assert_close(resumed.weight, whole.weight)


class _Interrupted(Recorder):
    def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:
            raise RuntimeError("lost the machine")
        return super().training_step(batch, batch_idx)


def test_a_batch_that_was_interrupted_is_seen_again(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    interrupted = _Interrupted()
    first = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="lost the machine"):
        first.fit(interrupted, datamodule=data_module())
    first.save_checkpoint(tmp_path / "interrupted.ckpt")
    resumed = Recorder()
    trainer(tmp_path).fit(resumed, datamodule=data_module(), ckpt_path=tmp_path / "interrupted.ckpt", weights_only=True)
    assert interrupted.batches + resumed.batches == whole


def test_steps_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps must be positive"):
        trainer(tmp_path, max_steps=-1, max_epochs=1).fit(Recorder(), datamodule=data_module())


def test_every_video_is_evaluated_once(tmp_path: Path) -> None:
    for name, count in (("validate", 2), ("test", 3), ("predict", 3)):
        module = Recorder()
        getattr(trainer(tmp_path), name)(module, datamodule=data_module())
        assert len(module.videos) == len(set(module.videos)) == count


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_videos_without_duplicates(world_size: int) -> None:
    def fake_trainer(rank: int) -> Mock:
        fake = Mock(spec=lightning.Trainer, global_rank=rank, world_size=world_size)
        fake._accelerator_connector = Mock(use_distributed_sampler=False)
        return fake

    names = []
    for rank in range(world_size):
        module = data_module()
        module.trainer = fake_trainer(rank)
        names += [video.name for video in module.test_dataloader()]
    # A process without a video repeats one, as the others would wait for it; metrics count every video once.
    assert sorted(names) == sorted(f"synthetic-test-{i:05d}" for i in [*range(3), *range(world_size - 3)])
    module.trainer._accelerator_connector.use_distributed_sampler = True
    with pytest.raises(ValueError, match="use_distributed_sampler=false"):
        module.test_dataloader()


def test_swap_pastes_the_partners_objects() -> None:
    dataset = ClipDataset([(SyntheticClips(5, SCENE), RECIPE)], seed=0)
    plain, partner = dataset[ClipKey(Draw(0, 1))], dataset[ClipKey(Draw(0, 2))]
    swapped = dataset[ClipKey(Draw(0, 1), Draw(0, 2))]
    pasted = partner.label_maps > 0
    assert pasted.any()
    assert (swapped.label_maps[pasted] == 0).all()
    assert torch.equal(swapped.label_maps[~pasted], plain.label_maps[~pasted])
    where = pasted[:, None].expand_as(plain.frames)
    assert torch.equal(swapped.frames[where], partner.frames[where])
    assert torch.equal(swapped.frames[~where], plain.frames[~where])


def test_collation_pads_slots_and_scales_to_one() -> None:
    dataset = ClipDataset([(SyntheticClips(5, SCENE), RECIPE)], seed=0)
    samples = [dataset[ClipKey(Draw(0, i))] for i in range(3)]
    batch = collate_clips(samples, num_slots=4)
    assert batch.frames.shape == (3, 2, 3, 32, 32)
    torch.testing.assert_close(batch.frames[1] * 255, samples[1].frames.float())
    assert batch.object_valid.sum(1).tolist() == [len(s.object_ids) for s in samples]
    assert batch.object_valid.shape == (3, 4)
    assert batch.frame_indices.tolist() == [list(s.frame_indices) for s in samples]


def test_clips_to_look_at_are_those_of_the_training(tmp_path: Path) -> None:
    trained = fit(tmp_path)
    shown = list(data_module().clips_of_training(3, 6))
    assert [step for step, _ in shown] == [0, 2, 4]
    for step, clip in shown:
        alone = fingerprint(collate_clips([clip], RECIPE.max_objects))
        assert alone == (pytest.approx(trained[step][0], rel=1e-12), pytest.approx(trained[step][2], rel=1e-12))
