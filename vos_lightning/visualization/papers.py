"""The pictures of every paper: what a network has returned in ``aux``, drawn as its paper shows it.

A network whose class is not registered here is drawn with the probability of every object alone, so a new paper needs nothing in
this file. One that has more to show registers a function with ``@paper_panels.register(Network)``; subclasses inherit it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vos_lightning.decoders.coarse_masks import ProposalMasks
from vos_lightning.matching.alignment import correspondence
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.munet import MUNet
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.boxes import paste_masks
from vos_lightning.structures import FramePrediction
from vos_lightning.visualization.panels import (
    FrameView,
    Panel,
    draw_boxes,
    draw_points,
    flow_map,
    frame_view,
    heat_map,
    probability_panels,
    score_panels,
)


def panels_of(network: VOSNetwork[Any, Any, Any], prediction: FramePrediction) -> list[Panel]:
    """Pictures of what a network has computed for a frame: the probability of every object, and what its paper adds.

    Args:
        network: the network that made the prediction.
        prediction: prediction of the engine for a frame of uint8.

    Returns:
        The pictures at the size at which the network worked; an empty list where no object has been given yet.
    """
    view = frame_view(prediction, network.padding, network.stride)
    return probability_panels(view) + paper_panels(network, view)


@singledispatch
def paper_panels(network: VOSNetwork[Any, Any, Any], view: FrameView) -> list[Panel]:  # noqa: ARG001
    """What a paper shows of ``view.aux`` beside the probabilities: nothing, unless the network's class is registered.

    If nothing was predicted, as in the first frame, ``aux`` is empty.
    """
    return []


# EMVOS and PMVOS ------------------------------------------------------------------------------------------------------


@paper_panels.register(EMVOS)
def _emvos(network: EMVOS, view: FrameView) -> list[Panel]:
    """The score maps as in Figure 4, each on its own scale, with a row for every kind of matching."""
    panels: list[Panel] = []
    if "scores" in view.aux:
        names = network.score_names
        for first in range(0, len(names), 4):
            kind = names[first].split()[0]
            titles = [name.removeprefix(f"{kind} ") for name in names[first : first + 4]]
            panels += score_panels(view, view.aux["scores"][:, first : first + 4], titles, kind)
    return panels


@paper_panels.register(PMVOS)
def _pmvos(network: PMVOS, view: FrameView) -> list[Panel]:
    """The score maps of either class, then the maps after spatial and after channel attention, each on its own scale."""
    if "scores" not in view.aux:
        return []
    kinds = network.kinds
    scores, attended = view.aux["scores"], view.aux["attended"]
    groups = {"scores": scores}
    if attended.shape[2] > len(kinds):
        groups["after spatial attention"], groups["after channel attention"] = attended.chunk(2, dim=2)
    panels: list[Panel] = []
    for title, maps in groups.items():
        for k, side in enumerate(("background", "foreground")):
            panels += score_panels(view, maps[:, k], kinds, f"{side} {title}")
    return panels


# MUNet ----------------------------------------------------------------------------------------------------------------


@paper_panels.register(MUNet)
def _munet(network: MUNet, view: FrameView) -> list[Panel]:
    """Displacement as in Figure 5 (colours are directions), uncertainty in both polarities, attention as in Figure 7.

    The paper contradicts itself about the uncertainty map: equation 2 is the largest cosine, which is high where a match is
    sure, and Figure 6 says that moving regions have high uncertainty. Both are drawn.
    """
    panels = []
    if "displacement" in view.aux:
        # The displacement points to where a pixel came from, so motion is its negative.
        panels.append(Panel("motion", flow_map(view.frame, -view.enlarge(view.aux["displacement"])), "motion"))
    maps: dict[str, Tensor] = {}
    if "uncertainty" in view.aux:
        assert network.motion is not None
        shown = view.aux["uncertainty"]
        sure = 1 - shown if network.motion.options.uncertainty == "one_minus_maximum" else shown
        maps = {"match is sure (equation 2)": sure, "match is unsure (Figure 6)": 1 - sure}
    if "attention" in view.aux:
        maps["attention"] = view.aux["attention"]
    return panels + [Panel(title, heat_map(view.frame, view.enlarge(value)[0]), "motion") for title, value in maps.items()]


# PMNet ----------------------------------------------------------------------------------------------------------------


@paper_panels.register(PMNet)
def _pmnet(network: PMNet, view: FrameView) -> list[Panel]:
    """Uncertainty, points, masks before and after (the paper's Figure 4), and a followed memory pixel (its Figure 5)."""
    panels = []
    width = (view.frame.shape[2] + view.padding.left + view.padding.right) // 4
    for n, object_id in enumerate(view.object_ids):
        row = f"object {object_id}"
        if "points" in view.aux:
            chosen = view.aux["points"][n][view.aux["points_valid"][n] > 0]
            places = torch.stack([chosen % width, chosen.div(width, rounding_mode="floor")], dim=1) * 4 + 1.5
            panels.append(Panel("uncertainty", heat_map(view.frame, view.enlarge(view.aux["score"][n])), row))
            panels.append(Panel("points", draw_points(view.frame, view.place(places), radius=1.5), row))
            for title, name in (("before", "coarse"), ("after", "refined")):
                mask = view.enlarge(view.aux[name][n]).sigmoid()
                panels.append(Panel(title, heat_map(view.frame, mask, 0.0, 1.0), row))
        if "positions" in view.aux:
            panels.append(_followed_pixel(network, view, n, row))
    return panels


def _followed_pixel(network: PMNet, view: FrameView, n: int, row: str) -> Panel:
    """Weights around the pixel of the first remembered frame that is now nearest to the middle of an object.

    Its place in that frame and its present place are marked.
    """
    options = network.adaptive
    assert options is not None
    height, width = view.aux["coarse"].shape[-2] // 4, view.aux["coarse"].shape[-1] // 4
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1).flatten(0, 1).float()
    mass = view.aux["coarse"][n].sigmoid()
    share = F.adaptive_avg_pool2d(mass[None, None], (height, width)).flatten()
    middle = (grid * share[:, None]).sum(dim=0) / share.sum().clamp_min(1e-6)
    now = grid[view.aux["positions"][: height * width].long()]
    pixel = int((now - middle).norm(dim=1).argmin())
    spread = view.aux["spreads"][pixel].sqrt() if options.spread_is == "variance" else view.aux["spreads"][pixel]
    sigma = float(spread.clamp(options.smallest_sigma, options.sigma_bound))
    weights = (-(grid - now[pixel]).square().sum(dim=1) / (2 * sigma**2)).exp().view(height, width)
    picture = heat_map(view.frame, view.enlarge(weights), 0.0, 1.0)
    ends = torch.stack([grid[pixel], now[pixel]]) * 16 + 7.5
    drawn = draw_points(picture, view.place(ends), torch.tensor([0.3, 1.0]), radius=4.0)
    return Panel(f"memory pixel, sigma {sigma:.1f}", drawn, row)


