import pytest
import torch

from tests.oracles import matching_losses as oracle
from vos_lightning.losses.matching import greedy_assignment, matching_loss, soft_iou_loss

OBJECTS = [[0, 1, 2], [1], []]


def which(rows: list[list[int]], size: int) -> torch.Tensor:
    return torch.tensor([[n in row for n in range(size)] for row in rows])


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["large", "small"])
def test_soft_iou_is_the_formula(scale):
    """Small masks, too, whose sums are below one."""
    masks, truth = (scale * torch.rand(3, 3, 2, 5) for _ in range(2))
    loss = soft_iou_loss(masks, truth, which(OBJECTS, 3))
    expected = [oracle.soft_iou_loss(masks[b], truth[b], OBJECTS[b]) for b in range(3)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-4)
    assert expected[2] == 0


def test_soft_iou_of_nothing_is_lost():
    empty = torch.zeros(1, 1, 2, 2)
    assert soft_iou_loss(empty, empty, torch.ones(1, 1, dtype=torch.bool)).tolist() == [1.0]


@pytest.mark.parametrize("proposals", [[[0, 1, 2, 3], [0, 2, 3], [1]], [[], [3], [0, 1, 2, 3]]])
@pytest.mark.parametrize("size", [(4, 5), (1, 2)], ids=["many cells", "few cells"])
def test_matching_loss_is_the_squared_distance_to_the_greedy_assignment(proposals, size):
    """Also where masks are empty, objects or proposals do not exist, or only those that do not exist overlap."""
    similarity, truth = torch.rand(3, 3, 4), torch.rand(3, 3, *size)
    found = (0.6 * truth[:, [2, 0, 1, 0]] + 0.5 * torch.rand(3, 4, *size)).clamp_max(1)
    loss = matching_loss(similarity, found, truth, which(OBJECTS, 3), which(proposals, 4))
    expected = [oracle.matching_loss(similarity[b], found[b], truth[b], OBJECTS[b], proposals[b]) for b in range(3)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_assignment_is_by_share_and_not_by_number_of_cells():
    """The first proposal covers more of the first object, and much besides; the second object is large."""
    truth, found = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    truth[0, 0, 0, :4], truth[0, 1, 2:] = 1, 1
    found[0, 0, :2, :6], found[0, 1, 0, :2] = 1, 1
    found[0, 0, 0, 3] = 0
    both = torch.ones(1, 2, dtype=torch.bool)
    expected = oracle.matching_loss(torch.zeros(2, 2), found[0], truth[0], [0, 1], [0, 1])
    assert matching_loss(torch.zeros(1, 2, 2), found, truth, both, both).tolist() == [expected] == [0.25]
    right = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert matching_loss(right, found, truth, both, both).tolist() == [0.0]


def test_masks_are_cut_at_half():
    """A cell with exactly one half belongs to nothing."""
    one = torch.ones(1, 1, dtype=torch.bool)
    for mask, truth, assigned in ((0.5, 1.0, 0.0), (1.0, 0.5, 0.0), (0.6, 0.6, 1.0), (1.0, 1.0, 1.0)):
        maps = (torch.full((1, 1, 1, 1), mask), torch.full((1, 1, 1, 1), truth))
        assert matching_loss(torch.zeros(1, 1, 1), *maps, one, one).tolist() == [assigned]


def test_matching_loss_moves_the_similarities_alone():
    similarity = torch.rand(1, 2, 2, requires_grad=True)
    masks = torch.rand(1, 2, 3, 3, requires_grad=True)
    all_pairs = torch.ones(1, 2, dtype=torch.bool)
    matching_loss(similarity, masks, torch.rand(1, 2, 3, 3), all_pairs, all_pairs).sum().backward()
    assert similarity.grad is not None
    assert masks.grad is None


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5, 3)])
def test_greedy_assignment_is_that_of_sorted_pairs(size):
    overlap = torch.rand(4, *size) * (torch.rand(4, *size) < 0.6)
    found = greedy_assignment(overlap)
    for b in range(4):
        pairs = {(n, k): float(overlap[b, n, k]) for n in range(size[0]) for k in range(size[1])}
        expected = oracle.greedy(pairs)
        assert {(n, k) for n, k in pairs if found[b, n, k] == 1} == expected
        assert int((found[b] != 0).sum()) == len(expected)
