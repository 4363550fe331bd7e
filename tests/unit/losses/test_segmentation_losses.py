import math

import pytest
import torch

from tests.oracles import segmentation_losses as oracle
from tests.tolerances import assert_close
from vos_lightning.losses.segmentation import (
    bootstrapped_binary_cross_entropy,
    bootstrapped_cross_entropy,
    cross_entropy,
    foreground_iou,
    mask_iou_loss,
    trainable_labels,
)

FRACTIONS = [0.4, 0.15, 1.0, 0.01]


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


def test_cross_entropy_is_the_formula(example):
    logits, labels = example
    labels[1] = 255
    labels[1, 2, 3] = 2  # a single pixel counts
    expected = [oracle.cross_entropy(p, label) for p, label in zip(logits.softmax(dim=1), labels, strict=True)]
    assert_close(cross_entropy(logits, labels), torch.tensor(expected))
    assert expected[2] == 0


def test_foreground_iou_is_that_of_counting(example):
    logits, labels = example
    for rows in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3)):
        iou, visible = foreground_iou(logits[rows].softmax(dim=1), labels[rows])
        expected, number = oracle.foreground_iou(logits[rows], labels[rows])
        assert float(iou) == pytest.approx(expected, rel=1e-5)
        assert int(visible) == number


def test_labels_of_objects_that_nobody_has_given_are_ignored():
    labels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(2, 1, 1)
    found = trainable_labels(labels, torch.tensor([[True, False, True], [False, False, True]]))
    for row, hidden in zip(found.flatten(1).tolist(), ([2], [1, 2]), strict=True):
        assert row == [255 if value in hidden else value for value in range(256)]


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


def test_a_loss_does_not_leave_the_range_of_logarithms():
    """A pixel that is certainly wrong costs the logarithm of the smallest probability that is told apart from 0."""
    labels = torch.tensor([[[1]]], dtype=torch.uint8)
    wrong = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    loss = bootstrapped_binary_cross_entropy(wrong, labels, torch.tensor([[True]]), 1.0)
    assert float(loss) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize("fraction", [0.0, 1.0001])
def test_a_fraction_is_in_range(example, fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        bootstrapped_cross_entropy(*example, fraction)
