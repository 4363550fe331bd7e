"""Pictures of what a network computes for chosen frames, as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.dummies import DummyModule, make_video
from vos_lightning.app.visualize import draw
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.visualization.panels import BAR_WIDTH


class TestVisualize:
    def test_files(self, tmp_path: Path) -> None:
        module = DummyModule().eval()
        output = OutputFolder(tmp_path / "o", "visualize")
        sheets = draw(module, make_video("v", length=4), [0, 2], output)
        assert sheets == [tmp_path / "o" / name / "sheet.png" for name in ("f00000", "f00002")]
        assert sorted(p.name for p in (tmp_path / "o" / "f00002").iterdir()) == [
            "object_1_probability.png", "object_2_probability.png", "sheet.png",
        ]  # fmt: skip
        with Image.open(tmp_path / "o" / "f00002" / "object_1_probability.png") as image:
            assert image.size == (45 + BAR_WIDTH, 30)

    def test_errors(self, tmp_path: Path) -> None:
        module = DummyModule().eval()
        with pytest.raises(ValueError, match="the video has frames 0 to 3"):
            draw(module, make_video("v", length=4), [4], OutputFolder(tmp_path / "o", "visualize"))
