import pytest
import torch

from tests.oracles import pmnet as oracle
from vos_lightning.losses.auxiliary import falling_fraction, mean_over_objects, uncertainty_loss


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1.0), (99, 1.0), (100, 1.0), (125, 0.85), (150, 0.7), (199, 0.406), (200, 0.4), (201, 0.4), (999, 0.4)],
)
def test_the_fraction_falls_on_a_line(step, expected):
    assert falling_fraction(step, 100, 200, 0.4) == pytest.approx(expected)


def test_the_fraction_falls_at_once_without_a_slope():
    assert [falling_fraction(step, 100, 100, 0.4) for step in (99, 100, 101)] == [1.0, 0.4, 0.4]


def test_mean_over_objects_is_a_mean_of_means():
    loss = torch.tensor([[[1.0, 3.0, 50.0], [7.0, 60.0, 70.0]], [[5.0, 50.0, 50.0], [50.0, 50.0, 50.0]]])
    counted = torch.tensor([[[True, True, False], [True, False, False]], [[True, False, False], [False, False, False]]])
    assert mean_over_objects(loss, counted).tolist() == [4.5, 5.0]
    assert mean_over_objects(loss, torch.zeros_like(counted)).tolist() == [0.0, 0.0]


def test_the_hardest_share_is_rounded_to_cells_and_never_empty():
    predicted = torch.tensor([[[[0.1, 0.9, 0.5, 0.7]]]])
    target = torch.tensor([[[[0.6, 0.5, 0.2, 0.1]]]])
    error = [0.5 * d**2 for d in (0.5, 0.4, 0.3, 0.6)]
    everything = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    by_prediction = [error[i] for i in (1, 3, 2, 0)]
    for ratio, kept in ((0.01, 1), (0.3, 1), (0.4, 2), (0.6, 2), (0.7, 3), (0.9, 4), (1.0, 4)):
        loss = float(uncertainty_loss(predicted, target, everything, ratio))
        assert loss == pytest.approx(sum(by_prediction[:kept]) / kept)
    assert float(uncertainty_loss(predicted, target, everything)) == pytest.approx(sum(error) / 4)


def test_only_counted_cells_are_among_the_hardest():
    predicted, target = torch.rand(2, 2, 5, 6), torch.rand(2, 2, 5, 6)
    counted = torch.rand(2, 2, 5, 6) < 0.3
    counted[1, 1] = False
    counted[1, 1, 2, 3] = True
    hidden = predicted.where(counted, torch.tensor(1.0))  # would be the most uncertain
    loss = uncertainty_loss(hidden, target, counted, 0.5)
    for b in range(2):
        each = [oracle.uncertainty_loss(predicted[b, n], target[b, n], counted[b, n], 0.5, "predicted") for n in range(2)]
        assert float(loss[b]) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_the_order_gets_no_gradient():
    predicted = torch.rand(1, 1, 4, 4, requires_grad=True)
    target = torch.rand(1, 1, 4, 4)
    uncertainty_loss(predicted, target, torch.ones(1, 1, 4, 4, dtype=torch.bool), 0.25).sum().backward()
    assert predicted.grad is not None
    hardest = predicted.detach().flatten().topk(4).indices
    expected = torch.zeros(16)
    expected[hardest] = (predicted.detach().flatten() - target.flatten())[hardest] / 4
    torch.testing.assert_close(predicted.grad.flatten(), expected)


@pytest.mark.parametrize(
    ("ratio", "hardest_by", "message"), [(0.0, "loss", "ratio"), (1.01, "loss", "ratio"), (1.0, "size", "hardest_by")]
)
def test_arguments_out_of_range_are_named(ratio, hardest_by, message):
    maps = torch.rand(1, 1, 2, 2)
    with pytest.raises(Exception, match=message):
        uncertainty_loss(maps, maps, torch.ones(1, 1, 2, 2, dtype=torch.bool), ratio, hardest_by)
