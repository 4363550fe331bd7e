"""Files of snapshots that are damaged, or come from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.dummies import DummyModule, make_video
from vos_lightning.propagation.snapshots import Snapshot, read_snapshot, write_snapshot


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
