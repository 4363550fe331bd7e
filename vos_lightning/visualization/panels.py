"""Pictures of what a network computes: score maps, displacements, points and boxes over their frame.

A network returns everything worth drawing in the ``aux`` of ``segment``, on its own grid. :func:`frame_view` combines it with the
frame, and :mod:`vos_lightning.visualization.papers` turns it into named pictures with the functions here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vos_lightning.io.label_maps import PALETTE
from vos_lightning.mask_ops import Padding, PaddingRule, padding_for, unpad
from vos_lightning.structures import FramePrediction

BAR_WIDTH = 52
"""Width in pixels of the colour bar and its scale, to the right of a heat map."""
SHOWN = 0.65
"""Opacity of colours over a frame."""
# Dark to bright, so that a grey print shows the order too (the anchors of matplotlib's "inferno").
_ANCHORS = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")
# No tensor: one that is made during an import lives on the default device of whoever imports this first.
_COLOURS = [[int(anchor[i : i + 2], 16) for i in (0, 2, 4)] for anchor in _ANCHORS]


@dataclass(frozen=True)
class Panel:
    """A named picture."""

    title: str
    image: UInt8[Tensor, "3 H W"]
    """RGB image."""
    row: str = ""
    """Panels of the same row are placed side by side on a sheet."""


@dataclass(frozen=True)
class FrameView:
    """A frame and what the network computed for it, on the host and without the batch dimension."""

    frame: UInt8[Tensor, "3 H W"]
    """RGB image at the size at which the network worked, without padding."""
    probabilities: Float[Tensor, "N H W"]
    object_ids: tuple[int, ...]
    """Original ids of the ``N`` objects, in the order of the object slots in ``aux``."""
    aux: Mapping[str, Any]
    """Auxiliary outputs of ``segment`` for row 0 of the batch; tensors are in float32 on the host."""
    padding: Padding
    """Padding between the frame and the network's input."""

    def enlarge(self, maps: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch H W"]:
        """Enlarge maps on any grid over the padded frame bilinearly, and cut them to the frame."""
        height, width = self.frame.shape[-2:]
        padded = (
            height + self.padding.top + self.padding.bottom,
            width + self.padding.left + self.padding.right,
        )
        flat = maps.reshape(1, -1, *maps.shape[-2:]).float()
        large = flat if tuple(flat.shape[-2:]) == padded else F.interpolate(flat, padded, mode="bilinear", align_corners=False)
        return unpad(large, self.padding).reshape(*maps.shape[:-2], height, width)

    def place(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Convert points ``(x, y)`` from pixels of the padded frame to pixels of the frame."""
        return points - points.new_tensor([self.padding.left, self.padding.top])


def frame_view(prediction: FramePrediction, rule: PaddingRule, stride: int) -> FrameView:
    """Bring a frame and its prediction to the size at which the network worked.

    Args:
        prediction: prediction of the engine for a frame of uint8.
        rule: padding rule of the network.
        stride: stride of the network.
    """
    frame = prediction.frame
    size = prediction.processed_size or (int(frame.shape[1]), int(frame.shape[2]))
    seen = F.interpolate(frame[None].cpu().float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    probabilities = prediction.probabilities.cpu().float()
    if tuple(probabilities.shape[-2:]) != size and len(probabilities):
        probabilities = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]
    aux = {name: value[0].cpu().float() if isinstance(value, Tensor) else value for name, value in prediction.aux.items()}
    padding = padding_for(size[0], size[1], stride, rule.larger_half_first)
    return FrameView(seen, probabilities, prediction.object_ids, aux, padding)


# Maps -----------------------------------------------------------------------------------------------------------------


def heat_map(
    frame: UInt8[Tensor, "3 H W"], values: Float[Tensor, "H W"], low: float | None = None, high: float | None = None
) -> UInt8[Tensor, "3 H W2"]:
    """Values as colours over a grey frame, with a colour bar and its scale to the right.

    Args:
        frame: RGB image.
        values: values at the size of the frame.
        low: lower end of the scale; None for the smallest value.
        high: upper end of the scale; None for the largest value.

    Returns:
        Picture of width ``W2 = W + BAR_WIDTH``.
    """
    values = values.detach().float()
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    share = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    grey = frame.float().mean(dim=0, keepdim=True).expand(3, -1, -1)
    picture = torch.lerp(grey, _colour_of(share), SHOWN)
    return torch.cat([picture.round().to(torch.uint8), _colour_bar(frame.shape[1], low, high)], dim=2)


def score_panels(
    view: FrameView,
    scores: Float[Tensor, "N M h w"],
    names: Sequence[str],
    row: str = "",
    low: float | None = None,
    high: float | None = None,
) -> list[Panel]:
    """A heat map for every score map of every object.

    Args:
        view: the frame and its prediction.
        scores: score maps on a grid over the padded frame.
        names: names of the ``M`` maps.
        row: title of the row of an object's maps; the name of the object is put in front of it.
        low: lower end of all scales; None for the smallest value of each map, as in EMVOS's Figure 4.
        high: upper end of all scales; None for the largest value of each map.
    """
    large = view.enlarge(scores)
    return [
        Panel(name, heat_map(view.frame, large[n, m], low, high), f"object {object_id} {row}".rstrip())
        for n, object_id in enumerate(view.object_ids)
        for m, name in enumerate(names)
    ]


def probability_panels(view: FrameView) -> list[Panel]:
    """The final probability of every object, on the scale from 0 to 1."""
    return [
        Panel("probability", heat_map(view.frame, view.probabilities[n], 0.0, 1.0), f"object {object_id}")
        for n, object_id in enumerate(view.object_ids)
    ]


# Displacements, points and boxes --------------------------------------------------------------------------------------


def flow_map(
    frame: UInt8[Tensor, "3 H W"], displacement: Float[Tensor, "2 H W"], largest: float | None = None
) -> UInt8[Tensor, "3 H W"]:
    """Displacements as colours over a grey frame: hue is direction, saturation is length; a colour wheel explains them.

    Args:
        frame: RGB image.
        displacement: ``(dx, dy)`` in pixels or cells, at the size of the frame.
        largest: length that is shown with full saturation; None for the largest length.
    """
    displacement = displacement.detach().float()
    largest = float(displacement.norm(dim=0).max()) if largest is None else largest
    grey = frame.float().mean(dim=0, keepdim=True).expand(3, -1, -1)
    picture = torch.lerp(grey, _directions(displacement / max(largest, 1e-12)), SHOWN)
    size = max(24, min(frame.shape[1:]) // 5)
    if size <= min(frame.shape[1:]):
        axis = torch.linspace(-1, 1, size)
        wheel = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
        inside = wheel.norm(dim=0) <= 1
        corner = picture[:, :size, -size:]
        picture[:, :size, -size:] = torch.where(inside, _directions(wheel), corner)
    canvas = as_image(picture.round().to(torch.uint8))
    _text(ImageDraw.Draw(canvas), (4.0, 2.0), f"full colour = {_number(largest)}")
    return _tensor(canvas)


def draw_points(
    frame: UInt8[Tensor, "3 H W"],
    points: Float[Tensor, "K 2"],
    values: Float[Tensor, " K"] | None = None,
    radius: float = 3.0,
) -> UInt8[Tensor, "3 H W"]:
    """Draw points over a frame.

    Args:
        frame: RGB image.
        points: points ``(x, y)`` in pixels of the frame.
        values: values in [0, 1], shown as colours; None for one colour.
        radius: radius of a point in pixels.
    """
    canvas = as_image(frame)
    draw = ImageDraw.Draw(canvas)
    shares = torch.ones(len(points)) if values is None else values.detach().float().clamp(0, 1)
    colours = _colour_of(shares).round().int().t().tolist()
    for (x, y), colour in zip(points.tolist(), colours, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour), outline=(0, 0, 0))
    return _tensor(canvas)


def draw_boxes(
    frame: UInt8[Tensor, "3 H W"], boxes: Float[Tensor, "K 4"], weights: Float[Tensor, " K"] | None = None
) -> UInt8[Tensor, "3 H W"]:
    """Draw boxes over a frame, each with its weight; larger weights are more opaque.

    Args:
        frame: RGB image.
        boxes: corners ``x0 y0 x1 y1`` in pixels of the frame.
        weights: weights in [0, 1]; None draws the boxes alone.
    """
    canvas = as_image(frame).convert("RGBA")
    order = range(len(boxes)) if weights is None else weights.argsort().tolist()
    for k in order:
        layer = Image.new("RGBA", canvas.size)
        draw = ImageDraw.Draw(layer)
        weight = 1.0 if weights is None else float(weights[k].clamp(0, 1))
        colour = (*(int(c) for c in PALETTE[k % 21 + 1]), round(55 + 200 * weight))
        x0, y0, x1, y1 = boxes[k].tolist()
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=2)
        if weights is not None:
            _text(draw, (min(x0, x1) + 4, min(y0, y1) + 3), _number(float(weights[k])), colour[3])
        canvas = Image.alpha_composite(canvas, layer)
    return _tensor(canvas.convert("RGB"))


def as_image(picture: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """The picture as a Pillow image, which can be drawn on and saved."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


# Details --------------------------------------------------------------------------------------------------------------


def _colour_of(share: Tensor) -> Tensor:
    """Convert shares of the scale, of any shape, to RGB in front of that shape; linear between the anchors."""
    colours = share.new_tensor(_COLOURS)
    position = share * (len(_COLOURS) - 1)
    below = position.floor().long().clamp(0, len(_COLOURS) - 2)
    return torch.lerp(colours[below], colours[below + 1], (position - below).unsqueeze(-1)).movedim(-1, 0)


def _directions(vectors: Float[Tensor, "2 H W"]) -> Float[Tensor, "3 H W"]:
    """Colours of directions: the hue is the direction; white for length 0, full colour for length 1."""
    hue = (torch.atan2(vectors[1], vectors[0]) / (2 * math.pi)) % 1
    pure = (((hue * 6 + torch.tensor([0.0, 4.0, 2.0])[:, None, None]) % 6 - 3).abs() - 1).clamp(0, 1)
    return 255 * torch.lerp(torch.ones_like(pure), pure, vectors.norm(dim=0).clamp(max=1))


def _colour_bar(height: int, low: float, high: float) -> UInt8[Tensor, "3 H bar"]:
    shares = torch.linspace(1, 0, height)[:, None].expand(-1, 12)
    bar = torch.full((3, height, BAR_WIDTH), 24, dtype=torch.uint8)
    bar[:, :, 4:16] = _colour_of(shares).round().to(torch.uint8)
    canvas = as_image(bar)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (19.0, 0.0), _number(high))
    _text(draw, (19.0, height - 14.0), _number(low))
    return _tensor(canvas)


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.0e}"


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, opacity: int = 255) -> None:
    draw.text(at, text, fill=(245, 245, 245, opacity), font=ImageFont.load_default(10), stroke_width=1, stroke_fill=(0, 0, 0))


def _tensor(canvas: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()
