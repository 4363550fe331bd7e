"""Checkpoints of a training are whole, and what a killed process has left of one is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vos_lightning.checkpoints.saving import AtomicCheckpointIO
from vos_lightning.io.files import Replacement


def test_a_checkpoint_that_cannot_be_pickled_leaves_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "x": lambda: None}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_leftovers_of_the_same_checkpoint_are_removed(tmp_path: Path) -> None:
    kept = [Replacement(tmp_path / "best.ckpt").temporary, tmp_path / ".last.ckpt.tmp", tmp_path / "last.ckpt"]
    killed = [Replacement(tmp_path / "last.ckpt").temporary for _ in range(2)]
    for path in (*kept, *killed):
        path.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in kept)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}


def test_the_folder_is_created(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": 1}, str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last.ckpt"]
