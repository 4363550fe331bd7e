"""An isometric start leaves what a backbone tells apart as it is: cosines of keys are the cosines of features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tolerances import assert_close
from vos_lightning.attention.aoa import AlignmentOptions
from vos_lightning.decoders.reference_refine import ReferenceRefinement
from vos_lightning.encoders.objects import ObjectOptions
from vos_lightning.encoders.projection import start_isometric
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.networks.stcn import STCN
from vos_lightning.networks.stm import STM
from vos_lightning.structures import FrameInput

CHANNELS = 64
"""Of the features at stride 16 in all networks below, and of their keys."""


def gram(features: Tensor) -> Tensor:
    """Inner products of all pairs of pixels of one map."""
    flat = features.flatten(2)
    return flat.transpose(1, 2) @ flat


def cosines(features: Tensor) -> Tensor:
    return gram(F.normalize(features.double(), dim=1))


def features_of(size: int = 6) -> Tensor:
    return torch.randn(1, CHANNELS, size, size + 1, dtype=torch.float64)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("more", [0, 9])
def test_inner_products_stay(kernel: int, more: int) -> None:
    layer = nn.Conv2d(CHANNELS, CHANNELS + more, kernel, padding=kernel // 2).double()
    features = features_of()
    start_isometric(layer)
    with torch.no_grad():
        assert_close(gram(layer(features)), gram(features))
        # A rotation mixes all channels.
        assert (layer(features)[:, :CHANNELS] - features).abs().mean() > 0.5


def test_pairs_pass_a_rectifier_without_loss() -> None:
    first = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1).double()
    second = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1).double()
    features = features_of()
    start_isometric(first, writes_pairs=True)
    start_isometric(second, reads_pairs=True)
    with torch.no_grad():
        pairs = first(features)
        assert_close(pairs[:, 0::2], -pairs[:, 1::2])
        assert_close(gram(second(F.relu(pairs))), gram(features))


def test_fewer_channels_are_a_projection() -> None:
    layer = nn.Conv2d(CHANNELS, 16, 1).double()
    start_isometric(layer)
    assert_close(layer.weight.flatten(1) @ layer.weight.flatten(1).T, torch.eye(16, dtype=torch.float64))


WIDE: dict[str, Any] = {"blocks": (1, 1, 1), "width": 4, "value_channels": 8, "key_channels": CHANNELS, "norm": "instance"}


def stm(**options: Any) -> STM:
    return STM.published(None, **WIDE, decoder_channels=8, **options)


def stcn(**options: Any) -> STCN:
    return STCN.published(None, **WIDE, value_blocks=(1, 1, 1), reduction=4, decoder_channels=(8, 8, 8), **options)


@pytest.mark.parametrize("copier_start", [False, True])
@pytest.mark.parametrize("build", [stm, stcn])
def test_keys_of_memory_networks(build: Any, copier_start: bool) -> None:
    def error(isometric: bool) -> float:
        torch.manual_seed(0)
        network = build(isometric_start=isometric, copier_start=copier_start).eval()
        features = network.encode(FrameInput(torch.rand(1, 3, 96, 112)))
        return (cosines(features.key) - cosines(features.pyramid.s16)).abs().max().item()

    with torch.no_grad():
        assert error(isometric=True) < 1e-4
        assert error(isometric=False) > 0.02


@pytest.mark.parametrize("copier_start", [False, True])
def test_memory_and_query_of_stm_have_the_same_rotation(copier_start: bool) -> None:
    network = stm(isometric_start=True, copier_start=copier_start, normalize_features=copier_start)
    assert network.memory_projection is not None
    own, theirs = network.memory_projection.key.weight, network.query_projection.key.weight
    assert torch.equal(own[:, -theirs.shape[1] :], theirs)
    assert not own[:, : -theirs.shape[1]].any()


@pytest.mark.parametrize("name", ["key", "cosine_key", "dot_key"])
def test_keys_of_matching_networks(name: str) -> None:
    def error(isometric: bool) -> float:
        torch.manual_seed(0)
        options = {"key_channels": 80, "normalize_fusion": True, "isometric_start": isometric}
        network: PMVOS | EMVOS
        if name == "key":
            network = PMVOS.published(
                None, "stem", "instance", (1, 1, 1, 1), 2, lateral_channels=8, decoder_channels=8, **options
            )
        else:
            network = EMVOS.published(None, "frozen", 8, (2, 2, 3), 8, decoder_channels=8, **options)
        features = network.eval().encode(FrameInput(torch.rand(1, 3, 96, 112)))
        return (cosines(getattr(features, name)) - cosines(network.key_norm(features.pyramid.s16))).abs().max().item()

    with torch.no_grad():
        assert error(isometric=True) < 1e-4
        assert error(isometric=False) > 0.02


def test_projections_of_dmn_aoa() -> None:
    """Two rectifiers and two group normalisations lie between the features and what is aligned by them."""

    def agreement(isometric: bool) -> float:
        torch.manual_seed(0)
        network = DMNAOA.published(
            None,
            "instance",
            blocks=(1, 1, 1, 1),
            width=4,
            reduced_channels=(4, 8, 2 * CHANNELS),
            groups=2,
            objects=ObjectOptions(channels=16, grid=4),
            alignment=AlignmentOptions(channels=2 * CHANNELS),
            refinement=ReferenceRefinement(width=8),
            coarse="template",
            isometric_start=isometric,
        ).eval()
        image = torch.rand(1, 3, 96, 112)
        features, seen = network.backbone(image).s16, network.encode(FrameInput(image))
        assert seen.as_query is not None
        assert seen.as_reference is not None
        if isometric:
            assert_close(seen.as_reference, seen.as_query)
        together = torch.stack([cosines(seen.as_query).flatten(), cosines(features).flatten()])
        return torch.corrcoef(together)[0, 1].item()

    with torch.no_grad():
        assert agreement(isometric=True) > 0.99
        assert agreement(isometric=False) < 0.95
