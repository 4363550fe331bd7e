"""Loading a checkpoint of a recipe run, and segmenting a video of one's own with it."""

from __future__ import annotations

import csv
import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.app.conftest import NETWORK
from tests.unit.dummies import DummyNetwork, make_frames
from tests.unit.masks import smoothed
from vos_lightning.app.cli import main
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter, open_frames
from vos_lightning.propagation.policies import EveryKth


def changed(checkpoint: Path, target: Path, **changes: Any) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    for key, change in changes.items():
        content[key] = change(content[key])
    torch.save(content, target)
    return target


class TestLoading:
    def test_everything_comes_from_the_checkpoint(self, checkpoint: Path) -> None:
        engine = load_engine(checkpoint, device="cpu")
        assert isinstance(engine.network, DummyNetwork)
        assert engine.network.scale.item() == 7.5
        assert engine.short_side == 24
        assert engine.precision is None
        assert not engine.network.training
        assert not any(p.requires_grad for p in engine.network.parameters())
        assert engine.propagation.aggregation == "minimum"

    def test_nothing_is_warned_of(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lightning calls what jsonargparse has deprecated; that is nobody's business who loads a checkpoint."""
        monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_engine(checkpoint, device="cpu")
        assert [str(w.message) for w in caught] == []

    def test_arguments_win(self, checkpoint: Path) -> None:
        engine = load_engine(str(checkpoint), device="cpu", precision=torch.bfloat16, short_side=None)
        assert (engine.short_side, engine.precision) == (None, torch.bfloat16)

    def test_pretrained_weights_are_not_loaded_first(self, checkpoint: Path, tmp_path: Path) -> None:
        def pretrained(hyper_parameters: dict[str, Any]) -> dict[str, Any]:
            hyper_parameters["network"]["init_args"]["weights"] = "IMAGENET1K_V1"
            return hyper_parameters

        path = changed(checkpoint, tmp_path / "c.ckpt", hyper_parameters=pretrained)
        assert load_engine(path, device="cpu").network.scale.item() == 7.5

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"state_dict": lambda state: {**state, "network.extra": torch.zeros(1)}}, "does not fit .*network.extra"),
            ({"state_dict": lambda state: {}}, "does not fit .*network.scale"),
            ({"hyper_parameters": lambda h: {**h, "colour": 3}}, None),
            ({"hyper_parameters": lambda h: {**h, "network": {"class_path": NETWORK, "init_args": {"colour": 3}}}}, "colour"),
            ({"hyper_parameters": lambda h: {}}, "does not name its module"),
            ({"hyper_parameters": lambda h: {**h, "_class_path": "elsewhere.Evil"}}, "import elsewhere first if you trust it"),
            ({"hyper_parameters": lambda h: {**h, "_class_path": "os.system"}}, "os.system, which is no class of this version"),
            (
                {"hyper_parameters": lambda h: {**h, "_class_path": "vos_lightning.modules.gone.Gone"}},
                "Gone, which is no class of this version",
            ),
            ({"hyper_parameters": lambda h: {**h, "_class_path": NETWORK}}, "DummyNetwork, which is no VOSModule"),
        ],
    )
    def test_checkpoints_that_do_not_fit(
        self, checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str | None
    ) -> None:
        path = changed(checkpoint, tmp_path / "c.ckpt", **changes)
        if message is None:  # Lightning drops hyperparameters that the class no longer takes
            load_engine(path, device="cpu")
            return
        with pytest.raises(ValueError, match=rf"c\.ckpt: .*{message}") as caught:
            load_engine(path, device="cpu")
        assert "\n" not in str(caught.value)

    def test_files_from_elsewhere(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt: there is no such checkpoint"):
            load_engine(tmp_path / "nowhere.ckpt")
        (tmp_path / "text.ckpt").write_text("hello")
        (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:500])
        torch.save({"a": torch.zeros(1)}, tmp_path / "tensors.ckpt")
        torch.save({"state_dict": {}, "hyper_parameters": {"network": DummyNetwork()}}, tmp_path / "pickled.ckpt")
        for name in ("text", "cut", "tensors", "pickled"):
            with pytest.raises(ValueError, match=rf"{name}\.ckpt: this is no") as caught:
                load_engine(tmp_path / f"{name}.ckpt", device="cpu")
            assert "\n" not in str(caught.value)

    def test_memory_can_be_bounded(self, checkpoint: Path) -> None:
        assert load_engine(checkpoint, device="cpu").propagation.policy == EveryKth(5)
        assert load_engine(checkpoint, device="cpu", max_memory_frames=3).propagation.policy == EveryKth(5, max_frames=3)

    def test_device(self, checkpoint: Path) -> None:
        assert load_engine(checkpoint).network.device.type in ("cpu", "cuda", "mps")
        with pytest.raises(ValueError, match="'toaster' is unknown"):
            load_engine(checkpoint, device="toaster")
        with pytest.raises(ValueError, match="'xpu:7' is not available"):
            load_engine(checkpoint, device="xpu:7")


