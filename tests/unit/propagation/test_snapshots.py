"""Files of snapshots that are damaged, or come from elsewhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.dummies import DummyModule, make_label_map, make_video
from vos_lightning.propagation.snapshots import Snapshot, Stored, read_snapshot, write_snapshot


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch evil",)


def test_notes_come_back(tmp_path: Path) -> None:
    engine = DummyModule().engine()
    for _ in engine.run(make_video("v")):
        pass
    write_snapshot(tmp_path / "s.pt", engine.snapshot(), {"rows": [[1, "a", 0.5]]})
    snapshot, notes = read_snapshot(tmp_path / "s.pt")
    assert (snapshot.frame_index, snapshot.ids, notes) == (3, (1, 2), {"rows": [[1, "a", 0.5]]})


def test_only_frames_after_the_snapshot_are_computed() -> None:
    """Those before it come from what is stored, whatever that is; an object that is annotated later is found as before."""
    video = make_video("v", length=6)
    video = dataclasses.replace(video, annotations={0: video.annotations[0], 4: make_label_map((7, 8))})
    whole, snapshot = [], None
    engine = DummyModule().engine()
    for prediction in engine.run(video):
        whole.append(prediction)
        if prediction.frame_index == 2:
            snapshot = engine.snapshot()
    assert snapshot is not None
    asked: list[int] = []

    def stored(index: int, frame: torch.Tensor) -> Any:
        assert torch.equal(frame, video.frames[index])  # type: ignore[index]
        asked.append(index)
        return f"stored {index}"

    found: list[Any] = list(DummyModule().engine().run(video, Stored(snapshot, stored)))
    assert asked == [0, 1, 2]
    assert found[:3] == ["stored 0", "stored 1", "stored 2"]
    for one, other in zip(found[3:], whole[3:], strict=True):
        assert (one.frame_index, one.object_ids) == (other.frame_index, other.object_ids)
        assert torch.equal(one.probabilities, other.probabilities)
    assert found[-1].object_ids == (1, 2, 7, 8)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "code", "other", "unknown class"])
def test_files_from_elsewhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.pt"
    write_snapshot(path, Snapshot(None, (), None, 0, False), {})
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    elif kind == "code":
        torch.save({"snapshot": Evil(), "notes": {}}, path)
    elif kind == "other":
        torch.save({"snapshot": torch.zeros(1), "notes": {}}, path)
    else:
        path.write_bytes(path.read_bytes().replace(b"Snapshot", b"Snapshoq"))
    with pytest.raises(ValueError, match=r"s\.pt: the state of the interrupted run cannot be read"):
        read_snapshot(path)
    assert not (tmp_path / "evil").exists()
