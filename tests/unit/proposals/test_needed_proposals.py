"""A network that matches proposals gets them in every command, or the command says in one line what is missing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from data_modules.base import Loading
from data_modules.clips.proposals import ProposalVideos, check_proposals
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.own_videos import OwnVideosDataModule
from data_modules.datasets.synthetic import SyntheticDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth, StoredProposals
from tests.layouts import write_davis_layout
from tests.unit.dummies import DummyNetwork, make_frames, make_label_map, make_video
from vos_lightning.app import cli, finetuning
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.torch_backend import open_proposals
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.io.given_masks import GivenMasks, own_video
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter, open_frames
from vos_lightning.modules.dmn_aoa import DMNAOAModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.proposals.detector import ProposalDetector
from vos_lightning.proposals.frames import DetectedFrames, StoredFrames
from vos_lightning.proposals.store import Found, ProposalFile, nothing_found, write_proposals

SIZE = (48, 80)
NAMES = [f"{t:05d}" for t in range(4)]
PLAIN = ClipRecipe(num_frames=2, short_side=None, crop="none", max_objects=2, swap_probability=0.0)


def some_found(seed: int, size: tuple[int, int] = SIZE) -> Found:
    """Blocks of different places, most of them over one of the objects of the test videos."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(5, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.5
    boxes = torch.cat([low, low + 8 + 16 * torch.rand(5, 2, generator=generator)], dim=1)
    return Found(boxes, torch.ones(5, 28, 28), torch.rand(5, generator=generator) + 0.1, torch.ones(5, dtype=torch.int64))