def run(checkpoint: Path, video: Path, masks: Path, *options: str) -> tuple[int, Path]:
    output = video.parent / "out"
    arguments = ["--checkpoint", str(checkpoint), "--mask", str(masks), "--output", str(output)]
    return main(["segment", *arguments, "--device", "cpu", "--short-side", "0", *options, "--", str(video)]), output


class TestCommand:
    def test_one_mask(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any) -> None:
        write_label_map(tmp_path / "first.png", mask)
        code, output = run(checkpoint, video, tmp_path / "first.png")
        assert code == 0
        assert sorted(p.name for p in (output / "masks" / "v").iterdir()) == [f"{i:05d}.png" for i in range(5)]
        for file in (output / "masks" / "v").iterdir():
            assert torch.equal(read_label_map(file), mask)
        written = open_frames(output / "overlays" / "v.mp4")
        assert written.fps == open_frames(video).fps
        assert len(list(written)) == 5
        with (output / "index" / "v.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["frame"], row["object_id"]) for row in rows] == [(str(t), str(i)) for t in range(5) for i in (1, 2)]
        assert {row["area"] for row in rows if row["object_id"] == "1"} == {str(int((mask == 1).sum()))}
        assert [row["flags"] for row in rows] == ["given"] * 2 + [""] * 8
        assert all(0.9 < float(row["confidence"]) <= 1 for row in rows)
        assert "5 frames, 2 objects, 0 frames to look at" in capsys.readouterr().out

    def test_late_object_and_empty_frames_before(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path) -> None:
        (tmp_path / "masks").mkdir()
        write_label_map(tmp_path / "masks" / "1.png", mask * (mask == 1))
        write_label_map(tmp_path / "masks" / "00003.png", mask * (mask == 2))
        code, output = run(checkpoint, video, tmp_path / "masks", "--formats", "masks", "--first-number", "0")
        assert code == 0
        found = [sorted(set(read_label_map(output / "masks" / "v" / f"{t:05d}.png").flatten().tolist())) for t in range(5)]
        assert found == [[0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2]]
        assert not (output / "overlays").exists()

    def test_folder_of_frames(self, checkpoint: Path, mask: Tensor, tmp_path: Path) -> None:
        (tmp_path / "frames").mkdir()
        for index, frame in enumerate(make_frames(3, height=32, width=48), start=8):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frames" / f"{index}.png")
        (tmp_path / "masks").mkdir()
        write_label_map(tmp_path / "masks" / "00008.png", mask)
        code, output = run(checkpoint, tmp_path / "frames", tmp_path / "masks")
        assert code == 0
        assert sorted(p.name for p in (output / "masks" / "frames").iterdir()) == ["10.png", "8.png", "9.png"]

    def test_low_precision_and_the_size_of_the_run(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path) -> None:
        write_label_map(tmp_path / "first.png", mask)
        code, output = run(checkpoint, video, tmp_path / "first.png", "--precision", "bf16", "--short-side", "24")
        assert code == 0
        assert read_label_map(output / "masks" / "v" / "00004.png").shape == (32, 48)

    def test_black_and_white_mask_is_object_1(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path) -> None:
        Image.fromarray(((mask == 2) * 255).to(torch.uint8).numpy()).save(tmp_path / "first.png")
        code, output = run(checkpoint, video, tmp_path / "first.png")
        assert code == 0
        assert torch.equal(read_label_map(output / "masks" / "v" / "00004.png"), (mask == 2).to(torch.uint8))

    @pytest.mark.parametrize("case", ["colours", "smoothed", "size", "empty", "jpeg", "missing", "no frame"])
    def test_errors_are_one_line_with_the_file(
        self, case: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any
    ) -> None:
        path = tmp_path / "drawn.png"
        if case == "colours":
            Image.fromarray(torch.randint(1, 255, (32, 48, 3), dtype=torch.uint8).numpy()).save(path)
        elif case == "smoothed":
            smooth = (mask == 1).to(torch.uint8) * 255
            smooth[9] //= 2
            Image.fromarray(smooth.numpy()).save(path)
        elif case == "size":
            write_label_map(path, mask[:-1])
        elif case == "empty":
            write_label_map(path, mask * 0)
        elif case == "jpeg":
            path = tmp_path / "drawn.jpg"
            Image.fromarray(mask.numpy()).save(path)
        elif case == "no frame":
            (tmp_path / "masks").mkdir()
            path = tmp_path / "masks" / "77.png"
            write_label_map(path, mask)
        code, _ = run(checkpoint, video, path if case != "no frame" else path.parent)
        error = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert error[-1].startswith("error: ")
        assert path.name in error[-1]
        assert sum(line.startswith("error: ") for line in error) == 1

    @pytest.mark.parametrize("fault", ["size", "damaged", "255 beside ids", "rims", "no frame", "twice"])
    def test_a_broken_late_mask_is_found_before_the_first_frame(
        self, fault: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any
    ) -> None:
        folder = tmp_path / "masks"
        folder.mkdir()
        write_label_map(folder / "0.png", mask)
        late = folder / ("5.png" if fault == "no frame" else "4.png")
        write_label_map(late, mask[:, 1:] if fault == "size" else mask)
        if fault == "damaged":
            late.write_bytes(late.read_bytes()[:-30])
        elif fault == "255 beside ids":
            write_label_map(late, torch.where(mask == 2, 255, mask).to(torch.uint8))
        elif fault == "rims":
            write_label_map(late, smoothed(mask))
        elif fault == "twice":
            write_label_map(folder / "00004.png", mask)
        code, output = run(checkpoint, video, folder)
        assert code == 2
        assert late.stem in capsys.readouterr().err.splitlines()[-1]
        assert not output.exists()

    def test_frames_before_an_error_stay(self, checkpoint: Path, mask: Tensor, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "frames").mkdir()
        for index, frame in enumerate(make_frames(5, height=32, width=48)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frames" / f"{index}.png")
        broken = tmp_path / "frames" / "3.png"
        broken.write_bytes(broken.read_bytes()[:-40])
        write_label_map(tmp_path / "first.png", mask)
        code, output = run(checkpoint, tmp_path / "frames", tmp_path / "first.png")
        assert code == 2
        assert "3.png: the image is damaged" in capsys.readouterr().err
        assert len(list((output / "masks" / "frames").iterdir())) == 3
        assert len(list(open_frames(output / "overlays" / "frames.mp4"))) == 3
        assert len((output / "index" / "frames.csv").read_text().splitlines()) == 1 + 3 * 2
        assert '"finished": false' in (output / "written.jsonl").read_text()

    def test_drawn_masks_are_never_overwritten(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path) -> None:
        project = tmp_path / "proj"
        project.mkdir()
        write_label_map(project / "masks" / "0.png", mask)
        before = (project / "masks" / "0.png").read_bytes()
        for name in ("proj", "proj/masks", "proj/masks/new", "link"):
            if name == "link":
                (tmp_path / "link").symlink_to(project)
            for flag in ((), ("--overwrite",)):
                assert run(checkpoint, video, project / "masks", "--output", str(tmp_path / name), *flag)[0] == 2
        assert [path.name for path in sorted(project.rglob("*"))] == ["masks", "0.png"]
        assert (project / "masks" / "0.png").read_bytes() == before

    def test_runs_are_not_mixed(self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any) -> None:
        write_label_map(tmp_path / "first.png", mask)
        assert run(checkpoint, video, tmp_path / "first.png")[0] == 0
        with VideoWriter(tmp_path / "short.mp4") as writer:
            for frame in make_frames(3, height=32, width=48):
                writer.write(frame)
        capsys.readouterr()
        code, output = run(checkpoint, tmp_path / "short.mp4", tmp_path / "first.png")
        assert code == 2
        assert "holds the output of an earlier run; choose another one, or pass --resume to go on with it, or --overwrite" in (
            capsys.readouterr().err
        )
        assert len(list((output / "masks" / "v").iterdir())) == 5
        assert run(checkpoint, tmp_path / "short.mp4", tmp_path / "first.png", "--overwrite", "--formats", "masks")[0] == 0
        assert sorted(p.name for p in output.rglob("*.*")) == [
            "00000.png",
            "00001.png",
            "00002.png",
            "short.csv",
            "written.jsonl",
        ]

    @pytest.mark.parametrize("fault", ["first frame", "mask", "checkpoint", "device", "pipe", "link", "long name"])
    def test_a_run_that_fails_at_once_keeps_the_earlier_one(
        self, fault: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any
    ) -> None:
        write_label_map(tmp_path / "first.png", mask)
        assert run(checkpoint, video, tmp_path / "first.png")[0] == 0
        output = tmp_path / "out"
        before = {path: path.read_bytes() for path in output.rglob("*.*")}
        assert {path.name for path in before} >= {"v.csv", "v.mp4", "00000.png", "written.jsonl"}
        folder = tmp_path / ("x" * 230 if fault == "long name" else "frames")
        folder.mkdir()
        for index, frame in enumerate(make_frames(3, height=32, width=48)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
        masks, options = tmp_path / "first.png", ["--overwrite"]
        if fault == "first frame":
            (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-40])
        elif fault == "mask":
            masks.write_bytes(b"")
        elif fault == "checkpoint":
            (tmp_path / "c.ckpt").write_bytes(b"")
            options += ["--checkpoint", str(tmp_path / "c.ckpt")]
        elif fault == "device":
            options += ["--device", "toaster"]
        elif fault == "pipe":
            (folder / "0.png").unlink()
            os.mkfifo(folder / "0.png")
        elif fault == "link":
            (folder / "3.png").symlink_to(tmp_path / "first.png")
        capsys.readouterr()
        assert run(checkpoint, folder, masks, *options)[0] == 2
        assert sum(line.startswith("error: ") for line in capsys.readouterr().err.splitlines()) == 1
        assert {path: path.read_bytes() for path in output.rglob("*.*")} == before

    @pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/out", "first.png", "first.png/out"])
    def test_outputs_that_cannot_be(
        self, name: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any
    ) -> None:
        write_label_map(tmp_path / "first.png", mask)
        before = sorted(tmp_path.rglob("*"))
        assert run(checkpoint, video, tmp_path / "first.png", "--output", str(tmp_path / name))[0] == 2
        assert sum(line.startswith("error: ") for line in capsys.readouterr().err.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before

    def test_objects_and_areas_are_shown_first(
        self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / "masks").mkdir()
        write_label_map(tmp_path / "masks" / "0.png", mask)
        write_label_map(tmp_path / "masks" / "3.png", mask * (mask == 2))
        assert run(checkpoint, video, tmp_path / "masks")[0] == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "frames are counted from 0 (there is a mask 0; --first-number 1 changes it)"
        assert lines[1].endswith("0.png (frame 00000): object 1: 150 pixels, object 2: 240 pixels")
        assert lines[2].endswith("3.png (frame 00003): object 2: 240 pixels")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--short-side", "-5"), "must be at least 0, not -5"),
            (("--memory-frames", "-1"), "must be at least 0, not -1"),
            (("--device", "toaster"), "'toaster' is unknown"),
            (("--device", "cpu:x"), "'cpu:x' is unknown"),
            (("--output", "first.png"), "the output is a file"),
            (("--output", "first.png/below"), "first.png"),
        ],
    )
    def test_options_that_cannot_be(
        self,
        options: tuple[str, str],
        message: str,
        checkpoint: Path,
        video: Path,
        mask: Tensor,
        tmp_path: Path,
        capsys: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_label_map(tmp_path / "first.png", mask)
        write_label_map(tmp_path / "mask.png", mask)
        try:
            code = run(checkpoint, video, tmp_path / "mask.png", *options)[0]
        except SystemExit as stop:  # argparse
            code = stop.code  # type: ignore[assignment]
        assert code == 2
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1]
        assert "error: " in error[-1]
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["[red]a.mp4", "a:b %d.mp4", "-x 'é\n.mp4", "\udcff.mp4"])
    def test_odd_names(self, name: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        video.rename(tmp_path / name)
        write_label_map(tmp_path / "first.png", mask)
        code, _ = run(checkpoint, Path(name), Path("first.png"), "--output", f"out{name}")
        assert code == 0
        assert len(list((tmp_path / f"out{name}" / "masks" / Path(name).stem).iterdir())) == 5

    @pytest.mark.parametrize("place", ["mask", "table", "overlay"])
    def test_a_full_disc(
        self, place: str, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(
                errno.ENOSPC, "No space left on device", *(str(a.path) for a in arguments if isinstance(a, VideoWriter))
            )

        names = {"mask": ("write_label_map", "00000.png"), "table": ("write_atomically", "v.csv")}
        if place == "overlay":
            monkeypatch.setattr(VideoWriter, "write", full)
        else:
            monkeypatch.setattr(f"vos_lightning.predictions.writer.{names[place][0]}", full)
        write_label_map(tmp_path / "first.png", mask)
        code, output = run(checkpoint, video, tmp_path / "first.png")
        assert code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert last.endswith(f"{names.get(place, ('', 'v.mp4'))[1]}: No space left on device")
        assert '"finished": false' in (output / "written.jsonl").read_text()
        assert not list(output.rglob("*.tmp"))

    def test_a_folder_that_may_not_be_written(
        self, checkpoint: Path, video: Path, mask: Tensor, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        def refuse(self: Path, *arguments: Any, **options: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        write_label_map(tmp_path / "first.png", mask)
        monkeypatch.setattr(Path, "mkdir", refuse)
        assert run(checkpoint, video, tmp_path / "first.png")[0] == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / 'out'}: Permission denied"

    def test_missing_files(self, checkpoint: Path, video: Path, tmp_path: Path, capsys: Any) -> None:
        for arguments in ((checkpoint, tmp_path / "n.mp4", video), (tmp_path / "n.ckpt", video, tmp_path / "m.png")):
            write_label_map(tmp_path / "m.png", torch.ones(32, 48, dtype=torch.uint8))
            assert run(*arguments)[0] == 2
            assert "error: " in capsys.readouterr().err


assert "tests.unit.dummies" in sys.modules  # what lets a checkpoint of the dummy module be loaded
