import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.oracles import dmn_aoa as oracle
from tests.tolerances import assert_close
from vos_lightning.losses.matching import greedy_assignment
from vos_lightning.matching.assignment import AssignmentOptions, prune, relaxed_assignment

OUTPUTS = ("mean_pre", "mean_post", "last")


def everything(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def solve(similarity: torch.Tensor, **options) -> torch.Tensor:
    batch, num_objects, num_proposals = similarity.shape
    return relaxed_assignment(similarity, everything(batch, num_objects), everything(batch, num_proposals), **options)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (3, 3), (4, 2), (1, 1), (3, 1)])
def test_equals_the_lists_of_iterates(output, shape):
    similarity = torch.rand(2, *shape) * 1.2 - 0.3
    found = solve(similarity, num_steps=7, num_sweeps=3, output=output)
    for b in range(2):
        assert_close(found[b], oracle.relaxed_matching(similarity[b], 7, 3, 0.1)[output])


def test_defaults_are_those_of_training():
    similarity = torch.rand(2, 3, 5)
    options = AssignmentOptions()
    explicit = {"num_steps": options.train_steps, "num_sweeps": options.sweeps, "step_size": options.step_size}
    assert torch.equal(solve(similarity), solve(similarity, **explicit, output=options.output, null_column=False))
    assert (explicit, options.eval_steps) == ({"num_steps": 10, "num_sweeps": 5, "step_size": 0.1}, 40)


def test_figures_of_the_released_layer():
    """Printed by DMM-Net's released layer for one object."""
    similarity = torch.tensor([[[0.9, 0.8, 0.5, 0.2, -0.1]]])
    expected = {"mean_pre": [1.075, 0.101, 0.038, 0.011, -0.016], "last": [0.990, 0.039, -0.010, -0.010, -0.010]}
    for output, values in expected.items():
        found = solve(similarity, num_steps=10, num_sweeps=5, output=output)[0, 0]
        assert (found - torch.tensor(values)).abs().max() < 6e-4
    assert solve(similarity).sum().item() == pytest.approx(1.21, abs=5e-3)


def test_gradient_of_the_mean_and_of_the_last_iterate():
    similarity = (torch.rand(1, 3, 30) * 0.6 + 0.2).requires_grad_()
    chosen = int(solve(similarity)[0, 0].argmax())
    (mean,) = torch.autograd.grad(solve(similarity)[0, 0, chosen], similarity)
    (last,) = torch.autograd.grad(solve(similarity, output="last")[0, 0, chosen], similarity)
    assert 0.08 < mean[0, 0, chosen] < 0.14
    assert last.abs().max() < 0.05 < mean.abs().max()


def test_rows_of_the_mean_are_no_distribution():
    found = solve(torch.rand(1, 3, 30) * 0.6 + 0.2, num_steps=40)
    assert ((found.sum(dim=2) > 2) & (found.sum(dim=2) < 3)).all()
    assert 1 < found.max() < 1.1


def test_converged_form_is_the_optimal_assignment():
    similarity = torch.rand(6, 4, 9)
    with torch.no_grad():
        found = solve(similarity, num_steps=120, num_sweeps=20, step_size=0.5, output="last")
    for b in range(6):
        _, best = linear_sum_assignment(-similarity[b].numpy())
        assert found[b].argmax(dim=1).tolist() == best.tolist()
        assert found[b].amax(dim=1).min() > 0.5
        assert_close(found[b].sum(dim=1), torch.ones(4))


def test_two_objects_do_not_share_a_proposal():
    similarity = torch.tensor([[[0.9, 0.8, 0.1], [0.95, 0.2, 0.1]]])
    assert solve(similarity, num_steps=40)[0].argmax(dim=1).tolist() == [1, 0]