def write_checkpoint(path: Path, *, scrambled: bool = False, **options: Any) -> Path:
    """As a run writes it. Scrambled: the same network but for the weights by which objects are matched to proposals."""
    network = copy.deepcopy(dict(load_experiment("dmn_aoa_smoke").config["model"]["init_args"]["network"]))
    network["init_args"] |= options
    arguments = {"network": network, "evaluation": {"short_side": None}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DMNAOAModule, "module")
    torch.manual_seed(0)
    module = parser.instantiate(parser.parse_object({"module": arguments})).module
    if scrambled:
        torch.manual_seed(7)
        for parameter in module.network.coarse_masks.matcher.parameters():
            torch.nn.init.normal_(parameter)
    hyper_parameters = {
        **arguments,
        "_class_path": "vos_lightning.modules.dmn_aoa.DMNAOAModule",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": hyper_parameters,
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return write_checkpoint(folder / "a.ckpt"), write_checkpoint(folder / "b.ckpt", scrambled=True)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random detector as its training writes it; 32 pixels make it look at few regions."""
    options = {"architecture": "resnet18", "num_classes": 2, "min_size": 32, "max_size": 64}
    torch.manual_seed(0)
    state = {f"network.{name}": value for name, value in ProposalDetector(**options).state_dict().items()}
    network = {
        "class_path": "vos_lightning.proposals.detector.ProposalDetector",
        "init_args": {**options, "pretrained": None, "weights": "gone.pth", "selection": {"top_k": 12}},
    }
    path = tmp_path_factory.mktemp("detector") / "detector.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"network": network}}, path)
    return path


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a video of one's own, its first mask and its proposals; commands run in it."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    with VideoWriter(tmp_path / "v.mp4", 12) as writer:
        for frame in make_frames(4, *SIZE):
            writer.write(frame)
    write_label_map(tmp_path / "first.png", make_label_map((1, 2), *SIZE))
    write_proposals(tmp_path / "v.npz", {name: some_found(t) for t, name in enumerate(NAMES)}, {"frame_size": list(SIZE)})
    return tmp_path


@pytest.fixture
def own_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four annotated videos of one's own; commands run in this process."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "own"
    write_davis_layout(tmp_path / "davis", 4)
    for folder in ("JPEGImages", "Annotations"):
        shutil.move(tmp_path / "davis" / folder / "480p", root / folder)
    monkeypatch.setenv("VOS_DATA", str(root))
    monkeypatch.setattr(finetuning, "run_command", lambda arguments, environment=None, request=None: cli.main(arguments))
    return root


def write_folder(folder: Path, names: list[str], num_frames: int = 6, found: Callable[[int], Found] = some_found) -> Path:
    for name in names:
        write_proposals(folder / f"{name}.npz", {f"{t:05d}": found(t) for t in range(num_frames)}, {"frame_size": [48, 80]})
    return folder


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def predict(checkpoint: Path, output: str, *options: str) -> int:
    own = ["v.mp4", "--mask", "first.png", "--output", output, "--formats", "masks", "--device", "cpu", "--short-side", "0"]
    return cli.main(["segment", "--checkpoint", str(checkpoint), *own, *options])


def masks_in(folder: str | Path) -> torch.Tensor:
    return torch.stack([read_label_map(path) for path in sorted((Path(folder) / "masks").rglob("*.png"))])


# The matcher decides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "detector"])
def test_a_video_of_ones_own(source: str, video: Path, checkpoints: tuple[Path, Path], detector: Path) -> None:
    option = {"file": ["--proposals", "v.npz"], "detector": ["--detector", str(detector)]}[source]
    for checkpoint, output in zip(checkpoints, ("one", "two"), strict=True):
        assert predict(checkpoint, output, *option) == 0
    one, two = masks_in("one"), masks_in("two")
    assert one.shape == two.shape == (4, *SIZE)
    assert torch.equal(one[0], two[0])  # what was given
    assert not torch.equal(one[1:], two[1:])


def test_a_detector_on_the_way_finds_what_it_writes(video: Path, detector: Path) -> None:
    found = load_detector(str(detector))
    computed = [cli.main(["precompute-proposals", "--images", "v.mp4", "--output", "out", "--batch-size", "1", "--device", "cpu",
                          "--architecture", "resnet18", "--num-classes", "2", "--weights", str(detector), "--min-size", "32",
                          "--max-size", "64", "--top-k", "12"])]  # fmt: skip
    assert computed == [0]
    stored, detected = StoredFrames(ProposalFile("out/v.npz")), DetectedFrames(found)
    for index, frame in enumerate(open_frames("v.mp4")):
        one, other = stored.of_frame(index, frame), detected.of_frame(index, frame)
        assert one.scores.gt(0).any()
        for part in ("boxes", "masks", "scores"):
            assert torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("form", ["own", "experiment"])
def test_pictures(form: str, video: Path, checkpoints: tuple[Path, Path]) -> None:
    pictures = []
    for checkpoint, output in zip(checkpoints, ("one", "two"), strict=True):
        arguments = ["visualize", "--checkpoint", str(checkpoint), "--frame", "2", "--output", output]
        if form == "own":
            arguments += ["--video", "v.mp4", "--masks", "first.png", "--proposals", "v.npz"]
        else:
            arguments[1:1] = ["dmn_aoa_smoke"]
            arguments += ["--video", "synthetic-test-00000"]
        assert cli.main(arguments) == 0
        pictures.append({path.name: path.read_bytes() for path in Path(output).rglob("*.png")})
    assert pictures[0].keys() == pictures[1].keys()
    assert any("proposals" in name for name in pictures[0])
    assert all(pictures[0][name] != pictures[1][name] for name in pictures[0] if "proposals" in name or "coarse" in name)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_experiments(command: str, video: Path, checkpoints: tuple[Path, Path]) -> None:
    fewer = [f"--trainer.limit_{command}_batches=1", "--trainer.enable_progress_bar=false"]
    for checkpoint, output in zip(checkpoints, ("one", "two"), strict=True):
        assert cli.main([command, "dmn_aoa_smoke", "--checkpoint", str(checkpoint), "--run-dir", output, *fewer]) == 0
    one, two = (masks_in(Path(output) / "predictions" / command) for output in ("one", "two"))
    assert one.shape == two.shape
    assert not torch.equal(one, two)


def test_training_and_fine_tuning(own_videos: Path, checkpoints: tuple[Path, Path]) -> None:
    """The score before the training, and the first loss of it, depend on the matcher."""
    stored = str(write_folder(own_videos / "Proposals", [f"video-0{i}" for i in range(4)]))
    data = OwnVideosDataModule(str(own_videos), recipe=PLAIN, loading=Loading(batch_size=2, num_workers=0), proposals=stored)
    found = []
    for checkpoint in checkpoints:
        arguments = ["test", "finetune_own", "--checkpoint", str(checkpoint), "--run-dir", checkpoint.stem]
        options = [f"--data.init_args.proposals={stored}", "--trainer.enable_progress_bar=false"]
        assert cli.main([*arguments, *options, "--trainer.accelerator=cpu", "--pictures.videos=0"]) == 0
        module = load_engine(checkpoint, device="cpu").network.train()
        wrapped = DMNAOAModule(module, evaluation=Evaluation())
        wrapped.requires_grad_(True)
        trainer = lightning.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=checkpoint.stem,
        )  # fmt: skip
        trainer.fit(wrapped, datamodule=data)
        found.append((masks_in(Path(checkpoint.stem) / "predictions" / "test"), trainer.callback_metrics["train/loss"]))
    assert not torch.equal(found[0][0], found[1][0])
    assert found[0][1] != found[1][1]


# Nothing is missing in silence ------------------------------------------------------------------------------------------


def test_commands_for_ones_own_video_name_both_options(
    video: Path, checkpoints: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict(checkpoints[0], "out") == 2
    line = error_of(capfd)
    for part in ("DMNAOA", "--proposals FILE", "--detector FILE|COCO_V1", "precompute-proposals --images v.mp4"):
        assert part in line
    arguments = ["visualize", "--checkpoint", str(checkpoints[0]), "--frame", "2", "--output", "out"]
    assert cli.main([*arguments, "--video", "v.mp4", "--masks", "first.png"]) == 2
    assert "--proposals FILE" in error_of(capfd)
    assert cli.main([*arguments, "--video", "synthetic-test-00000", "--proposals", "v.npz", "dmn_aoa_smoke"]) == 2
    assert "for a video of your own" in error_of(capfd)
    assert not Path("out").exists()


def test_proposals_that_cannot_be_used(video: Path, checkpoints: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    write_proposals(video / "short.npz", {name: some_found(0) for name in NAMES[:3]}, {})
    write_proposals(video / "small.npz", {name: some_found(0) for name in NAMES}, {"frame_size": [24, 40]})
    torch.save({"model": {}}, video / "plain.pth")
    (video / "text.pth").write_text("hello")
    for options, message in (
        (["--proposals", "nowhere.npz"], "nowhere.npz: there is no such file of proposals; compute it with `vos "),
        (["--proposals", "short.npz"], "short.npz: proposals of 3 frames for a video of 4 frames"),
        (["--proposals", "small.npz"], "small.npz: the proposals are of frames of 40x24, the frames are 80x48"),
        (["--detector", "nowhere.ckpt"], "nowhere.ckpt: there is no such file of detector weights"),
        (["--detector", "text.pth"], "text.pth: this is no file of detector weights"),
        (["--detector", "plain.pth"], "plain.pth: the file does not describe a detector"),
        (["--detector", str(checkpoints[0])], "does not describe a detector"),
        (["--proposals", "v.npz", "--detector", "COCO_V1"], "either --proposals or --detector"),
    ):
        assert predict(checkpoints[0], "out", *options) == 2
        assert message in error_of(capfd)
    frames = video / "frames"
    frames.mkdir()
    for name in ("00000", "extra"):
        write_label_map(frames / f"{name}.png", make_label_map((1, 2), *SIZE))
    network = DMNAOA.small()
    with pytest.raises(ValueError, match=r"v\.npz: no proposals of frame 'extra' \(1 of 2 frames are missing\)"):
        open_proposals(network, open_frames(frames), video / "v.npz", None)


def test_networks_without_proposals_refuse_them(video: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option in ("proposals", "detector"):
        choice = {"proposals": (tmp_path / "v.npz", None), "detector": (None, "COCO_V1")}[option]
        with pytest.raises(ValueError, match=f"DummyNetwork does not read proposals: leave --{option} out"):
            open_proposals(DummyNetwork(), open_frames("v.mp4"), *choice)
    assert open_proposals(DummyNetwork(), open_frames("v.mp4"), None, None) is None
    # A variant without the matcher needs none.
    assert predict(write_checkpoint(tmp_path / "a5.ckpt", coarse="template"), "out") == 0
    with torch.device("meta"):
        without = DMNAOA.published(None, coarse="template")
    assert not without.needs_proposals
    with pytest.raises(ValueError, match="matching_weight"):
        DMNAOAModule(without, matching_weight=1.0)


def test_frames_where_nothing_is_found(video: Path, checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_proposals(video / "empty.npz", {name: nothing_found() for name in NAMES}, {})
    write_proposals(video / "some.npz", {name: some_found(0) if t < 3 else nothing_found() for t, name in enumerate(NAMES)}, {})
    for file, message in (
        ("v.npz", None),
        ("some.npz", "found nothing in 1 of 4 frames"),
        ("empty.npz", "found nothing in any of 4 frames"),
    ):
        assert predict(checkpoints[0], Path(file).stem, "--proposals", file) == 0
        output = capsys.readouterr().out
        assert message in output if message else "found nothing" not in output
    assert ProposalFile("empty.npz").is_empty
    assert not ProposalFile("some.npz").is_empty


def test_a_detector_is_not_asked_before_the_first_mask(video: Path, checkpoints: tuple[Path, Path]) -> None:
    masks = video / "masks"
    masks.mkdir()
    shutil.copy(video / "first.png", masks / "00002.png")
    write_proposals(video / "late.npz", {name: some_found(0) if t > 1 else nothing_found() for t, name in enumerate(NAMES)}, {})
    engine = load_engine(checkpoints[0], device="cpu")
    source, frames = StoredFrames(ProposalFile(video / "late.npz")), open_frames("v.mp4")
    *_, last = engine.run(own_video(frames, GivenMasks(masks, frames), source))
    assert (last.frame_index, source.num_frames, source.num_empty) == (3, 2, 0)


def test_fine_tuning_names_the_option(
    own_videos: Path, checkpoints: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "finetune_own", "--checkpoint", str(checkpoints[0]), "--run-dir", "run"]
    options = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert cli.main([*arguments, *options]) == 2
    line = error_of(capfd)
    for part in ("OwnVideosDataModule has none of some or all", "precompute-proposals", "--data.init_args.proposals=FOLDER"):
        assert part in line
    write_folder(own_videos / "Proposals", ["video-00", "video-01", "video-03"])
    options.append(f"--data.init_args.proposals={own_videos / 'Proposals'}")
    assert cli.main([*arguments, *options]) == 2
    assert "no proposals of video-02 (1 of 1 files are missing)" in error_of(capfd)
    with pytest.raises(ValueError, match="swap_probability"):
        OwnVideosDataModule(str(own_videos), proposals=str(own_videos / "Proposals")).setup("fit")


def test_missing_files_show_at_the_start(own_videos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Training and validation are looked through before the first step, and before a test."""
    write_davis_layout(own_videos / "DAVIS", 4)
    config = copy.deepcopy(dict(load_experiment("dmn_aoa_smoke").config))
    config["data"]["init_args"] |= {
        "source": {
            "class_path": "data_modules.datasets.davis.DAVISDataModule",
            "init_args": {"root": str(own_videos / "DAVIS"), "recipe": vars(PLAIN) | {"num_frames": 2}},
        },
        "proposals": {"class_path": "data_modules.proposals.StoredProposals", "init_args": {"roots": ["one", "two"]}},
    }
    Path("stored.yaml").write_text(yaml.safe_dump(config))
    write_folder(Path("two"), ["video-00", "video-01"])
    assert cli.main(["train", "stored.yaml", "--trainer.enable_progress_bar=false"]) == 2
    line = error_of(capfd)
    assert "no proposals of video-02 (2 of 4 files are missing) in one, two: compute them with `vos precompute-proposals" in line
    assert not list(Path("runs/stored").rglob("*.ckpt"))
    write_folder(Path("one"), ["video-02"])
    write_folder(Path("one"), ["video-03"], num_frames=5)
    assert cli.main(["train", "stored.yaml", "--trainer.enable_progress_bar=false"]) == 2
    assert "video-03.npz: no proposals of frame '00005' (1 of 6 frames are missing)" in error_of(capfd)


def test_stills_and_other_sizes(tmp_path: Path) -> None:
    import numpy as np

    from data_modules.clips.transforms import RawClip

    write_folder(tmp_path, ["still"], num_frames=2)
    write_folder(tmp_path, ["video"])
    source = StoredProposals([str(tmp_path)])
    frames = np.zeros((2, 48, 80, 3), np.uint8)
    with pytest.raises(ValueError, match="proposals of 2 frames for an image"):
        source.of_clip(RawClip(frames, frames[..., 0], "still", (0, 0)), None)
    with pytest.raises(ValueError, match="are of frames of 80x48, the frames are 40x48"):
        source.of_clip(RawClip(frames[:, :, :40], frames[:, :, :40, 0], "video", (0, 1)), ["00000", "00001"])
    # A scene is a video: each of its frames has its own proposals.
    data = ProposalsDataModule(SyntheticDataModule(num_train_videos=1, recipe=PLAIN), source)
    with pytest.raises(FileNotFoundError, match="no proposals of synthetic-train-00000"):
        data.setup("fit")


def test_videos_in_which_nothing_is_found_are_spoken_of(tmp_path: Path) -> None:
    source = StoredProposals([str(write_folder(tmp_path, ["one"], 4, lambda _: nothing_found()))])
    videos = ProposalVideos([make_named("one")], source)
    with pytest.warns(UserWarning, match="nothing in any frame of the 1 videos"):
        assert check_proposals([], [videos])
    write_folder(tmp_path, ["two"], 4)
    assert check_proposals([], [ProposalVideos([make_named("one"), make_named("two")], source)])
    assert not check_proposals([], [[make_named("one")]])


def make_named(name: str) -> Any:
    import dataclasses

    return dataclasses.replace(make_video(name), frame_names=tuple(NAMES))


def test_no_truth_no_proposals() -> None:
    import dataclasses

    video = make_video("v")
    assert ProposalsFromTruth().of_video(video).of_frame(3, make_frames(1)[0]).scores.any()
    without = dataclasses.replace(video, targets={0: video.targets[0]})
    with pytest.raises(ValueError, match=r"v: frame f00001 has no true mask to make proposals of \(3 frames lack one\)"):
        ProposalsFromTruth().of_video(without)


def test_a_video_without_proposals_is_named() -> None:
    engine = InferenceEngine(DMNAOA.small().eval(), DMNAOAModule(DMNAOA.small()).eval_propagation)
    with pytest.raises(ValueError, match="video 'bear' has no proposals"):
        next(engine.run(make_video("bear")))


def test_precomputing_says_where_nothing_is_found(video: Path, detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--weights", str(detector), "--architecture", "resnet18", "--num-classes", "2", "--device", "cpu"]
    for _ in range(2):  # computed, and there already
        more = ["--min-size", "32", "--max-size", "64", "--score-threshold", "0.99"]
        assert cli.main(["precompute-proposals", "--images", "v.mp4", "--output", "out", *weights, *more]) == 0
        assert "nothing was found in any frame of each of them" in capsys.readouterr().out
