"""Small pictures of segmented frames, and sheets of them, which show what a number means."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.pictures import write_png
from vos_lightning.structures import ClipSample
from vos_lightning.visualization.overlays import overlay
from vos_lightning.visualization.panels import Panel, as_image, draw_boxes

CAPTION_HEIGHT = 18
"""Height in pixels of the caption above a thumbnail."""
GAP = 4
"""Space in pixels between the pictures of a sheet."""
SHOWN_PROPOSALS = 8
"""Largest number of boxes over a frame of a training clip."""
TARGET_COLOUR = (255, 255, 255)
"""Colour of the annotation's outline; no object has it."""


def spread(length: int, count: int) -> tuple[int, ...]:
    """At most ``count`` frame indices from the first to the last of ``length``, evenly spaced."""
    count = min(length, count)
    return tuple(round(i * (length - 1) / max(count - 1, 1)) for i in range(count))


def thumbnail(
    frame: UInt8[Tensor, "3 H W"],
    label_map: UInt8[Tensor, "H W"],
    caption: str,
    target: UInt8[Tensor, "H W"] | None = None,
    height: int = 160,
) -> UInt8[Tensor, "3 h w"]:
    """A small picture of a frame: coloured objects, a caption, and the outline of the annotation in white.

    Args:
        frame: RGB image.
        label_map: prediction in original ids.
        caption: caption, one short line.
        target: annotation, if there is one; 255 counts as background.
        height: height of the picture without the caption, in pixels.

    Returns:
        ``(3, h, w)`` with ``h = height + CAPTION_HEIGHT``.
    """
    size = (height, max(1, round(height * frame.shape[2] / frame.shape[1])))
    # The label map is resized before it is coloured, so that outlines stay one pixel wide.
    small = F.interpolate(frame[None].float(), size=size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    picture = overlay(small, _resize_labels(label_map, size))
    if target is not None:
        labels = _resize_labels(target, size)
        labels[labels == 255] = 0
        picture[:, _inner_edges(labels)] = torch.tensor(TARGET_COLOUR, dtype=torch.uint8)[:, None]
    return torch.cat([_text_bar(caption, size[1]), picture], dim=1)


def clip_rows(clip: ClipSample, title: str, height: int = 160) -> list[list[UInt8[Tensor, "3 _h _w"]]]:
    """The frames of a training clip with its objects, and with the boxes of its best proposals if it has any.

    Args:
        clip: the clip; ignored pixels have the last colour of the palette.
        title: one line above the frames.
        height: height of a frame without its caption, in pixels.

    Returns:
        A row with the title and one with the frames, in whose captions are their indices in the video.
    """
    row = []
    for t, (frame, label_map) in enumerate(zip(clip.frames, clip.label_maps, strict=True)):
        picture = thumbnail(frame, label_map, f"frame {clip.frame_indices[t]}", height=height)
        if clip.proposals is not None:
            there = clip.proposals.scores[t] > 0
            boxes = clip.proposals.boxes[t][there][:SHOWN_PROPOSALS] * (height / frame.shape[1])
            picture = torch.cat([picture[:, :CAPTION_HEIGHT], draw_boxes(picture[:, CAPTION_HEIGHT:], boxes)], dim=1)
        row.append(picture)
    width = max(sum(picture.shape[2] + GAP for picture in row) - GAP, 8 * len(title))
    return [[_text_bar(title, width)], row]


def sheet(rows: Sequence[Sequence[UInt8[Tensor, "3 _h _w"]]]) -> Image.Image:
    """Arrange pictures in rows on a dark background; rows and pictures may differ in size.

    Args:
        rows: RGB pictures of every row.
    """
    heights = [max(p.shape[1] for p in row) for row in rows]
    widths = [sum(p.shape[2] + GAP for p in row) for row in rows]
    canvas = np.full((sum(h + GAP for h in heights) + GAP, max(widths) + GAP, 3), 24, dtype=np.uint8)
    top = GAP
    for row, row_height in zip(rows, heights, strict=True):
        left = GAP
        for picture in row:
            height, width = picture.shape[1:]
            canvas[top : top + height, left : left + width] = picture.permute(1, 2, 0).numpy()
            left += width + GAP
        top += row_height + GAP
    return Image.fromarray(canvas)


def contact_sheet(panels: Sequence[Panel], columns: int = 4, height: int = 200) -> Image.Image:
    """Arrange panels with their titles as captions; a row of panels fills one or several rows of the sheet.

    Args:
        panels: panels in order; those of one row need not be adjacent.
        columns: largest number of panels side by side.
        height: height of a panel without its caption, in pixels.
    """
    named: dict[str, list[Panel]] = {}
    for panel in panels:
        named.setdefault(panel.row, []).append(panel)
    rows = []
    for row, members in named.items():
        pictures = [_captioned(panel.image, f"{row} {panel.title}".strip(), height) for panel in members]
        rows += [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return sheet(rows)


def write_panels(output: OutputFolder, folder: str, panels: Sequence[Panel]) -> Path:
    """Write every panel at its full size, ``<row>_<title>.png``, and ``sheet.png`` with all of them.

    Args:
        output: where to write.
        folder: folder inside the output.
        panels: the panels, see :mod:`vos_lightning.visualization.panels`.

    Returns:
        Path of the sheet.
    """
    for panel in panels:
        name = re.sub(r"[^\w.+-]+", "_", f"{panel.row} {panel.title}".strip())
        output.put(f"{folder}/{name}.png", functools.partial(write_png, picture=as_image(panel.image)))
    return output.put(f"{folder}/sheet.png", functools.partial(write_png, picture=contact_sheet(panels)))


def _captioned(picture: UInt8[Tensor, "3 H W"], caption: str, height: int) -> UInt8[Tensor, "3 h w"]:
    size = (height, max(1, round(height * picture.shape[2] / picture.shape[1])))
    small = F.interpolate(picture[None].float(), size=size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    return torch.cat([_text_bar(caption, size[1]), small], dim=1)


def _resize_labels(label_map: Tensor, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    return F.interpolate(label_map[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(torch.uint8)


def _inner_edges(labels: UInt8[Tensor, "h w"]) -> Tensor:
    """Pixels of an object with another label to the left, right, above or below."""
    around = F.pad(labels[None].float(), (1, 1, 1, 1), mode="replicate")[0].to(torch.uint8)
    neighbours = torch.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
    return (labels > 0) & (neighbours != labels).any(dim=0)


def _text_bar(text: str, width: int) -> UInt8[Tensor, "3 c w"]:
    bar = Image.new("RGB", (width, CAPTION_HEIGHT), (24, 24, 24))
    ImageDraw.Draw(bar).text((2, 2), text, fill=(235, 235, 235), font=ImageFont.load_default(12))
    return torch.from_numpy(np.array(bar)).permute(2, 0, 1)
