"""Pictures of what the network of every paper computes inside."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.clips import given_at, proposals_of, random_clip
from tests.networks import NETWORKS
from tests.tolerances import assert_close
from tests.unit.dummies import DummyNetwork, make_video
from vos_lightning.attention.msam import MotionOptions
from vos_lightning.matching.local_window import Confidence
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.munet import MUNet
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation, unroll
from vos_lightning.structures import FramePrediction
from vos_lightning.visualization import papers
from vos_lightning.visualization.panels import BAR_WIDTH, Panel
from vos_lightning.visualization.papers import panels_of

PROPAGATION = Propagation(AnnotatedOnly(), "minimum", "join")
IDS = (2, 7)
TINY = {"key_channels": 8, "value_channels": 8, "decoder_channels": 8, "blocks": (1, 1, 1), "width": 4}
VIDEO = make_video("v", length=2, ids=IDS)


def segmented(network: VOSNetwork, num_proposals: int = 4) -> list[FramePrediction]:
    """Two frames with their predictions; the objects 2 and 7 are given in the first."""
    engine = InferenceEngine(network.eval(), PROPAGATION)
    found = []
    for t, frame in enumerate(VIDEO.frames):
        proposals = proposals_of(network, frame[None] / 255, num_proposals)
        found.append(engine.step(frame, VIDEO.annotations.get(t), proposals=proposals))
    return found


def drawn(network: VOSNetwork) -> list[Panel]:
    """Panels of the second frame."""
    return panels_of(network, segmented(network)[1])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_given_frame_shows_its_probabilities_alone(name: str) -> None:
    network = NETWORKS[name].small()
    panels = panels_of(network, segmented(network)[0])
    assert [(p.row, p.title) for p in panels] == [(f"object {i}", "probability") for i in IDS]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_panels_of_a_predicted_frame(name: str) -> None:
    """They begin with the probabilities, have names of their own, and are at the size of the frame, with or without a scale."""
    panels = drawn(NETWORKS[name].small())
    assert [(p.row, p.title) for p in panels[:2]] == [(f"object {i}", "probability") for i in IDS]
    assert len({(p.row, p.title) for p in panels}) == len(panels)
    assert {p.image.shape for p in panels} <= {(3, 30, 45), (3, 30, 45 + BAR_WIDTH)}


def test_a_network_without_panels_of_its_own_shows_probabilities() -> None:
    for network in (DummyNetwork(), NETWORKS["stm"].small()):
        assert [p.title for p in drawn(network)] == ["probability"] * 2


def test_panels_hold_for_subclasses() -> None:
    class Variant(EMVOS):
        pass

    torch.manual_seed(0)
    network = EMVOS.small()
    variant = Variant.small()
    assert type(variant) is Variant
    variant.load_state_dict(network.state_dict())
    expected, panels = drawn(network), drawn(variant)
    assert [(p.row, p.title) for p in panels] == [(p.row, p.title) for p in expected]
    assert len(panels) > len(IDS)
    assert all(torch.equal(p.image, q.image) for p, q in zip(panels, expected, strict=True))


def test_no_object_no_panels() -> None:
    network = DummyNetwork()
    assert panels_of(network, InferenceEngine(network, PROPAGATION).step(VIDEO.frames[0])) == []


# Papers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "rows"),
    [
        (EMVOS.small(), {"surjective": 4, "equalized": 4}),
        (
            PMVOS.small(),
            {
                f"{side} {what}": 3
                for side in ("background", "foreground")
                for what in ("scores", "after spatial attention", "after channel attention")
            },
        ),
    ],
    ids=["emvos", "pmvos"],
)
def test_score_maps(network: EMVOS | PMVOS, rows: dict[str, int]) -> None:
    panels = drawn(network)
    expected = {"object 2": 1, "object 7": 1} | {f"object {i} {row}": n for i in IDS for row, n in rows.items()}
    assert Counter(p.row for p in panels) == expected
    assert all(p.image.shape == (3, 30, 45 + BAR_WIDTH) for p in panels)


def test_the_maps_of_emvos_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    network = EMVOS.small()
    scores = segmented(network)[1].aux["scores"]
    assert scores.shape == (1, 2, 8, 2, 3)
    assert network.score_names[5] == "equalized global foreground"
    assert (scores[:, :, 4:] <= 1).all()
    assert (scores[:, :, :4] >= 0).all()


SURE, UNSURE = "match is sure (equation 2)", "match is unsure (Figure 6)"


def test_munet_shows_motion_both_polarities_and_attention() -> None:
    assert [p.title for p in drawn(MUNet.small()) if p.row == "motion"] == ["motion", SURE, UNSURE, "attention"]


@pytest.mark.parametrize("form", ["maximum", "one_minus_maximum"])
def test_the_sure_picture_is_hot_where_the_cosine_is_large(form: Confidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two the network computes; the other picture is the opposite."""
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(papers, "heat_map", lambda frame, values, *_: (shown.append(values), frame)[1])
    torch.manual_seed(0)
    network = MUNet.published(None, motion=MotionOptions(window=5, reduced_channels=8, uncertainty=form), **TINY)
    prediction = segmented(network)[1]
    cosine = prediction.aux["uncertainty"] if form == "maximum" else 1 - prediction.aux["uncertainty"]
    shown.clear()
    panels_of(network, prediction)
    sure, unsure, _ = shown[-3:]
    assert sure.mean().item() == pytest.approx(cosine.mean().item(), abs=0.05)
    assert_close(sure + unsure, torch.ones_like(sure))
    assert sure.mean() > 0.6


def test_pmnet_shows_points_masks_before_and_after_and_a_followed_pixel() -> None:
    torch.manual_seed(0)
    panels = drawn(PMNet.small())
    for i in IDS:
        titles = [p.title for p in panels if p.row == f"object {i}"]
        assert titles[:-1] == ["probability", "uncertainty", "points", "before", "after"]
        assert titles[-1].startswith("memory pixel, sigma ")


def test_dmn_aoa_shows_proposals_alignment_and_both_masks() -> None:
    network = DMNAOA.small()
    titles = Counter(p.title for p in drawn(network))
    assert titles == dict.fromkeys(("probability", "coarse mask", "proposals", "alignment of the middle"), 2)


def test_dmn_aoa_without_proposals_shows_masks_alone() -> None:
    network = DMNAOA.small()
    panels = panels_of(network, segmented(network, num_proposals=0)[1])
    assert {p.title for p in panels} == {"probability", "coarse mask"}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_aux_has_a_row_for_every_clip(name: str) -> None:
    """Whatever a network shows is of tensors whose first dimension is the batch."""
    frames, labels = random_clip(2, 2, 2, (64, 80))
    network = NETWORKS[name].small().eval()
    proposals = proposals_of(network, frames.transpose(0, 1).flatten(0, 1))
    with torch.no_grad():
        outputs = unroll(network, PROPAGATION, frames, {0: given_at(labels, 0, [1, 2], 2)}, proposals)
    assert outputs[0].aux == {}
    assert all(value.shape[0] == 2 for value in outputs[1].aux.values() if isinstance(value, torch.Tensor))
