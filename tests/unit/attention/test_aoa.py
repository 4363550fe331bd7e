import pytest
import torch

from tests.oracles import dmn_aoa as oracle
from tests.tolerances import assert_close
from vos_lightning.attention.aoa import AdaptiveObjectAlignment, AlignmentOptions, Sharpness, projector
from vos_lightning.matching.alignment import (
    Moves,
    aligned_similarity,
    correspondence,
    in_place_similarity,
    move_blocks,
    pooled_similarity,
)

SHARPNESS = 8.0
OPTIONS = AlignmentOptions(channels=4, sharpness=SHARPNESS)


def test_correspondence_and_moved_features():
    target, source = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    weights = correspondence(target, source, SHARPNESS)
    for b in range(2):
        expected, aligned = oracle.align(target[b], source[b], SHARPNESS)
        assert_close(weights[b], expected.t())
        assert_close((source @ weights)[b], aligned)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("top_k", [None, 1, 3, 6])
def test_moving_blocks(block, top_k):
    target, source = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    moves = Moves.of(correspondence(target, source, SHARPNESS), top_k)
    fine = torch.randn(2, 3, 2 * block, 3 * block)
    for b, moved in enumerate(move_blocks(moves, fine, block)):
        weights = oracle.align(target[b], source[b], SHARPNESS)[0]
        assert_close(moved, oracle.move_blocks(oracle.strongest(weights, top_k), fine[b], block))


@pytest.mark.parametrize("top_k", [3, 4, 5, 6, 7])
def test_the_strongest_moves_of_maps_that_differ_in_size(top_k):
    """Six source positions and four query positions."""
    weights = correspondence(torch.randn(2, 5, 4), torch.randn(2, 5, 6), SHARPNESS)
    moves = Moves.of(weights, top_k)
    assert (moves.index is None) == (top_k >= 6)
    dense = moves.weights if moves.index is None else torch.zeros_like(weights).scatter(1, moves.index, moves.weights)
    for b in range(2):
        assert_close(dense[b].t(), oracle.strongest(weights[b].t(), top_k))


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_is_moved_keeps_its_type(top_k):
    moves = Moves.of(correspondence(torch.randn(1, 5, 6), torch.randn(1, 5, 6), SHARPNESS), top_k)
    assert move_blocks(moves, torch.randn(1, 3, 4, 6).bfloat16(), 2).dtype == torch.bfloat16


