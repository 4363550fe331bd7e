import pytest
import torch

from tests.oracles import segmentation_losses as oracle
from tests.tolerances import assert_close
from vos_lightning.losses.segmentation import (
    bootstrapped_binary_cross_entropy,
    bootstrapped_cross_entropy,
    cross_entropy,
    mask_iou_loss,
)

FRACTIONS = [0.4, 0.15, 1.0]


@pytest.fixture
def example():
    """Logits of two objects in three frames: with some pixels ignored, with an object that is not there, all ignored."""
    logits = torch.randn(3, 3, 6, 7) * 2
    labels = torch.randint(0, 3, (3, 6, 7), dtype=torch.uint8)
    labels[0, :2] = 255
    labels[1][labels[1] == 2] = 0
    labels[2] = 255
    return logits, labels


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_bootstrapped_cross_entropy_is_the_mean_of_the_hardest(example, fraction):
    logits, labels = example
    expected = [oracle.bootstrapped(p, label, fraction) for p, label in zip(logits.softmax(dim=1), labels, strict=True)]
    assert_close(bootstrapped_cross_entropy(logits, labels, fraction), torch.tensor(expected))


def test_all_pixels_are_plain_cross_entropy(example):
    logits, labels = example
    assert_close(bootstrapped_cross_entropy(logits, labels, 1.0), cross_entropy(logits, labels))


@pytest.mark.parametrize("objects", [[1, 2], [2], []], ids=["both", "second", "none"])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_object_losses_are_the_formulas(example, objects, fraction):
    logits, labels = (x[:2] for x in example)
    probabilities = logits.softmax(dim=1)
    which = torch.tensor([[n in objects for n in (1, 2)]] * 2)
    binary = bootstrapped_binary_cross_entropy(probabilities, labels, which, fraction)
    iou = mask_iou_loss(probabilities, labels, which)
    for b in range(2):
        assert float(binary[b]) == pytest.approx(
            oracle.bootstrapped_binary(probabilities[b], labels[b], objects, fraction), rel=1e-4
        )
        assert float(iou[b]) == pytest.approx(oracle.mask_iou(probabilities[b], labels[b], objects), rel=1e-4)


def test_losses_are_finite_at_the_ends_with_gradients():
    labels = torch.tensor([[[1, 0], [0, 255]]], dtype=torch.uint8)
    logits = torch.tensor([-200.0, 200.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone().requires_grad_()
    probabilities = logits.softmax(dim=1)
    one = torch.tensor([[True]])
    losses = [
        bootstrapped_cross_entropy(logits, labels, 0.4),
        bootstrapped_binary_cross_entropy(probabilities, labels, one, 0.4),
        mask_iou_loss(probabilities, labels, one),
        mask_iou_loss(probabilities, torch.full_like(labels, 255), one),
    ]
    torch.stack(losses).sum().backward()
    assert all(loss.isfinite().all() for loss in losses)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_fraction_is_in_range(example, fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        bootstrapped_cross_entropy(*example, fraction)
