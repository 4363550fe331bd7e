"""Checkpoints of a training are whole, and what a killed process has left of one is removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from tests.damage import with_a_wrong_bit
from vos_lightning.checkpoints.files import is_whole
from vos_lightning.checkpoints.saving import AtomicCheckpointIO, write_checkpoint
from vos_lightning.io.files import Replacement


def test_a_checkpoint_that_cannot_be_pickled_leaves_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "x": lambda: None}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("has_links", [True, False])
def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    for step in range(1, 4):
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / "last.ckpt")
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / "best.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["before_last.ckpt", "best.ckpt", "last.ckpt"]
    for name, step in (("before_last.ckpt", 2), ("last.ckpt", 3)):
        assert torch.load(tmp_path / name, weights_only=True) == {"step": step}


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_recognised(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"weight": torch.rand(1000)})
    assert is_whole(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "bit": with_a_wrong_bit(path), "empty": b""}[damage])
    os.utime(path, (0, 0))
    assert not is_whole(path)


def test_leftovers_of_the_same_checkpoint_are_removed(tmp_path: Path) -> None:
    kept = [Replacement(tmp_path / "best.ckpt").temporary, tmp_path / ".last.ckpt.tmp", tmp_path / "last.ckpt"]
    killed = [Replacement(tmp_path / "last.ckpt").temporary for _ in range(2)]
    for path in (*kept, *killed):
        path.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert sorted(os.listdir(tmp_path)) == sorted(["before_last.ckpt", *(path.name for path in kept)])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}


def test_the_folder_is_created(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": 1}, str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last.ckpt"]
