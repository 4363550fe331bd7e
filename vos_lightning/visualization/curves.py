"""J of every frame over time, for one or several systems, as a table and a picture.

``vos curves --truth DIR --predictions MUNet=DIR STM=DIR --videos soapbox --output DIR``
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageDraw, ImageFont

from vos_lightning.evaluation.folders import read_videos
from vos_lightning.evaluation.tasks import EvaluationError, PathLike
from vos_lightning.io.files import write_atomically
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.metrics.davis import scored_ids, scored_map
from vos_lightning.metrics.functional import region_similarity

CurveProtocol = Literal["davis16", "davis17"]

WIDTH, HEIGHT, MARGIN = 520, 260, 40
"""Width and height of a plot with its margins, and width of a margin, in pixels."""
PLOTS_PER_ROW = 3
# Distinguishable for colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008).
COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0))


@dataclass(frozen=True)
class FrameScore:
    """J of an object in a frame."""

    system: str
    video: str
    frame: str
    """Stem of the frame's files."""
    object_id: int
    J: float


def frame_scores(
    system: str, truth: PathLike, predictions: PathLike, protocol: CurveProtocol, videos: Sequence[str] | None = None
) -> list[FrameScore]:
    """J of every object in every frame that the protocol scores.

    Args:
        system: name of the system in the rows.
        truth: a folder of video folders of label-map PNGs.
        predictions: a folder of the same layout.
        protocol: which objects and frames count.
        videos: names of the videos; None means all folders of the truth.

    Raises:
        EvaluationError: files are missing or do not fit.
    """
    rows = []
    for video, stems, preds, target in read_videos(truth, predictions, protocol, videos):
        object_ids = scored_ids(target, protocol)
        # As in the benchmark, the first and the last frame do not count.
        values = region_similarity(scored_map(preds[1:-1], protocol), scored_map(target[1:-1], protocol), object_ids)
        rows += [
            FrameScore(system, video, stem, object_id, float(values[n, t]))
            for n, object_id in enumerate(object_ids)
            for t, stem in enumerate(stems[1:-1])
        ]
    return rows


def write_table(path: Path, rows: Sequence[FrameScore]) -> None:
    """Write rows as CSV, atomically."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(field.name for field in fields(FrameScore))
    writer.writerows(asdict(row).values() for row in rows)
    write_atomically(path, table.getvalue().encode())


def draw_curves(rows: Sequence[FrameScore]) -> Image.Image:
    """A plot for every video: the mean J of its objects over time, with a line for every system."""
    curves: dict[str, dict[str, list[float]]] = {}
    frames: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        frames.setdefault((row.video, row.system, row.frame), []).append(row.J)
    for (video, system, _), values in frames.items():
        curves.setdefault(video, {}).setdefault(system, []).append(sum(values) / len(values))
    systems = list(dict.fromkeys(row.system for row in rows))
    colours = {system: COLOURS[i % len(COLOURS)] for i, system in enumerate(systems)}
    columns = min(PLOTS_PER_ROW, max(len(curves), 1))
    canvas = Image.new("RGB", (columns * WIDTH, -(-max(len(curves), 1) // columns) * HEIGHT), (255, 255, 255))
    for i, (video, lines) in enumerate(curves.items()):
        row_index, column = divmod(i, columns)
        _plot(ImageDraw.Draw(canvas), (column * WIDTH, row_index * HEIGHT), video, lines, colours)
    return canvas


def _plot(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    title: str,
    lines: Mapping[str, Sequence[float]],
    colours: Mapping[str, tuple[int, int, int]],
) -> None:
    font = ImageFont.load_default(11)
    left, top = corner[0] + MARGIN, corner[1] + MARGIN
    width, height = WIDTH - MARGIN - 12, HEIGHT - 2 * MARGIN
    longest = max(len(values) for values in lines.values())

    def place(t: int, value: float) -> tuple[float, float]:
        return left + width * t / max(longest - 1, 1), top + height * (1 - value)

    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line((*place(0, level), left + width, place(0, level)[1]), fill=(225, 225, 225))
        draw.text((left - 30, place(0, level)[1] - 7), f"{level:.2f}", fill=(90, 90, 90), font=font)
    for t in sorted({0, (longest - 1) // 2, longest - 1}):
        # The first scored frame is the second of the video.
        draw.text((place(t, 0.0)[0] - 6, top + height + 4), str(t + 1), fill=(90, 90, 90), font=font)
    draw.text((left, corner[1] + 4), f"{title}: J per frame", fill=(0, 0, 0), font=font)
    offset = left
    for system, values in lines.items():
        points = [place(t, value) for t, value in enumerate(values)]
        draw.line(points if len(points) > 1 else points * 2, fill=colours[system], width=2, joint="curve")
        label = f"{system} {sum(values) / len(values):.3f}"
        draw.text((offset, corner[1] + 20), label, fill=colours[system], font=font)
        offset += int(draw.textlength(label, font=font)) + 14


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments of the command; None takes those of the process.

    Returns:
        0, or 2 after one line on stderr for each problem.
    """
    parser = argparse.ArgumentParser(prog="vos curves", description="J of every frame over time: frames.csv and curves.png.")
    parser.add_argument("--truth", type=Path, required=True, help="folder of video folders of label-map PNGs")
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="folders of the same layout, or outputs of test or predict, each with a name",
    )
    parser.add_argument("--protocol", choices=get_args(CurveProtocol), default="davis17")
    parser.add_argument("--videos", nargs="+", help="names of videos (default: all of the truth)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run of curves")
    arguments = parser.parse_args(argv)
    systems = [named.partition("=") for named in arguments.predictions]
    for named, (name, _, folder) in zip(arguments.predictions, systems, strict=True):
        if not (name and folder):
            raise ValueError(f"--predictions {named}: write NAME=DIR, with the name of the system")
    inputs = [arguments.truth, *(Path(folder) for _, _, folder in systems)]
    output = OutputFolder(arguments.output, "curves", inputs, arguments.overwrite)
    rows: list[FrameScore] = []
    for name, _, folder in systems:
        try:
            rows += frame_scores(name, arguments.truth, folder, arguments.protocol, arguments.videos)
        except EvaluationError as error:
            for problem in error.problems:
                sys.stderr.write(f"error: {problem}\n")
            return 2
    table = output.put("frames.csv", functools.partial(write_table, rows=rows))
    picture = output.put("curves.png", functools.partial(write_png, picture=draw_curves(rows)))
    output.finish()
    sys.stdout.write(f"{table}\n{picture}\n")
    return 0
