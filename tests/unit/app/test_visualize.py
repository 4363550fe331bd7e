"""Pictures of what a network computes for chosen frames, as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.dummies import DummyModule, make_video
from vos_lightning.app.cli import main
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


class TestClips:
    def test_a_sheet_for_every_stage(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "clips"
        arguments = ["visualize", "emvos_smoke", "--clips", "2", "--output", str(folder)]
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{folder / 'emvos_smoke.png'}\n"
        with Image.open(folder / "emvos_smoke.png") as image:
            width, height = image.size
        assert width > 3 * 160
        assert height > 2 * 160
        written = (folder / "emvos_smoke.png").read_bytes()
        assert main([*arguments, "--overwrite", "--data.init_args.loading.seed=5"]) == 0
        assert (folder / "emvos_smoke.png").read_bytes() != written

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--video and --frame are needed, or --clips"),
            (["--clips", "2"], "--clips draws clips of an experiment: name one"),
            (["emvos_smoke", "--clips", "2", "--frame", "1"], "leave --frame out"),
            (["dmn_aoa_b1", "--clips", "2"], "dmn_aoa_b1 evaluates the checkpoint of dmn_aoa_davis17: name that"),
            (["emvos_smoke", "--clips", "2", "--trainer.max_steps=3"], "--trainer.max_steps"),
        ],
    )
    def test_what_cannot_be_drawn(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["visualize", *arguments, "--output", str(tmp_path / "o")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o" / "emvos_smoke.png").exists()