def test_missing_objects_and_proposals_change_nothing():
    similarity = torch.rand(1, 3, 6)
    alone = solve(similarity[:, :2, :4])
    objects, proposals = everything(1, 3), everything(1, 6)
    objects[:, 2] = False
    proposals[:, 4:] = False
    found = relaxed_assignment(similarity, objects, proposals)
    assert_close(found[:, :2, :4], alone)
    assert found[:, 2].eq(0).all()
    assert found[:, :, 4:].eq(0).all()
    # Two of the columns take the part of the added ones, wherever they are.
    proposals = torch.tensor([[True, False, True, False, False, False]])
    mixed = relaxed_assignment(similarity, objects, proposals)
    assert_close(mixed[:, :2, [0, 2]], solve(similarity[:, :2, [0, 2]]))


def test_a_clip_does_not_depend_on_its_batch_mates():
    """Clips with few and many objects, few and many proposals, and similarities of either sign."""
    similarity = torch.rand(4, 3, 6)
    similarity[1::2] -= 1
    objects = torch.arange(3) < torch.tensor([[1], [3], [3], [2]])
    proposals = torch.arange(6) < torch.tensor([[1], [6], [2], [2]])
    together = relaxed_assignment(similarity, objects, proposals)
    for b in range(4):
        num_objects, num_proposals = int(objects[b].sum()), int(proposals[b].sum())
        assert_close(together[b, :num_objects, :num_proposals], solve(similarity[b : b + 1, :num_objects, :num_proposals])[0])


def test_a_proposal_that_does_not_exist_may_come_first():
    """The second object resembles no proposal most, and starts with the first one that exists."""
    similarity = torch.tensor([[[0.2, 0.9, 0.8, 0.7], [0.9, 0.1, 0.2, 0.3]]])
    proposals = torch.tensor([[False, True, True, True]])
    found = relaxed_assignment(similarity, everything(1, 2), proposals)
    assert_close(found[:, :, 1:], solve(similarity[:, :, 1:]))


def test_no_proposal_and_no_object():
    assert solve(torch.rand(2, 3, 0)).shape == (2, 3, 0)
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert relaxed_assignment(torch.rand(2, 3, 4), none, everything(2, 4)).eq(0).all()


def test_order_of_the_objects_does_not_matter():
    similarity = torch.rand(1, 3, 2)
    order = [2, 0, 1]
    assert_close(solve(similarity[:, order]), solve(similarity)[:, order])


def test_null_column_takes_what_resembles_nothing():
    similarity = torch.tensor([[[0.9, -0.5, -0.5, -0.5], [-0.6, -0.5, -0.7, -0.6], [-0.6, -0.5, -0.7, -0.6]]])
    found = solve(similarity, num_steps=40, output="last", null_column=True)[0]
    assert found[0, 0] > 0.8
    assert found[1:].max() < 0.2
    forced = solve(similarity, num_steps=40, output="last")[0]
    assert forced[1:].max() > 0.5


def test_pruning():
    assignment = torch.tensor([[[1.05, 0.2, 0.01, -0.1], [0.3, 0.9, 0.005, 0.02]]])
    assert_close(prune(assignment, "best"), torch.tensor([[[1.05, 0, 0, 0], [0, 0.9, 0, 0]]]))
    assert_close(prune(assignment, "all"), torch.tensor([[[1.05, 0.2, 0, 0], [0.3, 0.9, 0, 0.02]]]))


@pytest.mark.parametrize("kept", ["best", "all"])
def test_without_proposals_there_is_nothing_to_prune(kept):
    assert prune(torch.zeros(2, 3, 0), kept).shape == (2, 3, 0)


def test_greedy_targets():
    overlap = torch.tensor([[[0.5, 0.9, 0.0], [0.6, 0.8, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.1, 0.0]]])
    expected = torch.tensor([[[0.0, 1, 0], [1, 0, 0]], [[0, 0, 0], [0, 1, 0]]])
    assert_close(greedy_assignment(overlap), expected)


def test_an_unknown_output_is_named():
    with pytest.raises(Exception, match="output"):
        solve(torch.rand(1, 1, 2), output="median")
