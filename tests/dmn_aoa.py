"""Small networks of DMN-AOA: the full model and the rows of the paper that change its architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vos_lightning.attention.aoa import AlignmentOptions
from vos_lightning.decoders.coarse_masks import ProposalMatching
from vos_lightning.decoders.reference_refine import ReferenceRefinement
from vos_lightning.encoders.objects import ObjectOptions
from vos_lightning.networks.dmn_aoa import DMNAOA

SMALL: dict[str, Any] = {
    "blocks": (1, 1, 1, 1),
    "width": 4,
    "reduced_channels": (4, 6, 8),
    "groups": 2,
    "objects": ObjectOptions(channels=16, grid=3),
    "alignment": AlignmentOptions(channels=8, sharpness=6.0),
    "refinement": ReferenceRefinement(width=8),
}
PAPER: dict[str, dict[str, Any]] = {
    "F0": {},
    "A1": {"template": "first_frame", "matching": ProposalMatching(comparison="in_place")},
    "A2": {"matching": ProposalMatching(comparison="in_place")},
    "A3": {"template": "first_frame"},
    "A4": {"memory_features": "frame"},
    "A5": {"coarse": "template"},
    "A6": {"refinement": None},
}
"""Rows of the paper's Table 3 that differ in their architecture."""


def small(**arguments: Any) -> DMNAOA:
    """A random network in evaluation mode whose biases are not 0."""
    torch.manual_seed(0)
    network = DMNAOA.published(None, **{**SMALL, **arguments}).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return network
