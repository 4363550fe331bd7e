"""Options of the networks that no paper uses, and what a network says beside its prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.clips import given_at, random_clip
from tests.pmnet import small as small_pmnet
from tests.tolerances import assert_close
from tests.unit.networks.test_pmvos import small as small_pmvos
from vos_lightning.mask_ops import Padding
from vos_lightning.matching.local_window import best_match
from vos_lightning.matching.trajectories import AdaptiveMatching, step_spread
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.networks.stcn import STCN
from vos_lightning.networks.stm import STM
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation, advance, encode, unroll
from vos_lightning.structures import FrameInput


@pytest.mark.parametrize(
    ("kind", "first"), [(EMVOS, True), (PMVOS, True), (STM, False), (STCN, False)], ids=["emvos", "pmvos", "stm", "stcn"]
)
def test_the_larger_half_of_an_odd_border_is_where_the_released_code_has_it(kind: Any, first: bool) -> None:
    """11 and 5 pixels more: on the left and top, or on the right and bottom."""
    with torch.no_grad():
        padding = encode(kind.small().eval(), FrameInput(torch.rand(1, 3, 37, 59))).padding
    assert padding == (Padding(left=3, right=2, top=6, bottom=5) if first else Padding(left=2, right=3, top=5, bottom=6))


def test_one_pixel_may_be_enough_for_a_query() -> None:
    network = STM.published(None, top_k=1, blocks=(1, 1, 1), width=8)
    assert network.top_k == 1


@pytest.mark.usefixtures("_types_are_not_checked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "local"}, r"^matching must be one of \('global', .*\), not 'local'$"),
        ({"medial": "mine"}, r"^medial must be one of \('paper', .*\), not 'mine'$"),
    ],
)
def test_unknown_options_of_pmvos_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_pmvos(**options)


@pytest.mark.parametrize("attention", [False, True])
def test_the_maps_of_pmvos_can_be_looked_at(attention: bool) -> None:
    """Before and after the attention, of every object."""
    network = small_pmvos(attention=attention).eval()
    frames, labels = random_clip(1, 2, 2, (48, 64))
    with torch.no_grad():
        given = {0: given_at(labels, 0, [1, 2], 2)}
        aux = unroll(network, Propagation(AnnotatedOnly(), "minimum", "join"), frames, given)[1].aux
        scores = aux["scores"]
        assert scores.shape == (1, 2, 2, 3, 3, 4)
        assert_close(aux["attended"], network.attention(scores.flatten(0, 2)).unflatten(0, (1, 2, 2)))
    assert aux.keys() == {"scores", "attended"}


@pytest.mark.parametrize("form", ["cosine", "exponential", "inverse_distance"])
def test_cells_are_followed_by_the_measure_of_their_spread(form: Any) -> None:
    """Cosines for the cosine, and the network's own distance for the others."""
    network = small_pmnet(adaptive=AdaptiveMatching(window=5, beta=6.0, spread_form=form))
    before, now = torch.randn(2, 2, 8, 4, 5)
    index, spread = network._step(before, now)
    match = best_match(before, now, 5, "cosine" if form == "cosine" else "l2")
    assert torch.equal(index, match.index.flatten(1))
    assert_close(spread, step_spread(match, 6.0, form, network.stcn.scale).flatten(1))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", [STCN, STM])
def test_features_may_be_normalised_before_anything_reads_them(kind: type[STCN | STM], normalize: bool) -> None:
    blocks: dict[str, Any] = {"value_blocks": (1, 1, 1), "reduction": 2} if kind is STCN else {}
    network = kind.published(None, blocks=(1, 1, 1), width=8, normalize_features=normalize, **blocks).eval()
    image = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        pyramid = network.pyramid(image) if isinstance(network, STM) else network.encode(FrameInput(image)).pyramid
        plain = (network.query_encoder if isinstance(network, STM) else network.key_encoder)(image)
    for scale in ("s4", "s8"):
        expected = F.instance_norm(getattr(plain, scale), eps=1e-5) if normalize else getattr(plain, scale)
        assert_close(getattr(pyramid, scale), expected)
    assert torch.equal(pyramid.s16, plain.s16) != normalize


def test_points_may_be_left_out_from_a_frame_on() -> None:
    """The same parameters: nothing is refined, although the memory has what points read, and nothing is remembered for them."""
    network, propagation = small_pmnet(), Propagation(EveryKth(1), "product")
    frames, labels = random_clip(1, 2, 2, (64, 80))
    with torch.no_grad():
        _, state = advance(network, propagation, None, FrameInput(frames[:, 0]), given_at(labels, 0, [1, 2], 2))
        assert state.memory.carry.fine is not None
        refined, with_points = advance(network, propagation, state, FrameInput(frames[:, 1]))
        coarse, without = advance(network.with_points_from("none"), propagation, state, FrameInput(frames[:, 1]))
    assert {"coarse", "points", "refined"} <= refined.aux.keys()
    assert coarse.aux.keys() == {"coarse", "positions", "spreads"}
    assert with_points.memory.carry.fine is not None
    assert without.memory.carry.fine is None