# DMN-AOA --------------------------------------------------------------------------------------------------------------


@paper_panels.register(DMNAOA)
def _dmn_aoa(network: DMNAOA, view: FrameView) -> list[Panel]:
    """Coarse masks, proposals with their weights, and the alignment of the template's middle to the best proposal."""
    if "coarse" not in view.aux:
        return []
    panels = score_panels(view, view.aux["coarse"].unsqueeze(1), ["coarse mask"], "", 0.0, 1.0)
    if "assignment" not in view.aux or not view.aux["boxes"].numel():
        return panels
    boxes, assignment = view.aux["boxes"], view.aux["assignment"]
    exists = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    placed = view.place(boxes.view(-1, 2, 2)).flatten(1)
    for n, object_id in enumerate(view.object_ids):
        picture = draw_boxes(view.frame, placed[exists], assignment[n][exists])
        panels.append(Panel("proposals", picture, f"object {object_id}"))
    aligned = [_alignment(network, view, n, int(assignment[n].argmax())) for n in range(len(view.object_ids))]
    return panels + score_panels(view, torch.stack(aligned).unsqueeze(1), ["alignment of the middle"], "", 0.0, 1.0)


def _alignment(network: DMNAOA, view: FrameView, n: int, k: int) -> Float[Tensor, "H W"]:
    """Correspondence of the template's middle cell to the cells of a proposal, drawn into its box; its largest value is 1."""
    template, proposal = view.aux["template"][n], view.aux["projected"][k]
    grid = template.shape[-1]
    middle = template[:, grid // 2, grid // 2, None]
    assert isinstance(network.coarse_masks, ProposalMasks)
    sharpness = network.coarse_masks.matcher.sharpness()
    sharpness = sharpness if isinstance(sharpness, float) else float(sharpness.detach())
    weights = correspondence(middle[None], proposal.flatten(1)[None], sharpness).view(1, 1, grid, grid)
    height, width = (4 * side for side in view.aux["coarse"].shape[-2:])
    return paste_masks(weights / weights.max(), view.aux["boxes"][None, k : k + 1], height, width, stride=4)[0, 0]
