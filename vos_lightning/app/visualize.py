"""The command ``visualize``: what a network computes for chosen frames, as pictures."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vos_lightning.app.composition import value_at
from vos_lightning.app.experiments import load_experiment, parts_of
from vos_lightning.app.options import add_mask_options, add_proposal_options, at_least
from vos_lightning.app.scoring import add_weight_options, load_trained

if TYPE_CHECKING:
    from vos_lightning.io.outputs import OutputFolder
    from vos_lightning.modules.base import VOSModule
    from vos_lightning.structures import VideoSample


def main(argv: Sequence[str]) -> int:
    """Draw intermediate results of a network for frames of a video, or the clips of a training."""
    known, overrides = _parser().parse_known_args(argv)
    if known.clips is not None:
        return _clips(known, overrides)
    if known.video is None or known.frame is None:
        raise ValueError("--video and --frame are needed, or --clips for clips of a training")
    if min(known.frame) < 0:
        raise ValueError(f"--frame {min(known.frame)}: frames count from 0")

    from vos_lightning.io.outputs import OutputFolder

    if known.experiment is None:
        if known.checkpoint is None or known.masks is None:
            raise ValueError("without an experiment, --checkpoint and --masks are needed")
        if overrides:
            raise ValueError(f"unknown option {overrides[0]}")
        inputs = (Path(known.video), known.masks, known.checkpoint, known.proposals)
        output = OutputFolder(known.output, "visualize", inputs, known.overwrite)
        module, video = _own_video(known)
    else:
        if known.proposals is not None or known.detector is not None:
            raise ValueError("--proposals and --detector are for a video of your own; an experiment's data have their proposals")
        output = OutputFolder(known.output, "visualize", (known.checkpoint,), known.overwrite)
        module, video = _video_of_data_set(known, overrides)
    for sheet in draw(module, video, known.frame, output):
        sys.stdout.write(f"{sheet}\n")
    note = getattr(video.proposals, "note", None)
    if note is not None:
        sys.stdout.write(f"{note}\n")
    return 0


def _clips(known: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Draw clips of every stage of an experiment: ``<output>/<experiment>.png``, a row for each clip."""
    from vos_lightning.app.data import data_of
    from vos_lightning.io.outputs import OutputFolder
    from vos_lightning.io.pictures import write_png
    from vos_lightning.visualization.sheets import clip_rows, sheet

    others = ("video", "frame", "masks", "checkpoint", "select", "proposals", "detector")
    unused = next((f"--{name}" for name in others if getattr(known, name) is not None), None)
    if known.experiment is None or unused:
        raise ValueError(f"--clips draws clips of an experiment: name one{f', and leave {unused} out' if unused else ''}")
    experiment = load_experiment(known.experiment)
    parts = parts_of(experiment)
    for part in parts:
        if part.checkpoint_of:
            raise ValueError(f"{part.name} evaluates the checkpoint of {part.checkpoint_of}: name that, which is trained")
    output = OutputFolder(known.output, "visualize", (), known.overwrite)
    for part in parts:
        data, _ = data_of(part, overrides)
        if not hasattr(data, "clips_of_training"):
            raise ValueError(f"{part.name}: {type(data).__name__} draws no clips: derive it from data_modules.base.VOSDataModule")
        steps = value_at(part.config, "trainer.max_steps")
        clips = data.clips_of_training(known.clips, steps)
        rows = [row for step, clip in clips for row in clip_rows(clip, f"step {step}: {clip.video_name}")]
        place = output.put(f"{part.name}.png", functools.partial(write_png, picture=sheet(rows)))
        sys.stdout.write(f"{place}\n")
    output.finish()
    return 0


def draw(module: VOSModule, video: VideoSample, frames: Sequence[int], output: OutputFolder) -> list[Path]:
    """Draw frames of a video; frames after the last requested one are not segmented.

    Args:
        module: module whose network is drawn.
        video: the video.
        frames: frame indices, counted from 0.
        output: ``<output>/<frame>/<row>_<title>.png`` for every panel, and ``<output>/<frame>/sheet.png`` with all of them.

    Returns:
        Paths of the sheets.

    Raises:
        ValueError: the video is too short, or nothing is predicted in a frame.
    """
    from vos_lightning.visualization.papers import panels_of
    from vos_lightning.visualization.sheets import write_panels

    sheets, index = [], -1
    for prediction in module.engine().run(video):
        index = prediction.frame_index
        if index in frames:
            panels = panels_of(module.network, prediction)
            if not panels:
                raise ValueError(f"frame {index}: no object is annotated up to here, so there is nothing to draw")
            sheets.append(write_panels(output, video.name_of(index), panels))
        if index >= max(frames):
            output.finish()
            return sheets
    raise ValueError(f"frame {max(frames)}: the video has frames 0 to {index}")


def _own_video(known: argparse.Namespace) -> tuple[Any, VideoSample]:
    from vos_lightning.app.own_videos import read_masks
    from vos_lightning.app.torch_backend import open_proposals
    from vos_lightning.checkpoints.loading import load_module
    from vos_lightning.io.given_masks import own_video
    from vos_lightning.io.videos import open_frames

    frames = open_frames(known.video)
    masks = read_masks(known.masks, frames, known)
    module = load_module(known.checkpoint)
    return module, own_video(frames, masks, open_proposals(module.network, frames, known.proposals, known.detector))


def _video_of_data_set(known: argparse.Namespace, overrides: Sequence[str]) -> tuple[Any, VideoSample]:
    cli = load_trained(known, overrides, "test").cli
    videos = {video.name: video for split in (cli.datamodule.test_videos, cli.datamodule.val_videos) for video in split()}
    if known.video not in videos:
        raise ValueError(f"--video {known.video}: there are {', '.join(list(videos)[:20])} ...")
    return cli.model.eval(), videos[known.video]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos visualize",
        allow_abbrev=False,  # unknown arguments are options of the experiment
        description="Draw intermediate results of a network (score maps ...) for frames of a video: one of an experiment's "
        "test or validation videos, or your own. With --clips, draw clips that the trainings of an experiment get.",
        epilog="With EXP, every other option overrides the experiment, as in `train`; with --clips, those of its data do.",
    )
    parser.add_argument(
        "experiment", metavar="EXP", nargs="?", help="name from `list`, or a YAML file; leave it out for your own video"
    )
    parser.add_argument("--run-dir", type=Path, help="default: runs/EXP")
    add_weight_options(parser)
    parser.add_argument(
        "--clips",
        type=at_least(1),
        metavar="N",
        help="draw N clips of every stage of EXP, from the beginning to the end of its training; neither a network nor a GPU is "
        "needed",
    )
    parser.add_argument("--video", metavar="NAME", help="name in the data set; without EXP: a file or folder")
    parser.add_argument("--masks", type=Path, help="without EXP: mask of the first frame, or folder of masks, as for `segment`")
    add_proposal_options(parser)
    parser.add_argument("--frame", type=int, nargs="+", metavar="T", help="frame indices, counted from 0")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run of visualize")
    add_mask_options(parser)
    return parser