def test_gradients_reach_few_and_all_moved_blocks():
    gradients = []
    for top_k in (5, 6):  # of six positions, the least of which has hardly a weight
        torch.manual_seed(0)
        target, source = (torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
        fine = torch.randn(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
        move_blocks(Moves.of(correspondence(target, source, 200.0), top_k), fine, 2).square().sum().backward()
        gradients.append([x.grad for x in (target, source, fine)])
    for few, every in zip(*gradients, strict=True):
        assert every.abs().max() > 0
        assert_close(few.float(), every.float())


def test_blocks_of_an_identical_frame_stay():
    features = torch.randn(1, 32, 6)
    fine = torch.randn(1, 3, 8, 12)
    assert_close(move_blocks(Moves.of(correspondence(features, features, 1000.0)), fine, 4), fine)


@pytest.mark.parametrize("pool", ["mean", "flat", "masked"])
@pytest.mark.parametrize("size", [1.0, 0.05], ids=["large", "small"])
def test_similarity_of_every_pair(pool, size):
    template, proposals = size * torch.randn(2, 3, 5, 4), size * torch.randn(2, 4, 5, 4)
    weights = size * torch.rand(2, 3, 4)
    found = aligned_similarity(template, proposals, SHARPNESS, pool, weights if pool == "masked" else None)
    assert found.shape == (2, 3, 4)
    for b in range(2):
        for n in range(3):
            for k in range(4):
                share = weights[b, n] if pool == "masked" else None
                assert_close(found[b, n, k], oracle.aligned_similarity(template[b, n], proposals[b, k], SHARPNESS, pool, share))


@pytest.mark.parametrize("pool", ["mean", "flat", "masked"])
@pytest.mark.parametrize("size", [1.0, 0.05], ids=["large", "small"])
def test_similarity_in_place(pool, size):
    template, proposals = size * torch.randn(2, 3, 5, 4), size * torch.randn(2, 4, 5, 4)
    weights = size * torch.rand(2, 3, 4)
    found = in_place_similarity(template, proposals, pool, weights if pool == "masked" else None)
    assert found.shape == (2, 3, 4)
    for b in range(2):
        for n in range(3):
            for k in range(4):
                share = weights[b, n] if pool == "masked" else None
                assert_close(found[b, n, k], oracle.pooled_cosines(template[b, n], proposals[b, k], pool, share))


def test_alignment_makes_a_moved_proposal_similar():
    template = torch.randn(1, 1, 16, 9)
    moved = template[..., torch.arange(9).roll(4)]
    other = torch.randn(1, 1, 16, 9)
    both = torch.cat([moved, other], dim=1)
    similarity = aligned_similarity(template, both, 100.0)
    assert similarity[0, 0, 0] > 0.99
    assert similarity[0, 0, 1] < 0.8
    assert in_place_similarity(template, both).max() < 0.8


def test_pooled_similarity():
    template, proposals = torch.randn(1, 2, 5, 4), torch.randn(1, 3, 5, 4)
    found = pooled_similarity(template, proposals)
    for n in range(2):
        for k in range(3):
            assert_close(found[0, n, k], oracle.cosine(template[0, n].mean(1), proposals[0, k].mean(1)))


def test_module_projects_then_compares():
    aoa = AdaptiveObjectAlignment(8, OPTIONS, groups=2)
    templates, proposals = torch.randn(1, 2, 8, 3, 3), torch.randn(1, 3, 8, 3, 3)
    left, right = aoa.project_templates(templates), aoa.project_proposals(proposals)
    assert_close(left[0, 1], aoa.template(templates[0, 1:])[0])
    assert_close(right[0, 2], aoa.proposal(proposals[0, 2:])[0])
    assert_close(aoa(left, right), aligned_similarity(left.flatten(3), right.flatten(3), SHARPNESS))
    for comparison, expected in (("pooled", pooled_similarity), ("in_place", in_place_similarity)):
        base = AdaptiveObjectAlignment(8, OPTIONS, comparison=comparison, groups=2)
        assert_close(base(left, right), expected(left.flatten(3), right.flatten(3)))
    assert aoa(left, right[:, :0]).shape == (1, 2, 0)


def test_projections_are_two_normalised_convolutions():
    block, x = projector(8, 4, groups=2), torch.randn(2, 8, 5, 3)
    for parameter in block[1].parameters():
        torch.nn.init.normal_(parameter)
    for b in range(2):
        assert_close(block(x)[b], oracle.project(x[b], block))
    assert [type(layer).__name__ for layer in block] == ["Conv2d", "GroupNorm", "ReLU", "Conv2d"]
    aoa = AdaptiveObjectAlignment()
    for part in (aoa.template, aoa.proposal):
        assert (part[0].in_channels, part[0].out_channels, part[1].num_groups) == (512, 256, 32)


@pytest.mark.parametrize(("comparison", "compare"), [("aligned", aligned_similarity), ("in_place", in_place_similarity)])
def test_positions_have_weights(comparison, compare):
    aoa = AdaptiveObjectAlignment(8, OPTIONS, pool="masked", comparison=comparison, groups=2)
    templates, proposals, weights = torch.randn(2, 2, 4, 3, 2), torch.randn(2, 3, 4, 3, 2), torch.rand(2, 2, 3, 2)
    sharpness = [SHARPNESS] if comparison == "aligned" else []
    expected = compare(templates.flatten(3), proposals.flatten(3), *sharpness, "masked", weights.flatten(2))
    assert_close(aoa(templates, proposals, weights), expected)


def test_sharpness_may_be_learned():
    options = AlignmentOptions(channels=4, sharpness=20.0, learned_sharpness=True)
    aoa = AdaptiveObjectAlignment(8, options, groups=2)
    aoa(torch.randn(1, 2, 4, 3, 3), torch.randn(1, 3, 4, 3, 3)).sum().backward()
    assert aoa.sharpness.logarithm.grad.abs() > 0
    assert_close(aoa.sharpness().detach(), torch.tensor(20.0))
    for comparison in ("pooled", "in_place"):
        assert AdaptiveObjectAlignment(8, options, comparison=comparison, groups=2).sharpness.logarithm is None
    assert Sharpness(20.0)() == 20.0
    assert Sharpness(20.0).logarithm is None
    assert AlignmentOptions(channels=1, sharpness=0.01).sharpness == 0.01
    with pytest.raises(ValueError, match=r"alignment\.channels"):
        AlignmentOptions(channels=0)
    with pytest.raises(ValueError, match=r"alignment\.sharpness"):
        AlignmentOptions(sharpness=0.0)


def test_masked_pooling_needs_weights():
    with pytest.raises(ValueError, match="position_weights"):
        aligned_similarity(torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 3), SHARPNESS, "masked")
