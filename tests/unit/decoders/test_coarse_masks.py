import pytest
import torch
from torch import Tensor

from tests.oracles import dmn_aoa as oracle
from tests.tolerances import assert_close
from vos_lightning.attention.aoa import AlignmentOptions
from vos_lightning.decoders.coarse_masks import ProposalMasks, ProposalMatching, SeenProposals, bounded
from vos_lightning.matching.assignment import AssignmentOptions
from vos_lightning.structures import Proposals

SIZE = (48, 64)
BOTH = torch.ones(1, 2, dtype=torch.bool)


def matched(kept: str = "all", *, training: bool) -> tuple[Tensor, dict[str, Tensor], SeenProposals]:
    """Coarse masks of two objects and five proposals, whose masks are 1 in their boxes."""
    torch.manual_seed(0)
    options = ProposalMatching(assignment=AssignmentOptions(eval_kept=kept))
    head = ProposalMasks(8, AlignmentOptions(channels=8), options, groups=2).train(training)
    low = torch.rand(1, 5, 2) * torch.tensor([40.0, 24])
    boxes = torch.cat([low, low + 12 + 8 * torch.rand(1, 5, 2)], dim=2)
    seen = head.see(Proposals(boxes, torch.ones(1, 5, 28, 28), torch.ones(1, 5)), torch.randn(1, 5, 8, 3, 3), SIZE)
    (masks,), aux = head(torch.randn(1, 2, 8, 3, 3), None, seen, BOTH, torch.zeros(1, 2, 12, 16))
    return masks, aux, seen


def test_the_gradient_of_the_winning_proposal_is_that_of_the_weighted_sum():
    """Its weight is above 1, so that a clamp would stop the gradient of nearly all of its pixels."""
    masks, aux, seen = matched(training=True)
    similarity = aux["similarity"].detach()[0].requires_grad_()
    weights = oracle.relaxed_matching(similarity, 10, 5, 0.1)["mean_pre"]
    best = weights.argmax(dim=1)
    inside = seen.pasted[0, best] > 0.9
    # The mean of the coarse mask over the pixels of the best proposal.
    expected = ((weights * (weights > 0.01)) @ seen.pasted[0].flatten(1)).view_as(inside)
    assert (expected[inside] > 1).float().mean() > 0.9
    (wanted,) = torch.autograd.grad(expected[inside].mean(), similarity)
    (found,) = torch.autograd.grad(masks[0][inside].mean(), aux["similarity"])
    assert_close(found[0], wanted)
    assert (wanted.gather(1, best[:, None]) > 0.02).all()
    assert_close(masks[0], expected.detach().clamp(0, 1))


@pytest.mark.parametrize("kept", ["all", "best"])
def test_masks_of_all_proposals_or_of_the_best_are_summed_at_inference(kept):
    masks, aux, seen = matched(kept, training=False)
    weights = oracle.relaxed_matching(aux["similarity"].detach()[0], 40, 5, 0.1)["mean_pre"]
    for n, row in enumerate(weights):
        chosen = [int(row.argmax())] if kept == "best" else [j for j in range(5) if row[j] > 0.01]
        assert len(chosen) > 1 or kept == "best"
        expected = sum((row[j] * seen.pasted[0, j] for j in chosen), torch.zeros(12, 16))
        assert_close(masks[0, n], expected.clamp(0, 1))


def test_bounded_values_keep_their_gradient():
    values = torch.tensor([-0.5, 0.25, 1.5], requires_grad=True)
    found = bounded(values, 0.0, 1.0)
    assert found.tolist() == [0, 0.25, 1]
    found.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [1, 2, 3]
